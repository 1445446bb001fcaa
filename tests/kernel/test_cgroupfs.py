"""Parsers of what cgroups say, on captured text and a cgroup file system of plain files."""

import errno

import pytest

from pytest_isolation import KernelError
from pytest_isolation._kernel import cgroupfs, procfs

HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 /docker/abc /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
36 31 0:33 /elsewhere /sys/fs/cgroup/devices rw,relatime - cgroup cgroup rw,devices
"""
OWN = "4:devices:/\n3:memory:/docker/abc/test\n2:cpu,cpuacct:/job\n1:name=systemd:/\n0::/unified/job\n"


def test_proc_cgroups():
    """The heading is no row."""
    text = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t1\t5\t1\nmemory\t0\t3\t0\n"
    assert cgroupfs.parse_proc_cgroups(text) == (
        cgroupfs.ProcCgroup("cpu", 1, 5, enabled=True),
        cgroupfs.ProcCgroup("memory", 0, 3, enabled=False),
    )


def test_flat_keyed():
    text = "nr_periods 3\nnr_throttled 2\nthrottled_time 1000\nfrozen -1\nname word\n"
    assert cgroupfs.parse_flat(text) == {"nr_periods": 3, "nr_throttled": 2, "throttled_time": 1000, "frozen": -1}


def test_nested_keyed():
    assert cgroupfs.parse_nested("8:0 rbytes=1 wbytes=2\n8:16 rbytes=3 state=x\n") == {
        "8:0": {"rbytes": 1, "wbytes": 2},
        "8:16": {"rbytes": 3},
    }


def test_blkio():
    assert cgroupfs.parse_blkio("254:0 Read 4096\n254:0 Write 8192\nTotal 12288\n") == {
        "254:0": {"Read": 4096, "Write": 8192}
    }


@pytest.mark.parametrize(
    "text, numbers", [("", ()), ("0\n", (0,)), ("0-2,5\n", (0, 1, 2, 5)), ("1,3-3", (1, 3))], ids=repr
)
def test_list(text, numbers):
    assert cgroupfs.parse_list(text) == numbers


def test_hierarchies_of_a_hybrid_machine():
    """Named hierarchies serve no controller; a mount that does not show this process's cgroup is of no use."""
    found = cgroupfs.find_hierarchies(procfs.parse_mountinfo(HYBRID), procfs.parse_cgroup(OWN))
    assert [(one.version, one.controllers, one.home) for one in found] == [
        (1, ("cpu", "cpuacct"), "/sys/fs/cgroup/cpu/job"),
        (1, ("memory",), "/sys/fs/cgroup/memory/test"),
    ]


@pytest.fixture
def unified(tmp_path):
    """A v2 tree of plain files, as mountinfo shows it."""
    (tmp_path / "cgroup.controllers").write_text("cpu io memory pids\n")
    home = tmp_path / "unified/job"
    home.mkdir(parents=True)
    (home / "cgroup.subtree_control").write_text("memory pids\n")
    return f"41 31 0:38 / {tmp_path} rw - cgroup2 cgroup2 rw\n"


def test_hierarchies_of_v2(unified, tmp_path):
    """What the tree has is one thing, what is delegated below one's own cgroup another."""
    (one,) = cgroupfs.find_hierarchies(procfs.parse_mountinfo(unified), procfs.parse_cgroup(OWN))
    assert one == cgroupfs.Hierarchy(
        2, ("cpu", "io", "memory", "pids"), str(tmp_path), f"{tmp_path}/unified/job", ("memory", "pids")
    )
    assert cgroupfs.at_home(one, str(tmp_path)).delegated == ()


def test_write_and_read(tmp_path):
    (tmp_path / "cpu.shares").touch()
    cgroupfs.write(f"{tmp_path}/cpu.shares", "700")
    assert cgroupfs.read(f"{tmp_path}/cpu.shares") == "700"


def test_an_error_shows_the_data(tmp_path):
    """And what is allowed, where the caller says so."""
    with pytest.raises(KernelError, match=r"to write '700' = -1 ENOENT .* Allowed are 2") as failed:
        cgroupfs.write(f"{tmp_path}/cpu.shares", "700", "Allowed are 2 and more")
    assert failed.value.errno == errno.ENOENT
    with pytest.raises(KernelError, match=r"write\('/dev/full', '700'\) = -1 ENOSPC"):
        cgroupfs.write("/dev/full", "700")
    with pytest.raises(KernelError, match=r"read\(.*ENOENT"):
        cgroupfs.read(f"{tmp_path}/cpu.shares")


def test_pids_and_tree(tmp_path):
    """A process outside this pid namespace is shown as 0; children come before their parents."""
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "cgroup.procs").write_text("12\n0\n13\n")
    assert cgroupfs.pids(str(tmp_path)) == [12, 13]
    assert cgroupfs.tree(str(tmp_path)) == [f"{tmp_path}/a/b", f"{tmp_path}/a", str(tmp_path)]
    assert cgroupfs.interface_files(str(tmp_path)) == ["cgroup.procs"]


def test_every_name_has_its_equivalent_on_both_sides():
    """What the tables name as the other version's is the other version's."""
    assert not set(cgroupfs.V1_NAMES) & set(cgroupfs.V2_NAMES)
