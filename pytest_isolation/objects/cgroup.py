"""Control groups: what processes may use, and what they used; one class over cgroup v1, hybrid and v2. cgroups(7)"""

from __future__ import annotations

import contextlib
import difflib
import errno
import functools
import os
import re
import secrets
import select
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, final

from pytest_isolation._kernel import cgroupfs, procfs
from pytest_isolation._state import cgroups, ledger
from pytest_isolation._state.keeper_client import start_run
from pytest_isolation._state.run import run
from pytest_isolation.errors import IsolationError, KernelError, UnknownKnobError, Unsupported
from pytest_isolation.objects._entering import Entry, Group
from pytest_isolation.objects._object import KernelObject
from pytest_isolation.objects._place import Place

if TYPE_CHECKING:
    from pytest_isolation._kernel.cgroupfs import Hierarchy, ProcCgroup
    from pytest_isolation.objects._process import Process

#: What every cgroup has in v2 without a controller's help.
_CORE_OF_V2 = frozenset({"cpuacct", "freezer", "perf_event"})
#: Controllers of v1 that v2 knows by another name.
_SAME = {"blkio": "io"}
#: Controllers whose v1 cgroups a thread of pytest must not be in: an OOM kill would take pytest, and it would count.
_NOT_BY_THREAD = frozenset({"memory", "pids"})
#: Seconds: how long a freezer may take, and how long to wait between two looks where the kernel sends no word.
_FREEZE_TIMEOUT_S = 10.0
_PAUSE_S = 0.02

SHARES_MIN, SHARES_MAX = 2, 262_144
WEIGHT_MIN, WEIGHT_MAX = 1, 10_000
PERIOD_MIN_US, PERIOD_MAX_US = 1_000, 1_000_000
QUOTA_MIN_US = 1_000
#: What the kernel allows, for the error when it refuses; by interface file.
_ALLOWED = {
    "cgroup.procs": "Allowed is one pid a write, of a process that runs; in v2 of a cgroup that has no children with "
    "controllers",
    "cpu.cfs_period_us": "Allowed are 1000 to 1000000 microseconds, and a share of the CPU within the parent's",
    "cpu.cfs_quota_us": "Allowed are 1000 microseconds and more, within the parent's share, or -1 for no limit",
    "cpu.idle": "Allowed are 0 and 1",
    "cpu.max": 'Allowed is "QUOTA PERIOD" in microseconds: QUOTA 1000 and more or max, PERIOD 1000 to 1000000',
    "cpu.shares": "Allowed are 2 to 262144",
    "cpu.weight": "Allowed are 1 to 10000",
    "cpuset.cpus": "Allowed are CPUs of the parent's, as a list like 0-2,5",
    "cpuset.mems": "Allowed are memory nodes of the parent's, as a list like 0-1",
    "freezer.state": "Allowed are FROZEN and THAWED",
    "memory.limit_in_bytes": "Allowed are bytes, with a suffix K, M or G if need be, not less than can be reclaimed of "
    "what is in use, or -1 for no limit",
    "memory.max": "Allowed are bytes, with a suffix K, M or G if need be, or max",
    "memory.swappiness": "Allowed are 0 to 200",
    "pids.max": "Allowed are 0 to 4194304, or max",
    "tasks": "Allowed is one thread id a write, of a thread that runs",
}


def weight_of(shares: int) -> int:
    """The `cpu.weight` (v2) that weighs as much as `cpu.shares` (v1): shares * 100 / 1024, as the kernel has it."""
    return max(WEIGHT_MIN, min(WEIGHT_MAX, round(shares * 100 / 1024)))


def shares_of(weight: int) -> int:
    """The `cpu.shares` (v1) that weigh as much as this `cpu.weight` (v2): weight * 1024 / 100."""
    return max(SHARES_MIN, min(SHARES_MAX, round(weight * 1024 / 100)))


class CpuMax(NamedTuple):
    """A limit of CPU time: `quota_us` (None: no limit) in every `period_us`."""

    quota_us: int | None
    period_us: int


@dataclass(frozen=True, slots=True)
class CgroupUsage:
    """What a cgroup and those below it have used; None where the controller is not among its own.

    Attributes:
        cpu_ns: CPU time of all that ever ran in it, nanoseconds.
        memory_bytes: memory now, page cache included.
        memory_peak_bytes: the most it ever was.
        pids: processes and threads now.
        read_bytes: read from block devices.
        written_bytes: written to block devices. v1 counts on a disk once some cgroup has a rule on it: `set_io_max`.
    """

    cpu_ns: int | None = None
    memory_bytes: int | None = None
    memory_peak_bytes: int | None = None
    pids: int | None = None
    read_bytes: int | None = None
    written_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class CgroupEvents:
    """How often something happened to a cgroup since it was made; None where the controller is not among its own.

    Attributes:
        oom_kill: processes killed because memory ran out.
        memory_max: times the memory limit was hit.
        pids_max: forks refused because of the limit.
        nr_throttled: periods in which the CPU quota was used up.
        throttled_us: microseconds that its CPUs were stopped for it.
    """

    oom_kill: int | None = None
    memory_max: int | None = None
    pids_max: int | None = None
    nr_throttled: int | None = None
    throttled_us: int | None = None


#: Which controller an event comes from.
_EVENT_CONTROLLERS = {
    "oom_kill": "memory",
    "memory_max": "memory",
    "pids_max": "pids",
    "nr_throttled": "cpu",
    "throttled_us": "cpu",
}


@dataclass(frozen=True, slots=True)
class Controller:
    """Which version of cgroups serves a controller on this machine.

    Attributes:
        name: `cpu`, `memory`, ...; `io` is v1's blkio.
        version: 1 or 2; None when neither has it mounted.
        mount: where that hierarchy is mounted.
        home: the directory of the cgroup that pytest is in, below which cgroups are made.
        delegated: do cgroups made there get it? In v2 that takes an entry in `cgroup.subtree_control`.
    """

    name: str
    version: int | None
    mount: Path | None
    home: Path | None
    delegated: bool


def proc_cgroups() -> tuple[ProcCgroup, ...]:
    """The table /proc/cgroups: what this kernel was built with, and on which v1 hierarchy each controller is."""
    with open("/proc/cgroups", encoding="ascii") as file:
        return cgroupfs.parse_proc_cgroups(file.read())


def controllers() -> dict[str, Controller]:
    """Which version serves which controller of this machine, by name; looked at now."""
    start_run()  # in v2 what counts is the cgroup that pytest was started in, not the run's
    _known_hierarchies.cache_clear()
    known = _known_hierarchies()
    names = [_SAME.get(row.controller, row.controller) for row in proc_cgroups() if row.enabled]
    names += [name for one in known for name in map(_canonical, one.controllers) if name not in names]
    found = {}
    for name in names:
        one = _serving(name, known)
        if one is None:
            found[name] = Controller(name, None, None, None, delegated=False)
        else:
            delegated = one.version == 1 or name in one.delegated or name in _CORE_OF_V2
            found[name] = Controller(name, one.version, Path(one.mount), Path(one.home), delegated)
    return found


@functools.cache
def _known_hierarchies() -> tuple[Hierarchy, ...]:
    found = []
    for one in cgroupfs.hierarchies():
        if one.version == 2:
            home = run().home
            if home is None:
                continue
            found.append(cgroupfs.at_home(one, str(home)))
        else:
            found.append(one)
    return tuple(found)


def _canonical(name: str) -> str:
    return _SAME.get(name, name)


def _serving(name: str, known: Iterable[Hierarchy]) -> Hierarchy | None:
    """The hierarchy that serves a controller: the v1 one where it is mounted, as v2 cannot have it then."""
    second = None
    for one in known:
        if name in map(_canonical, one.controllers):
            return one
        if one.version == 2 and name in _CORE_OF_V2:
            second = one
    return second


# -- arguments


def _number(name: str, value: object, low: int, high: int | None, note: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        message = f"{name}={value!r}: allowed is an int{note}"
        raise TypeError(message)
    if value < low or (high is not None and value > high):
        allowed = f"{low} to {high}" if high is not None else f"{low} and more"
        message = f"{name}={value!r}: allowed are {allowed}{note}"
        raise ValueError(message)


def _check_cpu_max(quota_us: object, period_us: object) -> None:
    _number("period_us", period_us, PERIOD_MIN_US, PERIOD_MAX_US, "; for others the kernel's answer is EINVAL")
    if quota_us is not None:
        _number(
            "quota_us", quota_us, QUOTA_MIN_US, None, ", and None for no limit; for less the kernel's answer is EINVAL"
        )


def _check_memory(value: object) -> None:
    if isinstance(value, str):
        if not re.fullmatch(r"[0-9]+[KMG]?", value, re.IGNORECASE):
            message = f"memory_max={value!r}: allowed are bytes, text like '64M', and None for no limit"
            raise ValueError(message)
    elif value is not None:
        _number("memory_max", value, 0, None, ", text like '64M', and None for no limit")


def _check_pids(value: object) -> None:
    if value is not None:
        _number("pids_max", value, 0, 4_194_304, ", and None for no limit; for others the kernel's answer is EINVAL")


def _list_text(name: str, value: object) -> str:
    """CPUs or memory nodes as cpuset(7) writes them."""
    if isinstance(value, str) and re.fullmatch(r"\s*[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*\s*", value):
        return value.strip()
    numbers = [value] if isinstance(value, int) else value
    if isinstance(numbers, Iterable) and not isinstance(numbers, (str, bytes)):
        found = list(numbers)
        if found and all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in found):
            return ",".join(map(str, found))
    message = f"{name}={value!r}: allowed are numbers, and text like '0-2,5'"
    raise ValueError(message)


@dataclass(frozen=True)
class _Settings:
    """The arguments of a cgroup, checked: nothing has been made yet."""

    controllers: tuple[str, ...]
    shares: int | None = None
    weight: int | None = None
    quota_us: int | None = None
    period_us: int | None = None
    memory_max: int | str | None = None
    pids_max: int | None = None
    cpus: str | None = None
    mems: str | None = None
    knobs: Mapping[str, str | int] = field(default_factory=dict)


def _check_controllers(given: object) -> tuple[str, ...]:
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        message = f"controllers={given!r}: allowed is a sequence of names, like ('cpu', 'memory')"
        raise TypeError(message)
    names = []
    known = None
    for name in given:
        if not isinstance(name, str):
            message = f"controllers={given!r}: {name!r} is no name of a controller"
            raise TypeError(message)
        if _canonical(name) not in _USUAL:
            known = known or sorted({_canonical(row.controller) for row in proc_cgroups()} | _USUAL)
            if _canonical(name) not in known:
                message = f"controllers={given!r}: there is no controller {name!r}; there are {', '.join(known)}"
                raise ValueError(message)
        names.append(_canonical(name))
    return tuple(dict.fromkeys(names))


_USUAL = frozenset(
    {"cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb", "io", "memory", "misc"}
    | {"net_cls", "net_prio", "perf_event", "pids", "rdma"}
)


def _check(
    controllers: Sequence[str],
    shares: int | None,
    weight: int | None,
    quota_us: int | None,
    period_us: int | None,
    memory_max: int | str | None,
    pids_max: int | None,
    cpus: str | int | Iterable[int] | None,
    mems: str | int | Iterable[int] | None,
    knobs: Mapping[str, str | int] | None,
) -> _Settings:
    names = list(_check_controllers(controllers))
    if shares is not None and weight is not None:
        message = (
            f"shares={shares} and weight={weight} are the same thing, in the words of cgroup v1 and of v2: give one"
        )
        raise ValueError(message)
    if shares is not None:
        _number("shares", shares, SHARES_MIN, SHARES_MAX, "; the kernel would silently take the nearest")
    if weight is not None:
        _number("weight", weight, WEIGHT_MIN, WEIGHT_MAX, "; for others the kernel's answer is ERANGE")
    if quota_us is not None or period_us is not None:
        _check_cpu_max(quota_us, 100_000 if period_us is None else period_us)
    _check_memory(memory_max)
    _check_pids(pids_max)
    if knobs is not None and not isinstance(knobs, Mapping):
        message = f"knobs={knobs!r}: allowed is a dict, from interface files to what is written to them"
        raise TypeError(message)
    for name, value in (knobs or {}).items():
        _check_knob(name, value)
        prefix = _canonical(name.partition(".")[0])
        if prefix in _USUAL:
            names.append(prefix)
    wanted = {
        "cpu": (shares, weight, quota_us, period_us),
        "memory": (memory_max,),
        "pids": (pids_max,),
        "cpuset": (cpus, mems),
    }
    names += [name for name, values in wanted.items() if any(value is not None for value in values)]
    return _Settings(
        tuple(dict.fromkeys(names)),
        shares,
        weight,
        quota_us,
        period_us,
        memory_max,
        pids_max,
        None if cpus is None else _list_text("cpus", cpus),
        None if mems is None else _list_text("mems", mems),
        dict(knobs or {}),
    )


def _check_knob(name: object, value: object) -> None:
    if not isinstance(name, str) or "/" in name or not name:
        message = f"{name!r} is no name of an interface file; one is like 'cpu.shares'"
        raise TypeError(message)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        message = f"{name}={value!r}: allowed is text or a number to write"
        raise TypeError(message)


# -- the object


@dataclass(frozen=True, slots=True)
class _Part:
    """The cgroup in one hierarchy.

    Attributes:
        names: its controllers, by the names of this package.
        path: its directory; where `ours` is False the one of the parent, whose limits hold.
    """

    hierarchy: Hierarchy
    names: tuple[str, ...]
    path: str
    ours: bool = True


@final
class Cgroup(KernelObject, Place):
    """A cgroup of one's own, with the controllers that are asked for; processes are born in it.

    Makes one directory in each hierarchy that serves one of the controllers: in v1 below pytest's own cgroup, in v2
    beside the run's cgroup, or below it when no controller is asked for. At the end every process in it is ended, but
    for those that `attach` brought, which go back; then the directories are removed, children first. Needs to be able
    to write to the cgroup file systems: root, or a delegated subtree.

    Args:
        controllers: `cpu`, `memory`, `pids`, `cpuset`, `freezer`, `io` (v1: blkio), ... Those that the other arguments
            need come by themselves. None at all, `()`: a v2 cgroup that limits nothing, to be told apart by.
        shares: CPU time relative to siblings, 2 to 262144, by default 1024; or
        weight: the same in v2's measure, 1 to 10000, by default 100; either is converted to what the kernel has.
        quota_us: CPU microseconds allowed in every period, see `set_cpu_max`.
        period_us: the period's length, by default 100000.
        memory_max: bytes of memory, or text like `"64M"`.
        pids_max: how many processes and threads it may have.
        cpus: the CPUs it may use: `"0-1"`, a number or numbers.
        mems: the memory nodes it may use, likewise.
        knobs: interface files to write to, by their names in this machine's version.
    """

    kind: ClassVar[str] = "cgroup"

    def __init__(
        self,
        *,
        controllers: Sequence[str] = ("cpu",),
        shares: int | None = None,
        weight: int | None = None,
        quota_us: int | None = None,
        period_us: int | None = None,
        memory_max: int | str | None = None,
        pids_max: int | None = None,
        cpus: str | int | Iterable[int] | None = None,
        mems: str | int | Iterable[int] | None = None,
        knobs: Mapping[str, str | int] | None = None,
    ) -> None:
        settings = _check(controllers, shares, weight, quota_us, period_us, memory_max, pids_max, cpus, mems, knobs)
        self._set_up(None, settings)

    def _set_up(self, parent: Cgroup | None, settings: _Settings) -> None:
        self._parent = parent
        self._parts: list[_Part] = []
        self._children: list[Cgroup] = []
        self._attached: list[_Attached] = []
        self._directories: list[str] = []
        self._processes: list[Process] = []
        self._seen: dict[str, int] = {}
        self._name = f"{cgroups.PREFIX}{secrets.token_hex(16)}"
        self._create(lambda: self._make(settings), on_spawner=False)
        if parent is not None:
            parent._children.append(self)

    def _make(self, settings: _Settings) -> None:
        start_run()
        wanted = self._choose(settings.controllers)
        self._make_parts(wanted)
        self._apply(settings)

    # -- making it

    def _choose(self, names: Iterable[str]) -> list[_Part]:
        """Where the directories will be, one per hierarchy; nothing is made yet."""
        parent = self._parent
        if parent is not None:
            return self._choose_below(parent, set(names))
        known = _known_hierarchies()
        chosen: dict[str, tuple[Hierarchy, list[str]]] = {}
        for name in names:
            one = _serving(name, known)
            if one is None:
                raise _absent(name, known)
            if one.version == 2 and name not in one.delegated and name not in _CORE_OF_V2:
                raise Unsupported(
                    f"controller {name!r}",
                    f"{one.home}/cgroup.subtree_control does not list it: it lists {' '.join(one.delegated) or 'none'}",
                    f"delegate it: start pytest by `systemd-run --scope -p Delegate=yes`, or as root "
                    f"`echo +{name} > {one.home}/cgroup.subtree_control`",
                )
            chosen.setdefault(one.mount, (one, []))[1].append(name)
        if "cpu" in names and "cpuacct" not in names:
            # v1 has CPU time used as a controller of its own; v2's cpu has it.
            accounting = _serving("cpuacct", known)
            if accounting is not None and accounting.version == 1:
                chosen.setdefault(accounting.mount, (accounting, []))[1].append("cpuacct")
        if not chosen:
            second = next((one for one in known if one.version == 2), None)
            if second is None or run().cgroup is None:
                raise Unsupported(
                    "cgroup without controllers", "there is no v2 tree that this user may write to", "mount one"
                )
            return [_Part(second, (), f"{run().cgroup}/{self._name}")]
        return [_Part(one, tuple(found), f"{one.home}/{self._name}") for one, found in chosen.values()]

    def _choose_below(self, parent: Cgroup, names: set[str]) -> list[_Part]:
        missing = sorted(names - {name for part in parent._parts for name in part.names})
        if missing:
            message = (
                f"{parent} has no controller {', '.join(missing)}, so its children have none: it has {parent._words}"
            )
            raise ValueError(message)
        parts = []
        for part in parent._parts:
            own = part.ours and (part.hierarchy.version == 2 or not part.names or bool(names & set(part.names)))
            path = f"{part.path}/{self._name}" if own else part.path
            parts.append(_Part(part.hierarchy, part.names, path, own))
        return parts

    @property
    def _words(self) -> str:
        return ", ".join(name for part in self._parts for name in part.names) or "none"

    def _make_parts(self, parts: list[_Part]) -> None:
        made = [part.path for part in parts if part.ours]
        entry = ledger.Entry(run().id, "cgroup", paths=made)
        self._teardown.push("strike the cgroup off the ledger", entry.strike)
        self._directories += made
        # All at once: what is frozen in one hierarchy does not leave the others either.
        self._teardown.push("remove it", lambda: cgroups.remove(self._directories))
        for part in parts:
            if part.ours:
                self._make_directory(part)
            self._parts.append(part)
        self._teardown.push("let go of the processes in it", self._let_go)

    def _make_directory(self, part: _Part) -> None:
        parent = os.path.dirname(part.path)
        if part.hierarchy.version == 2 and part.names and self._parent is not None:
            self._delegate(parent, part.names)
        try:
            os.mkdir(part.path)
        except OSError as error:
            _refused(part, error)
        if part.hierarchy.version == 2 and part.names:
            run().beside.add(part.path)
            self._teardown.push("forget it", lambda: run().beside.discard(part.path))
        if part.hierarchy.version == 1 and "cpuset" in part.names:
            # Empty at first, and then nothing may join. cpuset(7)
            for name in ("cpuset.cpus", "cpuset.mems"):
                cgroupfs.write(f"{part.path}/{name}", cgroupfs.read(f"{parent}/{name}").strip())

    def _delegate(self, parent: str, names: Iterable[str]) -> None:
        control = [f"+{name}" for name in names if name not in _CORE_OF_V2]
        if control:
            hint = "In v2 a cgroup with controllers has children or processes, not both: the parent has to be empty"
            cgroupfs.write(f"{parent}/cgroup.subtree_control", " ".join(control), hint)

    def _extend(self, options: dict[str, Any]) -> None:
        """Add controllers, for a fixture that shows the same cgroup."""
        self._check_open()
        given: dict[str, Any] = dict.fromkeys(_OPTIONS) | options
        settings = _check(**given)
        have = {name for part in self._parts for name in part.names}
        wanted = [name for name in settings.controllers if name not in have]
        if wanted:
            known = {part.hierarchy.mount for part in self._parts}
            parts = [part for part in self._choose(wanted) if part.hierarchy.mount not in known or part.names == ()]
            same = [part for part in self._choose(wanted) if part.hierarchy.mount in known]
            self._parts = [
                _Part(part.hierarchy, part.names + _names_at(part, same), part.path, part.ours) for part in self._parts
            ]
            if parts:
                self._make_parts(parts)
        self._apply(settings)

    def _apply(self, settings: _Settings) -> None:
        if settings.mems is not None:
            self.mems = settings.mems
        if settings.cpus is not None:
            self.cpus = settings.cpus
        if settings.shares is not None:
            self.shares = settings.shares
        if settings.weight is not None:
            self.weight = settings.weight
        if settings.quota_us is not None or settings.period_us is not None:
            self.set_cpu_max(settings.quota_us, 100_000 if settings.period_us is None else settings.period_us)
        if settings.memory_max is not None:
            self.memory_max = settings.memory_max
        if settings.pids_max is not None:
            self.pids_max = settings.pids_max
        for name, value in settings.knobs.items():
            self[name] = value

    # -- its end

    def _let_go(self) -> None:
        """Before the directories go: children, and what was attached."""
        errors = []
        for child in reversed(self._children[:]):
            try:
                child.close()
            except ExceptionGroup as group:
                errors.append(group)
        while self._processes:
            self._processes.pop().end()
        while self._attached:
            self._attached.pop().go_back()
        if self._parent is not None and self in self._parent._children:
            self._parent._children.remove(self)
        if errors:
            message = f"{len(errors)} children of {self} could not be taken away whole"
            raise ExceptionGroup(message, errors)

    # -- being a place

    def _entries(self) -> tuple[Entry, ...]:
        self._check_open()
        self._refuse_frozen()
        return (Entry("control group", -1, str(self), group=self._group()),)

    def _group(self) -> Group:
        version_1 = [part for part in self._parts if part.hierarchy.version == 1]
        tasks = [(f"{part.hierarchy.home}/tasks", f"{part.path}/tasks") for part in version_1]
        version_2 = [part for part in self._parts if part.hierarchy.version == 2]
        tasks += [(f"{part.hierarchy.home}/cgroup.procs", f"{part.path}/cgroup.procs") for part in version_2]
        names = {name for part in self._parts for name in part.names}
        return Group(tuple(tasks), not version_2 and not names & _NOT_BY_THREAD, self._check_room)

    def _refuse_frozen(self) -> None:
        part = self._part_of("freezer")
        if part is not None and self._is_frozen(part):
            message = f"{self} is frozen: what joins it would stop before it has begun. Call thaw() first"
            raise IsolationError(message)

    def _check_room(self) -> None:
        """In the child that has just joined: is there one too many? Joining passes, and forking would not have."""
        one: Cgroup | None = self
        while one is not None:
            part = one._part_of("pids")
            if part is not None and part.ours:
                limit = cgroupfs.read(f"{part.path}/pids.max").strip()
                now = int(cgroupfs.read(f"{part.path}/pids.current"))
                if limit != "max" and now > int(limit):
                    hint = f"{one} is full: pids.max is {limit}, and that many processes and threads are in it"
                    raise KernelError(errno.EAGAIN, "fork()", None, hint)
            one = one._parent

    def _started(self, process: Process) -> None:
        self._processes = [known for known in self._processes if known.returncode is None]
        self._processes.append(process)
        if self._part_of("freezer") is not None:
            process.before_end = self._unfreeze

    def _unfreeze(self, pids: Iterable[int]) -> None:
        """Before processes are ended: in v1 a frozen one would not die. They leave the freezer; others stay frozen."""
        part = self._part_of("freezer")
        if part is None or part.hierarchy.version == 2 or not os.path.exists(part.path) or not self._is_frozen(part):
            return
        for pid in pids:
            with contextlib.suppress(KernelError):  # it has died meanwhile
                cgroupfs.write(f"{part.hierarchy.home}/cgroup.procs", str(pid))

    # -- where it is

    @property
    def controllers(self) -> tuple[str, ...]:
        """The controllers it has."""
        return tuple(name for part in self._parts for name in part.names)

    @property
    def paths(self) -> dict[str, Path]:
        """Its directory, by controller; the key of a v2 cgroup without controllers is the empty string."""
        self._check_open()
        found = {name: Path(part.path) for part in self._parts for name in part.names}
        return found or {"": Path(self._parts[0].path)}

    def path(self, controller: str | None = None) -> Path:
        """Its directory in the hierarchy of a controller; None: its first controller's."""
        paths = self.paths
        if controller is None:
            return next(iter(paths.values()))
        if _canonical(controller) not in paths:
            message = f"{self} has no controller {controller!r}; it has {self._words}"
            raise ValueError(message)
        return paths[_canonical(controller)]

    @property
    def parent(self) -> Cgroup | None:
        """The cgroup that `child` was called on."""
        return self._parent

    @property
    def children(self) -> tuple[Cgroup, ...]:
        """Those that `child` made, in that order, and that are open."""
        return tuple(self._children)

    def child(
        self,
        *,
        controllers: Sequence[str] | None = None,
        shares: int | None = None,
        weight: int | None = None,
        quota_us: int | None = None,
        period_us: int | None = None,
        memory_max: int | str | None = None,
        pids_max: int | None = None,
        cpus: str | int | Iterable[int] | None = None,
        mems: str | int | Iterable[int] | None = None,
        knobs: Mapping[str, str | int] | None = None,
    ) -> Cgroup:
        """A cgroup below this one, with the same arguments; it is closed with this one, or before.

        Args:
            controllers: of this one's; None for all.
            shares: see `Cgroup`, as for all that follow.
            weight: instead of shares.
            quota_us: CPU time in every period.
            period_us: the period.
            memory_max: bytes.
            pids_max: processes and threads.
            cpus: of this one's.
            mems: of this one's.
            knobs: interface files to write.
        """
        self._check_open()
        own = self.controllers if controllers is None else controllers
        settings = _check(own, shares, weight, quota_us, period_us, memory_max, pids_max, cpus, mems, knobs)
        made: Cgroup = object.__new__(Cgroup)
        made._set_up(self, settings)
        return made

    def _part_of(self, controller: str) -> _Part | None:
        for part in self._parts:
            if controller in part.names or (part.hierarchy.version == 2 and controller in _CORE_OF_V2):
                return part
        return None

    def _need(self, controller: str, what: str) -> _Part:
        self._check_open()
        part = self._part_of(controller)
        if part is None:
            message = (
                f"{what} needs the controller {controller!r}, and {self} has {self._words}: name it in controllers="
            )
            raise ValueError(message)
        return part

    # -- knobs by their kernel names

    @property
    def knobs(self) -> tuple[str, ...]:
        """The names of its interface files, of all its controllers."""
        self._check_open()
        return tuple(dict.fromkeys(name for part in self._parts for name in cgroupfs.interface_files(part.path)))

    def _find(self, name: str) -> str:
        """The path of an interface file.

        Raises:
            UnknownKnobError: there is none of that name.
        """
        self._check_open()
        for part in self._parts:
            path = f"{part.path}/{name}"
            if os.path.exists(path):
                return path
        raise self._unknown(name)

    def _unknown(self, name: str) -> UnknownKnobError:
        there = self.knobs
        message = f"{self} has no interface file {name!r}"
        versions = {part.hierarchy.version for part in self._parts}
        other = cgroupfs.V2_NAMES.get(name) if 2 in versions else None
        other = other or (cgroupfs.V1_NAMES.get(name) if 1 in versions else None)
        near = difflib.get_close_matches(name, there, 1)
        if other is not None:
            message += f"; it is of cgroup v{1 if name in cgroupfs.V2_NAMES else 2}, and here that is {other}"
        elif near:
            message += f"; the nearest is {near[0]!r}"
        controller = _canonical(name.partition(".")[0])
        if controller in _USUAL and controller not in self.controllers:
            message += f" (the controller {controller!r} is not among its own: {self._words})"
        return UnknownKnobError(f"{message}. There are: {', '.join(there)}")

    def __contains__(self, name: object) -> bool:
        return name in self.knobs

    def __getitem__(self, name: str) -> str:
        """What an interface file says, without the newline at its end."""
        _check_knob(name, "")
        return cgroupfs.read(self._find(name)).rstrip("\n")

    def __setitem__(self, name: str, value: str | int) -> None:
        """Write to an interface file.

        Raises:
            UnknownKnobError: there is none of that name; names the nearest, and the other version's.
            KernelError: the kernel refused; with what was being written, and what is allowed.
        """
        _check_knob(name, value)
        path = self._find(name)
        text = str(value)
        if name in {"cgroup.procs", "tasks", "cgroup.threads"}:
            numbers = [int(word) for word in text.split() if word.isdigit()]
            for number in numbers:
                _refuse_pytest(number)
            if name == "cgroup.procs" and len(numbers) == 1 and text.strip().isdigit():
                self.attach(numbers[0])
                return
        self._write(path, text)

    def _write(self, path: str, data: str | int) -> None:
        cgroupfs.write(path, str(data), _ALLOWED.get(os.path.basename(path)))

    # -- cpu

    @property
    def shares(self) -> int:
        """CPU time relative to its siblings, 2 to 262144 (`cpu.shares`; v2: from `cpu.weight`, times 1024/100)."""
        part = self._need("cpu", "shares")
        if part.hierarchy.version == 1:
            return int(cgroupfs.read(f"{part.path}/cpu.shares"))
        return shares_of(int(cgroupfs.read(f"{part.path}/cpu.weight")))

    @shares.setter
    def shares(self, value: int) -> None:
        _number("shares", value, SHARES_MIN, SHARES_MAX, "; the kernel would silently take the nearest")
        part = self._need("cpu", "shares")
        if part.hierarchy.version == 1:
            self._write(f"{part.path}/cpu.shares", value)
            return
        highest = shares_of(WEIGHT_MAX)
        _number("shares", value, SHARES_MIN, highest, " in cgroup v2, which has no greater weight than 10000")
        self._write(f"{part.path}/cpu.weight", weight_of(value))

    @property
    def weight(self) -> int:
        """CPU time relative to its siblings, 1 to 10000 (`cpu.weight`; v1: from `cpu.shares`, times 100/1024)."""
        part = self._need("cpu", "weight")
        if part.hierarchy.version == 2:
            return int(cgroupfs.read(f"{part.path}/cpu.weight"))
        return weight_of(int(cgroupfs.read(f"{part.path}/cpu.shares")))

    @weight.setter
    def weight(self, value: int) -> None:
        _number("weight", value, WEIGHT_MIN, WEIGHT_MAX, "; for others the kernel's answer is ERANGE")
        part = self._need("cpu", "weight")
        if part.hierarchy.version == 2:
            self._write(f"{part.path}/cpu.weight", value)
        else:
            self._write(f"{part.path}/cpu.shares", shares_of(value))

    @property
    def cpu_max(self) -> CpuMax:
        """How much CPU time it and everything below may use, see `set_cpu_max`."""
        part = self._need("cpu", "cpu_max")
        if part.hierarchy.version == 2:
            quota, period = cgroupfs.read(f"{part.path}/cpu.max").split()
        else:
            quota, period = (cgroupfs.read(f"{part.path}/cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
        return CpuMax(None if quota in {"max", "-1"} else int(quota), int(period))

    def set_cpu_max(self, quota_us: int | None, period_us: int = 100_000) -> None:
        """Limit CPU time of this cgroup and everything below it (`cpu.max`; v1: `cpu.cfs_quota_us`).

        Args:
            quota_us: CPU microseconds allowed per period, at least 1_000; None lifts the limit.
            period_us: length of a period in microseconds, 1_000 to 1_000_000.

        Raises:
            ValueError: out of range; nothing was written.
            KernelError: EINVAL, v1: it is more than the parent may use. cgroups(7)
        """
        _check_cpu_max(quota_us, period_us)
        part = self._need("cpu", "a limit of CPU time")
        if part.hierarchy.version == 2:
            self._write(f"{part.path}/cpu.max", f"{'max' if quota_us is None else quota_us} {period_us}")
            return
        # Without a limit in between: the old quota in the new period may be more than the parent's.
        before = cgroupfs.read(f"{part.path}/cpu.cfs_quota_us").strip()
        if before != "-1":
            self._write(f"{part.path}/cpu.cfs_quota_us", -1)
        self._write(f"{part.path}/cpu.cfs_period_us", period_us)
        if quota_us is not None:
            self._write(f"{part.path}/cpu.cfs_quota_us", quota_us)

    # -- memory, pids, cpuset

    @property
    def memory_max(self) -> int | None:
        """Bytes of memory it and everything below may have, in whole pages; None: no limit.

        `memory.max`; v1: `memory.limit_in_bytes`. It takes text like `"64M"` as well.
        """
        part = self._need("memory", "memory_max")
        text = cgroupfs.read(f"{part.path}/{_MEMORY_MAX[part.hierarchy.version]}").strip()
        return None if text == "max" or int(text) >= _NO_LIMIT else int(text)

    @memory_max.setter
    def memory_max(self, value: int | str | None) -> None:
        _check_memory(value)
        part = self._need("memory", "memory_max")
        version = part.hierarchy.version
        none = "max" if version == 2 else "-1"
        self._write(f"{part.path}/{_MEMORY_MAX[version]}", none if value is None else value)

    @property
    def pids_max(self) -> int | None:
        """How many processes and threads may be in it and below (`pids.max`); None: no limit."""
        text = cgroupfs.read(f"{self._need('pids', 'pids_max').path}/pids.max").strip()
        return None if text == "max" else int(text)

    @pids_max.setter
    def pids_max(self, value: int | None) -> None:
        _check_pids(value)
        self._write(f"{self._need('pids', 'pids_max').path}/pids.max", "max" if value is None else value)

    @property
    def cpus(self) -> tuple[int, ...]:
        """The CPUs it may use (`cpuset.cpus`); it takes text like `"0-1"`, a number, or numbers."""
        return self._cpuset("cpus")

    @cpus.setter
    def cpus(self, value: str | int | Iterable[int]) -> None:
        self._write(f"{self._need('cpuset', 'cpus').path}/cpuset.cpus", _list_text("cpus", value))

    @property
    def mems(self) -> tuple[int, ...]:
        """The memory nodes it may use (`cpuset.mems`); it takes what `cpus` takes."""
        return self._cpuset("mems")

    @mems.setter
    def mems(self, value: str | int | Iterable[int]) -> None:
        self._write(f"{self._need('cpuset', 'mems').path}/cpuset.mems", _list_text("mems", value))

    def _cpuset(self, what: str) -> tuple[int, ...]:
        part = self._need("cpuset", what)
        # In v2 an empty list stands for the parent's.
        name = f"cpuset.{what}.effective" if part.hierarchy.version == 2 else f"cpuset.{what}"
        return cgroupfs.parse_list(cgroupfs.read(f"{part.path}/{name}"))

    # -- block devices

    def set_io_max(
        self,
        disk: str | os.PathLike[str],
        *,
        read_bps: int | None = None,
        write_bps: int | None = None,
        read_iops: int | None = None,
        write_iops: int | None = None,
    ) -> None:
        """Limit reads and writes of a block device (`io.max`; v1: `blkio.throttle.*_device`); None: no limit.

        Args:
            disk: a block device, or any file or directory on one. A partition stands for its disk.
            read_bps: bytes a second.
            write_bps: the same for writes.
            read_iops: operations a second.
            write_iops: the same for writes.

        Raises:
            ValueError: `disk` is on no block device.
            KernelError: the kernel refused. ENODEV: it does not limit such a device.
        """
        part = self._need("io", "a limit of I/O")
        limits = {"read_bps": read_bps, "write_bps": write_bps, "read_iops": read_iops, "write_iops": write_iops}
        for name, value in limits.items():
            if value is not None:
                _number(name, value, 1, None, ", and None for no limit")
        device = _disk_of(disk)
        if part.hierarchy.version == 2:
            short = {"read_bps": "rbps", "write_bps": "wbps", "read_iops": "riops", "write_iops": "wiops"}
            words = [f"{short[name]}={'max' if value is None else value}" for name, value in limits.items()]
            self._write(f"{part.path}/io.max", f"{device} {' '.join(words)}")
            return
        for name, value in limits.items():
            self._write(f"{part.path}/blkio.throttle.{name}_device", f"{device} {value or 0}")

    # -- processes

    def processes(self) -> tuple[int, ...]:
        """The pids of what is in it; not of what is in its children."""
        self._check_open()
        found: set[int] = set()
        for part in self._parts:
            if part.ours:
                found |= set(cgroupfs.pids(part.path))
        return tuple(sorted(found))

    def attach(self, pid: int) -> None:
        """Move a running process, with all its threads, into it; at its end the process goes back, and lives on.

        What is started by `run`, `popen` and `call_in_child` is born inside: quicker, and without a moment outside.

        Raises:
            ValueError: it is pytest itself, which never enters.
            KernelError: ESRCH: there is no such process; EACCES, EPERM: it is not this user's.
        """
        self._check_open()
        if isinstance(pid, bool) or not isinstance(pid, int) or pid <= 0:
            message = f"attach({pid!r}): allowed is the pid of a process"
            raise ValueError(message)
        _refuse_pytest(pid)
        moved = _Attached(pid, self._parts)
        self._attached.append(moved)
        for part in self._parts:
            moved.move(part, _ALLOWED["cgroup.procs"])

    # -- what it used, and what happened

    def usage(self) -> CgroupUsage:
        """What it and everything below it have used, by the kernel's own books."""
        self._check_open()
        found: dict[str, int] = {}
        for part in self._parts:
            version, path = part.hierarchy.version, part.path
            if version == 2:
                found["cpu_ns"] = cgroupfs.parse_flat(cgroupfs.read(f"{path}/cpu.stat"))["usage_usec"] * 1000
            elif "cpuacct" in part.names:
                found["cpu_ns"] = int(cgroupfs.read(f"{path}/cpuacct.usage"))
            if "memory" in part.names:
                found["memory_bytes"] = int(cgroupfs.read(f"{path}/{_MEMORY_NOW[version]}"))
                with contextlib.suppress(KernelError):  # memory.peak is Linux 5.19
                    found["memory_peak_bytes"] = int(cgroupfs.read(f"{path}/{_MEMORY_PEAK[version]}"))
            if "pids" in part.names:
                found["pids"] = int(cgroupfs.read(f"{path}/pids.current"))
            if "io" in part.names:
                found.update(_io_usage(version, path))
        return CgroupUsage(**found)

    def events(self) -> CgroupEvents:
        """How often something happened to it since it was made."""
        self._check_open()
        found: dict[str, int | None] = {}
        for part in self._parts:
            version, path = part.hierarchy.version, part.path
            if "memory" in part.names:
                name = "memory.events" if version == 2 else "memory.oom_control"
                counts = cgroupfs.parse_flat(cgroupfs.read(f"{path}/{name}"))
                found["oom_kill"] = counts.get("oom_kill")
                found["memory_max"] = (
                    counts.get("max") if version == 2 else int(cgroupfs.read(f"{path}/memory.failcnt"))
                )
            if "pids" in part.names:
                found["pids_max"] = cgroupfs.parse_flat(cgroupfs.read(f"{path}/pids.events")).get("max")
            if "cpu" in part.names:
                counts = cgroupfs.parse_flat(cgroupfs.read(f"{path}/cpu.stat"))
                found["nr_throttled"] = counts.get("nr_throttled")
                found["throttled_us"] = counts.get("throttled_usec", counts.get("throttled_time", 0) // 1000)
        return CgroupEvents(**found)

    def wait_event(self, event: str, timeout: float = 10.0) -> int:
        """Wait until an event of `events()` has happened that no earlier call has returned for; how often it has.

        The kernel's own notification is waited for where it has one (OOM kills, refused forks); otherwise the counter
        is read again and again.

        Args:
            event: `"oom_kill"`, `"memory_max"`, `"pids_max"`, `"nr_throttled"` or `"throttled_us"`.
            timeout: seconds.

        Raises:
            TimeoutError: says what was awaited, and what had happened.
        """
        if event not in _EVENT_CONTROLLERS:
            message = f"wait_event({event!r}): allowed are {', '.join(_EVENT_CONTROLLERS)}"
            raise ValueError(message)
        part = self._need(_EVENT_CONTROLLERS[event], f"the event {event!r}")
        deadline = time.monotonic() + timeout
        seen = self._seen.get(event, 0)
        with _Notified(part, event) as notified:
            while True:
                now = getattr(self.events(), event)
                if now is None:
                    raise Unsupported(f"event {event!r}", "this kernel does not count it", "use a newer kernel")
                if now > seen:
                    self._seen[event] = now
                    return int(now)
                left = deadline - time.monotonic()
                if left <= 0:
                    message = (
                        f"{self}: no {event} within {timeout} s beyond the {seen} seen before; it says "
                        f"{self.events()}, and has processes {list(self.processes())}"
                    )
                    raise TimeoutError(message)
                notified.wait(left)

    # -- freezing

    @property
    def frozen(self) -> bool:
        """Is everything in it stopped, by itself or by a cgroup above?"""
        return self._is_frozen(self._need("freezer", "frozen"))

    @staticmethod
    def _is_frozen(part: _Part) -> bool:
        if part.hierarchy.version == 2:
            return cgroupfs.parse_flat(cgroupfs.read(f"{part.path}/cgroup.events")).get("frozen") == 1
        return cgroupfs.read(f"{part.path}/freezer.state").strip() != "THAWED"

    def freeze(self) -> None:
        """Stop every process in it and below, and wait until they stand still; none can tell, nor refuse.

        Raises:
            TimeoutError: the kernel could not stop one of them.
        """
        self._set_frozen(self._need("freezer", "freeze()"), frozen=True)

    def thaw(self) -> None:
        """Let them run again, and wait until they do.

        Raises:
            IsolationError: a cgroup above is frozen.
        """
        part = self._need("freezer", "thaw()")
        above = self._parent
        while above is not None:
            upper = above._part_of("freezer")
            if upper is not None and upper.path != part.path and self._is_frozen(upper):
                message = f"{self} stays frozen as long as {above}, above it, is: thaw that"
                raise IsolationError(message)
            above = above._parent
        self._set_frozen(part, frozen=False)

    def _set_frozen(self, part: _Part, *, frozen: bool) -> None:
        deadline = time.monotonic() + _FREEZE_TIMEOUT_S
        version = part.hierarchy.version
        if version == 2:
            name, data, wanted = "cgroup.events", ("cgroup.freeze", str(int(frozen))), f"frozen {int(frozen)}"
        else:
            wanted = "FROZEN" if frozen else "THAWED"
            name, data = "freezer.state", ("freezer.state", wanted)
        self._write(f"{part.path}/{data[0]}", data[1])
        with _Notified(part, name) as notified:
            while wanted not in cgroupfs.read(f"{part.path}/{name}").splitlines():
                left = deadline - time.monotonic()
                if left <= 0:
                    state = cgroupfs.read(f"{part.path}/{name}").strip()
                    message = f"{self}: awaited {wanted!r} of {name} for {_FREEZE_TIMEOUT_S} s; it says {state!r}"
                    raise TimeoutError(message)
                notified.wait(left)

    def __str__(self) -> str:
        name = getattr(self, "_name", "")
        return f"{self.kind} {name}" if name else self.kind

    __iter__ = None  # not a sequence of its knobs: `in` and `[]` are by name


_OPTIONS = (
    *("controllers", "shares", "weight", "quota_us", "period_us"),
    *("memory_max", "pids_max", "cpus", "mems", "knobs"),
)
_MEMORY_MAX = {1: "memory.limit_in_bytes", 2: "memory.max"}
_MEMORY_NOW = {1: "memory.usage_in_bytes", 2: "memory.current"}
_MEMORY_PEAK = {1: "memory.max_usage_in_bytes", 2: "memory.peak"}
#: v1 shows no limit as the largest number of whole pages.
_NO_LIMIT = (1 << 63) - (1 << 16)


def _names_at(part: _Part, others: Iterable[_Part]) -> tuple[str, ...]:
    return tuple(name for other in others if other.hierarchy.mount == part.hierarchy.mount for name in other.names)


def _absent(name: str, known: Iterable[Hierarchy]) -> Unsupported:
    rows = {_canonical(row.controller): row for row in proc_cgroups()}
    have = sorted({_canonical(one) for hierarchy in known for one in hierarchy.controllers})
    remedy = f"mount it: `mount -t cgroup -o {name} none DIRECTORY`, or use one of {', '.join(have) or 'none'}"
    if name not in rows:
        why, remedy = "this kernel was built without it, see /proc/cgroups", "use a kernel that has it"
    elif not rows[name].enabled:
        why, remedy = "it was disabled when the kernel was booted", "boot without cgroup_disable="
    else:
        why = "no cgroup file system that serves it is mounted here where this user has a place in it"
    return Unsupported(f"controller {name!r}", why, remedy)


def _refused(part: _Part, error: OSError) -> None:
    """Turn mkdir's refusal into what it means."""
    call = f"mkdir({part.path!r})"
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        raise Unsupported(
            f"cgroup with {', '.join(part.names) or 'no controller'}",
            str(KernelError(error.errno, call)),
            "run as root, with the cgroup file systems writable, or where the cgroup is delegated to this user",
        ) from None
    if error.errno == errno.ENOENT:
        _known_hierarchies.cache_clear()  # pytest has been moved, or a mount: the next one looks anew
    hints = {errno.EAGAIN: "A limit in cgroup.max.descendants or cgroup.max.depth is reached"}
    raise KernelError(error.errno or 0, call, None, hints.get(error.errno or 0)) from None


def _refuse_pytest(pid: int) -> None:
    if pid in {0, os.getpid()} or _leader(pid) == os.getpid():
        message = f"{pid} is pytest itself, which never enters a cgroup: it would be limited, frozen and killed with it"
        raise ValueError(message)


def _leader(pid: int) -> int | None:
    """The process that a thread belongs to."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            return int(next(line for line in file if line.startswith("Tgid:")).split()[1])
    except (FileNotFoundError, ProcessLookupError, StopIteration):
        return None


class _Attached:
    """A process that was moved in, and where it came from."""

    def __init__(self, pid: int, parts: Iterable[_Part]) -> None:
        self._pid = pid
        self._born = _start_time(pid)
        self._moved: list[tuple[str, str]] = []
        try:
            with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
                own = procfs.parse_cgroup(file.read())
        except (FileNotFoundError, ProcessLookupError):
            raise KernelError(errno.ESRCH, f"attach({pid})", None, "There is no such process") from None
        places = {one.mount: one.home for one in cgroupfs.find_hierarchies(procfs.mounts("self"), own)}
        self._places = {part.path: places.get(part.hierarchy.mount, part.hierarchy.home) for part in parts}

    def move(self, part: _Part, hint: str) -> None:
        cgroupfs.write(f"{part.path}/cgroup.procs", str(self._pid), hint)
        self._moved.append((part.path, self._places[part.path]))

    def go_back(self) -> None:
        """Where it is still inside; what it came from may be gone, then it goes to the cgroup above."""
        for inside, origin in self._moved:
            if self._pid not in cgroupfs.pids(inside) or _start_time(self._pid) != self._born:
                continue
            for folder in (origin, os.path.dirname(inside)):
                try:
                    cgroupfs.write(f"{folder}/cgroup.procs", str(self._pid))
                except KernelError as error:
                    if error.errno == errno.ESRCH:
                        break
                else:
                    break


def _start_time(pid: int) -> str | None:
    """What tells a process from a later one with the same pid. proc_pid_stat(5)"""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return None


def _disk_of(path: str | os.PathLike[str]) -> str:
    """`major:minor` of the disk that a path is, or lies on."""
    status = os.stat(path)
    device = status.st_rdev or status.st_dev
    folder = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"
    if not os.path.exists(folder):
        message = f"disk={os.fspath(path)!r} is on no block device, but on {os.major(device)}:{os.minor(device)}"
        raise ValueError(message)
    if os.path.exists(f"{folder}/partition"):
        with open(f"{folder}/../dev", encoding="ascii") as file:
            return file.read().strip()
    return f"{os.major(device)}:{os.minor(device)}"


def _io_usage(version: int, path: str) -> dict[str, int]:
    if version == 2:
        rows = cgroupfs.parse_nested(cgroupfs.read(f"{path}/io.stat")).values()
        names = ("rbytes", "wbytes")
    else:
        rows = cgroupfs.parse_blkio(cgroupfs.read(f"{path}/blkio.throttle.io_service_bytes_recursive")).values()
        names = ("Read", "Write")
    read, written = (sum(row.get(name, 0) for row in rows) for name in names)
    return {"read_bytes": read, "written_bytes": written}


class _Notified:
    """Waits for the kernel's word that an interface file has changed; where it sends none, for a moment.

    v2 files, and pids.events of v1, wake a poll(2) for POLLPRI; a v1 memory cgroup signals an eventfd when it is out of
    memory, a little before its counter says so.
    """

    def __init__(self, part: _Part, event: str) -> None:
        self._fds: list[int] = []
        self._eventfd = -1
        self._watched = -1
        self._poll = select.poll()
        version, path = part.hierarchy.version, part.path
        files = {"oom_kill": "memory.events", "memory_max": "memory.events", "pids_max": "pids.events"}
        file = files.get(event, event if event.startswith("cgroup.") else "")
        try:
            if version == 1 and event == "oom_kill":
                self._eventfd = self._own(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
                control = self._own(os.open(f"{path}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC))
                cgroupfs.write(f"{path}/cgroup.event_control", f"{self._eventfd} {control}")
                self._poll.register(self._eventfd, select.POLLIN)
            elif file and (version == 2 or file == "pids.events"):
                self._watched = self._own(os.open(f"{path}/{file}", os.O_RDONLY | os.O_CLOEXEC))
                os.read(self._watched, 4096)
                self._poll.register(self._watched, select.POLLPRI)
        except BaseException:
            self.__exit__()
            raise

    def _own(self, fd: int) -> int:
        self._fds.append(fd)
        return fd

    def wait(self, left: float) -> None:
        """Until there is word, or for a moment."""
        self._poll.poll(min(left, _PAUSE_S) * 1000)
        if self._eventfd >= 0:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._eventfd)
        if self._watched >= 0:
            os.pread(self._watched, 4096, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._fds:
            os.close(self._fds.pop())
