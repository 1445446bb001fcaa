"""This process's run: its id, its cgroup in the v2 tree, and who is in it.

Whatever the run starts is born in the run's cgroup and cannot leave it by setsid, double fork or a namespace of its
own: strays are found by one read, and ended by one write. The cgroup has no controllers: it limits nothing.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import secrets
import select
import signal
import time
from pathlib import Path

from pytest_isolation._kernel import procfs
from pytest_isolation._state import ledger

#: In the environment of every process the run starts: `RUN.PROCESS`, both random.
TOKEN = "PYTEST_ISOLATION_PROCESS"  # noqa: S105 - a name


def _own_v2_cgroup() -> Path | None:
    try:
        path = procfs.parse_cgroup(Path("/proc/self/cgroup").read_text(encoding="utf-8")).get("")
        mounts = [mount for mount in procfs.mounts("self") if mount.fstype == "cgroup2"]
    except OSError:
        return None
    for mount in reversed(mounts):
        if path is not None and (path + "/").startswith(mount.root.rstrip("/") + "/"):
            return Path(mount.target, path[len(mount.root.rstrip("/")) :].lstrip("/"))
    return None


class Run:
    """What belongs to one process that uses isolation, from first use until it ends."""

    def __init__(self) -> None:
        self.id = secrets.token_hex(16)
        self.pid = os.getpid()
        #: The directory of the run's cgroup, or None where no v2 tree is writable.
        self.cgroup: Path | None = None
        self._home: Path | None = None
        self.joined = False
        #: v2 cgroups of the run that cannot lie below its own: with controllers, beside it.
        self.beside: set[str] = set()

    def choose_cgroup(self) -> None:
        """Choose where the run's cgroup will be: below the one this process is in."""
        home = _own_v2_cgroup()
        if home is not None and os.access(home, os.W_OK):
            self._home, self.cgroup = home, home / f"pytest-isolation-{self.id}"

    def join(self) -> None:
        """Make the run's cgroup and move this process into it."""
        self.joined = True
        if self.cgroup is None:
            return
        try:
            self.cgroup.mkdir()
            (self.cgroup / "cgroup.procs").write_text("0")
        except OSError:  # not delegated to this user, or full: the token and the namespaces' identity have to do
            with contextlib.suppress(OSError):
                self.cgroup.rmdir()
            self.cgroup = None

    def members(self) -> list[int]:
        """The processes of the run, this one not counted; without a cgroup, every other process of this machine."""
        if self.cgroup is None:
            return [pid for pid in procfs.pids() if pid != self.pid]
        found = _pids_below(str(self.cgroup))
        for path in self.beside:
            found += _pids_below(path)
        return [pid for pid in found if pid not in {self.pid, 0}]

    @property
    def home(self) -> Path | None:
        """The v2 cgroup that this process was started in, where it may make cgroups; or None."""
        return self._home

    def leave(self) -> None:
        """Move this process back, end what is left in the run's cgroup, and remove it."""
        if self.cgroup is None or self._home is None or self.pid != os.getpid():
            return
        cgroup, self.cgroup = self.cgroup, None
        (self._home / "cgroup.procs").write_text("0")
        end_cgroup(cgroup)


def end_by_token(run_id: str) -> None:
    """Kill every process of a run that has no cgroup, by the token in its environment."""
    wanted = f"{TOKEN}={run_id}.".encode()
    again = True
    while again:
        again = False
        for pid in procfs.pids():
            with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
                if any(word.startswith(wanted) for word in file.read().split(b"\0")):
                    os.kill(pid, signal.SIGKILL)
                    again = True  # it may have made others meanwhile


def _pids_below(cgroup: str) -> list[int]:
    """The processes of a cgroup and of those below it."""
    try:
        with open(f"{cgroup}/cgroup.procs", "rb", buffering=0) as file:
            found = [int(line) for line in file.readall().split()]
        if os.stat(cgroup).st_nlink > 2:
            for entry in os.scandir(cgroup):
                if entry.is_dir(follow_symlinks=False):
                    found += _pids_below(entry.path)
    except OSError:  # removed meanwhile
        return []
    return found


def end_cgroup(cgroup: Path, timeout: float = 2.0) -> None:
    """Kill everything in a v2 cgroup and remove it with its children; cgroup.kill is Linux 5.14."""
    deadline = time.monotonic() + timeout
    with open(cgroup / "cgroup.events", encoding="ascii") as events:
        poll = select.poll()
        poll.register(events, select.POLLPRI)
        if "populated 1" in events.read():
            (cgroup / "cgroup.kill").write_text("1")
        while True:
            events.seek(0)
            if "populated 0" in events.read():
                break
            left = deadline - time.monotonic()
            if left <= 0:
                message = f"{cgroup} was killed, and still had processes after {timeout} s"
                raise TimeoutError(message)
            poll.poll(left * 1000)
    for directory, _, _ in os.walk(cgroup, topdown=False):
        os.rmdir(directory)


_run: Run | None = None
_making = _thread.allocate_lock()


def run() -> Run:
    """The run of this process."""
    global _run  # noqa: PLW0603 - one run per process
    with _making:
        if _run is None:
            _run = Run()
        return _run


def finish() -> None:
    """End this process's run: nothing it started is left."""
    global _run
    with _making:
        ending, _run = _run, None
    if ending is not None and ending.pid == os.getpid():
        ledger.tidy(ledger.directory(ending.id))
        ending.leave()


def _after_fork_in_child() -> None:
    global _run, _making  # noqa: PLW0603 - a forked copy has a run of its own
    _run = None
    _making = _thread.allocate_lock()


os.register_at_fork(after_in_child=_after_fork_in_child)
