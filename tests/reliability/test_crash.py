"""SIGKILL, to a test run or a program, at any moment: the keeper takes away what is left."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_isolation import eventually

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for links and names in the machine's own netns")

BUILD = '''
import contextlib
import json
import os
from pathlib import Path
from pytest_isolation import Isolation
from pytest_isolation._state import ledger, run

def build(isolation):
    """One of everything that could outlive this process; returns the names."""
    netns = isolation.netns()
    published = netns.publish(f"crash-{os.urandom(8).hex()}")
    outer, inner = isolation.veth_pair(outer=True)
    assert outer.ping(inner)
    root = isolation.chroot_root("/bin/sleep")
    Path("source").mkdir(exist_ok=True)
    Path("source", "file").touch()
    root.bind("source", "/bound")
    isolation.mount_namespace().tmpfs("/mnt")
    world = isolation.pid_namespace()
    user = isolation.user_namespace()
    group = isolation.cgroup(controllers=["cpu", "memory", "freezer"])
    below = group.child()
    started = [
        netns.popen(["setsid", "sh", "-c", "setsid sleep 1000 & env -i setsid sleep 1000 & sleep 1000"]),
        world.popen(["sh", "-c", "setsid sleep 1000 & trap '' TERM; sleep 1000"]),
        user.popen(["setsid", "sleep", "1000"]),
        root.popen(["/bin/sleep", "1000"]),
        group.popen(["sh", "-c", "setsid env -i sleep 1000 & sleep 1000"]),
        below.popen(["sleep", "1000"]),
    ]
    group.freeze()
    return {
        "links": [outer.ifname],
        "paths": [str(published), str(root.path), str(run.run().cgroup), str(ledger.directory(run.run().id))]
        + [str(path) for one in (group, below) for path in one.paths.values()],
        "pids": [process.pid for process in started] + [world.init_pid],
    }

def report(names):
    draft = Path(f"{os.getpid()}.draft")
    draft.write_text(json.dumps(names))
    draft.rename(f"{os.getpid()}.alive")
'''

PROGRAM = (
    BUILD
    + """
import signal
with Isolation() as isolation:
    report(build(isolation))
    signal.pause()
"""
)

TEST = (
    BUILD
    + """
import contextlib
import signal
import pytest

@pytest.mark.parametrize("number", range(2))
def test_waits(isolation, number):
    report(build(isolation))
    while True:  # it swallows interrupts: xdist's own way to end a worker does not end it
        with contextlib.suppress(BaseException):
            signal.pause()
"""
)

#: Kills itself at the N-th of the interpreter's audit events (file opened, directory made, call into the C library...).
MOMENTS = (
    BUILD
    + """
import signal
import sys

limit = int(sys.argv[1])
count = 0

def kill(event, _):
    global count
    count += 1
    if count == limit:
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill)
with Isolation() as isolation:
    build(isolation)
from pytest_isolation.objects import _object
_object.finish()
Path("count").write_text(str(count))
"""
)


@pytest.fixture
def crash(tmp_path, machine, monkeypatch):
    """Starts something, kills it, and looks for what is left."""
    value = f"{os.getpid()}-{time.monotonic_ns()}"
    monkeypatch.setenv("ISOLATION_TEST", value)
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)
    crash = Crash(tmp_path, machine, f"ISOLATION_TEST={value}")
    yield crash
    for process in crash.started:
        process.kill()
        process.wait()
    with contextlib.suppress(AssertionError):  # the keepers' turn first, which remove more than processes
        eventually(lambda: not machine.processes(crash.mark), 10.0)
    for pid in machine.processes(crash.mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def is_alive(pid):
    """False for a zombie too: it is pid 1's to reap, whenever that does so."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Crash:
    def __init__(self, folder, machine, mark):
        self.folder, self.machine, self.mark = folder, machine, mark
        self.started = []
        self.before = machine.look_at_own(mark)

    def start(self, source, *args, name="program.py"):
        (self.folder / name).write_text(source)
        with (self.folder / "output").open("w") as output:
            process = subprocess.Popen(
                [sys.executable, *args], cwd=self.folder, stdout=output, stderr=output, start_new_session=True
            )
        self.started.append(process)
        return process

    def reports(self, process, count=1):
        """Wait until `count` processes have built everything; what they say."""

        def found():
            assert process.poll() is None, (self.folder / "output").read_text()
            return len(list(self.folder.glob("*.alive"))) == count

        eventually(found, 60.0)
        return [json.loads(path.read_text()) for path in self.folder.glob("*.alive")]

    def check_there(self, names):
        for path in names["paths"]:
            assert Path(path).exists()
        for ifname in names["links"]:
            assert Path("/sys/class/net", ifname).exists()
        assert all(is_alive(pid) for pid in names["pids"])

    def check_gone(self, reports=()):
        """Nothing that was reported, nothing with our mark, nothing new; what was bound into a root is untouched."""

        def gone():
            for names in reports:
                assert [path for path in names["paths"] if os.path.lexists(path)] == []
                assert [ifname for ifname in names["links"] if Path("/sys/class/net", ifname).exists()] == []
                assert [pid for pid in names["pids"] if is_alive(pid)] == []
            assert self.machine.processes(self.mark) == {}

        eventually(gone, 10.0)
        assert self.machine.additions(self.before, self.mark) == []
        assert Path(self.folder, "source").exists() == Path(self.folder, "source", "file").exists()


PYTEST = ["-m", "pytest", "-p", "pytest_isolation", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
STARTS = {"program": (PROGRAM, ["program.py"]), "pytest": (TEST, [*PYTEST, "program.py"])}


@pytest.mark.parametrize("source, args", STARTS.values(), ids=STARTS)
@pytest.mark.parametrize("kill", [os.kill, os.killpg], ids=["process", "process group"])
def test_sigkill_leaves_nothing(crash, source, args, kill):
    """Processes with sessions of their own, a named netns, a link in the machine's netns, a root: all gone."""
    process = crash.start(source, *args)
    (names,) = crash.reports(process)
    crash.check_there(names)
    kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    crash.check_gone([names])


def test_sigterm_leaves_nothing(crash):
    """Ended by a signal's default action, without atexit."""
    process = crash.start(PROGRAM, "program.py")
    (names,) = crash.reports(process)
    process.terminate()
    assert process.wait() == -signal.SIGTERM
    crash.check_gone([names])


@pytest.mark.parametrize("kill", [os.kill, os.killpg], ids=["process", "process group"])
def test_sigkill_of_an_xdist_controller_leaves_nothing(crash, kill):
    """Its workers, which xdist would leave running for a while, go with all that they built."""
    process = crash.start(TEST, *PYTEST, "-n2", "program.py")
    reports = crash.reports(process, 2)
    for names in reports:
        crash.check_there(names)
    kill(process.pid, signal.SIGKILL)
    process.wait()
    crash.check_gone(reports)


def test_sigkill_of_an_xdist_worker_leaves_nothing_of_it(crash):
    """What that worker built goes; what the other one built stays until its own end."""
    process = crash.start(TEST, *PYTEST, "-n2", "--max-worker-restart=0", "program.py")
    crash.reports(process, 2)
    first, second = sorted(crash.folder.glob("*.alive"))
    os.kill(int(first.stem), signal.SIGKILL)
    gone, there = (json.loads(path.read_text()) for path in (first, second))
    eventually(lambda: not any(Path(path).exists() for path in gone["paths"][:3]), 10.0)
    crash.check_there(there)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    crash.check_gone([gone, there])


def test_sigkill_at_any_moment_leaves_nothing(crash):
    """From before the keeper is there until after the last object is closed: a dozen moments, evenly spread."""
    process = crash.start(MOMENTS, "program.py", "0")
    assert process.wait() == 0, (crash.folder / "output").read_text()
    total = int((crash.folder / "count").read_text())
    crash.check_gone()
    for part in range(12):
        moment = 1 + total * part // 12
        process = crash.start(MOMENTS, "program.py", str(moment))
        assert process.wait() == -signal.SIGKILL, (crash.folder / "output").read_text()
        try:
            crash.check_gone()
        except AssertionError as error:
            error.add_note(f"killed at event {moment} of {total}")
            raise


def test_an_exit_without_goodbye_leaves_nothing(crash):
    """os._exit: neither atexit nor the end of a `with` block."""
    process = crash.start(PROGRAM.replace("signal.pause()", "os._exit(3)"), "program.py")
    assert process.wait() == 3
    names = [json.loads(path.read_text()) for path in crash.folder.glob("*.alive")]
    crash.check_gone(names)


def test_an_end_without_close_leaves_nothing(crash):
    """A program that never closes: everything goes at its exit, and a ResourceWarning says so."""
    source = BUILD + "\nkept = Isolation()\nreport(build(kept))\n"
    process = crash.start(source, "-W", "always::ResourceWarning", "program.py")
    assert process.wait() == 0, (crash.folder / "output").read_text()
    names = [json.loads(path.read_text()) for path in crash.folder.glob("*.alive")]
    assert len(names) == 1
    crash.check_gone(names)
