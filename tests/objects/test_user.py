"""user namespaces, by the word of /proc/PID/uid_map and of files; as root, and as an ordinary user."""

import os
import pickle
import shutil
import stat
import tempfile
from pathlib import Path

import pytest

from pytest_isolation import ChildError, KernelError, UserNamespace, eventually

FIELDS = "cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups; id -u; id -g"


def seen(space):
    """Maps, setgroups, uid and gid as a process inside sees them."""
    uid_map, gid_map, setgroups, uid, gid = space.run(FIELDS, shell=True).stdout.splitlines()
    return [tuple(map(int, line.split())) for line in (uid_map, gid_map)], setgroups, int(uid), int(gid)


def test_root_inside_is_the_caller_outside(user_namespace):
    """By default, with every capability inside."""
    assert seen(user_namespace) == (
        [(0, os.geteuid(), 1), (0, os.getegid(), 1)],
        "allow" if os.geteuid() == 0 else "deny",
        0,
        0,
    )
    assert "CapEff:\t000001ff" in user_namespace.run(["cat", "/proc/self/status"]).stdout


@pytest.fixture
def for_everybody():
    """A directory that any user can reach and write to."""
    path = Path(tempfile.mkdtemp(prefix="for-everybody-"))
    path.chmod(0o777)
    yield path
    shutil.rmtree(path)


def test_maps_of_one_s_own(isolation, for_everybody):
    """Ids inside and outside differ, and a file shows it."""
    space = isolation.user_namespace(uid_map=[(0, 100000, 1000), (1000, 0, 1)], gid_map=[(0, 200000, 1000)])
    lines = space.run(["cat", "/proc/self/uid_map"]).stdout.split()
    assert [int(word) for word in lines] == [0, 100000, 1000, 1000, 0, 1]
    assert space.run("id -u; id -g", shell=True).stdout.split() == ["0", "0"]
    made = for_everybody / "made inside"
    space.run(["touch", made])
    assert (made.stat().st_uid, made.stat().st_gid) == (100000, 200000)
    assert space.run(["stat", "-c", "%u:%g", made]).stdout == "0:0\n"
    with space.popen(["sleep", 1000]) as process:
        text = Path(f"/proc/{process.pid}/status").read_text()
        assert "Uid:\t100000\t100000\t100000\t100000\n" in text


def test_without_a_root(isolation):
    """Where 0 is not mapped a command becomes the first id that is."""
    space = isolation.user_namespace(uid_map=[(1000, 100000, 10)], gid_map=[(2000, 200000, 10)])
    assert space.run("id -u; id -g", shell=True).stdout.split() == ["1000", "2000"]
    assert space.call_in_child(lambda: (os.getuid(), os.getgid())) == (1000, 2000)


def test_unmapped_ids_are_65534(isolation):
    """Files of others, and groups."""
    space = isolation.user_namespace(uid_map=[(0, 100000, 1)], gid_map=[(0, 100000, 1)])
    assert space.run(["stat", "-c", "%u:%g", "/etc/passwd"]).stdout == "65534:65534\n"


def test_setgroups(isolation):
    """Denied, a process inside cannot drop groups; allowed, it can."""
    denied, allowed = isolation.user_namespace(setgroups=False), isolation.user_namespace(setgroups=True)
    assert (seen(denied)[1], seen(allowed)[1]) == ("deny", "allow")
    with pytest.raises(PermissionError):
        denied.call_in_child(os.setgroups, [])
    allowed.call_in_child(os.setgroups, [0])


def test_what_that_root_may_not_do(isolation, for_everybody):
    """Mount a disk, read root's files, change the machine's name."""
    secret = for_everybody / "secret"
    secret.write_text("of root")
    secret.chmod(0o600)
    space = isolation.user_namespace(uid_map=[(0, 100000, 1)], gid_map=[(0, 100000, 1)])
    with pytest.raises(ChildError, match=r"(?i)permission denied"):
        space.run(["cat", secret])
    with pytest.raises(ChildError, match=r"(?i)permission|permitted|superuser"):
        space.run(["mount", "-t", "tmpfs", "none", "/mnt"])
    with pytest.raises(ChildError, match=r"(?i)permission|permitted|must be root"):
        space.run(["hostname", "mine"])
    with pytest.raises(PermissionError):
        space.call_in_child(os.mknod, for_everybody / "disk", stat.S_IFBLK | 0o600, os.makedev(254, 0))


def test_groups_are_dropped(isolation):
    """A command does not keep groups that mean something outside."""
    space = isolation.user_namespace(uid_map=[(0, 100000, 1)], gid_map=[(0, 100000, 1)], setgroups=True)
    assert space.run(["id", "-G"]).stdout == "0\n"


@pytest.mark.parametrize(
    "options, error, fragment",
    [
        ({"uid_map": []}, ValueError, r"uid_map=\[\]: allowed are 1 to 340 extents"),
        ({"gid_map": [(n, n, 1) for n in range(341)]}, ValueError, "1 to 340"),
        ({"uid_map": [(0, 0)]}, ValueError, r"uid_map: extent \(0, 0\)"),
        ({"uid_map": [(0, 0, 0)]}, ValueError, "uid_map: extent"),
        ({"uid_map": [(0, 0, -1)]}, ValueError, "uid_map: extent"),
        ({"uid_map": [(-1, 0, 1)]}, ValueError, "uid_map: extent"),
        ({"uid_map": [(0, 0, 2**32)]}, ValueError, "uid_map: extent"),
        ({"uid_map": [("0", 0, 1)]}, ValueError, "uid_map: extent"),
        ({"uid_map": [(0, 100, 10), (5, 200, 10)]}, ValueError, "ids inside overlap at 5"),
        ({"gid_map": [(0, 100, 10), (10, 105, 10)]}, ValueError, "gid_map=.*ids outside overlap at 105"),
        ({"uid_map": 7}, (TypeError, ValueError), "uid_map|iterable"),
        ({"uid_map": [7]}, (TypeError, ValueError), "uid_map|iterable"),
        ({"setgroups": "deny"}, (TypeError, ValueError), "setgroups"),
        ({"no_such_option": 1}, TypeError, "no_such_option"),
    ],
)
def test_maps_that_cannot_be(isolation, nothing_left, options, error, fragment):
    """Refused by name; no namespace is left."""
    with nothing_left(), pytest.raises(error, match=fragment):
        isolation.user_namespace(**options)


def test_nothing_is_left(nothing_left):
    """It ends with its last reference."""
    with nothing_left(), UserNamespace() as space:
        space.run(["true"])


@pytest.mark.parametrize("user", ["root", 0, object()])
@pytest.mark.parametrize("method", ["netns", "veth_pair", "uts_namespace", "pid_namespace", "time_namespace"])
def test_something_else_for_an_owner(isolation, nothing_left, method, user):
    """A TypeError that says what is wanted."""
    with nothing_left(), pytest.raises(TypeError, match="user"):
        getattr(isolation, method)(user=user)


@pytest.mark.parametrize("method", ["netns", "uts_namespace", "pid_namespace", "mount_namespace", "ipc_namespace"])
def test_an_owner_that_is_closed(isolation, nothing_left, method):
    """Refused, and nothing is left."""
    user = isolation.user_namespace()
    user.close()
    with nothing_left(), pytest.raises(Exception, match="user_namespace is closed"):
        getattr(isolation, method)(user=user)


# -- as an ordinary user

PRELUDE = """
import os, sys
from pathlib import Path
from pytest_isolation import *
assert os.getuid() == 65534
try:
    iso = Isolation()
    user = iso.user_namespace()
except Unsupported as error:
    print("UNSUPPORTED", error)
    sys.exit(0)
"""


@pytest.fixture
def ordinary(as_ordinary_user):
    """Run source as an ordinary user, with a user namespace in `user` and its builder in `iso`."""

    def execute(source):
        done = as_ordinary_user(PRELUDE + source + "\niso.close()\nprint('done')\n")
        if done.stdout.startswith("UNSUPPORTED"):
            pytest.skip(done.stdout)
        assert done.stdout.endswith("done\n"), done.stdout + done.stderr
        return done

    return execute


def test_an_ordinary_user_becomes_root_inside(ordinary):
    """And stays itself outside: a file made by that root belongs to the user."""
    ordinary("""
assert user.run(["id", "-u"]).stdout == "0\\n"
assert user.run(["cat", "/proc/self/uid_map"]).stdout.split() == ["0", "65534", "1"]
assert user.run(["cat", "/proc/self/setgroups"]).stdout == "deny\\n"
user.run(["touch", "made-inside"])
assert os.stat("made-inside").st_uid == 65534
os.unlink("made-inside")
assert os.getuid() == 65534
assert user.call_in_child(os.getuid) == 0
try:
    user.run(["cat", "/etc/shadow"])
except ChildError as error:
    assert "ermission denied" in str(error)
else:
    raise AssertionError("root's file was read")
""")


def test_an_ordinary_user_s_network(ordinary):
    """Links owned by the user namespace: ping, sockets, commands, their own /sys."""
    ordinary("""
ns = iso.netns(user=user)
assert [link.ifname for link in ns.links()] == ["lo"]
assert ns.ping("127.0.0.1"), ns.ping("127.0.0.1")
assert ns.ping("::1")
assert ns.run(["ls", "/sys/class/net"]).stdout == "lo\\n"
ns.sysctl["net.ipv4.ip_forward"] = 1
assert ns.sysctl["net.ipv4.ip_forward"] == "1"
host, guest = iso.veth_pair(user=user)
assert host.ping(guest), host.ping(guest)
assert guest.ping(host, family=6)
assert len(guest.run(["ip", "-o", "link"]).stdout.splitlines()) == 2
with guest.netns.listen(80) as server, host.netns.connect((guest, 80)) as client:
    client.sendall(b"x")
server = "import socket, time; s = socket.create_server(('', 81)); time.sleep(1000)"
with guest.popen([sys.executable, "-I", "-S", "-c", server], ready="port:81"):
    host.netns.connect((guest, 81)).close()
""")


def test_an_ordinary_user_s_pid_namespace(ordinary):
    """Inside, ps sees two processes; daemons end with it."""
    ordinary("""
import subprocess
space = iso.pid_namespace(user=user)
assert len(space.run(["ps", "axo", "pid="]).stdout.split()) == 2
assert 1 < space.call_in_child(os.getpid) < 100
space.run(["sh", "-c", "setsid sleep 1000 &"])
eventually(lambda: len(space.processes()) == 2)
inside = [one.pid_outside for one in space.processes()]
space.close()
eventually(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in inside))
try:
    user.run(["sh", "-c", "setsid sleep 1000 & sleep 1000"], timeout=0.5)
except subprocess.TimeoutExpired:
    pass
""")


def test_an_ordinary_user_s_other_namespaces(ordinary):
    """uts, ipc, mount, cgroup and time."""
    ordinary("""
assert iso.uts_namespace(user=user, hostname="mine").run(["hostname"]).stdout == "mine\\n"
ipc = iso.ipc_namespace(user=user)
ipc.run(["ipcmk", "-M", "100"])
assert len(ipc.segments()) == 1
assert ipc.posix_queues() == ()
mounts = iso.mount_namespace(user=user)
mounts.tmpfs("/mnt")
assert "/mnt" in mounts.run(["df", "/mnt"]).stdout
iso.cgroup_namespace(user=user).run(["true"])
offsets = iso.time_namespace(user=user, boottime_s=86400).run(["cat", "/proc/self/timens_offsets"]).stdout
assert offsets.split()[-2] == "86400"
""")


def test_an_ordinary_user_s_root(ordinary):
    """A chroot is entered from within the user namespace."""
    ordinary("""
root = iso.chroot_root("/bin/sh")
place = inside(root, user)
assert place.run(["/bin/sh", "-c", "pwd"]).stdout == "/\\n"
assert place.call_in_child(lambda: sorted(os.listdir("/"))) == sorted(os.listdir(root.path))
""")


PLAIN = [
    "iso.netns()",
    "iso.veth_pair()",
    "iso.uts_namespace()",
    "iso.ipc_namespace()",
    "iso.mount_namespace()",
    "iso.pid_namespace()",
    "iso.cgroup_namespace()",
    "iso.time_namespace()",
    "iso.chroot_root('/bin/sh').run(['/bin/sh', '-c', 'true'])",
    "iso.chroot_root('/bin/sh').call_in_child(print)",
    "iso.chroot_root('/bin/sh', pivot=True).run(['/bin/sh', '-c', 'true'])",
    "iso.chroot_root('/bin/sh').bind('/usr', '/usr')",
    "iso.netns(user=user).publish('mine')",
    "iso.veth_pair(outer=True)",
    "iso.user_namespace(uid_map=[(0, 0, 1)])",
]


@pytest.mark.parametrize("use", PLAIN)
def test_what_an_ordinary_user_cannot(ordinary, use):
    """Unsupported, with what stands in the way and a remedy; nothing is left."""
    done = ordinary(f"""
def fds():
    return sorted(os.listdir("/proc/self/fd"))
before = fds()
try:
    {use}
except Unsupported as error:
    assert error.remedy and error.why and error.what, vars(error)
    print(error)
else:
    raise AssertionError("it was possible")
if "chroot" not in {use!r} and "user=" not in {use!r}:
    assert fds() == before, (before, fds())
""")
    assert "Remedy: " in done.stdout


def test_a_kernel_error_pickles():
    """From a forked child, or an xdist worker, it comes back whole."""
    error = pickle.loads(pickle.dumps(KernelError(1, "setns(3, CLONE_NEWNET)", None, "A hint")))
    assert (error.errno, error.call, error.message, error.hint) == (1, "setns(3, CLONE_NEWNET)", None, "A hint")


def test_what_a_killed_ordinary_user_started_ends_too(as_ordinary_user):
    """Without a cgroup to write to, the keeper finds it by the token in its environment."""
    done = as_ordinary_user(
        PRELUDE
        + """
import signal
process = iso.netns(user=user).popen(["setsid", "sleep", "1000"])
print(process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
""",
        check=False,
    )
    pid = int(done.stdout.split()[-1])
    cmdline = Path(f"/proc/{pid}/cmdline")  # empty when it is a zombie
    eventually(lambda: not cmdline.exists() or not cmdline.read_bytes(), 20)
