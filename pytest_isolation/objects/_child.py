"""A callable in a forked child: what it returns or raises comes back as what it is."""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import sys
import traceback
import warnings
from typing import TYPE_CHECKING, NoReturn, ParamSpec, TypeVar

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
    start_run()
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    try:
        with quiet_fork(), fds.kept_in_child():
            pid = os.fork()
    except BaseException:
        os.close(read_end)
        os.close(write_end)
        raise
    if pid == 0:
        _be_child(write_end, enter, lambda: fn(*args, **kwargs))
    os.close(write_end)
    try:
        data = _read_until_exit(read_end, pid)
    finally:
        os.close(read_end)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if not data:
        name = getattr(fn, "__qualname__", repr(fn))
        raise ChildError(status, f"call_in_child({name})", None, None, "it was gone before the callable returned")
    kind, value, text = pickle.loads(data)  # noqa: S301 - written by our own child
    if kind == "result":
        result: T = value
        return result
    raise value from (_RemoteTraceback(text) if isinstance(value, Exception) else None)


def _read_until_exit(fd: int, pid: int) -> bytes:
    """Read to the end of file, or until the child has exited whoever else holds the pipe."""
    pidfd = os.pidfd_open(pid)
    chunks = []
    try:
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
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    finally:
        os.close(pidfd)


def _be_child(pipe: int, enter: Callable[[Callable[[], None]], None], fn: Callable[[], object]) -> NoReturn:
    status = 0
    try:
        try:
            enter(_second_fork)
            fds.forget()
            data = pickle.dumps(("result", fn(), ""))
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


def _pack(error: BaseException) -> bytes:
    text = "".join(traceback.format_exception(error))
    with contextlib.suppress(Exception):
        data = pickle.dumps(("error", error, text))
        pickle.loads(data)  # noqa: S301 - an exception may pickle and not come back
        return data
    return pickle.dumps(("error", IsolationError(f"{type(error).__name__} (which cannot be pickled): {error}"), text))


def _second_fork() -> None:
    """Go on in a child of this child, which is in the pid namespace; this one passes its end on and is gone."""
    pid = os.fork()
    if pid == 0:
        syscalls.prctl(uapi.PR_SET_PDEATHSIG, signal.SIGKILL)
        return
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)
