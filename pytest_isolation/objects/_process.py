"""Commands: a `subprocess.Popen` that knows its log, its readiness and its tree."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import signal
import subprocess
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from pytest_isolation._kernel import procfs
from pytest_isolation._state.keeper_client import start_run
from pytest_isolation._state.run import TOKEN, run
from pytest_isolation.errors import ChildError

if TYPE_CHECKING:
    from types import TracebackType

Argument: TypeAlias = str | bytes | int | os.PathLike[str] | IPv4Address | IPv6Address
Ready: TypeAlias = str | Callable[[], object] | None


def check_argv(argv: Sequence[Argument] | str, *, shell: bool) -> list[str | bytes] | str:
    """The argv to hand to execve(2): every item as text, and never a bare string without a shell."""
    if shell:
        if not isinstance(argv, str):
            message = f"with shell=True the command is one string, not {argv!r}"
            raise TypeError(message)
        return argv
    if isinstance(argv, (str, bytes)) or not isinstance(argv, Iterable):
        message = f"argv is a list of a program and its arguments, not {argv!r}: pass [{argv!r}], or shell=True"
        raise TypeError(message)
    words: list[str | bytes] = []
    for item in argv:
        if isinstance(item, bool) or not isinstance(item, (str, bytes, int, os.PathLike, IPv4Address, IPv6Address)):
            message = f"argv item {item!r} is a {type(item).__name__}; allowed are str, bytes, Path, int and ipaddress"
            raise TypeError(message)
        word = os.fspath(item) if isinstance(item, os.PathLike) else item if isinstance(item, bytes) else str(item)
        if (b"\0" if isinstance(word, bytes) else "\0") in word:  # type: ignore[operator]
            message = f"argv item {item!r} contains a NUL"
            raise ValueError(message)
        words.append(word)
    if not words:
        message = "argv is empty: it names at least the program"
        raise ValueError(message)
    return words


def environment(
    env: Mapping[str, str] | None, extra_env: Mapping[str, object] | None, token: str
) -> dict[bytes, bytes]:
    """The child's environment: `env` or our own, `extra_env` added, and the token its tree is found by."""
    words = dict(os.environb) if env is None else {os.fsencode(key): os.fsencode(value) for key, value in env.items()}
    words.update({os.fsencode(key): os.fsencode(str(value)) for key, value in (extra_env or {}).items()})
    words[TOKEN.encode()] = token.encode()
    return words


def tree(pid: int, token: str) -> set[int]:
    """Process `pid`, its descendants, and every process of the run that carries `token`; those alive now."""
    members = run().members()
    parents = {member: procfs.parent(member) for member in members}
    found = {pid} if procfs.parent(pid) is not None else set()
    wanted = f"{TOKEN}={token}".encode()
    for member in members:
        with contextlib.suppress(OSError), open(f"/proc/{member}/environ", "rb") as file:
            if wanted in file.read().split(b"\0"):
                found.add(member)
    grown = True
    while grown:
        grown = False
        for member, parent in parents.items():
            if parent in found and member not in found:
                found.add(member)
                grown = True
    return found


def open_log(title: str) -> tuple[int, int]:
    """A file in memory to keep what a command prints: (to read, to be written by the command).

    The second is opened anew: a memfd's first descriptor reports no writes to inotify(7).
    """
    log = os.memfd_create(f"log of {title}"[:200], os.MFD_CLOEXEC)
    try:
        return log, os.open(f"/proc/self/fd/{log}", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    except BaseException:
        os.close(log)
        raise


def read_log(log: int) -> str:
    """All that was written so far."""
    data = b""
    while chunk := os.pread(log, 1 << 20, len(data)):
        data += chunk
    return data.decode(errors="backslashreplace")


def wait_gone(pidfds: Iterable[int], timeout: float | None) -> bool:
    """Wait until every pidfd's process has exited."""
    deadline = None if timeout is None else time.monotonic() + timeout
    for pidfd in pidfds:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        if not poll.poll(left):
            return False
    return True


def kill_all(pids: Iterable[int]) -> None:
    """SIGKILL processes and wait until they are gone; by pidfd, so that no reused pid is hit while we wait."""
    pidfds = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            pidfds.append(os.pidfd_open(pid))
    try:
        for pidfd in pidfds:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        wait_gone(pidfds, 10.0)
    finally:
        for pidfd in pidfds:
            os.close(pidfd)


class Process(subprocess.Popen[Any]):
    """A command started inside; a `subprocess.Popen` whose `with` ends the whole tree.

    Made by `popen`. Its output goes to a log unless `stdout`/`stderr` say otherwise.

    Attributes:
        pidfd: refers to this process and no later one. pidfd_open(2)
        label: the command, for messages.
    """

    def __init__(self, argv: list[str | bytes] | str, spawn: Callable[..., None], **options: Any) -> None:
        self.token: str = f"{run().id}.{os.urandom(8).hex()}"
        self.label: str = argv if isinstance(argv, str) else " ".join(os.fsdecode(word) for word in argv)
        self.pidfd: int = -1
        self._log = self._writer = -1
        options.pop("born", []).append(self)
        self._stop: int = options.pop("stop", signal.SIGTERM)
        self._grace: float = options.pop("grace", 2.0)
        self._may_exit: bool = options.pop("may_exit", False)
        self._ended_by_us = False
        #: Called with the pids of the tree before it is ended: a frozen process would not die of a signal.
        self.before_end: Callable[[Iterable[int]], None] | None = None
        options["env"] = environment(options.pop("env", None), options.pop("extra_env", None), self.token)
        if options.pop("logged", False):
            self._open_log(options)
        start_run()
        try:
            spawn(lambda **more: subprocess.Popen.__init__(self, argv, **(more | options)))
            self.pidfd = os.pidfd_open(self.pid)
        except BaseException:
            self._undo_start()
            raise
        finally:
            if self._writer >= 0:
                os.close(self._writer)
                self._writer = -1
        self.scope = current_scope()
        alive.add(self)
        if self._log >= 0:
            _logged.append(weakref.ref(self))

    scope: object | None = None

    def _open_log(self, options: dict[str, Any]) -> None:
        self._log, writer = open_log(self.label)
        self._writer = writer
        for name in ("stdout", "stderr"):
            if options.get(name) is None:
                options[name] = writer

    def _undo_start(self) -> None:
        """Something failed on the way: if there is a process already, it does not stay."""
        if getattr(self, "pid", None) is not None:
            self.kill()
            self.wait()
        self.leave_descriptors()

    def _close_descriptors(self) -> None:
        for name in ("pidfd", "_log"):
            fd = getattr(self, name, -1)
            if fd >= 0:
                setattr(self, name, -1)
                os.close(fd)

    # -- what it printed

    @property
    def log(self) -> str:
        """Everything it has printed so far, stdout and stderr in one."""
        if self._log < 0:
            return self._kept_log
        return read_log(self._log)

    _kept_log = ""

    def wait_for(self, pattern: str | re.Pattern[str], timeout: float = 10.0) -> re.Match[str]:
        """Wait until a regular expression (searched, multi-line) is found in the log.

        Raises:
            ChildError: it exited without having printed that.
            TimeoutError: `timeout` seconds have passed; the message shows the log's end.
        """
        regex = re.compile(pattern, re.MULTILINE) if isinstance(pattern, str) else pattern
        deadline = time.monotonic() + timeout
        with _Modified(self._log) as modified:
            while True:
                gone = self._has_exited()
                match = regex.search(self.log)
                if match:
                    return match
                what = f"a line matching {regex.pattern!r}"
                if gone:
                    raise self._died(f"it exited before it printed {what}")
                left = deadline - time.monotonic()
                if left <= 0:
                    raise self._late(what, timeout)
                modified.wait(self.pidfd, left)

    def _has_exited(self) -> bool:
        return self.poll() is not None

    def _died(self, note: str) -> ChildError:
        return ChildError(self.returncode, self.args, self.log, None, note)

    def _late(self, what: str, timeout: float) -> TimeoutError:
        tail = "\n".join(self.log.splitlines()[-20:])
        return TimeoutError(f"{self.label!r} did not show {what} within {timeout} s; its log:\n{tail or '(empty)'}")

    # -- readiness

    def wait_ready(self, ready: Ready, timeout: float) -> None:
        """Wait for "port:80", "port:53/udp", "line:REGEX", "path:/run/x.sock", or a callable that returns true."""
        if ready is None:
            return
        if callable(ready):
            self._poll_until(ready, f"{getattr(ready, '__name__', ready)}() to be true", timeout)
            return
        kind, _, value = ready.partition(":")
        if kind == "line":
            self.wait_for(value, timeout)
        elif kind == "path":
            inside = Path(f"/proc/{self.pid}/root", value.lstrip("/"))
            self._poll_until(lambda: os.path.lexists(inside), f"the path {value}", timeout)
        else:
            number, _, protocol = value.partition("/")
            wanted = (int(number), protocol or "tcp")
            self._poll_until(lambda: self._listens(*wanted), f"port {value} listening", timeout)

    def _listens(self, port: int, protocol: str) -> bool:
        # 0A is TCP_LISTEN; a bound UDP socket is 07.
        state = "0A" if protocol == "tcp" else "07"
        for suffix in ("", "6"):
            with (
                contextlib.suppress(OSError),
                open(f"/proc/{self.pid}/net/{protocol}{suffix}", encoding="ascii") as file,
            ):
                for line in file.readlines()[1:]:
                    fields = line.split()
                    if fields[3] == state and int(fields[1].rpartition(":")[2], 16) == port:
                        return True
        return False

    def _poll_until(self, condition: Callable[[], object], what: str, timeout: float) -> None:
        """Bounded polling, for what the kernel sends no word about; the process's death ends it at once."""
        deadline, pause = time.monotonic() + timeout, 0.001
        watch = select.poll()
        watch.register(self.pidfd, select.POLLIN)
        while not condition():
            if self._has_exited():
                raise self._died(f"it exited before {what}")
            if time.monotonic() >= deadline:
                raise self._late(what, timeout)
            watch.poll(pause * 1000)
            pause = min(pause * 1.5, 0.02)

    # -- its end

    def end(self, stop: int | None = None, grace: float | None = None) -> None:
        """End the tree: `stop` to the command, `grace` seconds to leave, then SIGKILL to all that is left."""
        if self.pidfd < 0:
            return
        alive.discard(self)
        if self.before_end is not None:
            self.before_end(tree(self.pid, self.token))
        if self.returncode is None and not self._has_exited():
            self._ended_by_us = True
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, self._stop if stop is None else stop)
            wait_gone([self.pidfd], self._grace if grace is None else grace)
        while pids := tree(self.pid, self.token):
            if self.before_end is not None:
                self.before_end(pids)
            kill_all(pids)
        self.wait()
        self._kept_log = self.log
        with contextlib.suppress(OSError):  # its stdin may hold what it never read
            self.leave_descriptors()

    def leave_descriptors(self) -> None:
        """After it has been waited for: let go of what refers to it."""
        alive.discard(self)
        for name in ("stdin", "stdout", "stderr"):
            stream = getattr(self, name, None)  # absent where not even Popen.__init__ got that far
            if stream is not None:
                stream.close()
        self._close_descriptors()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        early = self.pidfd >= 0 and self._has_exited() and not self._may_exit
        self.end()
        if early and not self._ended_by_us:
            death = self._died("it exited before the end of its `with` block; if it may, say may_exit=True")
            if error is None:
                raise death
            error.add_note(f"besides, {death}")

    def __del__(self, *args: Any, **kwargs: Any) -> None:
        self._close_descriptors()
        super().__del__(*args, **kwargs)

    def __repr__(self) -> str:
        state = "running" if self.returncode is None else f"exited with {self.returncode}"
        return f"<Process {getattr(self, 'pid', '-')} {self.label!r} {state}>"


class _Modified:
    """Waits for writes to a file, by inotify(7); for the log a command writes straight into."""

    def __init__(self, fd: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        libc.inotify_add_watch(self._fd, f"/proc/self/fd/{fd}".encode(), 0x2)  # IN_MODIFY
        self._poll = select.poll()

    def wait(self, pidfd: int, timeout: float) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(pidfd, select.POLLIN)
        poll.poll(timeout * 1000)
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 1 << 16)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def collect(  # noqa: C901, PLR0912 - one loop over what a command can be ready for
    process: Process, data: bytes | None, timeout: float | None
) -> tuple[bytes | None, bytes | None]:
    """Feed and read a command until it exits, whoever still holds its pipes: (stdout, stderr).

    Raises:
        subprocess.TimeoutExpired: with what had been printed.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    poll = select.poll()
    poll.register(process.pidfd, select.POLLIN)
    chunks: dict[int, list[bytes]] = {}
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            os.set_blocking(stream.fileno(), False)
            poll.register(stream, select.POLLIN)
            chunks[stream.fileno()] = []
    pending = memoryview(data or b"")
    if process.stdin is not None:
        if pending:
            os.set_blocking(process.stdin.fileno(), False)
            poll.register(process.stdin, select.POLLOUT)
        else:
            process.stdin.close()

    def output() -> tuple[bytes | None, bytes | None]:
        both = [
            None if stream is None else b"".join(chunks[stream.fileno()]) for stream in (process.stdout, process.stderr)
        ]
        return both[0], both[1]

    exited = False
    while not exited:
        left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        events = poll.poll(left)
        if not events:
            raise subprocess.TimeoutExpired(process.args, timeout or 0.0, *output())
        exited = any(fd == process.pidfd for fd, _ in events)
        for fd, _ in events:
            if fd in chunks:
                if not _drain(fd, chunks[fd]):
                    poll.unregister(fd)
            elif process.stdin is not None and not process.stdin.closed and fd == process.stdin.fileno():
                with contextlib.suppress(BlockingIOError):
                    try:
                        pending = pending[os.write(fd, pending) :]
                    except BrokenPipeError:
                        pending = pending[:0]
                if not pending:
                    poll.unregister(fd)
                    process.stdin.close()
    for fd, parts in chunks.items():
        _drain(fd, parts)
    process.wait()
    return output()


def _drain(fd: int, parts: list[bytes]) -> bool:
    """Read what is there; False at end of file."""
    while True:
        try:
            chunk = os.read(fd, 1 << 16)
        except BlockingIOError:
            return True
        if not chunk:
            return False
        parts.append(chunk)


#: Every command that has not been ended.
alive: weakref.WeakSet[Process] = weakref.WeakSet()
#: Those with a log, in the order they were started, until nobody holds them.
_logged: list[weakref.ref[Process]] = []


def _no_scope() -> object | None:
    return None


#: What a command that is started now belongs to; the plugin knows the running test.
current_scope: Callable[[], object | None] = _no_scope


def end_scope(scope: object) -> None:
    """End every command that belongs to `scope`."""
    _logged[:] = [reference for reference in _logged if reference() is not None]
    for process in list(alive):
        if process.scope is scope:
            process.end()


def logs_of(scope: object, lines: int) -> list[tuple[str, str]]:
    """(title, last lines) of the log of every command of `scope`, or of wider objects, that printed anything."""
    found = []
    for reference in _logged:
        process = reference()
        if process is not None and process.scope in {scope, None} and lines and process.log:
            found.append((repr(process).strip("<>"), "\n".join(process.log.splitlines()[-lines:])))
    return found
