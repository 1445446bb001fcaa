"""What this user cannot do: skipped with reason and remedy, or failed where that is asked for."""

import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody who is not")
NOBODY = 65534


@pytest.fixture
def as_user():
    """A function that runs pytest on a source as an ordinary user, in a directory of that user's."""
    folder = Path(tempfile.mkdtemp(prefix="as-user-"))
    folder.chmod(0o755)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "PYTEST_"))}
    env |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "HOME": str(folder), "TMPDIR": str(folder)}

    def run(source, *args, **more):
        (folder / "test_it.py").write_text(textwrap.dedent(source))
        os.chown(folder, NOBODY, NOBODY)
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "pytest_isolation", "-rs", *args],
            cwd=folder, env=env | more, user=NOBODY, group=NOBODY, extra_groups=[],
            text=True, capture_output=True, check=False, timeout=60,
        )  # fmt: skip

    yield run
    shutil.rmtree(folder)


NETNS = """
    import pytest

    {marker}
    def test_netns({fixture}):
        {body}
"""


def source(marker="", fixture="netns", body="raise AssertionError('it ran')"):
    return NETNS.format(marker=marker, fixture=fixture, body=body)


PRIVILEGED = [
    "netns", "veth_pair", "pid_namespace", "mount_namespace", "uts_namespace", "ipc_namespace", "cgroup_namespace",
    "time_namespace",
]  # fmt: skip


@pytest.mark.parametrize("fixture", PRIVILEGED)
def test_a_fixture_that_this_user_cannot_have_skips_with_reason_and_remedy(as_user, fixture):
    """The reason names what was refused, and what to do."""
    result = as_user(source(fixture=fixture))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 skipped" in result.stdout
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("SKIPPED")]
    assert f"isolation: {fixture}" in line
    assert "EPERM" in line
    assert "Remedy: " in line
    assert "test_it.py" in line


STRICT = {
    "command line": (["--isolation-strict"], {}, ""),
    "environment": ([], {"PYTEST_ISOLATION_STRICT": "1"}, ""),
    "ini": (["-o", "isolation_strict=true"], {}, ""),
    "marker": ([], {}, "@pytest.mark.isolation(strict=True)"),
    "marker over environment": ([], {"PYTEST_ISOLATION_STRICT": "0"}, "@pytest.mark.isolation(strict=True)"),
}


@pytest.mark.parametrize("args, env, marker", STRICT.values(), ids=STRICT)
def test_strict_fails_instead(as_user, args, env, marker):
    """Under --isolation-strict, or with the marker, the same reason is a failure."""
    result = as_user(source(marker), *args, **env)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "1 error" in result.stdout or "1 failed" in result.stdout
    assert "isolation (strict): netns" in result.stdout
    assert "Remedy: " in result.stdout


def test_the_marker_can_allow_a_skip_under_strict(as_user):
    """`isolation(strict=False)` on one test, and --isolation-strict for the others."""
    result = as_user(source("@pytest.mark.isolation(strict=False)"), "--isolation-strict")
    assert "1 skipped" in result.stdout


@pytest.mark.parametrize("scope", ["", "class_", "module_", "package_", "session_"])
def test_what_a_test_builds_itself_skips_as_well(as_user, scope):
    """Unsupported from a builder of any scope, called in the test's own body."""
    result = as_user(source(fixture=f"{scope}isolation", body=f"{scope}isolation.uts_namespace()"))
    assert "1 skipped" in result.stdout, result.stdout
    assert "isolation: uts_namespace" in result.stdout


def test_a_wider_fixture_skips_every_test_that_asks_for_it(as_user):
    """A module-scoped fixture of the user's own, built of what is not to be had."""
    result = as_user(
        """
        import pytest

        @pytest.fixture(scope="module")
        def space(module_isolation):
            return module_isolation.netns()

        def test_one(space): pass
        def test_two(space): pass
        def test_without(): pass
        """
    )
    assert "1 passed, 2 skipped" in result.stdout, result.stdout


def test_what_an_ordinary_user_can_have_works(as_user):
    """A user namespace, and a netns in it, need no privilege on this kernel."""
    result = as_user(
        """
        def test_root_inside(isolation):
            user = isolation.user_namespace()
            assert user.run(["id", "-u"]).stdout == "0\\n"
            server, client = isolation.veth_pair(user=user)
            assert client.ping(server)
        """,
        "--isolation-strict",
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_an_error_of_another_kind_is_no_skip(as_user):
    """Only Unsupported skips: a wrong argument fails whoever asks."""
    result = as_user(source(fixture="isolation", body="isolation.uts_namespace(hostname='x' * 65)"))
    assert "1 failed" in result.stdout


def test_unsupported_that_the_test_expects_is_the_tests(as_user):
    """`pytest.raises(Unsupported)` sees it; nothing is skipped."""
    result = as_user(
        """
        import pytest
        from pytest_isolation import Unsupported

        def test_expected(isolation):
            with pytest.raises(Unsupported) as raised:
                isolation.netns()
            assert raised.value.what == "netns"
            assert raised.value.remedy
        """
    )
    assert "1 passed" in result.stdout, result.stdout
