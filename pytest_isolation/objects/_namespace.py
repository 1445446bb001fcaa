"""What every namespace shares: held by a descriptor, entered through it, emptied before it is let go."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pytest_isolation._kernel import procfs, syscalls, uapi
from pytest_isolation._state.keeper_client import keeper
from pytest_isolation._state.run import run
from pytest_isolation._state.spawner import spawner
from pytest_isolation.objects._entering import Entry
from pytest_isolation.objects._object import KernelObject
from pytest_isolation.objects._place import Place
from pytest_isolation.objects._process import Process, kill_all

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_isolation.objects.user import UserNamespace

T = TypeVar("T")


def check_user(user: object) -> None:
    """Refuse anything but a user namespace, or None, as the argument `user`."""
    if user is not None and (not isinstance(user, Namespace) or user.namespace != "user"):
        message = f"user={user!r}: allowed are a UserNamespace and None"
        raise TypeError(message)


class Namespace(KernelObject, Place):
    """A namespace that lives as long as its descriptor here, or a process inside. namespaces(7)"""

    #: nsenter(1)'s option for it.
    _nsenter: ClassVar[str]

    _fd: int
    _user: UserNamespace | None = None

    def _make_namespace(self, user: UserNamespace | None, inside: Callable[[], None] | None = None) -> None:
        """Make it, on the spawner thread; `inside()` runs there while the thread is in it.

        With `user` the keeper makes it, out of a child that has entered that user namespace.
        """
        self._user = user
        self._processes: list[Process] = []
        if user is not None:
            (self._fd,) = self._ask_for_namespace(user)
            if inside is not None:
                self._do_inside(inside)
            return
        thread = spawner()
        syscalls.unshare(uapi.NAMESPACE_FLAGS[self.namespace])
        try:
            path = f"ns/{self.namespace}"
            self._fd = self._teardown.hold(os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=thread.myself))
            if inside is not None:
                inside()
        finally:
            thread.restore([self.namespace])
        self._push_emptying()

    def _take_outer(self) -> None:
        """No new namespace: the one that pytest itself lives in; only what was started in it ends with this."""
        self._processes = []
        self._fd = self._teardown.hold(os.dup(spawner().origin[self.namespace]))
        self._teardown.push("end the processes started in it", self._end_started)

    def _ask_for_namespace(self, user: UserNamespace | None, **more: Any) -> list[int]:
        """Have the keeper make it; holds what comes back."""
        check_user(user)
        request: dict[str, Any] = {"op": "namespaces", "kinds": [self.namespace], **more}
        send: list[int] = []
        if user is not None:
            request["user"] = user.as_request()
            send = [user.fileno()]
        _, made = keeper().ask(request, send)
        for fd in made:
            self._teardown.hold(fd)
        self._push_emptying()
        return made

    def _push_emptying(self) -> None:
        self._teardown.push("end the processes in it", self._end_processes)

    def _end_started(self, stop: int | None = None) -> None:
        while self._processes:
            self._processes.pop().end(stop)

    def _end_processes(self) -> None:
        self._end_started()
        if not run().joined:
            return  # nothing was ever started
        ns_id = os.fstat(self._fd)
        found = {
            pid for pid in run().members() if procfs.namespace_id(pid, self.namespace) == (ns_id.st_dev, ns_id.st_ino)
        }
        kill_all(found)

    def _started(self, process: Process) -> None:
        self._processes = [known for known in self._processes if known.returncode is None]
        self._processes.append(process)

    def _do_inside(self, fn: Callable[[], T]) -> T:
        """Run `fn` in it on the spawner thread; where that may not enter, in a forked child."""
        self._check_open()
        if self._user is not None:
            return self.call_in_child(fn)
        thread = spawner()

        def job() -> T:
            with thread.entered([(self.namespace, self._fd)]):
                return fn()

        return thread.run(job)

    def _entries(self) -> tuple[Entry, ...]:
        self._check_open()
        own = Entry(self.namespace, self._fd, str(self))
        return (own,) if self._user is None else (*self._user._entries(), own)

    @property
    def user(self) -> UserNamespace | None:
        """The user namespace it was built with, that owns it; None: the one pytest lives in."""
        return self._user

    def fileno(self) -> int:
        """The descriptor that holds it; do not close it."""
        self._check_open()
        return self._fd

    @property
    def path(self) -> str:
        """A path that refers to it while this process lives: for nsenter(1), CNI plugins and the like."""
        return f"/proc/{os.getpid()}/fd/{self.fileno()}"

    @property
    def ns_id(self) -> tuple[int, int]:
        """(st_dev, st_ino): its identity while it is held; both are free for reuse afterwards."""
        status = os.fstat(self.fileno())
        return status.st_dev, status.st_ino

    @property
    def enter_command(self) -> str:
        """A command line to paste into a terminal while this process lives."""
        words = [] if self._user is None else [f"--user={self._user.path}"]
        if self._user is not None and not self._user.setgroups:
            words.append("--preserve-credentials")  # nsenter would call setgroups(2), which is denied
        return " ".join(["nsenter", *words, f"--{self._nsenter}={self.path}"])

    def __str__(self) -> str:
        try:
            return f"{self.kind} {self.namespace}:[{os.fstat(self._fd).st_ino}]"
        except (AttributeError, OSError):  # half made; closed, or a fork that has let go of it
            return self.kind
