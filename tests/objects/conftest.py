"""What the tests of kernel objects share: the machine before and after, processes by pid, an ordinary user."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from pytest_isolation import KernelError, MountNamespace, PidNamespace, eventually, inside
from pytest_isolation._kernel import uapi
from pytest_isolation._state import ledger, mounts
from pytest_isolation._state.keeper_client import keeper
from pytest_isolation._state.run import run

PROJECT = Path(__file__).parents[2]
ORDINARY = 65534


def parent_of(pid):
    """Parent of a process; None when it is gone. A zombie is not gone: nobody has waited for it."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


def descriptors(pid):
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
    return found


def snapshot():
    """All that a builder could have left: in this process, in its keeper, and on the machine."""
    PidNamespace().close()  # so that the keeper has its next init ready, at every look the same
    keeper_pid = keeper().ask({"op": "hello"})[0]["pid"]
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    parents = {pid: parent_of(pid) for pid in pids}
    cgroup = run().cgroup
    folder = ledger.directory(run().id)
    return {
        "descriptors": descriptors(os.getpid()),
        "the keeper's descriptors": sorted(re.sub(r"\d+", "", name) for name in descriptors(keeper_pid).values()),
        "children": {pid for pid, parent in parents.items() if parent == os.getpid()},
        "the keeper's children": sum(parent == keeper_pid for parent in parents.values()),
        "members of the run": set((cgroup / "cgroup.procs").read_text().split()) if cgroup else set(),
        "cgroups": sorted(entry.name for entry in os.scandir(cgroup) if entry.is_dir()) if cgroup else [],
        "roots": sorted(os.listdir(tempfile.gettempdir())),
        "ledger": sorted(os.listdir(folder)) if folder.exists() else [],
        "namespaces": {
            name: os.readlink(f"/proc/thread-self/ns/{name}") for name in os.listdir("/proc/thread-self/ns")
        },
        "cwd and root": (os.getcwd(), os.stat("/").st_ino, os.stat("/").st_dev),
    }


def machine():
    """Links and mounts of the machine, where other test processes are at work too."""
    links = subprocess.run(["ip", "-j", "link"], capture_output=True, check=True).stdout
    mounts = [line.split()[0:5:4] for line in Path("/proc/thread-self/mountinfo").read_text().splitlines()]
    # Names below /run/netns are on our ledger before they are made; those of other programs come and go.
    found = {f"mount {number} {target}" for number, target in mounts if not target.startswith("/run/netns")}
    return found | {f"link {link['ifname']}" for link in json.loads(links)}


@pytest.fixture(scope="session")
def warm():
    """Keeper, spawner thread, the run's cgroup and its mounts are there: they are made once, and stay."""
    with contextlib.suppress(KernelError):  # an ordinary user has no mounts of the run's
        mounts.directory()
    PidNamespace().close()


@pytest.fixture
def nothing_left(warm, tmp_path_factory, monkeypatch):
    """A context manager: after the block everything is as it was before it.

    What other test processes make on the machine at the same time is theirs, and goes by itself: hence the patience.
    """
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("roots")))

    @contextlib.contextmanager
    def compare():
        before, outside = snapshot(), machine()
        yield

        def same():
            after = snapshot()
            changed = {key: (before[key], after[key]) for key in before if before[key] != after[key]}
            assert not changed, changed
            new = machine() - outside
            assert not new, new

        eventually(same, timeout=30.0)

    return compare


@pytest.fixture(autouse=True)
def leaves_nothing_open(warm):
    """Every test of an object gives back its descriptors and its place in the world."""
    before = descriptors(os.getpid())
    places = [os.readlink(f"/proc/thread-self/ns/{name}") for name in ("net", "mnt", "uts", "ipc", "cgroup")]
    here = os.getcwd()
    yield
    assert [os.readlink(f"/proc/thread-self/ns/{name}") for name in ("net", "mnt", "uts", "ipc", "cgroup")] == places
    assert os.getcwd() == here

    def same():
        after = descriptors(os.getpid())
        assert {fd: name for fd, name in after.items() if before.get(fd) != name} == {}

    eventually(same)


#: Where a root that leaks would do harm.
SYSTEM = ("/boot", "/etc", "/home", "/opt", "/root", "/srv", "/usr", "/var", "/")


@pytest.fixture
def read_only_system(tmp_path_factory):
    """The test's thread sees the machine's own directories read-only.

    Tests of roots write to paths like /etc/passwd *in the root*, as root: were the package broken, or broken on purpose
    to see these tests fail, they would write to the machine's. With this they get EROFS, and fail.
    Returns the mount namespace that pytest lives in, as /proc shows it.
    """
    outside = os.readlink("/proc/thread-self/ns/mnt")
    if os.geteuid() != 0:
        yield outside
        return
    with MountNamespace() as space:
        for path in {tempfile.gettempdir(), str(tmp_path_factory.getbasetemp()), "/run"}:
            space.bind(path, path)
        for path in filter(os.path.isdir, SYSTEM):
            if path != "/":
                space.bind(path, path)
            space.mount(None, path, None, uapi.MS_BIND | uapi.MS_REMOUNT | uapi.MS_RDONLY)
        with inside(space):
            for path in filter(os.path.isdir, SYSTEM):
                assert os.statvfs(path).f_flag & os.ST_RDONLY, path
            yield outside


def is_gone(pid):
    """No such process any more; a zombie runs no more, whoever has not waited for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in {"Z", "X"}
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.fixture
def gone():
    """Wait until a process has gone."""

    def wait(pid):
        return eventually(lambda: is_gone(pid))

    return wait


@pytest.fixture
def ns_link():
    """What the kernel says of a process's namespace: `ns_link(pid, "net")` is like `net:[4026531840]`."""
    return lambda pid, name: os.readlink(f"/proc/{pid}/ns/{name}")


@pytest.fixture
def ip():
    """iproute2's word for it, from inside: `ip(netns, "link")` is the parsed JSON."""

    def ask(place, *words):
        return json.loads(place.run(["ip", "-d", "-j", *words]).stdout or "[]")

    return ask


@pytest.fixture(scope="session")
def ordinary_home():
    """A directory of an ordinary user's, with a copy of the package that this user can read."""
    if os.geteuid() != 0:
        pytest.skip("becoming an ordinary user needs root")
    home = Path(tempfile.mkdtemp(prefix="ordinary-user-"))
    try:
        home.chmod(0o755)
        shutil.copytree(PROJECT / "pytest_isolation", home / "lib/pytest_isolation")
        (home / "tmp").mkdir()
        for path in (home, home / "tmp"):
            os.chown(path, ORDINARY, ORDINARY)
        yield home
    finally:
        shutil.rmtree(home)


@pytest.fixture
def as_ordinary_user(ordinary_home):
    """Run Python source as an ordinary user who uses the library; returns what it printed."""

    def execute(source, *, check=True):
        for python in dict.fromkeys([sys.executable, "/usr/bin/python3"]):
            command = [python, "-W", "error", "-c", textwrap.dedent(source)]
            environment = {
                "PATH": os.environ["PATH"],
                "HOME": str(ordinary_home),
                "TMPDIR": str(ordinary_home / "tmp"),
                "PYTHONPATH": str(ordinary_home / "lib"),
                "PYTHONDONTWRITEBYTECODE": "1",
            }
            with contextlib.suppress(PermissionError):  # an interpreter below a directory that is root's alone
                done = subprocess.run(
                    command,
                    user=ORDINARY,
                    group=ORDINARY,
                    extra_groups=[],
                    cwd=ordinary_home,
                    env=environment,
                    capture_output=True,
                    text=True,
                    timeout=60,
                    check=False,
                )
                if check:
                    assert done.returncode == 0, done.stdout + done.stderr
                return done
        pytest.skip("no Python interpreter here that an ordinary user may run")
        return None

    return execute
