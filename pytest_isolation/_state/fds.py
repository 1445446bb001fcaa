"""The file descriptors that hold our kernel objects; a forked child lets go of all of them.

A descriptor is a reference: a netns lives as long as somebody holds one. A multiprocessing pool forked while a netns
was open would otherwise keep that netns, and its end of a veth pair, for as long as the pool lives.
"""

from __future__ import annotations

import _thread
import contextlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_held: set[int] = set()
#: Threads that are about to fork for us: that child needs the descriptors to enter, and lets go afterwards.
_keeping: set[int] = set()


@contextlib.contextmanager
def kept_in_child() -> Iterator[None]:
    """For the block: a child that this thread forks keeps the descriptors."""
    thread = _thread.get_ident()
    _keeping.add(thread)
    try:
        yield
    finally:
        _keeping.discard(thread)


def hold(fd: int) -> int:
    """Remember `fd` as ours and return it."""
    _held.add(fd)
    return fd


def release(fd: int) -> None:
    """Close `fd`, once: after a fork the child has let go of it already."""
    if fd in _held:
        _held.remove(fd)
        os.close(fd)


def forget() -> None:
    """Close every descriptor of ours; for a forked child."""
    while _held:
        with contextlib.suppress(OSError):
            os.close(_held.pop())


def _after_fork_in_child() -> None:
    if _thread.get_ident() not in _keeping:
        forget()


os.register_at_fork(after_in_child=_after_fork_in_child)
