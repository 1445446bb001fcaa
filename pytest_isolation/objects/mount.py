"""mount namespaces: a tree of mounts of one's own, and how much of it others hear of. mount_namespaces(7)"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar, final

from pytest_isolation._kernel import procfs, syscalls, uapi
from pytest_isolation._state.spawner import spawner
from pytest_isolation.errors import KernelError
from pytest_isolation.objects._namespace import Namespace
from pytest_isolation.objects._object import check_kind

if TYPE_CHECKING:
    from pytest_isolation._kernel.procfs import Mount
    from pytest_isolation.objects.user import UserNamespace

StrPath = str | os.PathLike[str]
#: How mount events travel between a mount and its copies. mount(2)
PROPAGATION = {
    "private": uapi.MS_PRIVATE,
    "slave": uapi.MS_SLAVE,
    "shared": uapi.MS_SHARED,
    "unbindable": uapi.MS_UNBINDABLE,
}


@final
class MountNamespace(Namespace):
    """A mount namespace: a copy of the mounts outside, to be changed without anybody outside seeing it.

    Makes one mount namespace, which ends with its last reference, and with it every mount made in it. Needs
    CAP_SYS_ADMIN, or `user`.

    Args:
        propagation: of every mount in the copy. `private`: no events either way; `slave`: events come in from the
            original's shared mounts; `shared`: both ways among this one and its
            copies; `unbindable`: private, and refused as the source of a bind.
        copy_of: the mount namespace to copy; None for pytest's own.
        user: the user namespace that owns it.
    """

    kind: ClassVar[str] = "mount_namespace"
    namespace: ClassVar[str] = "mnt"
    _nsenter: ClassVar[str] = "mount"

    def __init__(
        self, *, propagation: str = "private", copy_of: MountNamespace | None = None, user: UserNamespace | None = None
    ) -> None:
        _check_propagation(propagation)
        check_kind("copy_of", copy_of, MountNamespace)
        if copy_of is not None and user is not None:
            message = "copy_of= and user= do not go together: the copy belongs to the original's owner"
            raise ValueError(message)
        origin = None if copy_of is None else copy_of.fileno()

        def spread() -> None:
            if origin is None and propagation == "shared":
                # A copy is a peer of the original: without this step its events would reach the machine.
                syscalls.mount(None, "/", None, uapi.MS_REC | uapi.MS_PRIVATE)
            syscalls.mount(None, "/", None, uapi.MS_REC | PROPAGATION[propagation])

        def make() -> None:
            if origin is None:
                self._make_namespace(user, spread)
                return
            with spawner().entered([("mnt", origin)]):
                self._make_namespace(None, spread)

        self._create(make, on_spawner=user is None)

    def mounts(self) -> tuple[Mount, ...]:
        """Its mounts, in the order of /proc/PID/mountinfo."""
        return self._do_inside(procfs.mounts)

    def find(self, target: StrPath) -> Mount | None:
        """What is mounted at exactly `target`, the uppermost; None when nothing is."""
        wanted = os.fspath(target)
        found = [mount for mount in self.mounts() if mount.target == wanted]
        return found[-1] if found else None

    def mount(
        self,
        source: StrPath | None,
        target: StrPath,
        fstype: str | None = None,
        flags: int = 0,
        data: str | None = None,
    ) -> None:
        """mount(2) in it. `flags` are MS_* bits; `data` is the file system's options.

        Raises:
            KernelError: with the kernel's own words where it has any: a misspelt option is named.
        """
        self._do_inside(lambda: _mount(source, target, fstype, flags, data))

    def bind(self, source: StrPath, target: StrPath, *, recursive: bool = True, readonly: bool = False) -> None:
        """Show `source`, a directory or a file, at `target` as well, which has to exist."""
        flags = uapi.MS_BIND | (uapi.MS_REC if recursive else 0)

        def job() -> None:
            syscalls.mount(source, target, None, flags)
            if readonly:
                syscalls.mount(None, target, None, uapi.MS_BIND | uapi.MS_REMOUNT | uapi.MS_RDONLY)

        self._do_inside(job)

    def tmpfs(self, target: StrPath, *, size: str | int | None = None, mode: int | None = None) -> None:
        """An empty tmpfs at `target`. `size` is bytes, or text like `"64m"`; `mode` its root's permission bits."""
        options = [] if size is None else [f"size={size}"]
        if mode is not None:
            options.append(f"mode={mode:o}")
        self.mount("tmpfs", target, "tmpfs", uapi.MS_NOSUID | uapi.MS_NODEV, ",".join(options) or None)

    def umount(self, target: StrPath, *, lazy: bool = False) -> None:
        """Unmount what is at `target`; `lazy` lets go of it at once, whoever still uses it.

        Raises:
            KernelError: EBUSY, EINVAL.
        """
        self._do_inside(lambda: syscalls.umount2(target, uapi.MNT_DETACH if lazy else 0))

    def set_propagation(self, target: StrPath, propagation: str, *, recursive: bool = False) -> None:
        """Change how events of the mount at `target` travel: private, slave, shared or unbindable."""
        _check_propagation(propagation)
        flags = PROPAGATION[propagation] | (uapi.MS_REC if recursive else 0)
        self._do_inside(lambda: syscalls.mount(None, target, None, flags))


def _mount(source: StrPath | None, target: StrPath, fstype: str | None, flags: int, data: str | None) -> None:
    try:
        syscalls.mount(source, target, fstype, flags, data)
    except KernelError as error:
        message = _own_words(source, fstype, data) if fstype and data else None
        if message is None:
            raise
        raise KernelError(error.errno or 0, error.call, message) from None


def _own_words(source: StrPath | None, fstype: str, data: str) -> str | None:
    """Ask the newer mount calls, which report in words, what is wrong with these options."""
    options = {key: value if sign else None for key, sign, value in (item.partition("=") for item in data.split(","))}
    try:
        os.close(syscalls.fs_mount(fstype, options, source=None if source is None else os.fspath(source)))
    except KernelError as error:
        return error.message
    return None


def _check_propagation(propagation: str) -> None:
    if propagation not in PROPAGATION:
        message = f"propagation={propagation!r}: allowed are {', '.join(PROPAGATION)}"
        raise ValueError(message)
