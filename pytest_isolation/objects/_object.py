"""The lifetime that every kernel object shares: made in steps, undone last first, closed once, by its own process."""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import warnings
import weakref
from typing import TYPE_CHECKING, ClassVar, Self

from pytest_isolation._kernel import uapi
from pytest_isolation._state import fds, keeper_client, mounts, run
from pytest_isolation._state.spawner import spawner
from pytest_isolation.errors import ClosedError, KernelError, Unsupported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

#: The capability that a call wants, where the kernel answers EPERM without it. capabilities(7)
_CAPABILITIES = {
    "NFT_MSG_GETGEN": "CAP_NET_ADMIN",
    "RTM_NEWADDR": "CAP_NET_ADMIN",
    "RTM_NEWLINK": "CAP_NET_ADMIN",
    "chroot": "CAP_SYS_CHROOT",
    "clone": "CAP_SYS_ADMIN",
    "fsmount": "CAP_SYS_ADMIN",
    "fsopen": "CAP_SYS_ADMIN",
    "mount": "CAP_SYS_ADMIN",
    "mount_setattr": "CAP_SYS_ADMIN",
    "move_mount": "CAP_SYS_ADMIN",
    "open_tree": "CAP_SYS_ADMIN",
    "pivot_root": "CAP_SYS_ADMIN",
    "setdomainname": "CAP_SYS_ADMIN",
    "sethostname": "CAP_SYS_ADMIN",
    "setns": "CAP_SYS_ADMIN, for mount namespaces CAP_SYS_CHROOT as well",
    "socket": "CAP_NET_RAW",
    "unshare": "CAP_SYS_ADMIN",
    "write": "CAP_SETUID and CAP_SETGID for ids, CAP_SYS_TIME for clocks",
}


@contextlib.contextmanager
def asking_for(what: object, namespace: str = "") -> Iterator[None]:
    """For the block: a refusal that means "this kernel or user cannot" becomes `Unsupported`; others stay."""
    try:
        yield
    except Unsupported as error:  # of a part: what was asked for is the whole
        raise Unsupported(str(what), error.why, error.remedy, error.since) from error
    except KernelError as error:
        call = error.call.partition("(")[0]
        if error.errno == errno.EPERM and call in _CAPABILITIES:
            remedy = f"run as root with {_CAPABILITIES[call]}, or in a user namespace: user=, or inside(...) with one"
            raise Unsupported(str(what), str(error), remedy) from error
        if namespace and call in {"unshare", "clone"} and error.errno in {errno.ENOSYS, errno.EINVAL}:
            remedy = f"a kernel built with {namespace} namespaces"
            raise Unsupported(str(what), str(error), remedy, uapi.NAMESPACE_SINCE[namespace]) from error
        raise


class Teardown:
    """The undoing of a setup: callables run last first, every one of them, whatever the others raise."""

    def __init__(self) -> None:
        self._steps: list[tuple[str, Callable[[], object]]] = []

    def push(self, what: str, undo: Callable[[], object]) -> None:
        """`undo` will be called at the end; `what` names it in the report of a failure."""
        self._steps.append((what, undo))

    def hold(self, fd: int) -> int:
        """Own the descriptor `fd`: closed at the end, and at once in a forked child."""
        fds.hold(fd)
        self.push(f"close descriptor {fd}", lambda: fds.release(fd))
        return fd

    def close(self, title: str) -> None:
        """Undo everything.

        Raises:
            ExceptionGroup: every failure, each with a note naming its step.
        """
        errors: list[Exception] = []
        while self._steps:
            what, undo = self._steps.pop()
            try:
                undo()
            except Exception as error:  # noqa: BLE001 - all are reported together
                error.add_note(f"while closing {title}: {what}")
                errors.append(error)
        if errors:
            message = f"closing {title} failed in {len(errors)} step(s)"
            raise ExceptionGroup(message, errors)


def check_kind(name: str, value: object, wanted: type[KernelObject]) -> None:
    """Refuse anything but an object of a class, or None, as the argument `name`."""
    if value is not None and not isinstance(value, wanted):
        message = f"{name}={value!r}: allowed are a {wanted.__name__} and None"
        raise TypeError(message)


class KernelObject:
    """Base of everything that is made for a test and taken away again.

    A subclass checks its arguments first (bad input: nothing was created), then calls `_create(make)`; `make` pushes
    the undoing of each step on `self._teardown` right after the step.
    """

    #: The builder's method that makes it; also its name in messages.
    kind: ClassVar[str]
    #: Its name under /proc/PID/ns, where it is a namespace.
    namespace: ClassVar[str] = ""

    _closed = True  # until _create has succeeded: nothing to close, nothing to warn about

    def _create(self, make: Callable[[], None], *, on_spawner: bool = True) -> None:
        self._teardown = Teardown()
        self._pid = os.getpid()
        #: Set by the builder that closes it: `with` on such an object is an error.
        self._owner: object | None = None
        self._closed = False
        __tracebackhide__ = True
        try:
            with asking_for(self.kind, self.namespace):
                if on_spawner:
                    spawner().run(make)
                else:
                    make()
        except BaseException as error:
            self._closed = True
            self._undo_half_made(error)
            raise
        _alive.add(self)

    def _undo_half_made(self, error: BaseException) -> None:
        try:
            self._teardown.close(f"half-made {self.kind}")
        except ExceptionGroup as group:
            for failure in group.exceptions:
                error.add_note(f"and undoing it: {failure!r}")

    @property
    def closed(self) -> bool:
        """Has it been taken away?"""
        return self._closed

    def close(self) -> None:
        """Take it away; closing twice does nothing.

        Raises:
            ExceptionGroup: what could not be undone; everything else was.
        """
        if self._closed or self._pid != os.getpid():
            return
        self._closed = True
        _alive.discard(self)
        self._teardown.close(str(self))

    def _check_open(self) -> None:
        if self._closed:
            message = f"{self} is closed"
            raise ClosedError(message)
        if self._pid != os.getpid():
            message = (
                f"{self} belongs to process {self._pid}, this is process {os.getpid()}, a fork of it, which has let go "
                f"of its descriptors: make an object in this process, or use call_in_child"
            )
            raise ClosedError(message)

    def __enter__(self) -> Self:
        if getattr(self, "_owner", None) is not None:
            message = (
                f"{self} is closed by the builder that made it; `with` would be its lifetime. "
                f"To be inside for a block: `with inside(...)`"
            )
            raise TypeError(message)
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._closed and self._pid == os.getpid():
            warnings.warn(f"unclosed {self}", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def __str__(self) -> str:
        return self.kind

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'closed' if self._closed else self}>"


#: Everything open, for the end of the process.
_alive: weakref.WeakSet[KernelObject] = weakref.WeakSet()


def finish() -> None:
    """End this process's run: close what is still open, end what it started, let the keeper go. Also at exit."""
    for one in list(_alive):
        if one._owner is None and one._pid == os.getpid():
            warnings.warn(f"unclosed {one}", ResourceWarning, source=one, stacklevel=2)
        with contextlib.suppress(Exception):  # at exit there is nobody left to tell
            one.close()
    mounts.finish()
    run.finish()
    keeper_client.finish()


atexit.register(finish)
