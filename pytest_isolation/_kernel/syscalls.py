"""One function per system call, named like its man page, raising `KernelError` with the call as strace prints it.

Importing this module loads ctypes: nothing that runs in a pytest without isolation may import it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn

from pytest_isolation._kernel import uapi
from pytest_isolation.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Sequence

_libc = ctypes.CDLL(None, use_errno=True)
_NUMBERS = {
    # These calls have the same number on every architecture (asm-generic/unistd.h, since 5.1).
    "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432,
    "openat2": 437, "mount_setattr": 442,
}  # fmt: skip
_PIVOT_ROOT = {"x86_64": 155, "i686": 217, "ppc64le": 203, "s390x": 217}.get(platform.machine(), 41)
_CLONE = {"x86_64": 56, "i686": 120, "ppc64le": 120, "s390x": 120}.get(platform.machine(), 220)

_HINTS = {
    (
        "unshare",
        errno.ENOSPC,
    ): "A limit in /proc/sys/user/max_*_namespaces is reached, or namespaces are nested too deep",
    ("clone", errno.ENOSPC): "A limit in /proc/sys/user/max_*_namespaces is reached, or namespaces are nested too deep",
    ("setns", errno.EPERM): "Entering needs CAP_SYS_ADMIN here and in the user namespace that owns the target",
    ("pivot_root", errno.EINVAL): "new_root must be a mount point, and no mount involved may be shared",
    ("mount", errno.ENODEV): "The kernel has no such file system type, see /proc/filesystems",
    ("mount", errno.EPERM): "Mounting needs CAP_SYS_ADMIN in the user namespace that owns the mount namespace",
    ("mount", errno.EINVAL): "Wrong options, or source is unbindable, or target is not a mount point",
    ("umount2", errno.EBUSY): "Something in it is open, is a working directory, or is mounted below it",
    ("ioctl", errno.ENOSPC): "No loop device is left: the kernel makes no more of them",
    ("umount2", errno.EINVAL): "It is not a mount point of this mount namespace",
}


def fail(number: int, call: str, message: str | None = None) -> NoReturn:
    """Raise the `KernelError` for errno `number` of `call`, with what usually causes it."""
    raise KernelError(number, call, message, _HINTS.get((call.partition("(")[0], number)))


def flag_names(flags: int, names: dict[str, int]) -> str:
    """The flags as strace prints them: `CLONE_NEWNS|CLONE_NEWPID`."""
    return "|".join(name for name, bit in names.items() if flags & bit) or "0"


_CLONE_NAMES = {name: getattr(uapi, name) for name in dir(uapi) if name.startswith("CLONE_")}
_MS_NAMES = {name: getattr(uapi, name) for name in dir(uapi) if name.startswith("MS_")}

_unshare = _libc.unshare
_unshare.argtypes = (ctypes.c_int,)
_setns = _libc.setns
_setns.argtypes = (ctypes.c_int, ctypes.c_int)
_mount = _libc.mount
_mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_umount2 = _libc.umount2
_umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_setdomainname = _libc.setdomainname
_setdomainname.argtypes = (ctypes.c_char_p, ctypes.c_size_t)
_prctl = _libc.prctl
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


def unshare(flags: int) -> None:
    """Give the calling thread namespaces (or, with CLONE_FS, root and working directory) of its own. unshare(2)"""
    if _unshare(flags):
        fail(ctypes.get_errno(), f"unshare({flag_names(flags, _CLONE_NAMES)})")


def setns(fd: int, flags: int) -> None:
    """Move the calling thread into the namespace `fd`; pid: its next children only. setns(2)"""
    if _setns(fd, flags):
        fail(ctypes.get_errno(), f"setns({fd}, {flag_names(flags, _CLONE_NAMES)})")


def _path(path: str | os.PathLike[str] | None) -> bytes | None:
    """As the call wants it; C would end a path silently at its first NUL."""
    if path is None:
        return None
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        message = f"embedded NUL in {os.fspath(path)!r}"
        raise ValueError(message)
    return encoded


def mount(
    source: str | os.PathLike[str] | None,
    target: str | os.PathLike[str],
    fstype: str | None,
    flags: int = 0,
    data: str | None = None,
) -> None:
    """Mount, bind, remount, or change propagation. mount(2)"""
    encoded = _path(data)
    if _mount(_path(source), _path(target), _path(fstype), flags, encoded):
        words = [repr(os.fspath(item)) if item is not None else "NULL" for item in (source, target, fstype)]
        shown = "NULL" if data is None else repr(data)
        fail(ctypes.get_errno(), f"mount({', '.join(words)}, {flag_names(flags, _MS_NAMES)}, {shown})")


def umount2(target: str | os.PathLike[str], flags: int = 0) -> None:
    """Unmount; MNT_DETACH lets go of it at once and frees it when the last user has gone. umount2(2)"""
    if _umount2(_path(target), flags):
        fail(ctypes.get_errno(), f"umount2({os.fspath(target)!r}, {'MNT_DETACH' if flags else '0'})")


def chroot_here() -> None:
    """Make the working directory the root of the calling thread. chroot(2)"""
    try:
        os.chroot(".")
    except OSError as error:
        fail(error.errno or 0, "chroot('.')")


def setdomainname(name: str) -> None:
    """Set the NIS domain name of the calling thread's uts namespace. setdomainname(2)"""
    encoded = os.fsencode(name)
    if _setdomainname(encoded, len(encoded)):
        fail(ctypes.get_errno(), f"setdomainname({name!r})")


def prctl(option: int, value: int | bytes) -> None:
    """Set an attribute of the calling thread. prctl(2)"""
    argument = ctypes.c_char_p(value) if isinstance(value, bytes) else ctypes.c_ulong(value)
    if _prctl(option, argument, 0, 0, 0):
        fail(ctypes.get_errno(), f"prctl({option}, {value!r})")


def _call(number: int, call: str, *args: object) -> int:
    result = int(_syscall(ctypes.c_long(number), *args))
    if result < 0:
        fail(ctypes.get_errno(), call)
    return result


def clone(flags: int) -> int:
    """Fork with `flags`; the child's exit sends SIGCHLD. Only for a process with one thread. clone(2)"""
    words = f"clone({flag_names(flags, _CLONE_NAMES)}|SIGCHLD)"
    zero = ctypes.c_long(0)
    return _call(_CLONE, words, ctypes.c_long(flags | 17), zero, zero, zero, zero)


def pivot_root(new_root: str, put_old: str) -> None:
    """Make `new_root` the root of the calling thread's mount namespace. pivot_root(2)"""
    call = f"pivot_root({new_root!r}, {put_old!r})"
    _call(_PIVOT_ROOT, call, ctypes.c_char_p(_path(new_root)), ctypes.c_char_p(_path(put_old)))


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def openat2(dirfd: int, path: str, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """Open `path` below `dirfd` under the restrictions `resolve` (RESOLVE_*). openat2(2), Linux 5.6"""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    call = f"openat2({dirfd}, {path!r}, {{flags={flags:#o}, mode={mode:#o}, resolve={resolve:#x}}})"
    size = ctypes.c_size_t(ctypes.sizeof(how))
    return _call(_NUMBERS["openat2"], call, ctypes.c_int(dirfd), ctypes.c_char_p(_path(path)), ctypes.byref(how), size)


def open_tree(path: str | os.PathLike[str], flags: int) -> int:
    """A detached copy (OPEN_TREE_CLONE) of the mount at `path`, as a descriptor. open_tree(2), Linux 5.2"""
    call = f"open_tree(AT_FDCWD, {os.fspath(path)!r}, {flags:#x})"
    return _call(
        _NUMBERS["open_tree"],
        call,
        ctypes.c_int(uapi.AT_FDCWD),
        ctypes.c_char_p(_path(path)),
        ctypes.c_uint(flags | uapi.OPEN_TREE_CLOEXEC),
    )


def move_mount(tree: int, target: str | int) -> None:
    """Attach the detached mount `tree` at `target`: a path, or a descriptor of a directory. move_mount(2)"""
    call = f"move_mount({tree}, '', AT_FDCWD, {target!r}, MOVE_MOUNT_F_EMPTY_PATH)"
    dirfd, path = (target, "") if isinstance(target, int) else (uapi.AT_FDCWD, target)
    flags = uapi.MOVE_MOUNT_F_EMPTY_PATH | (0x40 if isinstance(target, int) else 0)  # MOVE_MOUNT_T_EMPTY_PATH
    _call(
        _NUMBERS["move_mount"],
        call,
        ctypes.c_int(tree),
        ctypes.c_char_p(b""),
        ctypes.c_int(dirfd),
        ctypes.c_char_p(_path(path)),
        ctypes.c_uint(flags),
    )


def fs_mount(
    fstype: str,
    options: Mapping[str, str | None] | Sequence[tuple[str, str | None]] = (),
    *,
    source: str | None = None,
    attributes: int = 0,
) -> int:
    """A new, detached mount of `fstype` as a descriptor; an error carries the kernel's own words.

    fsopen(2), fsconfig(2), fsmount(2), Linux 5.2. `options` maps a name to its value, None for a flag, or lists such
    pairs; `attributes` are MOUNT_ATTR_*.
    """
    context = _call(
        _NUMBERS["fsopen"], f"fsopen({fstype!r}, FSOPEN_CLOEXEC)", ctypes.c_char_p(fstype.encode()), ctypes.c_uint(1)
    )
    try:
        settings = [*(options.items() if isinstance(options, Mapping) else options)]
        if source is not None:
            settings.append(("source", source))
        for key, value in settings:
            command = uapi.FSCONFIG_SET_FLAG if value is None else uapi.FSCONFIG_SET_STRING
            _fsconfig(context, command, key, value)
        _fsconfig(context, uapi.FSCONFIG_CMD_CREATE, None, None)
        bits, cloexec = ctypes.c_uint(attributes), ctypes.c_uint(uapi.FSMOUNT_CLOEXEC)
        return _call(_NUMBERS["fsmount"], f"fsmount({fstype!r})", ctypes.c_int(context), cloexec, bits)
    finally:
        os.close(context)


def _fsconfig(context: int, command: int, key: str | None, value: str | None) -> None:
    arguments = [ctypes.c_char_p(_path(text)) for text in (key, value)]
    number = ctypes.c_long(_NUMBERS["fsconfig"])
    if _syscall(number, ctypes.c_int(context), ctypes.c_uint(command), *arguments, ctypes.c_int(0)) < 0:
        number_of_error = ctypes.get_errno()
        try:
            message = os.read(context, 4096).decode(errors="replace").strip().removeprefix("e ")
        except OSError:
            message = None
        words = "FSCONFIG_CMD_CREATE" if key is None else f"FSCONFIG_SET, {key!r}, {value!r}"
        fail(number_of_error, f"fsconfig({context}, {words})", message)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def mount_setattr(fd: int, attr_set: int, *, recursive: bool = True) -> None:
    """Set MOUNT_ATTR_* on the mount `fd`, and on those below it. mount_setattr(2), Linux 5.12"""
    attr = _MountAttr(attr_set, 0, 0, 0)
    flags = uapi.AT_EMPTY_PATH | (uapi.AT_RECURSIVE if recursive else 0)
    _call(
        _NUMBERS["mount_setattr"],
        f"mount_setattr({fd}, '', {flags:#x}, {{attr_set={attr_set:#x}}})",
        ctypes.c_int(fd),
        ctypes.c_char_p(b""),
        ctypes.c_uint(flags),
        ctypes.byref(attr),
        ctypes.c_size_t(ctypes.sizeof(attr)),
    )


class _LoopInfo64(ctypes.Structure):
    _fields_ = (
        ("lo_device", ctypes.c_uint64),
        ("lo_inode", ctypes.c_uint64),
        ("lo_rdevice", ctypes.c_uint64),
        ("lo_offset", ctypes.c_uint64),
        ("lo_sizelimit", ctypes.c_uint64),
        ("lo_number", ctypes.c_uint32),
        ("lo_encrypt_type", ctypes.c_uint32),
        ("lo_encrypt_key_size", ctypes.c_uint32),
        ("lo_flags", ctypes.c_uint32),
        ("lo_file_name", ctypes.c_uint8 * 64),
        ("lo_crypt_name", ctypes.c_uint8 * 64),
        ("lo_encrypt_key", ctypes.c_uint8 * 32),
        ("lo_init", ctypes.c_uint64 * 2),
    )


class _LoopConfig(ctypes.Structure):
    _fields_ = (
        ("fd", ctypes.c_uint32),
        ("block_size", ctypes.c_uint32),
        ("info", _LoopInfo64),
        ("reserved", ctypes.c_uint64 * 8),
    )


def loop_ctl_get_free(control: int) -> int:
    """The number of a loop device that is free, one more where none is. loop(4)"""
    try:
        return fcntl.ioctl(control, uapi.LOOP_CTL_GET_FREE)
    except OSError as error:
        fail(error.errno or 0, "ioctl(/dev/loop-control, LOOP_CTL_GET_FREE)")


def loop_configure(device: int, image: int, flags: int) -> None:
    """Attach the file `image` to the loop device `device`; EBUSY: it has one. loop(4), Linux 5.8"""
    config = _LoopConfig(fd=image)
    config.info.lo_flags = flags
    try:
        fcntl.ioctl(device, uapi.LOOP_CONFIGURE, bytes(config))
    except OSError as error:
        fail(error.errno or 0, f"ioctl({device}, LOOP_CONFIGURE, {{fd={image}, lo_flags={flags:#x}}})")
