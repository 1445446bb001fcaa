"""The run's own mount namespace: what is mounted for pytest's eyes goes with the run, whatever happens to it.

It hears of what the machine mounts where that is shared (slave), and passes on what is mounted in it to the copies made
of it (shared). The kernel drops its mounts when its last process is gone. Threads that are older than it stay outside:
so the plugin enters it at the end of collection when a test asks for a fixture that mounts, and otherwise it is entered
when first needed.
"""

from __future__ import annotations

import _thread
import os
import tempfile
from pathlib import Path

from pytest_isolation._kernel import syscalls, uapi
from pytest_isolation._state import ledger
from pytest_isolation._state.keeper_client import keeper, start_run
from pytest_isolation._state.run import run
from pytest_isolation._state.spawner import running, spawner
from pytest_isolation.errors import IsolationError

_entering = _thread.allocate_lock()
#: The directory of `directory()`, and its entry on the ledger.
_place: tuple[Path, ledger.Entry] | None = None


def _here(fd: int) -> bool:
    return os.path.samestat(os.stat("/proc/thread-self/ns/mnt"), os.fstat(fd))


def enter() -> None:
    """Put the calling thread, and the spawner, into the run's mount namespace, which is made when there is none.

    The working directory stays. Calling it again does nothing.

    Raises:
        KernelError: EPERM without CAP_SYS_ADMIN.
        IsolationError: the calling thread is inside another mount namespace now.
    """
    thread = spawner()
    with _entering:
        if _here(thread.origin["mnt"]):
            if thread.mounts_of_machine < 0:
                _make()
        elif thread.mounts_of_machine >= 0 and _here(thread.mounts_of_machine):
            _join(thread.origin["mnt"])  # a thread that is older than the namespace
        else:
            message = "this thread is inside a mount namespace: what mounts for pytest itself has to be made outside it"
            raise IsolationError(message)


def _make() -> None:
    start_run()
    thread = spawner()
    syscalls.unshare(uapi.CLONE_NEWNS)  # and CLONE_FS with it: root and working directory are this thread's own now
    try:
        for propagation in (uapi.MS_SLAVE, uapi.MS_SHARED):
            syscalls.mount(None, "/", None, uapi.MS_REC | propagation)
        own = [os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC), _open_root()]
        try:
            keeper().ask({"op": "live_in_mounts"}, own)  # so that the first process of a pid namespace sees them
        finally:
            for fd in own:
                os.close(fd)
        thread.run(thread.live_in_mounts, os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC), _open_root())
    except BaseException:
        _join(thread.origin["mnt"])
        raise


def _open_root() -> int:
    return os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _join(fd: int) -> None:
    cwd = os.getcwd()
    syscalls.unshare(uapi.CLONE_FS)  # setns(2) wants it for a mount namespace
    syscalls.setns(fd, uapi.CLONE_NEWNS)
    os.chdir(cwd)


def directory() -> Path:
    """A tmpfs that is mounted in the run's mount namespace only: for mount points, upper layers and the like.

    Whoever is root in there may make devices; everybody may pass through.
    """
    global _place  # noqa: PLW0603 - one per run
    enter()
    if _place is None:
        start_run()
        path = Path(tempfile.gettempdir(), f"pytest-isolation-{run().id}")
        entry = ledger.Entry(run().id, "directory", path=str(path))
        try:
            path.mkdir(mode=0o700)
            syscalls.mount("pytest-isolation", path, "tmpfs", uapi.MS_NOSUID, "mode=0755")
        except BaseException:
            if path.exists():
                path.rmdir()
            entry.strike()
            raise
        _place = (path, entry)
    return _place[0]


def finish() -> None:
    """End of the run: drop the tmpfs, and go back to the machine's mounts."""
    global _place
    place, _place = _place, None
    if place is not None:
        path, entry = place
        syscalls.umount2(path, uapi.MNT_DETACH)
        path.rmdir()
        entry.strike()
    if in_use():
        thread = spawner()
        if _here(thread.origin["mnt"]):
            _join(thread.mounts_of_machine)
        thread.run(thread.live_in_mounts, -1, _open_root())


def bind_for_all(fd: int, target: Path) -> None:
    """Bind what `fd` refers to at `target` for the whole machine to see, this run included."""
    thread = spawner()

    def bind() -> None:
        if not os.path.samestat(os.stat(target), os.fstat(fd)):  # the machine's mount may have come by itself
            syscalls.mount(f"/proc/self/fd/{fd}", target, None, uapi.MS_BIND)

    def job() -> None:
        if thread.mounts_of_machine >= 0:
            with thread.entered([("mnt", thread.mounts_of_machine)]):
                bind()
        bind()

    thread.run(job)


def in_use() -> bool:
    """Has this process a mount namespace of the run?"""
    return running() and spawner().mounts_of_machine >= 0


def _after_fork_in_child() -> None:
    global _place, _entering  # noqa: PLW0603 - it is the parent's to remove
    _place = None
    _entering = _thread.allocate_lock()


os.register_at_fork(after_in_child=_after_fork_in_child)
