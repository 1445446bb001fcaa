"""Taking cgroups away: what is inside is ended, and the directories go, leaf first. For owner and keeper."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from typing import TYPE_CHECKING

from pytest_isolation._kernel import cgroupfs, procfs
from pytest_isolation.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: What the names of all our cgroups begin with; 128 random bits follow.
PREFIX = "pytest-isolation-"


def remove(paths: Sequence[str], timeout: float = 10.0) -> None:
    """Remove a cgroup, its directory in each hierarchy, and those below it, after everything in them has been ended.

    What is gone already is fine.

    Raises:
        TimeoutError: something in it did not end; the message names it.
    """
    # Empty, as most are: one call each.
    left = [path for path in reversed(paths) if not _is_removed(path)]
    deadline = time.monotonic() + timeout
    pause = 0.0002
    while left:
        if not end_processes(left, deadline):
            # Nobody is left, and what has just died may be on its way out still: the kernel sends no word of that.
            if time.monotonic() >= deadline:
                raise TimeoutError(_what_stays(left, timeout))
            time.sleep(pause)
            pause = min(pause * 2, 0.02)
        left = [path for path in left if not all(map(_is_removed, cgroupfs.tree(path)))]


def _is_removed(folder: str) -> bool:
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in {errno.EBUSY, errno.ENOTEMPTY}:
            return False
        raise KernelError(error.errno or 0, f"rmdir({folder!r})") from None
    return True


def end_processes(paths: Sequence[str], deadline: float) -> bool:
    """Kill what is in cgroups and below them, and wait until it has died; False when there is nobody.

    Raises:
        TimeoutError: it did not die until the deadline.
    """
    folders = [folder for path in paths for folder in cgroupfs.tree(path)]
    pidfds: dict[int, int] = {}
    try:
        for pid in _pids_in(folders):
            with contextlib.suppress(ProcessLookupError):
                pidfds[pid] = os.pidfd_open(pid)
        # By pidfd, and only those that are inside now: a pid may have found another process meanwhile.
        inside = {pid: pidfds[pid] for pid in _pids_in(folders) if pid in pidfds}
        for pidfd in inside.values():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        for folder in reversed(folders):
            _lift(folder, inside)
        if not _have_exited(inside.values(), deadline):
            raise TimeoutError(_what_stays(paths, None))
    finally:
        for pidfd in pidfds.values():
            os.close(pidfd)
    return bool(inside)


def _lift(folder: str, pids: Iterable[int]) -> None:
    """Let the killed run, so that they can die: in v1 a frozen process does not, and one without CPU time not soon."""
    with contextlib.suppress(KernelError):
        cgroupfs.write(f"{folder}/cpu.cfs_quota_us", "-1")
    with contextlib.suppress(KernelError):
        cgroupfs.write(f"{folder}/freezer.state", "THAWED")
        if cgroupfs.read(f"{folder}/freezer.state").strip() != "THAWED":  # one above is frozen: out of it
            outside = folder[: folder.index(f"/{PREFIX}")]
            for pid in pids:
                with contextlib.suppress(KernelError):
                    cgroupfs.write(f"{outside}/cgroup.procs", str(pid))


def _pids_in(folders: Iterable[str]) -> set[int]:
    """Who is inside; never this process, whose spawner thread may be there for a moment, or be on its way out."""
    return {pid for folder in folders for pid in _pids(folder)} - {os.getpid()}


def _have_exited(pidfds: Iterable[int], deadline: float) -> bool:
    for pidfd in pidfds:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            return False
    return True


def _pids(folder: str) -> list[int]:
    try:
        return cgroupfs.pids(folder)
    except OSError:
        return []


def _what_stays(paths: Iterable[str], timeout: float | None) -> str:
    pids = _pids_in(folder for path in paths for folder in cgroupfs.tree(path))
    shown = ", ".join(f"{pid} ({procfs.command(pid)})" for pid in sorted(pids)[:10]) or "no process that it tells of"
    within = "" if timeout is None else f" within {timeout} s"
    return f"{' and '.join(paths)} could not be emptied and removed{within}; inside: {shown}"
