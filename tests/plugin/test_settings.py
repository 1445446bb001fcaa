"""Options: where a value may come from, which one wins, and what is said of a bad one."""

import pytest

SHOW = """
    def pytest_report_header(config):
        (settings,) = [value for value in config.stash._storage.values() if type(value).__name__ == "Settings"]
        return f"settings: {settings}"
"""


@pytest.fixture
def settings(pytester, monkeypatch):
    """A function that starts a session with values from three sources; returns its result."""

    def start(args=(), env=None, ini=None):
        for name, value in (env or {}).items():
            monkeypatch.setenv(name, value)
        if ini:
            pytester.makeini("[pytest]\n" + "".join(f"{name} = {value}\n" for name, value in ini.items()))
        pytester.makeconftest(SHOW)
        pytester.makepyfile("def test_nothing(): pass")
        return pytester.runpytest_inprocess(*args)

    return start


ENV, INI = "PYTEST_ISOLATION_LOG_LINES", "isolation_log_lines"


@pytest.mark.parametrize(
    "args, env, ini, expected",
    [
        ([], {}, {}, "strict=False, log_lines=50"),
        ([], {}, {INI: "7"}, "log_lines=7"),
        ([], {ENV: "8"}, {INI: "7"}, "log_lines=8"),
        (["--isolation-log-lines=9"], {ENV: "8"}, {INI: "7"}, "log_lines=9"),
        (["--isolation-log-lines=0"], {ENV: "8"}, {INI: "7"}, "log_lines=0"),
        ([], {ENV: "0"}, {INI: "7"}, "log_lines=0"),
        ([], {}, {INI: "0"}, "log_lines=0"),
        (["--isolation-strict"], {}, {}, "strict=True"),
        ([], {"PYTEST_ISOLATION_STRICT": "1"}, {}, "strict=True"),
        ([], {"PYTEST_ISOLATION_STRICT": "ON"}, {}, "strict=True"),
        ([], {"PYTEST_ISOLATION_STRICT": "no"}, {"isolation_strict": "true"}, "strict=False"),
        ([], {}, {"isolation_strict": "yes"}, "strict=True"),
        (["--isolation-strict"], {"PYTEST_ISOLATION_STRICT": "0"}, {"isolation_strict": "false"}, "strict=True"),
    ],
)
def test_command_line_then_environment_then_ini_then_default(settings, args, env, ini, expected):
    """The first source that has a value wins, a value that reads false included."""
    result = settings(args, env, ini)
    assert result.ret == 0
    (line,) = [line for line in result.stdout.lines if line.startswith("settings: ")]
    assert expected in line


@pytest.mark.parametrize(
    "args, env, ini, words",
    [
        (["--isolation-log-lines=-1"], {}, {}, ["--isolation-log-lines='-1'", "a number of lines, 0 or more"]),
        (["--isolation-log-lines=many"], {}, {}, ["--isolation-log-lines='many'", "0 or more"]),
        (["--isolation-log-lines="], {}, {}, ["--isolation-log-lines=''", "0 or more"]),
        (["--isolation-log-lines=\u00b2"], {}, {}, ["--isolation-log-lines='\u00b2'", "0 or more"]),
        ([], {ENV: "1.5"}, {}, [f"environment variable {ENV}='1.5'", "0 or more"]),
        ([], {ENV: ""}, {}, [f"environment variable {ENV}=''", "0 or more"]),
        ([], {}, {INI: "x"}, [f"ini option {INI}='x'", "0 or more"]),
        ([], {"PYTEST_ISOLATION_STRICT": "maybe"}, {}, ["PYTEST_ISOLATION_STRICT='maybe'", "true", "false", "yes"]),
        ([], {"PYTEST_ISOLATION_STRICT": ""}, {}, ["PYTEST_ISOLATION_STRICT=''", "true", "false"]),
        ([], {}, {"isolation_strict": "2"}, ["ini option isolation_strict='2'", "true", "false"]),
    ],
)
def test_a_bad_value_ends_the_session_and_is_named_with_its_source(settings, args, env, ini, words):
    """A UsageError before anything is collected; what is allowed stands there too."""
    result = settings(args, env, ini)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    text = result.stderr.str()
    for word in words:
        assert word in text
    assert "Traceback" not in text
    assert "passed" not in result.stdout.str()


@pytest.mark.parametrize("args", [["--isolation-x"], ["--isolation-strict=maybe"]])
def test_an_unknown_option_is_a_usage_error(settings, args):
    """A misspelt option does not pass silently."""
    result = settings(args)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--isolation-" in result.stderr.str()


def test_an_unknown_ini_value_is_named(settings):
    """With pytest's own --strict-config."""
    result = settings(["--strict-config"], ini={"isolation_x": "1"})
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "isolation_x" in result.stderr.str()


@pytest.mark.parametrize(
    "marker, words",
    [
        ("isolation(True)", "isolation(True): allowed is strict=True or strict=False"),
        ("isolation(strict=1)", "isolation(strict=1): allowed are True and False"),
        ("isolation(strikt=True)", "isolation(strikt=): allowed is strict=True or strict=False"),
    ],
)
def test_bad_marker_arguments_are_an_error_of_that_test(pytester, marker, words):
    """The test is not run, and the message names it."""
    pytester.makepyfile(
        f"""
        import pytest
        @pytest.mark.{marker}
        def test_marked():
            print("it ran")
        """
    )
    result = pytester.runpytest_inprocess()
    assert result.ret != 0
    text = result.stdout.str() + result.stderr.str()
    assert "test_bad_marker_arguments_are_an_error_of_that_test.py::test_marked" in text
    assert words in text
    assert "it ran" not in text


def test_the_marker_is_known_to_strict_markers(pytester):
    """`--strict-markers` takes it."""
    pytester.makepyfile(
        """
        import pytest
        @pytest.mark.isolation(strict=True)
        def test_marked(): pass
        """
    )
    pytester.runpytest_inprocess("--strict-markers").assert_outcomes(passed=1)


def test_a_parameter_of_a_fixture_that_is_no_dict_is_named(pytester):
    """Indirect parametrisation takes the builder method's arguments."""
    pytester.makepyfile(
        """
        import pytest
        @pytest.mark.parametrize("netns", [3], indirect=True)
        def test_number(netns): pass
        """
    )
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*fixture 'netns' takes a dict of netns() arguments as its parameter, not 3*"])
