"""overlayfs: directories laid over each other, one of them writable. Documentation/filesystems/overlayfs.rst"""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from pytest_isolation._kernel import syscalls
from pytest_isolation._state import ledger
from pytest_isolation._state.keeper_client import start_run
from pytest_isolation._state.run import run
from pytest_isolation.errors import IsolationError, KernelError, Unsupported
from pytest_isolation.objects._layered import Layer, Layered, in_run, mounted_view, push_unmount
from pytest_isolation.objects._layers import Marks, OverlayMarks, StrPath, fstype_of, remove_tree

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable, Mapping

    from pytest_isolation.objects._object import Teardown

#: What the object says itself.
_OWN_OPTIONS = {"lowerdir": "lower layers", "lowerdir+": "lower layers", "upperdir": "upper=", "workdir": "work="}
#: Options that say how layers are read, and so concern a view of the lower ones as well.
_READING = ("userxattr", "redirect_dir", "metacopy", "xino")
_PAGE = 4096
_FSCONFIG_MAX = 255


def check_options(options: Mapping[str, object] | None) -> dict[str, str | None]:
    """The options as text; refuses those that are arguments of their own."""
    found: dict[str, str | None] = {}
    for name, value in (options or {}).items():
        if name in _OWN_OPTIONS:
            message = (
                f"options={{{name!r}: {value!r}}}: allowed are the others, this one is given by {_OWN_OPTIONS[name]}"
            )
            raise ValueError(message)
        text = None if value is None else os.fsdecode(value) if isinstance(value, (os.PathLike, bytes)) else str(value)
        if not name or "\0" in f"{name}{text}" or not set(",=").isdisjoint(name):
            message = f"options={{{name!r}: {value!r}}}: allowed are a name and text without NUL, or None for a flag"
            raise ValueError(message)
        found[name] = text
    return found


def _escape(path: str) -> str:
    r"""As the option string wants it: `:` and `,` separate, `\` escapes."""
    if "\\" not in path and ":" not in path and "," not in path:
        return path
    for character in "\\:,":
        path = path.replace(character, "\\" + character)
    return path


def _settings(
    lower: list[str], upper: str | None, work: str | None, options: dict[str, str | None]
) -> list[tuple[str, str | None]]:
    together = ":".join(map(_escape, lower))
    found: list[tuple[str, str | None]] = [("lowerdir", together)]
    if len(together) > _FSCONFIG_MAX:
        found = [("lowerdir+", path) for path in lower]
    if upper is not None and work is not None:
        found += [("upperdir", _escape(upper)), ("workdir", _escape(work))]
    return [*found, *options.items()]


def mount_overlay(
    lower: list[str], upper: str | None, work: str | None, options: dict[str, str | None], merged: str
) -> None:
    """Mount it at `merged`.

    The classic call is the cheapest, and speaks to every kernel; it takes one page of options, and has no words for
    what it refuses: both are the newer calls' part.

    Raises:
        KernelError: with the kernel's own words.
        Unsupported: so many layers only fit in kernels from 6.7 on.
    """
    data = "lowerdir=" + ":".join(map(_escape, lower))
    if upper is not None and work is not None:
        data += f",upperdir={_escape(upper)},workdir={_escape(work)}"
    for name, value in options.items():
        data += f",{name}" if value is None else f",{name}={_escape(value)}"
    if len(os.fsencode(data)) >= _PAGE:
        mount = detached_overlay(lower, upper, work, options)
        try:
            syscalls.move_mount(mount, merged)
        finally:
            os.close(mount)
        return
    try:
        syscalls.mount("overlay", merged, "overlay", 0, data)
    except KernelError as error:
        if error.errno == errno.ENODEV:
            raise _no_overlay(error) from error
        if error.errno not in {errno.EINVAL, errno.ENOENT, errno.ELOOP}:
            raise
        words = _own_words(lower, upper, work, options)
        raise KernelError(error.errno, error.call, words, None if words else _hint(error, upper)) from None


def _no_overlay(error: KernelError) -> Unsupported:
    return Unsupported("overlay", str(error), "a kernel built with OVERLAY_FS, or `modprobe overlay`", "3.18")


def _own_words(lower: list[str], upper: str | None, work: str | None, options: dict[str, str | None]) -> str | None:
    try:
        os.close(detached_overlay(lower, upper, work, options))
    except KernelError as error:
        return error.message
    except Unsupported:
        pass
    return None


def _hint(error: KernelError, upper: str | None) -> str | None:
    if error.errno == errno.ELOOP:
        return "Layers overlap: one of them is, or lies in, another"
    if upper is None:
        return None
    return f"upper={upper!r} is on {fstype_of(upper)}: upper and work need one file system, with d_type and xattrs"


def detached_overlay(lower: list[str], upper: str | None, work: str | None, options: dict[str, str | None]) -> int:
    """An overlay that is mounted nowhere yet, as a descriptor; `lowerdir+`, Linux 6.7, takes each layer by itself."""
    settings = _settings(lower, upper, work, options)
    try:
        return syscalls.fs_mount("overlay", settings, source="overlay")
    except KernelError as error:
        if error.errno == errno.ENODEV:
            raise _no_overlay(error) from error
        if error.errno == errno.EINVAL and "lowerdir+" in (error.message or error.call):
            what, remedy = (
                f"an overlay of {len(lower)} layers",
                "fewer layers, or shorter paths: one page holds them all",
            )
            raise Unsupported(what, str(error), remedy, "6.7") from error
        raise


def overlay_below(
    lower: list[str], options: dict[str, str | None], home: str
) -> contextlib.AbstractContextManager[Callable[[str], str | None]]:
    """What the lower layers alone show, by the kernel's own merging."""
    reading = {name: value for name, value in options.items() if name in _READING}
    return mounted_view(detached_overlay([*lower, _empty(home)], None, None, reading))


def _empty(home: str) -> str:
    """An empty directory: an overlay without an upper layer wants two lower ones at least."""
    path = f"{home}/empty"
    if not os.path.isdir(path):
        os.mkdir(path)
    return path


def check_upper(upper: str, work: str, options: Mapping[str, object]) -> None:
    """Refuse given directories that cannot carry an upper layer, where the kernel would go on with less.

    Without extended attributes an overlay cannot make a directory opaque: what was deleted would come back.
    """
    if os.stat(upper).st_dev != os.stat(work).st_dev:
        message = (
            f"work={work!r} is on another file system ({fstype_of(work)}) than upper={upper!r} ({fstype_of(upper)}): "
            f"files are renamed from one to the other"
        )
        raise ValueError(message)
    name = f"{'user' if 'userxattr' in options else 'trusted'}.overlay.probe"
    try:
        os.setxattr(work, name, b"y")
        os.removexattr(work, name)
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.EROFS, errno.EPERM, errno.EACCES, errno.EINVAL}:
            raise
        message = (
            f"upper={upper!r} is on {fstype_of(upper)}, which cannot carry an upper layer: setxattr({name}): "
            f"{error.strerror}. Leave it out, or take a directory on tmpfs, ext4 or xfs"
        )
        raise ValueError(message) from None


def work_beside(upper: str, teardown: Teardown) -> str:
    """A work directory on the file system of a given upper layer: it would outlive this process."""
    parent = os.path.dirname(os.path.realpath(upper))
    if os.stat(parent).st_dev != os.stat(upper).st_dev:
        message = f"upper={upper!r} is a mount point: pass an empty directory on the same file system as work="
        raise ValueError(message)
    path = f"{parent}/.pytest-isolation-{secrets.token_hex(16)}"
    start_run()
    entry = ledger.Entry(run().id, "directory", path=path)
    teardown.push("strike the directory off the ledger", entry.strike)
    os.mkdir(path, 0o700)
    teardown.push(f"remove {path}", lambda: in_run(remove_tree, path))
    return path


@final
class OverlayFs(Layered):
    r"""An overlay mount: lower layers are only read, an upper one takes all changes, `merged` shows them as one.

    Makes the directories that are not given, on a tmpfs of the run's own, and one mount, in the run's mount namespace:
    pytest and its commands see it, the machine does not, and it ends with the run at the latest. Needs CAP_SYS_ADMIN.

    Args:
        lower: lower layers, the uppermost first, as in the kernel's `lowerdir=`: directories, or dicts to make them
            from, `{"a": "text", "dir": {"b": b"bytes"}, "link": Symlink("a")}`. None: one layer `{"a": "a\n"}`.
        upper: a directory to be the upper layer, which stays; None for a new one.
        work: an empty directory on the file system of `upper`, for the kernel's own use; None for a new one.
        merged: an existing directory to mount at; None for a new one.
        readonly: no upper layer and no work directory: nothing can be written.
        options: further mount options: `{"redirect_dir": "on", "userxattr": None}`, None for a flag.
    """

    kind: ClassVar[str] = "overlay_fs"

    def __init__(
        self,
        *lower: Layer,
        upper: StrPath | None = None,
        work: StrPath | None = None,
        merged: StrPath | None = None,
        readonly: bool = False,
        options: Mapping[str, object] | None = None,
    ) -> None:
        if readonly and (upper is not None or work is not None):
            message = "readonly=True has no upper layer: upper= and work= do not go with it"
            raise ValueError(message)
        if work is not None and upper is None:
            message = "work= goes with upper=: a new upper layer has a new work directory beside it"
            raise ValueError(message)
        self._readonly = readonly
        self._options = check_options(options)
        self._check_layers(lower, upper, merged, work)
        self._create(self._make, on_spawner=False)

    def _make(self) -> None:
        self._make_layers()
        lower = self._lower
        if self._readonly:
            lower = [*lower, _empty(self._home)] if len(lower) == 1 else lower
            mount_overlay(lower, None, None, self._options, self._merged)
            push_unmount(self._teardown, self._merged)
            return
        if self._given_work is not None:
            self._work = self._given_work
        elif self._given_upper is None:
            self._work = f"{self._home}/work"
            os.mkdir(self._work)
        else:
            self._work = work_beside(self._given_upper, self._teardown)
        if self._given_upper is not None:
            check_upper(self._upper, self._work, self._options)
        mount_overlay(lower, self._upper, self._work, self._options, self._merged)
        push_unmount(self._teardown, self._merged)
        if self._given_upper is not None and os.statvfs(self._merged).f_flag & os.ST_RDONLY:
            message = (
                f"upper={self._upper!r} is on {fstype_of(self._upper)}, which cannot carry an upper layer: the kernel "
                f"made it a read-only overlay"
            )
            raise ValueError(message)

    @property
    def work(self) -> Path:
        """The kernel's own work directory: files are made whole in it before they are moved to `upper`.

        Raises:
            IsolationError: it was made with `readonly=True`.
        """
        if self._readonly:
            message = f"{self} is read-only: it has no work directory"
            raise IsolationError(message)
        return Path(self._work)

    def _marks(self) -> Marks:
        return OverlayMarks()

    def _below(self) -> contextlib.AbstractContextManager[Callable[[str], str | None]]:
        return overlay_below(self._lower, self._options, self._home)
