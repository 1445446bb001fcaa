"""Unions of directories by the file system one chooses: overlayfs or AUFS, behind one interface. aufs(5)"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple, final

from pytest_isolation._kernel import procfs, syscalls
from pytest_isolation.errors import KernelError, Unsupported
from pytest_isolation.objects import overlay
from pytest_isolation.objects._layered import Layer, Layered, push_unmount
from pytest_isolation.objects._layers import AufsMarks, Marks, OverlayMarks, Stack, StrPath, is_whiteout

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

BACKENDS = ("overlay", "aufs")
#: Options of AUFS that say which branches there are.
_BRANCH_OPTIONS = ("br", "dirs", "add", "append", "prepend", "del", "mod", "ins", "imod", "idel")
#: Branch permissions of AUFS and the attributes that each takes. aufs(5), Branch Syntax
_PERMISSIONS = {
    "rw": {"nolwh", "unpin", "coo_reg", "coo_all", "moo", "fhsm"},
    "ro": {"wh", "coo_reg", "coo_all"},
    "rr": {"wh", "coo_reg", "coo_all"},
}
_EXTENDED = {"icex", "icexsec", "icexsys", "icextr", "icexusr", "icexoth"}
_PAGE = 4096


class Branch(NamedTuple):
    """One directory of a union.

    Attributes:
        path: the directory; to build one, a dict of its contents as well.
        permission: AUFS's: `rw`, `ro`, `rr` (never changed by anybody), with attributes: `ro+wh` may hold whiteouts.
    """

    path: Layer | Path
    permission: str


def check_permission(permission: str, where: str) -> None:
    """Refuse a branch permission that AUFS ignores, with no more than a line in the kernel's log."""
    base, *attributes = permission.split("+")
    known = _PERMISSIONS.get(base, set()) | (_EXTENDED if base in _PERMISSIONS else set())
    if base not in _PERMISSIONS or not set(attributes) <= known:
        message = (
            f"{where}: permission {permission!r}: allowed are rw, ro and rr, with attributes that go with them, "
            f"like ro+wh and rw+nolwh. AUFS would ignore it"
        )
        raise ValueError(message)


def aufs_data(branches: list[tuple[str, str]], options: Mapping[str, str | None]) -> str:
    """AUFS's mount options for (path, permission) branches, the uppermost first: `br=/container=rw:/image=ro+wh`.

    Raises:
        ValueError: a path has a character that separates options, which AUFS cannot quote; or they fill a page.
    """
    for path, _ in branches:
        if not set(",:=").isdisjoint(path):
            message = f"{path!r}: allowed are paths without , : and =, which AUFS cannot quote"
            raise ValueError(message)
    data = "br=" + ":".join(f"{path}={permission}" for path, permission in branches)
    for name, value in options.items():
        data += f",{name}" if value is None else f",{name}={value}"
    if len(os.fsencode(data)) >= _PAGE:
        message = (
            f"{len(branches)} branches make {len(os.fsencode(data))} bytes of options: allowed is less than {_PAGE}"
        )
        raise ValueError(message)
    return data


def parse_branches(files: Mapping[str, str]) -> tuple[Branch, ...]:
    """The branches from the files of /sys/fs/aufs/si_ID, {name: text}: `br0`, `br1`, ..., each `PATH=PERMISSION`."""
    numbered = sorted(
        (int(match[1]), text) for name, text in files.items() if (match := re.fullmatch(r"br(\d+)", name))
    )
    parts = (text.rstrip("\n").rpartition("=") for _, text in numbered)
    return tuple(Branch(Path(path), permission) for path, _, permission in parts)


def aufs_id(super_options: tuple[str, ...]) -> str | None:
    """The `si=` of an AUFS mount's options in mountinfo, which names its directory in /sys/fs/aufs."""
    return next((option.removeprefix("si=") for option in super_options if option.startswith("si=")), None)


def _mount_aufs(branches: list[tuple[str, str]], options: Mapping[str, str | None], merged: str) -> None:
    data = aufs_data(branches, options)
    try:
        syscalls.mount("none", merged, "aufs", 0, data)
    except KernelError as error:
        if error.errno == errno.ENODEV:
            remedy = "a kernel with AUFS (the out-of-tree patch, or its module loaded), or backend='overlay'"
            raise Unsupported(
                "union_fs of backend 'aufs'", "this kernel has no AUFS: mount(2) of it gives ENODEV", remedy
            ) from error
        if error.errno == errno.EINVAL:
            hint = "AUFS says what it refuses in the kernel's log only: dmesg"
            raise KernelError(errno.EINVAL, error.call, None, hint) from None
        raise


@final
class UnionFs(Layered):
    r"""A union of directories, by overlayfs or by AUFS: what differs is how the upper branch says what is deleted.

    Makes the directories that are not given, on a tmpfs of the run's own, and one mount, in the run's mount namespace:
    pytest and its commands see it, the machine does not, and it ends with the run at the latest. Needs CAP_SYS_ADMIN,
    and for AUFS a kernel that has it.

    Args:
        lower: the branches that are only read, the uppermost first: directories, dicts to make them from, or
            `Branch(directory or dict, permission)`. None: one branch `{"a": "a\n"}`.
        backend: `overlay` or `aufs`.
        upper: a directory to be the writable branch, which stays; None for a new one.
        merged: an existing directory to mount at; None for a new one.
        options: further mount options of the backend, None for a flag.
    """

    kind: ClassVar[str] = "union_fs"

    def __init__(
        self,
        *lower: Layer | Branch,
        backend: str = "overlay",
        upper: StrPath | None = None,
        merged: StrPath | None = None,
        options: Mapping[str, object] | None = None,
    ) -> None:
        if backend not in BACKENDS:
            message = f"backend={backend!r}: allowed are {', '.join(BACKENDS)}"
            raise ValueError(message)
        self._backend = backend
        self._options = overlay.check_options(options)
        for name in self._options:
            if backend == "aufs" and re.split("[:=]", name)[0] in _BRANCH_OPTIONS:
                message = f"options={{{name!r}: ...}}: allowed are the others, branches are given as lower= and upper="
                raise ValueError(message)
        self._permissions = ["rw"]
        layers: list[Layer] = []
        for number, one in enumerate(lower):
            layer, permission = one if isinstance(one, Branch) else (one, "ro+wh")
            check_permission(permission, f"lower[{number}]")
            if permission.startswith("rw") or (backend == "overlay" and permission != "ro+wh"):
                allowed = "ro+wh" if backend == "overlay" else "ro and rr, with attributes; the upper branch is rw"
                message = f"lower[{number}]: permission {permission!r}: allowed with backend={backend!r} are {allowed}"
                raise ValueError(message)
            self._permissions.append(permission)
            layers.append(layer)
        self._check_layers(tuple(layers), upper, merged)
        if not layers:
            self._permissions.append("ro+wh")
        self._create(self._make, on_spawner=False)

    def _make(self) -> None:
        self._make_layers()
        if self._backend == "aufs":
            branches = list(zip([self._upper, *self._lower], self._permissions, strict=True))
            _mount_aufs(branches, self._options, self._merged)
        else:
            if self._given_upper is not None:
                work = overlay.work_beside(self._given_upper, self._teardown)
                overlay.check_upper(self._upper, work, self._options)
            else:
                work = f"{self._home}/work"
                os.mkdir(work)
            overlay.mount_overlay(self._lower, self._upper, work, self._options, self._merged)
        push_unmount(self._teardown, self._merged)

    @property
    def backend(self) -> str:
        """`overlay` or `aufs`."""
        return self._backend

    @property
    def branches(self) -> tuple[Branch, ...]:
        """All its directories, the writable one first, with their permissions; with AUFS by the kernel's own word."""
        self._check_open()
        if self._backend == "aufs":
            ours = [mount for mount in procfs.mounts() if mount.target == self._merged]
            number = aufs_id(ours[-1].super_options) if ours else None
            folder = Path("/sys/fs/aufs", f"si_{number}")
            with contextlib.suppress(FileNotFoundError):
                return parse_branches({path.name: path.read_text() for path in folder.glob("br[0-9]*")})
        return tuple(
            Branch(Path(path), permission)
            for path, permission in zip([self._upper, *self._lower], self._permissions, strict=True)
        )

    def whiteout(self, name: StrPath) -> Path:
        """Where the whiteout of `name`, relative to `merged`, is when it is deleted: `a`, or with AUFS `.wh.a`."""
        path = self._inside(name)
        return path.with_name(AufsMarks.PREFIX + path.name) if self._backend == "aufs" else path

    def is_whiteout(self, name: StrPath) -> bool:
        """Does the upper branch say that `name`, relative to `merged`, is deleted?"""
        self._check_open()
        path = self.whiteout(name)
        return os.path.lexists(path) if self._backend == "aufs" else is_whiteout(path)

    def is_opaque(self, name: StrPath) -> bool:
        """Does the directory `name` of the upper branch hide what the others have in it?"""
        self._check_open()
        return self._marks().is_opaque(str(self._inside(name)))

    def _inside(self, name: StrPath) -> Path:
        path = Path(name)
        if path.is_absolute() or not path.parts or ".." in path.parts:
            message = f"name={name!r}: allowed is a path relative to merged, without .."
            raise ValueError(message)
        return self.upper / path

    def _marks(self) -> Marks:
        return AufsMarks() if self._backend == "aufs" else OverlayMarks()

    def _below(self) -> contextlib.AbstractContextManager[Callable[[str], str | None]]:
        if self._backend == "aufs":
            return contextlib.nullcontext(Stack(self._lower, AufsMarks()).find)
        return overlay.overlay_below(self._lower, self._options, self._home)
