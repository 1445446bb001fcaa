"""pid namespaces: numbers that start at 1, a /proc of their own, an init whose end is everybody's. pid_namespaces(7)"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

from pytest_isolation._kernel import procfs
from pytest_isolation._state.keeper_client import keeper, start_run
from pytest_isolation.errors import ClosedError, KernelError
from pytest_isolation.objects._entering import Entry
from pytest_isolation.objects._namespace import Namespace, check_user
from pytest_isolation.objects._process import Argument, check_argv, open_log, read_log

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_isolation.objects.user import UserNamespace

_GONE_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class PidProcess:
    """A process of a pid namespace.

    Attributes:
        pid_inside: its number in the namespace; 1 is its init.
        pid_outside: its number where pytest lives.
        ppid_inside: its parent's number in the namespace, 0 when the parent is outside.
        comm: its name, at most 15 bytes.
        command: its command line.
        state: `R`, `S`, `D`, `T`, `Z`, ... proc_pid_stat(5)
    """

    pid_inside: int
    pid_outside: int
    ppid_inside: int
    comm: str
    command: str
    state: str


@final
class PidNamespace(Namespace):
    """A pid namespace with its own /proc; its processes cannot see, and not signal, any other.

    Makes one pid namespace, one mount namespace with a fresh /proc, and its init: a small process that reaps whatever
    it adopts, or a program of yours. When the init ends, the kernel kills everything inside. Needs CAP_SYS_ADMIN, or
    `user`.

    Args:
        init: a program and its arguments to be pid 1, with signals as a shell would give them and its output in
            `log`; None for a small reaping init. As pid 1 it gets only signals from inside that it handles.
        extra_env: added to the environment of `init`.
        proc: mount a fresh /proc; False leaves the outer one, which shows the wrong world.
        user: the user namespace that owns it.
    """

    kind: ClassVar[str] = "pid_namespace"
    namespace: ClassVar[str] = "pid"
    _nsenter: ClassVar[str] = "pid"

    def __init__(
        self,
        *,
        init: Sequence[Argument] | None = None,
        extra_env: Mapping[str, object] | None = None,
        proc: bool = True,
        user: UserNamespace | None = None,
    ) -> None:
        argv = None if init is None else [os.fsdecode(word) for word in check_argv(init, shell=False)]
        self._argv = argv
        self._create(lambda: self._make(argv, extra_env, proc, user), on_spawner=False)

    def _make(
        self,
        argv: list[str] | None,
        extra_env: Mapping[str, object] | None,
        proc: bool,  # noqa: FBT001
        user: UserNamespace | None,
    ) -> None:
        check_user(user)
        self._user, self._processes = user, []
        start_run()
        request: dict[str, Any] = {"op": "init", "proc": proc, "argv": argv}
        send = []
        if user is not None:
            request["user"] = user.as_request()
            send.append(user.fileno())
        self._log = -1
        with contextlib.ExitStack() as stack:
            if argv is not None:
                log, writer = open_log("pid 1")
                stack.callback(os.close, writer)
                self._log = self._teardown.hold(log)
                null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, null)
                send += [null, writer, writer]
                env = dict(os.environ) | {key: str(value) for key, value in (extra_env or {}).items()}
                request |= {"env": env, "cwd": os.getcwd()}
            try:
                answer, made = keeper().ask(request, send)
            except KernelError as error:
                if error.errno == errno.ENOENT and error.call.startswith("execve"):
                    message = f"{error.call}: no such program, or the loader or interpreter that it names is missing"
                    raise FileNotFoundError(errno.ENOENT, message) from error
                raise
        self._pidfd, self._fd, self._mnt = (self._teardown.hold(fd) for fd in made)
        self._init_pid: int = answer["pid"]
        self._status: int | None = None
        self._teardown.push("end its init, and so everything inside", self._end)

    def _end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        # The kernel keeps the init until every process inside is reaped, by us where we started it.
        self._end_started(signal.SIGKILL)
        if not self._init_gone(_GONE_TIMEOUT_S):
            left = ", ".join(f"{one.pid_outside} ({one.comm})" for one in self._list())
            message = f"the init of {self.kind} was killed {_GONE_TIMEOUT_S} s ago and is not gone; still there: {left}"
            raise TimeoutError(message)

    def _init_gone(self, timeout: float = 0.0) -> bool:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(timeout * 1000))

    def _ask_status(self) -> None:
        if self._status is None:
            status = keeper().ask({"op": "status", "pid": self._init_pid})[0]["status"]
            self._status = None if status is None else os.waitstatus_to_exitcode(status)

    def _check_alive(self) -> None:
        self._check_open()
        if self._init_gone():
            self._ask_status()
            message = f"{self} is dead: its init exited with {self._status}{self._shown_log()}"
            raise ClosedError(message)

    def _shown_log(self) -> str:
        text = self.log if self._argv else ""
        return f"; it printed:\n{text}" if text else ""

    def _entries(self) -> tuple[Entry, ...]:
        self._check_alive()
        mounts = Entry("mnt", self._mnt, f"the mounts of {self}", implied=True)
        return (*super()._entries(), mounts)

    def _explain_failure(self, error: OSError) -> None:  # noqa: ARG002 - whatever it was: its init may have gone
        self._check_alive()

    @property
    def init_pid(self) -> int:
        """The pid of its init where pytest lives."""
        self._check_open()
        return self._init_pid

    @property
    def init_status(self) -> int | None:
        """None while its init lives; then its exit status, negative for the signal that killed it."""
        if not self._closed and self._init_gone():
            self._ask_status()
        return self._status

    def wait_init(self, timeout: float = 10.0) -> int:
        """Wait until its init has exited, and with it everything inside; its exit status.

        Raises:
            TimeoutError: it still lives.
        """
        self._check_open()
        if not self._init_gone(timeout):
            program = self._argv or "the default one"
            message = f"the init of {self} ({program}) still lives after {timeout} s{self._shown_log()}"
            raise TimeoutError(message)
        self._ask_status()
        assert self._status is not None  # noqa: S101 - the keeper reaps it before it answers
        return self._status

    @property
    def log(self) -> str:
        """What a given `init` has printed so far."""
        if self._argv is None:
            return ""
        self._check_open()
        return read_log(self._log)

    def processes(self) -> tuple[PidProcess, ...]:
        """Every process inside, its init first."""
        self._check_open()
        return self._list()

    def _list(self) -> tuple[PidProcess, ...]:
        ours = os.fstat(self._fd)
        found = []
        for pid in procfs.pids():
            if procfs.namespace_id(pid, "pid") == (ours.st_dev, ours.st_ino):
                one = _describe(pid)
                if one is not None:
                    found.append(one)
        inside = {one.pid_outside: one.pid_inside for one in found}
        return tuple(
            sorted(
                (
                    PidProcess(
                        one.pid_inside,
                        one.pid_outside,
                        inside.get(one.ppid_inside, 0),
                        one.comm,
                        one.command,
                        one.state,
                    )
                    for one in found
                ),
                key=lambda one: one.pid_inside,
            )
        )

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Send a signal to its init; SIGKILL ends everything inside, and this waits until it has.

        Raises:
            ClosedError: its init is gone already.
        """
        self._check_alive()
        signal.pidfd_send_signal(self._pidfd, signum)
        if signum == signal.SIGKILL:
            self._end_started(signal.SIGKILL)
            self.wait_init(_GONE_TIMEOUT_S)

    @property
    def enter_command(self) -> str:
        """A command line to paste into a terminal while this process lives."""
        return f"{super().enter_command} --mount=/proc/{os.getpid()}/fd/{self._mnt}"


def _describe(pid: int) -> PidProcess | None:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    words = dict(re.findall(r"^(\w+):\s*(.*)$", status, re.MULTILINE))
    inside = int(words["NSpid"].split()[-1])
    return PidProcess(inside, pid, int(words["PPid"]), words["Name"], procfs.command(pid), words["State"][0])
