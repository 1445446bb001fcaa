"""How long things live: what a builder makes, and what is started on it; and what is shown of a failure."""

import pytest

SEEN = """
    import os
    import pytest

    @pytest.fixture(scope="session")
    def seen():
        return {}

    @pytest.fixture(scope="session")
    def is_alive():
        return lambda process: os.path.exists(f"/proc/{process.pid}")
"""
SCOPES = ["function", "class", "module", "package", "session"]


def test_what_a_builder_makes_lives_as_long_as_its_scope(pytester):
    """One object of each scope, looked at in every place after it was made."""
    pytester.makeconftest(
        SEEN
        + """
    @pytest.fixture
    def check(seen):
        def check(*scopes):
            assert [scope for scope, one in seen.items() if not one.closed] == list(scopes)
        return check
    """
    )
    package = pytester.mkpydir("package")
    (package / "test_a.py").write_text(
        """
class TestOne:
    def test_makes(
        self, seen, check, isolation, class_isolation, module_isolation, package_isolation, session_isolation
    ):
        for scope, builder in {
            "function": isolation, "class": class_isolation, "module": module_isolation,
            "package": package_isolation, "session": session_isolation,
        }.items():
            seen[scope] = builder.uts_namespace(hostname=scope)
        check("function", "class", "module", "package", "session")

    def test_same_class(self, check, class_isolation):
        check("class", "module", "package", "session")

class TestTwo:
    def test_same_module(self, check, module_isolation):
        check("module", "package", "session")
"""
    )
    (package / "test_b.py").write_text("def test_same_package(check): check('package', 'session')\n")
    pytester.makepyfile(
        test_z="""
        def test_same_session(check, seen):
            check("session")
            assert seen["session"].run(["hostname"]).stdout == "session\\n"
        """
    )
    pytester.runpytest_subprocess("package", "test_z.py").assert_outcomes(passed=5)


@pytest.mark.parametrize("scope", ["class", "module", "package", "session"])
def test_what_a_test_starts_on_a_wider_object_ends_with_that_test(pytester, scope):
    """And what a fixture of that scope started goes on, until the scope ends."""
    pytester.makeconftest(SEEN)
    pytester.makepyfile(
        f"""
        import pytest

        @pytest.fixture(scope="{scope}")
        def space({scope}_isolation):
            return {scope}_isolation.netns()

        @pytest.fixture(scope="{scope}")
        def server(space):
            return space.popen(["sleep", "1000"])

        @pytest.fixture
        def own(space):
            return space.popen(["sleep", "1001"])

        class TestIt:
            def test_starts(self, space, server, own, seen):
                seen["started"], seen["own"] = space.popen(["setsid", "sleep", "1002"]), own
                seen["server"], seen["space"] = server, space

            def test_is_alone(self, space, server, own, seen, is_alive):
                assert not space.closed
                assert not is_alive(seen["started"]) and not is_alive(seen["own"])
                assert server is seen["server"] and server.poll() is None
                assert own.poll() is None
                assert space.run(["echo", "still"]).stdout == "still\\n"
        """,
        test_z="""
        def test_after(seen, is_alive):
            assert seen["space"].closed is %s
            assert is_alive(seen["server"]) is not seen["space"].closed
        """
        % (scope in {"class", "module"}),
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=3)


def test_a_test_that_closes_what_it_started_itself_is_not_disturbed(pytester):
    """`with` on a command, a command that ended by itself, a command that was killed: teardown has nothing to say."""
    pytester.makepyfile(
        """
        def test_each(session_isolation):
            netns = session_isolation.netns()
            with netns.popen(["sleep", "1000"]):
                pass
            netns.popen(["true"]).wait()
            netns.popen(["sleep", "1000"]).kill()
        """
    )
    pytester.runpytest_subprocess("-W", "error").assert_outcomes(passed=1)


@pytest.mark.parametrize(
    "fixture, options, check",
    [
        ("netns", {"lo_up": False}, "netns.link('lo').operstate == 'DOWN'"),
        ("veth_pair", {"mtu": 1400, "ifnames": ("host0", "guest0")}, "[end.mtu for end in veth_pair] == [1400] * 2"),
        ("pid_namespace", {"init": ["sleep", "1000"]}, "pid_namespace.processes()[0].comm == 'sleep'"),
        ("mount_namespace", {"propagation": "shared"}, "mount_namespace.run(['true'])"),
        ("uts_namespace", {"hostname": "happy.life.com"}, "uts_namespace.hostname == 'happy.life.com'"),
        ("ipc_namespace", {}, "ipc_namespace.segments() == ()"),
        ("user_namespace", {"uid_map": [(7, 0, 1)]}, "user_namespace.run(['id', '-u']).stdout == '7\\n'"),
        ("cgroup_namespace", {}, "cgroup_namespace.run(['true'])"),
        ("time_namespace", {"boottime_s": 86400}, "len(time_namespace.run(['cat', '/proc/uptime']).stdout) >= 13"),
        ("chroot_root", {"pivot": True}, "chroot_root.path.is_dir()"),
    ],
)  # fmt: skip
def test_indirect_parametrisation_reaches_the_builders_method(pytester, fixture, options, check):
    """Every fixture takes the arguments of the builder's method of its name."""
    pytester.makepyfile(
        f"""
        import pytest
        @pytest.mark.parametrize({fixture!r}, [{options!r}], indirect=True)
        def test_it({fixture}):
            assert {check}
        """
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def test_an_unknown_argument_of_a_fixture_is_named(pytester):
    """A misspelt name in an indirect parameter."""
    pytester.makepyfile(
        """
        import pytest
        @pytest.mark.parametrize("netns", [{"lo_upp": True}], indirect=True)
        def test_it(netns): pass
        """
    )
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*lo_upp*"])


def test_everything_is_closed_last_first_and_every_failure_is_reported(pytester):
    """Two of four teardowns fail: all four are tried, both failures are in the report, the next test runs."""
    pytester.makepyfile(
        """
        order = []

        def test_planted(isolation):
            for number in range(4):
                one = isolation.uts_namespace(hostname=f"host{number}")

                def planted(number=number):
                    order.append(number)
                    if number in {1, 3}:
                        raise OSError(f"planted failure {number}")

                one._teardown.push(f"planted step {number}", planted)
                globals()[f"one{number}"] = one

        def test_after(isolation):
            assert order == [3, 2, 1, 0]
            assert all(globals()[f"one{number}"].closed for number in range(4))
        """
    )
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(passed=2, errors=1)
    for number in (1, 3):
        result.stdout.fnmatch_lines([f"*OSError: planted failure {number}*"])
        result.stdout.fnmatch_lines([f"*while closing uts_namespace*: planted step {number}*"])


# -- what is shown

SERVER = """
    def test_fails(isolation):
        netns = isolation.netns()
        server = netns.popen(["sh", "-c", "for i in 1 2 3 4 5 6; do echo line $i of the server; done; sleep 1000"])
        server.wait_for("line 6")
        assert not "the test's own reason"
"""


@pytest.mark.parametrize("lines, shown", [(None, "123456"), (2, "56"), (0, "")])
def test_a_failure_shows_the_last_lines_of_its_commands_logs(pytester, lines, shown):
    """As many as asked for, in a section that names the command."""
    pytester.makepyfile(SERVER)
    result = pytester.runpytest_subprocess(*([] if lines is None else [f"--isolation-log-lines={lines}"]))
    result.assert_outcomes(failed=1)
    text = result.stdout.str()
    for number in "123456":
        assert (f"\nline {number} of the server" in text) == (number in shown)
    assert ("Process" in text and "running" in text) == bool(shown)


def test_a_test_that_passes_shows_no_log(pytester):
    """And the failure of another test does not show its log either."""
    pytester.makepyfile(
        """
        kept = []

        def test_passes(session_isolation):
            kept.append(session_isolation.netns().popen(["sh", "-c", "echo of the first test; sleep 1000"]))
            kept[0].wait_for("first")

        def test_fails():
            assert False
        """
    )
    result = pytester.runpytest_subprocess("-rA")
    result.assert_outcomes(passed=1, failed=1)
    assert "of the first test" not in "\n".join(line for line in result.stdout.lines if "echo" not in line)


def test_the_log_of_a_wider_fixtures_server_is_shown_with_the_failure(pytester):
    """A server that a module-scoped fixture started: its log tells why this test failed."""
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture(scope="module")
        def server(module_isolation):
            return module_isolation.netns().popen(
                ["sh", "-c", "echo word of the server; sleep 1000"], ready="line:word"
            )

        def test_fails(server):
            assert False
        """
    )
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["word of the server"])


def test_a_failed_command_shows_what_it_printed(pytester):
    """ChildError: status, stdout and stderr stand in the report."""
    pytester.makepyfile(
        """
        def test_fails(netns):
            netns.run(["sh", "-c", "echo on stdout; echo on stderr >&2; exit 7"])
        """
    )
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *exit status 7*", "E *on stdout", "E *on stderr"])


def test_strict_is_said_in_the_header(pytester):
    """Only what is not as usual."""
    pytester.makepyfile("def test_nothing(): pass")
    pytester.runpytest_inprocess("--isolation-strict").stdout.fnmatch_lines(["isolation: strict"])
    pytester.runpytest_inprocess().stdout.no_fnmatch_line("isolation: strict")
