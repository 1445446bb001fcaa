"""What overlay_fs and union_fs share: layers made or given, one directory that shows them merged, and its end."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_isolation._kernel import procfs, syscalls, uapi
from pytest_isolation._state import mounts
from pytest_isolation._state.spawner import spawner
from pytest_isolation.errors import IsolationError, KernelError
from pytest_isolation.objects._layers import (
    Change,
    Marks,
    StrPath,
    Tree,
    check_apart,
    check_directory,
    check_tree,
    find_changes,
    remove_tree,
    users_of,
    write_tree,
)
from pytest_isolation.objects._object import KernelObject, Teardown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Layer = StrPath | Tree
#: The lower layer where none is given.
DEFAULT: Tree = {"a": "a\n"}
_numbers = itertools.count(1)


def new_directory(teardown: Teardown, kind: str) -> str:
    """A directory in the run's tmpfs, which goes with everything in it."""
    path = f"{mounts.directory()}/{kind}-{next(_numbers)}"
    os.mkdir(path)
    teardown.push(f"remove {path}", lambda: in_run(remove_tree, path))
    return path


def in_run(job: Callable[[str], None], path: str) -> None:
    """`job(path)` where the run's mounts are seen: here, or where this thread is inside others, on the spawner."""
    try:
        mounts.enter()
    except IsolationError:
        spawner().run(job, path)
    else:
        job(path)


def push_unmount(teardown: Teardown, target: str) -> None:
    """What is mounted at `target` now will be unmounted: also where something was mounted over it meanwhile."""
    device = os.lstat(target).st_dev
    teardown.push(f"unmount {target}", lambda: in_run(lambda path: _unmount(path, device), target))


def _unmount(target: str, device: int) -> None:
    try:
        syscalls.umount2(target)
    except KernelError as error:
        if error.errno in {errno.EINVAL, errno.ENOENT}:
            return  # taken away from outside
        if error.errno != errno.EBUSY:
            raise
        users = [f"a mount at {one.target}" for one in procfs.mounts() if one.target.startswith(target + "/")]
        users += users_of(target)
        syscalls.umount2(target, uapi.MNT_DETACH)
        who = "; ".join(users) or "something that /proc does not show"
        hint = f"It is kept busy by {who}. It was detached all the same"
        raise KernelError(errno.EBUSY, error.call, None, hint) from None
    if os.lstat(target).st_dev == device:
        _unmount(target, device)


class Layered(KernelObject):
    """Base of what shows several directories as one."""

    _readonly = False

    def _check_layers(
        self, lower: tuple[Layer, ...], upper: StrPath | None, merged: StrPath | None, work: StrPath | None = None
    ) -> None:
        """Refuse what no layers can be made of, before anything is made."""
        self._given: list[str | Tree] = []
        self._given_upper = None if upper is None else check_directory(upper, "upper")
        self._given_work = None if work is None else check_directory(work, "work")
        self._given_merged = None if merged is None else check_directory(merged, "merged")
        for number, layer in enumerate(lower):
            where = f"lower[{number}]"
            if isinstance(layer, Mapping):
                check_tree(layer, where)
                self._given.append(layer)
            elif isinstance(layer, (str, os.PathLike)):
                self._given.append(check_directory(layer, where))
            else:
                message = f"{where}={layer!r}: allowed are a directory's path, and a dict to make one from"
                raise TypeError(message)
        named = [(f"lower[{number}]", one) for number, one in enumerate(self._given) if isinstance(one, str)]
        named += [("upper", self._given_upper)] if self._given_upper else []
        named += [("work", self._given_work)] if self._given_work else []
        if len(named) > 1:
            check_apart(named)

    def _make_layers(self) -> None:
        """Make the directories that were not given."""
        self._home = home = new_directory(self._teardown, self.kind)
        lower = []
        for number, layer in enumerate(self._given or [DEFAULT]):
            if isinstance(layer, str):
                lower.append(layer)
                continue
            lower.append(path := f"{home}/lower{number}")
            os.mkdir(path)
            write_tree(path, layer)
        self._lower = lower
        if not self._readonly:
            self._upper = self._given_upper or f"{home}/upper"
            if self._given_upper is None:
                os.mkdir(self._upper)
        self._merged = self._given_merged or f"{home}/merged"
        if self._given_merged is None:
            os.mkdir(self._merged)

    @property
    def lower(self) -> tuple[Path, ...]:
        """The lower layers, the uppermost first."""
        return tuple(map(Path, self._lower))

    @property
    def upper(self) -> Path:
        """The upper layer: all that is written to `merged` lands there.

        Raises:
            IsolationError: it was made with `readonly=True`.
        """
        if self._readonly:
            message = f"{self} is read-only: it has no upper layer"
            raise IsolationError(message)
        return Path(self._upper)

    @property
    def merged(self) -> Path:
        """The directory where it is mounted: all layers as one."""
        return Path(self._merged)

    def changes(self) -> list[Change]:
        """What was changed since it was made, or since the upper layer was: the upper layer against those below it.

        Returns:
            `Change(path, kind)`, sorted by path: `added`, `modified`, `deleted`, `metadata`, `opaque`.
        """
        self._check_open()
        if self._readonly:
            return []
        with self._below() as below:
            return find_changes(self._upper, below, self._merged, self._marks())

    def _marks(self) -> Marks:
        raise NotImplementedError

    def _below(self) -> contextlib.AbstractContextManager[Callable[[str], str | None]]:
        raise NotImplementedError

    def __str__(self) -> str:
        return f"{self.kind} {getattr(self, '_merged', '')}".strip()


@contextlib.contextmanager
def mounted_view(mount: int) -> Iterator[Callable[[str], str | None]]:
    """For the block: where a path is found in a mount that is attached nowhere; closes the descriptor."""
    try:

        def find(path: str) -> str | None:
            full = f"/proc/thread-self/fd/{mount}/{path}"
            return full if os.path.lexists(full) else None

        yield find
    finally:
        os.close(mount)
