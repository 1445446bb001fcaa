"""The resident thread that enters namespaces and spawns, so that no thread of pytest's own ever has to.

A thread's child inherits the thread's namespaces. So `subprocess.Popen`, called on a thread that has just called
setns(2), starts its program inside - by vfork, with every Popen feature, without preexec_fn. The thread is started
below the `threading` module (it is in nobody's `threading.enumerate()`), lives as long as the process, and so outlives
its children: PR_SET_PDEATHSIG fires when the *thread* that made a child exits.
"""

from __future__ import annotations

import _thread
import os
import queue
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from pytest_isolation._kernel import cgroupfs, syscalls, uapi
from pytest_isolation._state import fds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

P = ParamSpec("P")
T = TypeVar("T")


class _Job:
    __slots__ = ("call", "done", "error", "result")

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call
        self.done = _thread.allocate_lock()
        self.done.acquire()
        self.result: Any = None
        self.error: BaseException | None = None


class Spawner:
    """Runs one callable at a time on the resident thread."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        #: The namespaces pytest lives in, by name under /proc/PID/ns.
        self.origin: dict[str, int] = {}
        #: /proc/thread-self of the resident thread, which works in whatever it has entered.
        self.myself = -1
        self._root = -1
        #: The mount namespace that pytest started in, where `origin` has one of the run instead.
        self.mounts_of_machine = -1
        #: Has the thread failed to come back from somewhere?
        self._lost = False
        #: v1 cgroups (their `tasks` files) that a thread which failed to come back is to be in.
        self._left: list[str] = []
        self._ident = -1
        ready = _Job(lambda: None)
        _thread.start_new_thread(self._loop, (ready,))
        ready.done.acquire()
        if ready.error is not None:
            raise ready.error

    def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`call(...)` on the resident thread; its result, or its exception, comes back.

        An interrupt of the waiting thread (Ctrl-C, a timeout) lets the job finish before it is raised: what the job
        made is then owned by somebody who will close it.
        """
        __tracebackhide__ = True
        if _thread.get_ident() == self._ident:
            return call(*args, **kwargs)
        job = _Job(lambda: call(*args, **kwargs))
        self._jobs.put(job)
        try:
            job.done.acquire()
        except BaseException:
            job.done.acquire()
            close = getattr(job.result, "close", None)
            if close is not None:
                close()
            raise
        try:
            if job.error is not None:
                raise job.error
            result: T = job.result
            return result
        finally:
            del job  # a traceback must not keep the result, nor the result the traceback

    def _loop(self, ready: _Job) -> None:
        __tracebackhide__ = True
        failure: BaseException | None = None
        try:
            self._settle()
        except BaseException as error:  # noqa: BLE001 - raised again in the threads that ask
            ready.error = failure = error
        ready.done.release()
        while True:
            job = self._jobs.get()
            try:
                if failure is None:
                    job.result = job.call()
                job.error = failure
            except BaseException as error:  # noqa: BLE001 - raised again in the thread that asked
                job.error = error
            lost, self._lost = self._lost, False
            if lost:
                # It could not come back from where it was: another thread takes its place, and it ends.
                replaced = _Job(lambda: None)
                _thread.start_new_thread(self._loop, (replaced,))
                replaced.done.acquire()
            job.done.release()
            if lost:
                return
            del job

    def _settle(self) -> None:
        """At the start of the thread: a root and working directory of its own, and pytest's own namespaces."""
        self._ident = _thread.get_ident()
        syscalls.unshare(uapi.CLONE_FS)  # needed to enter mount namespaces and roots, see setns(2)
        if self._left:  # born where the lost thread was
            left, self._left = self._left, []
            self.leave(left)
        if self.origin:
            self.restore([name for name in self.origin if name not in {"pid", "time", "user"}] + ["root"])
        fds.release(self.myself)
        self.myself = fds.hold(os.open("/proc/thread-self", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        if not self.origin:
            for name in uapi.NAMESPACE_FLAGS:
                if os.path.lexists(f"/proc/thread-self/ns/{name}"):
                    fd = os.open(f"ns/{name}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.myself)
                    self.origin[name] = fds.hold(fd)
            self._root = fds.hold(os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))

    def live_in_mounts(self, mnt: int, root: int) -> None:
        """On the resident thread: be in this mount namespace and root from now on; -1: the machine's again."""
        before = self.origin["mnt"], self._root, self.mounts_of_machine
        if mnt >= 0:
            self.mounts_of_machine = self.origin["mnt"]
            self.origin["mnt"] = fds.hold(mnt)
        else:
            self.origin["mnt"], self.mounts_of_machine = self.mounts_of_machine, -1
        self._root = fds.hold(root)
        try:
            self.restore(["mnt"])
        except BaseException:
            self.origin["mnt"], self._root, self.mounts_of_machine = before
            fds.release(root)
            if mnt >= 0:
                fds.release(mnt)
            raise
        fds.release(before[1])
        if mnt < 0:
            fds.release(before[0])

    @contextmanager
    def joined(self, groups: Iterable[tuple[str, str]]) -> Iterator[None]:
        """On the resident thread: be in v1 cgroups for the block, (`tasks` file to come back to, `tasks` file) each.

        A thread that writes 0 there moves itself alone, and waits for no lock of its thread group.
        """
        back: list[str] = []
        try:
            for home, tasks in groups:
                cgroupfs.write(tasks, "0")
                back.append(home)
            yield
        finally:
            self.leave(back)

    def leave(self, back: Iterable[str]) -> None:
        """On the resident thread: be in those v1 cgroups again.

        Raises:
            KernelError: one of them could not be had back; all were tried, and another thread takes this one's place.
        """
        failure: OSError | None = None
        for tasks in back:
            try:
                cgroupfs.write(tasks, "0")
            except OSError as error:
                self._left.append(tasks)
                failure = failure or error
        if failure is not None:
            self._lost = True
            raise failure

    @contextmanager
    def entered(self, namespaces: Iterable[tuple[str, int]]) -> Iterator[None]:
        """On the resident thread: be in these (name, fd) namespaces for the block."""
        changed: list[str] = []
        try:
            for name, fd in namespaces:
                syscalls.setns(fd, uapi.NAMESPACE_FLAGS[name])
                changed.append(name)
            yield
        finally:
            self.restore(changed)

    def restore(self, names: Iterable[str]) -> None:
        """On the resident thread: be back in pytest's own namespaces of these names, and in its root.

        Raises:
            KernelError: one of them could not be had back; all were tried, and another thread takes this one's place.
        """
        wanted = set(names)
        failure: OSError | None = None
        # Mounts first, as the root is found in them; then the root.
        for name in sorted(wanted, key=lambda name: (name != "mnt", name != "root")):
            try:
                if name != "root":
                    syscalls.setns(self.origin[name], uapi.NAMESPACE_FLAGS[name])
                if name == "root" or (name == "mnt" and not os.path.samestat(os.stat("/"), os.fstat(self._root))):
                    os.fchdir(self._root)
                    syscalls.chroot_here()
            except OSError as error:
                failure = failure or error
        if failure is not None:
            self._lost = True
            raise failure


_spawner: Spawner | None = None
_starting = _thread.allocate_lock()


def spawner() -> Spawner:
    """The spawner of this process, started on first use."""
    global _spawner  # noqa: PLW0603 - one thread per process
    if _spawner is None:
        with _starting:
            if _spawner is None:
                _spawner = Spawner()
    return _spawner


def running() -> bool:
    """Has this process a spawner thread?"""
    return _spawner is not None


def _after_fork_in_child() -> None:
    global _spawner, _starting  # noqa: PLW0603 - a fork copies no other thread
    _spawner = None
    _starting = _thread.allocate_lock()


os.register_at_fork(after_in_child=_after_fork_in_child)
