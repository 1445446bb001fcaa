"""Every way in which pytest comes to load the plugin, and that it is loaded once."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "pytest_isolation"
FIXTURES = [
    "cgroup_namespace", "chroot_root", "class_isolation", "ipc_namespace", "isolation", "module_isolation",
    "mount_namespace", "netns", "package_isolation", "pid_namespace", "session_isolation", "time_namespace",
    "user_namespace", "uts_namespace", "veth_pair",
]  # fmt: skip

#: Other plugins that are installed here; one of them takes a second to load.
ALONE = [word for name in ("hypothesispytest", "timeout", "xdist", "xdist.looponfail") for word in ("-p", f"no:{name}")]

TEST = """
    def test_a_netns_of_its_own(netns):
        assert [link.ifname for link in netns.links()] == ["lo"]
"""

#: Fails the session when the plugin, or a hook of it, is there more than once.
ONCE = """
def pytest_collection_finish(session):
    manager = session.config.pluginmanager
    modules = [getattr(plugin, "__name__", "") for plugin in manager.get_plugins()]
    ours = sorted(name for name in modules if name.startswith("pytest_isolation"))
    assert ours in (["pytest_isolation", "pytest_isolation.plugin"], ["pytest_isolation.plugin"]), ours
    hooks = [one.plugin_name for one in manager.hook.pytest_runtest_call.get_hookimpls()]
    assert [name for name in hooks if "isolation" in name] == ["pytest_isolation.plugin"], hooks
"""


@pytest.fixture
def pytester(pytester, monkeypatch):
    """With autoload: how the plugin is found is the question here."""
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    monkeypatch.delenv("PYTEST_PLUGINS")
    return pytester


LOADED_BY = {
    "entry point": {},
    "-p": {"args": ["-p", "pytest_isolation"]},
    "-p twice": {"args": ["-p", "pytest_isolation", "-p", "pytest_isolation"]},
    "-p of the module inside": {"args": ["-p", "pytest_isolation.plugin"]},
    "-p without autoload": {"args": ["-p", "pytest_isolation"], "env": {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}},
    "PYTEST_PLUGINS": {"env": {"PYTEST_PLUGINS": "pytest_isolation"}},
    "PYTEST_PLUGINS and -p": {"args": ["-p", "pytest_isolation"], "env": {"PYTEST_PLUGINS": "pytest_isolation"}},
    "conftest": {"conftest": 'pytest_plugins = ["pytest_isolation"]\n'},
    "conftest and -p": {"conftest": 'pytest_plugins = ["pytest_isolation"]\n', "args": ["-p", "pytest_isolation"]},
    "conftest without autoload": {
        "conftest": 'pytest_plugins = ["pytest_isolation"]\n',
        "env": {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    },
}


@pytest.mark.parametrize("way", LOADED_BY.values(), ids=LOADED_BY)
def test_installed_it_is_loaded_once(pytester, monkeypatch, way):
    """Installed: by entry point, by name, from a conftest, and by several of them at once."""
    for name, value in way.get("env", {}).items():
        monkeypatch.setenv(name, value)
    pytester.makeconftest(way.get("conftest", "") + ONCE)
    pytester.makepyfile(TEST)
    result = pytester.runpytest_subprocess(*ALONE, *way.get("args", []))
    result.assert_outcomes(passed=1)
    assert result.ret == 0


@pytest.fixture
def without_project(tmp_path):
    """A function that runs pytest with everything installed except this project, and a copy of it on PYTHONPATH."""
    shutil.copytree(PACKAGE, tmp_path / "copy" / "pytest_isolation", ignore=shutil.ignore_patterns("__pycache__"))
    site = next(Path(path) for path in sys.path if (Path(path) / "pytest" / "__init__.py").is_file())
    rest = tmp_path / "rest"
    rest.mkdir()
    for entry in site.iterdir():
        if "pytest_isolation" not in entry.name and entry.suffix != ".pth":
            (rest / entry.name).symlink_to(entry)

    def run(*args, **env):
        # -S: no site-packages, so neither the project nor the .pth file of an editable install.
        return subprocess.run(
            [sys.executable, "-S", "-P", "-m", "pytest", "-p", "no:cacheprovider", *ALONE, *args],
            env={**os.environ, "PYTHONPATH": f"{tmp_path / 'copy'}:{rest}", "PYTHONDONTWRITEBYTECODE": "1", **env},
            text=True,
            capture_output=True,
            check=False,
            timeout=60,
        )

    return run


@pytest.mark.parametrize("way", ["-p", "conftest", "PYTEST_PLUGINS", "-p and conftest"])
def test_a_checkout_on_pythonpath_is_loaded_once(pytester, without_project, way, tmp_path):
    """Not installed at all: the package on PYTHONPATH, and its name somewhere."""
    named = 'pytest_plugins = ["pytest_isolation"]\n' if "conftest" in way else ""
    where = f"    assert __import__('pytest_isolation').__file__.startswith({str(tmp_path)!r})\n"
    pytester.makeconftest(named + ONCE + where)
    pytester.makepyfile(TEST)
    result = without_project(
        *(["-p", "pytest_isolation"] if "-p" in way else []),
        **({"PYTEST_PLUGINS": "pytest_isolation"} if way == "PYTEST_PLUGINS" else {}),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 passed" in result.stdout


def test_a_checkout_on_pythonpath_that_is_not_named_is_not_loaded(pytester, without_project):
    """Without an entry point there is no autoload: proves that the runs above do not meet the installed project."""
    pytester.makepyfile(TEST)
    result = without_project()
    assert "fixture 'netns' not found" in result.stdout


def test_no_removes_it(pytester):
    """`-p no:pytest_isolation` takes every fixture, option and marker away."""
    pytester.makepyfile(TEST)
    result = pytester.runpytest_subprocess(*ALONE, "-p", "no:pytest_isolation")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*fixture 'netns' not found*"])
    for listing in ("--fixtures", "--markers", "--help"):
        result = pytester.runpytest_subprocess(*ALONE, "-p", "no:pytest_isolation", listing)
        assert "isolation" not in result.stdout.str().replace("pytest-isolation", "").replace("test_no_removes_it", "")
    result = pytester.runpytest_subprocess(*ALONE, "-p", "no:pytest_isolation", "--isolation-strict")
    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_fixtures_are_listed_with_their_first_paragraph(pytester):
    """`pytest --fixtures` says of each what it is."""
    result = pytester.runpytest_subprocess(*ALONE, "--fixtures")
    lines = result.stdout.lines
    for name in FIXTURES:
        (position,) = [number for number, line in enumerate(lines) if line.split(" ")[0] == name]
        assert len(lines[position + 1].strip()) > 20, f"{name} has no description"
        assert lines[position + 1].startswith("    ")


def test_options_and_marker_are_listed(pytester):
    """`pytest --help` and `--markers` name what there is, with environment variable and ini name."""
    text = " ".join(pytester.runpytest_subprocess(*ALONE, "--help").stdout.str().split())
    for name in ("strict", "log_lines"):
        for spelling in (
            f"--isolation-{name.replace('_', '-')}",
            f"isolation_{name}",
            f"PYTEST_ISOLATION_{name.upper()}",
        ):
            assert spelling in text
    assert "@pytest.mark.isolation(strict=True)" in pytester.runpytest_subprocess(*ALONE, "--markers").stdout.str()
