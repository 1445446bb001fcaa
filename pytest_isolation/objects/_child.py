"""A callable in a forked child: what it returns or raises comes back as what it is."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import pickle
import select
import signal
import sys
import traceback
import warnings
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

from pytest_isolation._kernel import syscalls, uapi
from pytest_isolation._state import fds
from pytest_isolation._state.keeper_client import start_run
from pytest_isolation.errors import ChildError, IsolationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

P = ParamSpec("P")
T = TypeVar("T")


@contextlib.contextmanager
def quiet_fork() -> Iterator[None]:
    """No DeprecationWarning (3.12 and later) for our forks: the child only enters, runs the callable and exits."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
        yield


class _RemoteTraceback(Exception):  # noqa: N818 - shown as a cause, never caught
    def __str__(self) -> str:
        return f"\n\n--- in the child:\n{self.args[0]}"


def call_in_child(
    enter: Callable[[Callable[[], None]], None], fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
) -> T:
    """Fork; `enter(second_fork)` and then `fn(...)` in the child; wait; return or raise what came of it."""
    __tracebackhide__ = True
    start_run()
    myself = os.getpid()
    ends = list(os.pipe2(os.O_CLOEXEC))
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    forked: list[int] = []
    try:
        with quiet_fork(), fds.kept_in_child():
            # In one go, so that a signal handler that raises finds no child, or one that is in the list.
            forked.extend(itertools.starmap(os.fork, [()]))
        if forked == [0]:
            _be_child(ends[1], enter, lambda: fn(*args, **kwargs))
        os.close(ends.pop())
        data = _read_until_exit(ends[0], forked[0])
        status = os.waitstatus_to_exitcode(os.waitpid(forked[0], 0)[1])
    except BaseException:
        if os.getpid() != myself:
            os._exit(70)  # interrupted on its way: the child never goes back into pytest
        for pid in forked:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        raise
    finally:
        for fd in ends:
            os.close(fd)
    if not data:
        name = getattr(fn, "__qualname__", repr(fn))
        raise ChildError(status, f"call_in_child({name})", None, None, "it was gone before the callable returned")
    kind, value, text = _load(data)
    if kind == "result":
        result: T = value
        return result
    raise value from (_RemoteTraceback(text) if isinstance(value, Exception) else None)


def _read_until_exit(fd: int, pid: int) -> bytes:
    """Read to the end of file, or until the child has exited whoever else holds the pipe."""
    pidfds: list[int] = []
    chunks = []
    try:
        pidfds.extend(map(os.pidfd_open, [pid]))
        pidfd = pidfds[0]
        os.set_blocking(fd, False)
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.register(pidfd, select.POLLIN)
        while True:
            ready = {number for number, _ in poll.poll()}
            try:
                chunk = os.read(fd, 1 << 20)
            except BlockingIOError:
                chunk = None
            if chunk:
                chunks.append(chunk)
            elif chunk == b"" or pidfd in ready:
                return b"".join(chunks)
    finally:
        for opened in pidfds:
            os.close(opened)


def _be_child(pipe: int, enter: Callable[[Callable[[], None]], None], fn: Callable[[], object]) -> NoReturn:
    status = 0
    try:
        try:
            enter(_second_fork)
            fds.forget()
            data = _pack_result(fn())
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the result
            data = _pack(error)
        view = memoryview(data)
        while view:
            view = view[os.write(pipe, view) :]
    except BaseException:  # noqa: BLE001 - nowhere left to report to
        status = 70
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(status)


class _Pickler(pickle.Pickler):
    """Knows classes that say they live elsewhere: pytest's outcomes call themselves `builtins.Skipped`."""

    def persistent_id(self, obj: object) -> tuple[str, str] | None:
        if not isinstance(obj, type) or getattr(sys.modules.get(obj.__module__), obj.__qualname__, None) is obj:
            return None
        homes = [name for name, module in list(sys.modules.items()) if vars(module).get(obj.__name__) is obj]
        return (homes[0], obj.__name__) if homes else None


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, pid: tuple[str, str]) -> object:
        return getattr(sys.modules[pid[0]], pid[1])


def _pack(error: BaseException) -> bytes:
    text = "".join(traceback.format_exception(error))
    with contextlib.suppress(Exception):
        data = _dump(("error", error, text))
        _load(data)  # an exception may pickle and not come back
        return data
    return _dump(("error", IsolationError(f"{type(error).__name__} (which cannot be pickled): {error}"), text))


def _pack_result(value: object) -> bytes:
    try:
        return _dump(("result", value, ""))
    except Exception as error:  # noqa: BLE001 - pickling runs anybody's code
        message = f"the result of call_in_child has to be pickled to come back, and {value!r} cannot be: {error}"
        raise TypeError(message) from None


def _dump(value: object) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer).dump(value)
    return buffer.getvalue()


def _load(data: bytes) -> Any:
    return _Unpickler(io.BytesIO(data)).load()


def _second_fork() -> None:
    """Go on in a child of this child, which is in the pid namespace; this one passes its end on and is gone."""
    pid = os.fork()
    if pid == 0:
        syscalls.prctl(uapi.PR_SET_PDEATHSIG, signal.SIGKILL)
        return
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    _exit_like(status)


def _exit_like(status: int) -> NoReturn:
    """End this process the way another one ended."""
    if status < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no disposition to reset
            signal.signal(-status, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [-status])
        os.kill(os.getpid(), -status)
    os._exit(abs(status))


def go_on_in_relayed_child() -> None:
    """Return in a child of this process; this one passes signals on to it, and ends as it ends."""
    pid = os.fork()
    if pid == 0:
        syscalls.prctl(uapi.PR_SET_PDEATHSIG, signal.SIGKILL)
        return
    everything = signal.valid_signals()
    signal.pthread_sigmask(signal.SIG_BLOCK, everything)
    os.closerange(0, 1 << 16)  # nobody shall wait for an end of file because of this process
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            _exit_like(os.waitstatus_to_exitcode(status))
        number = signal.sigwaitinfo(everything).si_signo
        if number != signal.SIGCHLD:
            os.kill(pid, number)
