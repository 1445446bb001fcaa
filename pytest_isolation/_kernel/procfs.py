"""What /proc says, parsed; pure functions over text, and small readers beside them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/PID/mountinfo. proc_pid_mountinfo(5)

    Attributes:
        mount_id: id of the mount, unique while it exists.
        parent_id: id of the mount it lies on.
        device: `major:minor` of the file system.
        root: the directory of the file system that forms the root of this mount.
        target: where it is mounted, relative to the process's root.
        options: per-mount options, `rw`, `nosuid`, ...
        shared: peer group of a shared mount, or None.
        master: peer group it receives from, of a slave mount, or None.
        unbindable: may not be bound elsewhere.
        fstype: file system type.
        source: file system specific; a device, or any word.
        super_options: per-file-system options.
    """

    mount_id: int
    parent_id: int
    device: str
    root: str
    target: str
    options: tuple[str, ...]
    shared: int | None
    master: int | None
    unbindable: bool
    fstype: str
    source: str
    super_options: tuple[str, ...]

    @property
    def propagation(self) -> str:
        """`private`, `shared`, `slave`, `slave and shared` or `unbindable`. mount_namespaces(7)"""
        if self.unbindable:
            return "unbindable"
        names = [name for name, group in (("slave", self.master), ("shared", self.shared)) if group is not None]
        return " and ".join(names) or "private"


_ESCAPE = re.compile(r"\\(040|011|012|043|134)")


def _unescape(text: str) -> str:
    """Undo the octal escapes of white space and backslash."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text) if "\\" in text else text


def parse_mountinfo(text: str) -> tuple[Mount, ...]:
    """The mounts of a /proc/PID/mountinfo, in its order."""
    mounts = []
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        mount_id, parent_id, device, root, target, options, *tags = left.split(" ")
        fstype, source, super_options = right.split(" ", 2)
        groups = {name: number for name, _, number in (tag.partition(":") for tag in tags)}
        mounts.append(
            Mount(
                mount_id=int(mount_id),
                parent_id=int(parent_id),
                device=device,
                root=_unescape(root),
                target=_unescape(target),
                options=tuple(options.split(",")),
                shared=int(groups["shared"]) if "shared" in groups else None,
                master=int(groups["master"]) if "master" in groups else None,
                unbindable="unbindable" in groups,
                fstype=fstype,
                source=_unescape(source),
                super_options=tuple(super_options.split(",")),
            )
        )
    return tuple(mounts)


def mounts(pid: int | str = "thread-self") -> tuple[Mount, ...]:
    """The mounts that a process, or this thread, sees."""
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return parse_mountinfo(file.read())


def parse_cgroup(text: str) -> dict[str, str]:
    """A /proc/PID/cgroup as {controllers: path}; the v2 hierarchy is the key "". cgroups(7)"""
    lines = (line.split(":", 2) for line in text.splitlines())
    return {controllers: path for _, controllers, path in lines}


def parent(pid: int) -> int | None:
    """The parent of process `pid` as seen from here; None when it is gone, or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state, number = file.read().rpartition(b")")[2].split()[:2]
            return None if state in {b"Z", b"X"} else int(number)
    except (FileNotFoundError, ProcessLookupError):
        return None


def command(pid: int) -> str:
    """The command line of process `pid` in one line, or its name in brackets; empty when it is gone."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().rstrip(b"\0").split(b"\0")
        if words != [b""]:
            return b" ".join(words).decode(errors="replace")
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return f"[{file.read().strip()}]"
    except (FileNotFoundError, ProcessLookupError):
        return ""


def namespace_id(pid: int | str, name: str) -> tuple[int, int] | None:
    """(st_dev, st_ino) of the namespace `name` of process `pid`; None when it is gone or not ours to see."""
    try:
        status = os.stat(f"/proc/{pid}/ns/{name}")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    return status.st_dev, status.st_ino


def has_capability(number: int) -> bool:
    """Has this thread the capability of that number in effect? capabilities(7)"""
    with open("/proc/thread-self/status", encoding="utf-8") as file:
        effective = next(line for line in file if line.startswith("CapEff:"))
    return bool(int(effective.split()[1], 16) >> number & 1)


def pids() -> list[int]:
    """Every process that this mount of /proc shows."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]
