"""Writing below a directory, and never outside it, whatever symbolic links lie in there. openat2(2), RESOLVE_IN_ROOT"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from typing import BinaryIO

from pytest_isolation._kernel import syscalls, uapi
from pytest_isolation.errors import KernelError

_IN_ROOT = uapi.RESOLVE_IN_ROOT | uapi.RESOLVE_NO_MAGICLINKS


def check(path: str | os.PathLike[str]) -> str:
    """A path below the root, with a leading slash and without `.` parts."""
    text = os.fspath(path)
    parts = text.split("/")
    if not isinstance(text, str) or not text or "\0" in text or ".." in parts:
        message = f"path={path!r}: allowed is a path below the root, without `..` and NUL"
        raise ValueError(message)
    return "/" + "/".join(part for part in parts if part not in {"", "."})


class Root:
    """A directory as a process with that root would see it: absolute links in it start there, and `..` ends there."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def open(self, path: str, flags: int = os.O_RDONLY, mode: int = 0) -> int:
        """Open a path in it."""
        return syscalls.openat2(self._fd, path, flags, mode, _IN_ROOT)

    def read(self, path: str) -> BinaryIO | None:
        """A file in it, for reading; None when there is no such file."""
        try:
            return open(self.open(path), "rb")
        except KernelError as error:
            if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
                return None
            raise

    def exists(self, path: str) -> bool:
        """Is there anything at `path`, links followed inside?"""
        try:
            os.close(self.open(path, os.O_PATH))
        except KernelError as error:
            if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
                return False
            raise
        return True

    def directory(self, path: str, mode: int = 0o755) -> int:
        """A descriptor of the directory `path`; it and its parents are made where they are missing."""
        fd = self.open("/", os.O_PATH | os.O_DIRECTORY)
        walked = ""
        for part in path.strip("/").split("/"):
            if not part:
                continue
            walked += "/" + part
            try:
                below = self.open(walked, os.O_PATH | os.O_DIRECTORY)
            except KernelError as error:
                if error.errno != errno.ENOENT:
                    os.close(fd)
                    raise
                try:
                    self._make(part, fd, mode)
                    below = self.open(walked, os.O_PATH | os.O_DIRECTORY)
                except BaseException:
                    os.close(fd)
                    raise
            os.close(fd)
            fd = below
        return fd

    def _make(self, name: str, parent: int, mode: int) -> None:
        try:
            os.mkdir(name, dir_fd=parent)
            os.chmod(name, mode, dir_fd=parent)
        except OSError as error:  # EEXIST: a dangling link, which must not be followed out of the root
            raise KernelError(error.errno or 0, f"mkdirat({parent}, {name!r})") from None

    def _parent(self, path: str) -> tuple[int, str]:
        head, _, name = path.rpartition("/")
        if not name:
            message = f"path={path!r} is the root itself"
            raise ValueError(message)
        return self.directory(head), name

    def write(self, path: str, source: str) -> None:
        """A copy of the host's file `source` at `path`, mode and times included; replaces a file or link there."""
        parent, name = self._parent(path)
        try:
            self._clear(parent, name, path)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(source, "rb") as original, open(os.open(name, flags, 0o600, dir_fd=parent), "wb") as copy:
                shutil.copyfileobj(original, copy, 1 << 20)
                status = os.fstat(original.fileno())
                os.fchmod(copy.fileno(), stat.S_IMODE(status.st_mode))
                os.utime(copy.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))
        finally:
            os.close(parent)

    def _clear(self, parent: int, name: str, path: str) -> None:
        try:
            mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "there is a directory in the root", path)
        os.unlink(name, dir_fd=parent)

    def symlink(self, path: str, target: str) -> bool:
        """A symbolic link at `path`; False when there is a directory already, which stays."""
        parent, name = self._parent(path)
        try:
            mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
        except FileNotFoundError:
            os.symlink(target, name, dir_fd=parent)
        else:
            if stat.S_ISDIR(mode):
                return False
            if not stat.S_ISLNK(mode) or os.readlink(name, dir_fd=parent) != target:
                os.unlink(name, dir_fd=parent)
                os.symlink(target, name, dir_fd=parent)
        finally:
            os.close(parent)
        return True

    def mknod(self, path: str, mode: int, device: int) -> None:
        """A device, fifo or empty file at `path`. mknod(2)"""
        parent, name = self._parent(path)
        try:
            os.mknod(name, mode, device, dir_fd=parent)
            os.chmod(name, stat.S_IMODE(mode), dir_fd=parent)
        except OSError as error:
            hint = "Device nodes need CAP_MKNOD outside of every user namespace" if error.errno == errno.EPERM else None
            raise KernelError(error.errno or 0, f"mknod({path!r}, {mode:#o}, {device:#x})", None, hint) from None
        finally:
            os.close(parent)

    def bring(self, path: str) -> str:
        """Copy the host's file `path` to the same place, with every symbolic link on the way to it.

        Returns:
            The host's path of the file itself, at the end of the links.
        """
        # `here` is where we are in the root, `host` on the host: they part only where the root has a directory of its
        # own in place of a link of the host's (/lib, say).
        here = host = ""
        pending = [part for part in path.split("/") if part not in {"", "."}]
        links = 0
        while pending:
            part = pending.pop(0)
            if part == "..":
                here, host = here.rpartition("/")[0], host.rpartition("/")[0]
                continue
            here, host = f"{here}/{part}", f"{host}/{part}"
            if not os.path.islink(host):
                continue
            links += 1
            if links > 40:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            target = os.readlink(host)
            steps = [step for step in target.split("/") if step not in {"", "."}]
            if self.symlink(here, target):
                pending = steps + pending
                parent = "" if target.startswith("/") else host.rpartition("/")[0]
                here = host = parent
            elif pending:
                host = os.path.realpath(host)
        self.write(here, host)
        return host
