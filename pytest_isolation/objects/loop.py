"""Loop devices: a file that is a disk, with a file system on it. loop(4)"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import time
from pathlib import Path
from typing import ClassVar, final

from pytest_isolation._kernel import syscalls, uapi
from pytest_isolation._state.spawner import spawner
from pytest_isolation.errors import ChildError, KernelError, LeakError, Unsupported
from pytest_isolation.objects._layered import in_run, new_directory, push_unmount
from pytest_isolation.objects._layers import users_of
from pytest_isolation.objects._object import KernelObject
from pytest_isolation.objects.tmpfs import Usage, parse_size, usage

_CONTROL = "/dev/loop-control"
#: mkfs for each, the package that brings it, and the size that is a small disk to it.
_MAKERS = {
    "ext4": (["mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1"], "e2fsprogs", "16m"),
    "xfs": (["mkfs.xfs", "-q", "-f", "-K"], "xfsprogs", "320m"),
}
_ATTEMPTS = 100
_FREED_WITHIN_S = 5.0


@final
class LoopDevice(KernelObject):
    """A disk made of a file: an image, a loop device that shows it as a block device, a file system on it, mounted.

    Makes a sparse file on the run's tmpfs, one loop device and one mount, in the run's mount namespace. The kernel
    frees the device when its last user goes (LO_FLAGS_AUTOCLEAR), also after SIGKILL. Needs CAP_SYS_ADMIN, loop
    devices, and mkfs of the file system.

    Args:
        size: of the image, bytes or text like `"64m"`; None: as small as the file system likes, 16m, for xfs 320m.
        fstype: `ext4`, `xfs`, or None for a bare device that is mounted nowhere.
    """

    kind: ClassVar[str] = "loop_device"

    def __init__(self, *, size: str | int | None = None, fstype: str | None = "ext4") -> None:
        if fstype is not None and fstype not in _MAKERS:
            message = f"fstype={fstype!r}: allowed are {', '.join(_MAKERS)}, and None"
            raise ValueError(message)
        wanted = parse_size(size if size is not None else _MAKERS[fstype or "ext4"][2], "size")
        if wanted % 512:
            message = f"size={size!r}: allowed are multiples of 512 bytes, the sectors of the device"
            raise ValueError(message)
        self._fstype = fstype
        self._create(lambda: self._make(wanted), on_spawner=False)

    def _make(self, size: int) -> None:
        home = new_directory(self._teardown, self.kind)
        self._image, self._path = f"{home}/image", f"{home}/mounted"
        free = usage(home).free_bytes
        if size > free:
            message = f"size={size}: allowed are the {free} bytes that are free in {home}, where the image is made"
            raise ValueError(message)
        image = os.open(self._image, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(image, size)
            if self._fstype is not None:
                _make_fs(self._fstype, self._image, size)
            device = self._attach(image, home)
        finally:
            os.close(image)
        if self._fstype is not None:
            os.mkdir(self._path)
            syscalls.mount(device, self._path, self._fstype, uapi.MS_NOSUID | uapi.MS_NODEV)
            push_unmount(self._teardown, self._path)

    def _attach(self, image: int, home: str) -> str:
        """Take a free loop device; another process may be quicker, then the next."""
        control = _open_control()
        try:
            for _ in range(_ATTEMPTS):
                number = syscalls.loop_ctl_get_free(control)
                node = _node(number, home)
                fd = os.open(node, os.O_RDWR | os.O_CLOEXEC)
                try:
                    syscalls.loop_configure(fd, image, uapi.LO_FLAGS_AUTOCLEAR)
                except KernelError as error:
                    os.close(fd)
                    if error.errno == errno.EBUSY:
                        continue
                    if error.errno in {errno.EINVAL, errno.ENOTTY}:
                        remedy = "a newer kernel"
                        raise Unsupported(self.kind, str(error), remedy, "5.8") from error
                    raise
                except BaseException:
                    os.close(fd)
                    raise
                self._number, self._device = number, node
                # Pushed before the descriptor: freed is looked for after the last of ours is closed.
                self._teardown.push(f"see {node} freed", self._see_freed)
                self._teardown.hold(fd)
                return node
        finally:
            os.close(control)
        message = f"{_ATTEMPTS} times another process was quicker to take the free loop device"
        raise KernelError(errno.EBUSY, "ioctl(LOOP_CONFIGURE)", None, message)

    def _see_freed(self) -> None:
        """The kernel sends no word: look until it is free, or another's.

        Raises:
            LeakError: somebody still uses it; the kernel will free it when they let go.
        """
        backing = Path(f"/sys/block/loop{self._number}/loop/backing_file")
        deadline = time.monotonic() + _FREED_WITHIN_S
        while True:
            try:
                if not backing.read_text(encoding="utf-8", errors="surrogateescape").startswith(self._image):
                    return
            except OSError:
                return
            if time.monotonic() > deadline:
                break
            time.sleep(0.005)
        found: list[str] = []
        in_run(lambda path: found.extend(users_of(path)), self._device)
        users = "; ".join(found) or "a mount in another mount namespace"
        message = f"/dev/loop{self._number} is still attached to {self._image}: it is freed with its last user, {users}"
        raise LeakError(message)

    @property
    def device(self) -> Path:
        """The block device, `/dev/loop0`."""
        return Path(self._device)

    @property
    def image(self) -> Path:
        """The file that it shows."""
        return Path(self._image)

    @property
    def fstype(self) -> str | None:
        """The type of its file system; None for a bare device."""
        return self._fstype

    @property
    def path(self) -> Path:
        """Where its file system is mounted.

        Raises:
            ValueError: it has none.
        """
        if self._fstype is None:
            message = f"{self} was made with fstype=None: it has no file system to be mounted"
            raise ValueError(message)
        return Path(self._path)

    def usage(self) -> Usage:
        """What its file system has and what is taken, as `df` and `df -i` say."""
        self._check_open()
        return usage(str(self.path))

    def __str__(self) -> str:
        return f"{self.kind} {getattr(self, '_device', '')}".strip()


def _open_control() -> int:
    try:
        return os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in {errno.ENOENT, errno.ENODEV, errno.EACCES, errno.EPERM}:
            raise
        remedy = "run as root on a kernel built with BLK_DEV_LOOP, with /dev/loop-control in a container"
        raise Unsupported("loop_device", f"open({_CONTROL!r}): {error.strerror}", remedy, "3.1") from error


def _node(number: int, home: str) -> str:
    """The device's node; where /dev has none (a container's), one on the run's tmpfs."""
    path = f"/dev/loop{number}"
    if not os.path.exists(path):
        path = f"{home}/loop{number}"
        if not os.path.lexists(path):
            os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(uapi.LOOP_MAJOR, number))
    return path


def _make_fs(fstype: str, image: str, size: int) -> None:
    """Write the file system into the image.

    Raises:
        Unsupported: there is no such program.
        ChildError: it failed, with its own words: the image is too small.
    """
    argv, package, _ = _MAKERS[fstype]
    places = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"  # an ordinary PATH lacks them on Debian
    program = shutil.which(argv[0], path=places)
    if program is None:
        raise Unsupported(f"loop_device of {fstype}", f"there is no {argv[0]}", f"install {package}")
    command = [program, *argv[1:], image]
    done = spawner().run(
        lambda: subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    )
    if done.returncode:
        raise ChildError(done.returncode, command, done.stdout, done.stderr, f"The image has {size} bytes.")
