"""Chapter 6: user, root in one's own house.

A user namespace gives user and group ids another meaning inside. The map says which: "0 inside is 12345 outside" makes
an ordinary user root inside, with every capability - over what the namespace owns. For the kernel it stays user 12345,
and whatever belongs to the machine stays out of reach. An id that the map does not name shows as 65534, nobody.

This is what lets an ordinary user run containers at all. User 12345 does not exist on this machine; a number is enough
for the kernel.
"""

import errno
import os
import subprocess
import tempfile
from pathlib import Path
from subprocess import PIPE

import pytest

from pytest_isolation import KernelError, inside

USER = 12345


@pytest.fixture
def own_house(isolation):
    """A user namespace in which user and group 12345 are 0, root."""
    return isolation.user_namespace(uid_map=[(0, USER, 1)], gid_map=[(0, USER, 1)])


@pytest.fixture
def home():
    """A directory that belongs to user 12345, and that this user can reach."""
    with tempfile.TemporaryDirectory() as path:
        os.chown(path, USER, USER)
        yield Path(path)


def ids_of(pid):
    """Real user and group id of a process, as the kernel shows them to us."""
    lines = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines["Uid"].split()[0]), int(lines["Gid"].split()[0])


def test_root_inside(own_house):
    """Inside, it is root: id says so, and so does the name."""
    assert own_house.run(["id", "-u"]).stdout == "0\n"
    assert own_house.run(["id", "-g"]).stdout == "0\n"
    assert own_house.run(["id", "-un"]).stdout == "root\n"
    assert own_house.run(["cat", "/proc/self/uid_map"]).stdout.split() == ["0", str(USER), "1"]


def test_itself_outside(own_house):
    """The same process, seen from outside, belongs to user 12345."""
    with own_house.popen(["sleep", "1000"]) as process:
        assert ids_of(process.pid) == (USER, USER)
        assert os.readlink(f"/proc/{process.pid}/ns/user") != os.readlink("/proc/self/ns/user")


@pytest.fixture
def allowed():
    """Only root can start a process of user 12345, and on some machines ordinary users make no user namespaces."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a process of another user")
    for name, forbidding in ("apparmor_restrict_unprivileged_userns", "1"), ("unprivileged_userns_clone", "0"):
        setting = Path("/proc/sys/kernel", name)
        if setting.exists() and setting.read_text().strip() == forbidding:
            pytest.skip(f"{setting} is {forbidding}: ordinary users may not make user namespaces here")


def test_an_ordinary_user_needs_no_root(allowed):
    """No root is involved: a process of user 12345 makes the namespace itself, and maps itself to root."""
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", "id -u; read line"]
    options = {"user": USER, "group": USER, "extra_groups": [], "stdin": PIPE, "stdout": PIPE, "text": True}
    with subprocess.Popen(command, **options) as process:
        assert process.stdout.readline() == "0\n"
        assert ids_of(process.pid) == (USER, USER)
        process.communicate("the end\n")


def test_unmapped_groups_show_as_65534(allowed):
    """An ordinary user may map its own ids only: its other groups stay with it, and have no number inside."""
    command = ["unshare", "--user", "--map-root-user", "id", "-G"]
    groups = subprocess.check_output(command, user=USER, group=USER, extra_groups=[4242, 4243], text=True)
    assert groups.split() == ["0", "65534"]


def test_unmapped_owners_show_as_65534(own_house):
    """The machine's own files belong to a root that has no number inside."""
    assert os.stat("/etc/passwd").st_uid == 0
    assert own_house.run(["stat", "-c", "%u %g", "/etc/passwd"]).stdout == "65534 65534\n"


def test_a_file_of_root_inside_is_the_user_s_outside(own_house, home):
    """What "root" makes inside is on the disk with the user's own number."""
    own_house.run(["touch", home / "file"])
    assert own_house.run(["stat", "-c", "%u %U", home / "file"]).stdout == "0 root\n"
    assert ((home / "file").stat().st_uid, (home / "file").stat().st_gid) == (USER, USER)


def test_it_rules_what_its_namespace_owns(isolation, own_house):
    """Namespaces made inside are its own: it may name the host, and mount a tmpfs."""
    uts = isolation.uts_namespace(user=own_house)
    mounts = isolation.mount_namespace(user=own_house)
    script = "hostname happy.life.com; hostname; mount -t tmpfs mine /mnt; stat -f -c %T /mnt"
    assert inside(uts, mounts).run(["sh", "-c", script]).stdout == "happy.life.com\ntmpfs\n"


def test_it_may_not_mount_a_disk(isolation, own_house):
    """A disk is the machine's: its root is not even told whether there is one, EPERM comes first."""
    disk = "/dev/no-such-disk"
    with pytest.raises(KernelError) as refused:
        isolation.mount_namespace(user=own_house).mount(disk, "/mnt", "ext4")
    assert refused.value.errno == errno.EPERM
    with pytest.raises(KernelError) as not_found:  # the same as the machine's root: allowed, if only there were one
        isolation.mount_namespace().mount(disk, "/mnt", "ext4")
    assert not_found.value.errno == errno.ENOENT


def test_it_may_not_read_files_of_root(own_house):
    """For the kernel, user 12345 asks, and /etc/shadow is not for that user."""
    assert "root:" in Path("/etc/shadow").read_text()
    refused = own_house.run(["cat", "/etc/shadow"], check=False)
    assert refused.returncode != 0
    assert refused.stdout == ""
    with pytest.raises(PermissionError):
        own_house.call_in_child(os.open, "/etc/shadow", os.O_RDONLY)


def test_it_may_not_signal_processes_of_others(own_house):
    """Root may signal everybody; this one only the processes of user 12345."""
    with pytest.raises(PermissionError):
        own_house.call_in_child(os.kill, os.getpid(), 0)
