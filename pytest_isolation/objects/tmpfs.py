"""tmpfs: a file system in memory, with limits of one's own. tmpfs(5)"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import ClassVar, NamedTuple, final

from pytest_isolation._kernel import syscalls, uapi
from pytest_isolation.objects._layered import new_directory, push_unmount
from pytest_isolation.objects._object import KernelObject

_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}


class Usage(NamedTuple):
    """What a file system has and what is taken of it. statvfs(3)"""

    size_bytes: int
    used_bytes: int
    free_bytes: int
    inodes: int
    used_inodes: int
    free_inodes: int


def usage(path: str) -> Usage:
    """Of the file system that `path` is on; what is free is so for root."""
    found = os.statvfs(path)
    block = found.f_frsize
    return Usage(
        size_bytes=found.f_blocks * block,
        used_bytes=(found.f_blocks - found.f_bfree) * block,
        free_bytes=found.f_bfree * block,
        inodes=found.f_files,
        used_inodes=found.f_files - found.f_ffree,
        free_inodes=found.f_ffree,
    )


def parse_size(value: str | int, name: str) -> int:
    """Bytes of a size: a number, or text like `64m`; k, m, g and t are powers of 1024.

    Raises:
        ValueError: it is no size, or none above 0.
    """
    match = re.fullmatch(r"(\d+)([kmgt]?)", str(value).lower(), re.ASCII)
    number = 0 if match is None or isinstance(value, bool) else int(match[1]) << _UNITS[match[2]]
    if not 0 < number < 1 << 63:
        message = f"{name}={value!r}: allowed are numbers above 0 and below 2**63, and text like '64m' (k, m, g, t)"
        raise ValueError(message)
    return number


def check_mode(mode: int) -> None:
    """Refuse what are no permission bits."""
    if isinstance(mode, bool) or not isinstance(mode, int) or not 0 <= mode <= 0o7777:
        message = f"mode={mode!r}: allowed are permission bits, 0 to 0o7777"
        raise ValueError(message)


@final
class Tmpfs(KernelObject):
    """An empty file system in memory, with the limits asked for.

    Makes one mount, in the run's mount namespace: pytest and its commands see it, the machine does not, and it ends
    with the run at the latest. Needs CAP_SYS_ADMIN.

    Args:
        size: bytes, or text like `"64m"`; the kernel rounds up to whole pages.
        inodes: how many files and directories at most, its root one of them; None for the kernel's own choice.
        mode: permission bits of its root.
    """

    kind: ClassVar[str] = "tmpfs"

    def __init__(self, *, size: str | int = "64m", inodes: str | int | None = None, mode: int = 0o755) -> None:
        options = f"size={parse_size(size, 'size')}"
        if inodes is not None:
            options += f",nr_inodes={parse_size(inodes, 'inodes')}"
        check_mode(mode)
        options += f",mode={mode:o}"
        self._create(lambda: self._make(options), on_spawner=False)

    def _make(self, options: str) -> None:
        self._path = new_directory(self._teardown, self.kind)
        syscalls.mount("tmpfs", self._path, "tmpfs", uapi.MS_NOSUID | uapi.MS_NODEV, options)
        push_unmount(self._teardown, self._path)

    @property
    def path(self) -> Path:
        """Where it is mounted."""
        return Path(self._path)

    def usage(self) -> Usage:
        """What it has and what is taken, as `df` and `df -i` say."""
        self._check_open()
        return usage(self._path)

    def __str__(self) -> str:
        return f"{self.kind} {getattr(self, '_path', '')}".strip()
