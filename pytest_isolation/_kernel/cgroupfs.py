"""Control groups as /proc and the cgroup file systems show them: parsers and paths. cgroups(7)

A v1 hierarchy is a mount of its own for one or several controllers; v2 is one tree for all of them. A machine may have
both ("hybrid"): a controller is then served by exactly one.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_isolation._kernel import procfs
from pytest_isolation.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: v1 interface file -> what v2 has in its place. Kernel documents cgroup-v1/*.rst and cgroup-v2.rst
V2_NAMES = {
    "blkio.throttle.io_service_bytes": "io.stat",
    "blkio.throttle.io_serviced": "io.stat",
    "blkio.throttle.read_bps_device": "io.max",
    "blkio.throttle.read_iops_device": "io.max",
    "blkio.throttle.write_bps_device": "io.max",
    "blkio.throttle.write_iops_device": "io.max",
    "blkio.weight": "io.weight",
    "cpu.cfs_burst_us": "cpu.max.burst",
    "cpu.cfs_period_us": "cpu.max",
    "cpu.cfs_quota_us": "cpu.max",
    "cpu.shares": "cpu.weight",
    "cpuacct.usage": "cpu.stat",
    "cpuset.effective_cpus": "cpuset.cpus.effective",
    "cpuset.effective_mems": "cpuset.mems.effective",
    "freezer.state": "cgroup.freeze",
    "memory.failcnt": "memory.events",
    "memory.limit_in_bytes": "memory.max",
    "memory.max_usage_in_bytes": "memory.peak",
    "memory.memsw.limit_in_bytes": "memory.swap.max",
    "memory.oom_control": "memory.events",
    "memory.soft_limit_in_bytes": "memory.low",
    "memory.usage_in_bytes": "memory.current",
    "tasks": "cgroup.threads",
}
#: v2 interface file -> what v1 has in its place.
V1_NAMES = {
    "cgroup.events": "tasks",
    "cgroup.freeze": "freezer.state",
    "cgroup.threads": "tasks",
    "cpu.max": "cpu.cfs_quota_us and cpu.cfs_period_us",
    "cpu.max.burst": "cpu.cfs_burst_us",
    "cpu.weight": "cpu.shares",
    "cpuset.cpus.effective": "cpuset.effective_cpus",
    "cpuset.mems.effective": "cpuset.effective_mems",
    "io.max": "blkio.throttle.read_bps_device and its like",
    "io.stat": "blkio.throttle.io_service_bytes",
    "io.weight": "blkio.weight",
    "memory.current": "memory.usage_in_bytes",
    "memory.events": "memory.oom_control",
    "memory.low": "memory.soft_limit_in_bytes",
    "memory.max": "memory.limit_in_bytes",
    "memory.peak": "memory.max_usage_in_bytes",
    "memory.swap.max": "memory.memsw.limit_in_bytes",
}


@dataclass(frozen=True, slots=True)
class ProcCgroup:
    """One line of /proc/cgroups. cgroups(7)

    Attributes:
        controller: its name.
        hierarchy: the id of the v1 hierarchy that it is mounted on; 0 when it is on none (v2 may have it).
        num_cgroups: how many cgroups that hierarchy has.
        enabled: False when it was disabled at boot (`cgroup_disable=`).
    """

    controller: str
    hierarchy: int
    num_cgroups: int
    enabled: bool


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A mounted tree of cgroups, and where in it this process lives.

    Attributes:
        version: 1 or 2.
        controllers: those it serves; of v2 those that the tree has at all.
        mount: where it is mounted.
        home: the directory of the cgroup that this process is in.
        delegated: the controllers that cgroups made below `home` get; v1: all.
    """

    version: int
    controllers: tuple[str, ...]
    mount: str
    home: str
    delegated: tuple[str, ...]


def parse_proc_cgroups(text: str) -> tuple[ProcCgroup, ...]:
    """The lines of /proc/cgroups."""
    rows = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    return tuple(ProcCgroup(row[0], int(row[1]), int(row[2]), row[3] == "1") for row in rows)


def parse_flat(text: str) -> dict[str, int]:
    """A flat keyed file (`cpu.stat`, `memory.events`, `memory.oom_control`); what is no number is left out."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].lstrip("-").isdigit()}


def parse_nested(text: str) -> dict[str, dict[str, int]]:
    """A nested keyed file: `io.stat` as {device: {key: number}}."""
    found: dict[str, dict[str, int]] = {}
    for line in text.splitlines():
        device, *words = line.split()
        pairs = (word.partition("=") for word in words)
        found[device] = {key: int(value) for key, _, value in pairs if value.isdigit()}
    return found


def parse_blkio(text: str) -> dict[str, dict[str, int]]:
    """A v1 blkio statistics file as {device: {operation: number}}; the line of the total is left out."""
    found: dict[str, dict[str, int]] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3:
            found.setdefault(words[0], {})[words[1]] = int(words[2])
    return found


def parse_list(text: str) -> tuple[int, ...]:
    """A list of numbers as cpusets write it: `0-2,5`. cpuset(7)"""
    found: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if part:
            found.extend(range(int(first), int(last or first) + 1))
    return tuple(found)


def _home(root: str, target: str, path: str) -> str | None:
    """The directory of the cgroup `path` in a mount of the hierarchy's part below `root`; None when it is not there."""
    base = root.rstrip("/")
    if not (path + "/").startswith(base + "/"):
        return None
    return os.path.join(target, path[len(base) :].lstrip("/")).rstrip("/")


def find_hierarchies(mounts: Iterable[procfs.Mount], own: Mapping[str, str]) -> tuple[Hierarchy, ...]:
    """The mounted trees in which this process has a place. `own` is its /proc/PID/cgroup as `parse_cgroup` gives it."""
    places = {name: path for names, path in own.items() for name in names.split(",")}
    found: dict[tuple[int, str], Hierarchy] = {}
    for mount in mounts:
        if mount.fstype == "cgroup":
            names = tuple(name for name in mount.super_options if name in places and not name.startswith("name="))
            home = _home(mount.root, mount.target, places[names[0]]) if names else None
            if home is not None:
                found[1, names[0]] = Hierarchy(1, names, mount.target, home, names)
        elif mount.fstype == "cgroup2" and "" in places:
            home = _home(mount.root, mount.target, places[""])
            if home is not None:
                names = tuple(_words(f"{mount.target}/cgroup.controllers"))
                delegated = tuple(_words(f"{home}/cgroup.subtree_control"))
                found[2, ""] = Hierarchy(2, names, mount.target, home, delegated)
    return tuple(found.values())


def hierarchies() -> tuple[Hierarchy, ...]:
    """The trees of this machine, as this process sees them now."""
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        own = procfs.parse_cgroup(file.read())
    return find_hierarchies(procfs.mounts("self"), own)


def at_home(tree: Hierarchy, home: str) -> Hierarchy:
    """The v2 tree as a process in the cgroup with the directory `home` finds it."""
    return replace(tree, home=home, delegated=tuple(_words(f"{home}/cgroup.subtree_control")))


def _words(path: str) -> list[str]:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().split()
    except OSError:
        return []


def read(path: str) -> str:
    """What an interface file says.

    Raises:
        KernelError: with the call and its errno.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = b""
            while chunk := os.read(fd, 1 << 16):
                data += chunk
        finally:
            os.close(fd)
    except OSError as error:
        raise KernelError(error.errno or 0, f"read({path!r})") from None
    return data.decode(errors="replace")


def write(path: str, data: str, hint: str | None = None) -> None:
    """Write to an interface file in one write(2), as the kernel wants it.

    Raises:
        KernelError: with the data and the errno; `hint` says what is allowed.
    """
    call = "open"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        call = "write"
        try:
            os.write(fd, data.encode())
        finally:
            os.close(fd)
    except OSError as error:
        words = f"write({path!r}, {data!r})" if call == "write" else f"open({path!r}, O_WRONLY) to write {data!r}"
        raise KernelError(error.errno or 0, words, None, hint) from None


def pids(path: str) -> list[int]:
    """The processes of the cgroup with that directory; one outside this pid namespace, shown as 0, is left out."""
    with open(f"{path}/cgroup.procs", "rb", buffering=0) as file:
        return [int(word) for word in file.readall().split() if word != b"0"]


def tree(path: str) -> list[str]:
    """The directory of a cgroup and of all below it, leaf first."""
    return [folder for folder, _, _ in os.walk(path, topdown=False)]


_FILE = re.compile(r"[a-z0-9_]+(\.[A-Za-z0-9_.]+)?")


def interface_files(path: str) -> list[str]:
    """The names of a cgroup's interface files."""
    return sorted(entry.name for entry in os.scandir(path) if entry.is_file() and _FILE.fullmatch(entry.name))
