"""Parsers of /proc, over captured text; no privilege."""

import os
import subprocess

import pytest

from pytest_isolation._kernel import procfs

MOUNTINFO = """\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,discard
25 22 0:23 / /proc rw,nosuid,nodev,noexec,relatime shared:14 master:3 - proc proc rw
36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
40 22 0:40 / /with\\040space\\011tab\\134back ro unbindable - tmpfs my\\040source rw,size=4k
41 22 0:41 / /plain rw - tmpfs none rw
42 22 0:42 / /future rw propagate_from:7 newword:8 master:9 - overlay overlay rw,lowerdir=/a:/b
43 22 0:4 net:[4026532178] /run/netns/x rw shared:2 - nsfs nsfs rw
"""


def test_mountinfo():
    """Every field of proc_pid_mountinfo(5), in order."""
    mounts = procfs.parse_mountinfo(MOUNTINFO)
    assert [mount.mount_id for mount in mounts] == [22, 25, 36, 40, 41, 42, 43]
    bind = mounts[2]
    assert (bind.parent_id, bind.device, bind.root, bind.target) == (35, "98:0", "/mnt1", "/mnt2")
    assert (bind.options, bind.fstype, bind.source) == (("rw", "noatime"), "ext3", "/dev/root")
    assert bind.super_options == ("rw", "errors=continue")
    assert mounts[6].root == "net:[4026532178]"


def test_propagation():
    """From the optional fields, whichever else there are."""
    assert [mount.propagation for mount in procfs.parse_mountinfo(MOUNTINFO)] == [
        "shared",
        "slave and shared",
        "slave",
        "unbindable",
        "private",
        "slave",
        "shared",
    ]
    assert [mount.master for mount in procfs.parse_mountinfo(MOUNTINFO)] == [None, 3, 1, None, None, 9, None]
    assert procfs.parse_mountinfo(MOUNTINFO)[1].shared == 14


def test_escapes():
    """Octal escapes of white space and backslash, in targets and sources."""
    mount = procfs.parse_mountinfo(MOUNTINFO)[3]
    assert (mount.target, mount.source) == ("/with space\ttab\\back", "my source")


@pytest.mark.parametrize("name", ["/ünï", "/ü\\040ö", "/\udcff"])
def test_names_that_are_not_ascii(name):
    """Stay what they are, beside an escape or alone, valid UTF-8 or not."""
    (mount,) = procfs.parse_mountinfo(f"1 2 0:1 / {name} rw - tmpfs none rw\n")
    assert os.fsencode(mount.target) == os.fsencode(name.replace("\\040", " "))


def test_no_mounts():
    """An empty file is an empty list."""
    assert procfs.parse_mountinfo("") == ()


def test_our_own_mounts():
    """The real file parses, and the root is in it."""
    assert "/" in {mount.target for mount in procfs.mounts("self")}


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", {}),
        ("0::/\n", {"": "/"}),
        ("0::/user.slice/a:b\n", {"": "/user.slice/a:b"}),
        ("5:cpu,cpuacct:/x\n1:name=systemd:/y\n0::/z\n", {"cpu,cpuacct": "/x", "name=systemd": "/y", "": "/z"}),
        ("0::/gone (deleted)\n", {"": "/gone (deleted)"}),
    ],
)
def test_cgroup(text, expected):
    """By controllers; v2 is the empty key; a path may hold colons."""
    assert procfs.parse_cgroup(text) == expected


def test_processes():
    """Parent, command line, namespace: of ourselves, of a child, of nobody."""
    assert procfs.parent(os.getpid()) == os.getppid()
    with subprocess.Popen(["sleep", "1000"]) as child:
        try:
            assert procfs.parent(child.pid) == os.getpid()
            assert child.pid in procfs.pids()
            assert procfs.namespace_id(child.pid, "net") == procfs.namespace_id("self", "net")
        finally:
            child.kill()
    assert procfs.parent(child.pid) is None
    assert procfs.command(child.pid) == ""
    assert procfs.namespace_id(child.pid, "net") is None


def test_a_name_with_parentheses(tmp_path):
    """/proc/PID/stat has the name in the middle, whatever is in it."""
    program = tmp_path / "a) R 1 (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "1000"]) as child:
        try:
            assert procfs.parent(child.pid) == os.getpid()
        finally:
            child.kill()


def test_a_zombie_has_no_parent():
    """It is as good as gone."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    try:
        assert procfs.parent(pid) is None
    finally:
        os.waitpid(pid, 0)
