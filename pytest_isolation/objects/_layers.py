"""Layers of an overlay or a union: made from dicts, checked, and compared. What is here mounts nothing.

A layer is a directory. What was deleted in an upper layer is hidden there by a whiteout, and a directory that hides
all below it is opaque. overlayfs and AUFS write the two down in different ways: `Marks`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pytest_isolation._kernel import procfs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

StrPath = str | os.PathLike[str]
#: Attributes of these names are overlayfs's own; `user.` under its option `userxattr`.
_XATTRS = ("trusted.overlay.", "user.overlay.")
_BLOCK = 1 << 16


class Change(NamedTuple):
    """One difference between the merged tree and the layers below the upper one.

    Attributes:
        path: relative to the merged directory.
        kind: `added`, nothing of that name was there; `modified`, other content, or of another type; `metadata`, the
            same content with another mode, owner, time or extended attribute (of a directory, no time); `deleted`, with
            all that was in it; `opaque`, a directory of which nothing below shows: what is in it now is `added`.
    """

    path: str
    kind: str


@dataclass(frozen=True, slots=True)
class Symlink:
    """A symbolic link in a tree: `{"name": Symlink("target")}`."""

    target: str


@dataclass(frozen=True, slots=True)
class Special:
    """What is neither file, directory nor link: `whiteout`, `fifo`, `socket`, `char 1:3`, `block 8:0`."""

    kind: str


#: What a tree is made of: text or bytes of a file, a dict for a directory, and the two above.
Node = str | bytes | Symlink | Special | Mapping[str, "Node"]
Tree = Mapping[str, Node]


# -- trees as dicts


def tree(path: StrPath) -> dict[str, Node]:
    """All that is below a directory, as the dict that a layer can be made from: `{"a": "text", "dir": {}}`.

    A file is its text, or bytes where that is not UTF-8; a directory a dict; a link `Symlink`; all else `Special`.
    """
    with os.scandir(path) as entries:
        return {entry.name: _node(entry.path) for entry in sorted(entries, key=lambda entry: entry.name)}


def _node(path: str) -> Node:
    status = os.lstat(path)
    mode = status.st_mode
    if stat.S_ISDIR(mode):
        return tree(path)
    if stat.S_ISLNK(mode):
        return Symlink(os.readlink(path))
    if is_whiteout(path):
        return Special("whiteout")
    if not stat.S_ISREG(mode):
        device = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        kinds = {stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket", stat.S_IFCHR: f"char {device}"}
        return Special(kinds.get(stat.S_IFMT(mode), f"block {device}"))
    data = Path(path).read_bytes()
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def check_tree(given: Tree, where: str) -> None:
    """Refuse a dict that no directory can be made from, naming the place in it."""
    for name, node in given.items():
        if not isinstance(name, str) or "\0" in name or not {"", ".", ".."}.isdisjoint(str(name).split("/")):
            message = f"{where}: {name!r} is no name: allowed are relative paths without . and .."
            raise ValueError(message)
        if isinstance(node, Mapping):
            check_tree(node, f"{where}[{name!r}]")
        elif isinstance(node, Special) and node.kind not in {"whiteout", "fifo"}:
            message = f"{where}[{name!r}]={node!r}: allowed are whiteout and fifo"
            raise ValueError(message)
        elif not isinstance(node, (str, bytes, Symlink, Special)):
            message = f"{where}[{name!r}]={node!r}: allowed are str, bytes, a dict for a directory, Symlink and Special"
            raise TypeError(message)


def write_tree(folder: str, given: Tree) -> None:
    """Fill a new directory; directories that a name like `a/b` leads through are made."""
    for name, node in given.items():
        path = f"{folder}/{name}"
        if "/" in name:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        if isinstance(node, Mapping):
            os.makedirs(path, exist_ok=True)
            write_tree(path, node)
        elif isinstance(node, Symlink):
            os.symlink(node.target, path)
        elif isinstance(node, Special):
            os.mknod(path, (stat.S_IFCHR if node.kind == "whiteout" else stat.S_IFIFO) | 0o644, 0)
        else:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                with open(fd, "wb", closefd=False) as file:
                    file.write(node.encode() if isinstance(node, str) else node)
            finally:
                os.close(fd)


def remove_tree(path: str) -> None:
    """Remove a directory with all that is in it, links not followed; one that is not there is removed already."""
    try:
        os.rmdir(path)  # most are empty
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    remove_tree(entry.path)
                else:
                    os.unlink(entry.path)
        os.rmdir(path)


# -- directories given as layers


def check_directory(path: StrPath, where: str) -> str:
    """The absolute path of a directory that there is.

    Raises:
        ValueError: there is none.
    """
    text = os.fspath(path)
    if not text or "\0" in text:
        message = f"{where}={path!r}: allowed is a directory, named without NUL"
        raise ValueError(message)
    try:
        mode = os.stat(text).st_mode
    except OSError as error:
        message = f"{where}={path!r}: {error.strerror}; allowed is an existing directory"
        raise ValueError(message) from None
    if not stat.S_ISDIR(mode):
        message = f"{where}={path!r} is no directory"
        raise ValueError(message)
    return os.path.abspath(text)


def check_apart(layers: Sequence[tuple[str, str]]) -> None:
    """Refuse (where, path) pairs of directories of which one is, or lies in, another.

    Raises:
        ValueError: naming both.
    """
    seen: dict[tuple[int, int], str] = {}
    real = []
    for where, path in layers:
        status = os.stat(path)
        first = seen.setdefault((status.st_dev, status.st_ino), where)
        if first != where:
            message = f"{where}={path!r} is the same directory as {first}: each layer is there once"
            raise ValueError(message)
        real.append((where, path, os.path.realpath(path).rstrip("/") + "/"))
    real.sort(key=lambda one: one[2])
    outer: list[tuple[str, str, str]] = []
    for one in real:
        while outer and not one[2].startswith(outer[-1][2]):
            outer.pop()
        if outer:
            message = f"{one[0]}={one[1]!r} lies in {outer[-1][0]}={outer[-1][1]!r}: layers have to be apart"
            raise ValueError(message)
        outer.append(one)


def fstype_of(path: str) -> str:
    """The type of the file system that a path is on, as mountinfo has it; "?" when it is not listed."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    return next((mount.fstype for mount in procfs.mounts() if mount.device == wanted), "?")


# -- whiteouts and opaque directories


def _attribute(path: StrPath, name: str) -> bytes | None:
    for prefix in _XATTRS:
        try:
            return os.getxattr(path, prefix + name, follow_symlinks=False)
        except OSError as error:
            if error.errno not in {errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM}:
                raise
    return None


def is_whiteout(path: StrPath) -> bool:
    """Is this, in a layer of an overlay, a whiteout: a mark that a name of the layers below is deleted?

    A character device 0:0, or an empty file with the extended attribute `overlay.whiteout`.
    """
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    if stat.S_ISCHR(status.st_mode):
        return status.st_rdev == 0
    return stat.S_ISREG(status.st_mode) and not status.st_size and _attribute(path, "whiteout") is not None


def is_opaque(path: StrPath) -> bool:
    """Is this, in a layer of an overlay, an opaque directory: one that hides what the layers below have in it?

    Its extended attribute `overlay.opaque` is `y`; reading `trusted.overlay.opaque` takes CAP_SYS_ADMIN.
    """
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode) and _attribute(path, "opaque") == b"y"
    except (FileNotFoundError, NotADirectoryError):
        return False


class Marks(Protocol):
    """How a file system marks, in the upper layer, what is hidden below it."""

    def entries(self, folder: str) -> Iterator[tuple[str, bool]]:
        """The names in a directory of the upper layer, and whether each is deleted there."""
        ...

    def is_opaque(self, folder: str) -> bool:
        """Does this directory of the upper layer hide all below it?"""
        ...

    def moved(self, path: str) -> bool:
        """Does this stand for something that has another name below?"""
        ...


class OverlayMarks:
    """overlayfs: whiteouts are devices or attributed files, opaque is an attribute."""

    def entries(self, folder: str) -> Iterator[tuple[str, bool]]:
        """See `Marks`."""
        for name in sorted(os.listdir(folder)):
            yield name, is_whiteout(f"{folder}/{name}")

    def is_opaque(self, folder: str) -> bool:
        """See `Marks`."""
        return is_opaque(folder)

    def moved(self, path: str) -> bool:
        """Renamed under the option `redirect_dir=on`."""
        return _attribute(path, "redirect") is not None


class AufsMarks:
    """AUFS: the whiteout of `a` is a file `.wh.a`; opaque, a file `.wh..wh..opq`; other `.wh..wh.*` keep house."""

    PREFIX = ".wh."
    OPAQUE = ".wh..wh..opq"
    #: Its table of inode numbers, in the first writable branch.
    XINO = ".aufs.xino"

    def entries(self, folder: str) -> Iterator[tuple[str, bool]]:
        """See `Marks`."""
        for name in sorted(os.listdir(folder)):
            if name == self.XINO or name.startswith(self.PREFIX * 2):
                continue
            if name.startswith(self.PREFIX):
                yield name.removeprefix(self.PREFIX), True
            else:
                yield name, False

    def is_opaque(self, folder: str) -> bool:
        """See `Marks`."""
        return os.path.lexists(f"{folder}/{self.OPAQUE}")

    def moved(self, path: str) -> bool:  # noqa: ARG002 - an overlay's matter
        """Never: a directory that is renamed is copied up whole."""
        return False


class Stack:
    """Branches seen through each other, first one uppermost: where does a name come from?"""

    def __init__(self, folders: Sequence[str], marks: AufsMarks) -> None:
        self._folders, self._marks = folders, marks

    def find(self, path: str) -> str | None:
        """Where `path` shows from, or None where no branch has it or one hides it."""
        names = path.split("/")
        for folder in self._folders:
            here = folder
            hides = False
            for name in names:
                if os.path.lexists(f"{here}/{self._marks.PREFIX}{name}"):
                    return None
                hides = hides or self._marks.is_opaque(here)
                here += f"/{name}"
                if not os.path.lexists(here):
                    break
            else:
                return here
            above = os.path.dirname(here)
            # What is no directory here hides what lies in a directory of that name below.
            if hides or (above != folder and os.path.lexists(above) and not _is_directory(above)):
                return None
        return None


def _is_directory(path: str) -> bool:
    return stat.S_ISDIR(os.lstat(path).st_mode)


# -- comparing


def find_changes(upper: str, below: Callable[[str], str | None], merged: str, marks: Marks) -> list[Change]:
    """What the upper layer changes in what is below it, sorted by path.

    Args:
        upper: the upper layer.
        below: where a path of the layers below, merged with each other, is found; None where there is none.
        merged: all of it together.
        marks: how whiteouts and opaque directories look.
    """
    comparison = _Comparison(upper, below, merged, marks)
    comparison.visit("")
    return sorted(comparison.found)


class _Comparison:
    """A walk through an upper layer."""

    def __init__(self, upper: str, below: Callable[[str], str | None], merged: str, marks: Marks) -> None:
        self._upper, self._below, self._merged, self._marks = upper, below, merged, marks
        self.found: list[Change] = []

    def visit(self, folder: str) -> None:
        """A directory that shows what is below it as well."""
        for name, deleted in self._marks.entries(f"{self._upper}/{folder}" if folder else self._upper):
            path = f"{folder}/{name}" if folder else name
            old = self._below(path)
            if not deleted:
                self._visit_one(path, f"{self._upper}/{path}", old)
            elif old is not None:
                self.found.append(Change(path, "deleted"))

    def _visit_one(self, path: str, here: str, old: str | None) -> None:
        moved = self._marks.moved(here)
        if not _is_directory(here):
            kind = "added" if old is None else "modified" if moved else compare(old, here, f"{self._merged}/{path}")
            if kind:
                self.found.append(Change(path, kind))
        elif old is not None and _is_directory(old) and not moved and not self._marks.is_opaque(here):
            if _metadata(old, os.lstat(old)) != _metadata(here, os.lstat(here)):
                self.found.append(Change(path, "metadata"))
            self.visit(path)
        else:
            kind = "added" if old is None else "opaque" if _is_directory(old) else "modified"
            self.found.append(Change(path, kind))
            self._add_all(path)

    def _add_all(self, folder: str) -> None:
        """A directory of which nothing below shows, or that came from elsewhere: what is seen in it is new."""
        for name in sorted(os.listdir(f"{self._merged}/{folder}")):
            path = f"{folder}/{name}"
            self.found.append(Change(path, "added"))
            if _is_directory(f"{self._merged}/{path}"):
                self._add_all(path)


def compare(old: str, upper: str, merged: str) -> str | None:
    """How a file, link or device differs from what was below it: `modified`, `metadata` or None.

    Content is read where it is `merged`: an upper file may have none of its own (`metacopy=on`).
    """
    was, now = os.lstat(old), os.lstat(upper)
    if stat.S_IFMT(was.st_mode) != stat.S_IFMT(now.st_mode) or was.st_rdev != now.st_rdev:
        return "modified"
    if stat.S_ISLNK(now.st_mode):
        if os.readlink(old) != os.readlink(upper):
            return "modified"
    elif stat.S_ISREG(now.st_mode) and (was.st_size != now.st_size or not _same_content(old, merged)):
        return "modified"
    same = _metadata(old, was) == _metadata(upper, now) and was.st_mtime_ns == now.st_mtime_ns
    return None if same else "metadata"


def _same_content(one: str, other: str) -> bool:
    with open(one, "rb", buffering=0) as first, open(other, "rb", buffering=0) as second:
        while True:
            block = first.read(_BLOCK)
            if block != second.read(_BLOCK):
                return False
            if not block:
                return True


def _metadata(path: str, status: os.stat_result) -> tuple[object, ...]:
    try:
        names = [name for name in os.listxattr(path, follow_symlinks=False) if not name.startswith(_XATTRS)]
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        names = []
    attributes = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
    return stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, attributes


# -- who keeps a mount busy


def users_of(target: str) -> list[str]:
    """Processes that have something open below `target`, or are at home there, each in one line."""
    found = []
    for pid in procfs.pids():
        links = [("cwd", f"/proc/{pid}/cwd"), ("root", f"/proc/{pid}/root"), ("exe", f"/proc/{pid}/exe")]
        try:
            links += [(f"fd {name}", f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
        except OSError:
            continue  # gone meanwhile, or not ours to see
        for what, link in links:
            try:
                path = os.readlink(link)
            except OSError:
                continue
            if path == target or path.startswith(target + "/"):
                found.append(f"process {pid} ({procfs.command(pid)}): {what} is {path}")
    return found
