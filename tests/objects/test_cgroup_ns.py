"""cgroup namespaces, by the word of /proc/PID/cgroup."""

import os
from pathlib import Path

from pytest_isolation import CgroupNamespace


def v2_path(text):
    """The v2 line of a /proc/PID/cgroup."""
    return next((line.split(":", 2)[2] for line in text.splitlines() if line.startswith("0::")), None)


def test_the_run_s_cgroup_becomes_the_root(cgroup_namespace):
    """Inside the path is `/`, outside it is the long one."""
    with cgroup_namespace.popen(["sleep", 1000]) as process:
        outside = v2_path(Path(f"/proc/{process.pid}/cgroup").read_text())
        inside = v2_path(cgroup_namespace.run(["cat", f"/proc/{process.pid}/cgroup"]).stdout)
    assert inside == "/"
    assert outside != "/"
    assert outside == v2_path(Path("/proc/self/cgroup").read_text())


def test_pytest_may_look_from_inside(cgroup_namespace):
    """call() enters it, and comes back."""
    before = Path("/proc/thread-self/cgroup").read_text()
    assert v2_path(cgroup_namespace.call(lambda: Path("/proc/thread-self/cgroup").read_text())) == "/"
    assert Path("/proc/thread-self/cgroup").read_text() == before


def test_one_that_a_user_namespace_owns(isolation):
    """Likewise."""
    space = isolation.cgroup_namespace(user=isolation.user_namespace())
    link = space.run(["readlink", "/proc/self/ns/cgroup"]).stdout.strip()
    assert link == f"cgroup:[{space.ns_id[1]}]" != os.readlink("/proc/self/ns/cgroup")
    assert "0::" in space.run(["cat", "/proc/self/cgroup"]).stdout


def test_nothing_is_left(nothing_left):
    """It ends with its last reference."""
    with nothing_left(), CgroupNamespace() as space:
        space.run(["true"])
