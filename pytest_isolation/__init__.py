"""Real Linux kernel objects as pytest fixtures: namespaces, links and roots, made for a test and taken away again.

As a pytest plugin (`pytest -p pytest_isolation`, or installed) it offers the fixtures that `pytest --fixtures` lists.
As a library everything here is importable, and loaded when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_isolation._kernel.cgroupfs import ProcCgroup as ProcCgroup
    from pytest_isolation._kernel.netfilter import Chain as Chain
    from pytest_isolation._kernel.netfilter import Rule as Rule
    from pytest_isolation._kernel.netfilter import Table as Table
    from pytest_isolation._kernel.nftables import NftCounter as NftCounter
    from pytest_isolation._kernel.nftables import NftSet as NftSet
    from pytest_isolation._kernel.procfs import Mount as Mount
    from pytest_isolation._kernel.rtnetlink import Address as Address
    from pytest_isolation._kernel.rtnetlink import Counters as Counters
    from pytest_isolation._kernel.rtnetlink import Link as Link
    from pytest_isolation._kernel.rtnetlink import Neighbour as Neighbour
    from pytest_isolation._kernel.rtnetlink import Route as Route
    from pytest_isolation.errors import ChildError as ChildError
    from pytest_isolation.errors import ClosedError as ClosedError
    from pytest_isolation.errors import IsolationError as IsolationError
    from pytest_isolation.errors import KernelError as KernelError
    from pytest_isolation.errors import LeakError as LeakError
    from pytest_isolation.errors import RuleError as RuleError
    from pytest_isolation.errors import TooBusyError as TooBusyError
    from pytest_isolation.errors import UnknownKnobError as UnknownKnobError
    from pytest_isolation.errors import Unsupported as Unsupported
    from pytest_isolation.objects._layers import Change as Change
    from pytest_isolation.objects._layers import Special as Special
    from pytest_isolation.objects._layers import Symlink as Symlink
    from pytest_isolation.objects._layers import is_opaque as is_opaque
    from pytest_isolation.objects._layers import is_whiteout as is_whiteout
    from pytest_isolation.objects._layers import tree as tree
    from pytest_isolation.objects._place import Inside as Inside
    from pytest_isolation.objects._place import inside as inside
    from pytest_isolation.objects._process import Process as Process
    from pytest_isolation.objects.cgroup import Cgroup as Cgroup
    from pytest_isolation.objects.cgroup import CgroupEvents as CgroupEvents
    from pytest_isolation.objects.cgroup import CgroupUsage as CgroupUsage
    from pytest_isolation.objects.cgroup import Controller as Controller
    from pytest_isolation.objects.cgroup import CpuMax as CpuMax
    from pytest_isolation.objects.cgroup import controllers as controllers
    from pytest_isolation.objects.cgroup import proc_cgroups as proc_cgroups
    from pytest_isolation.objects.cgroup_ns import CgroupNamespace as CgroupNamespace
    from pytest_isolation.objects.chroot import ChrootRoot as ChrootRoot
    from pytest_isolation.objects.container import Container as Container
    from pytest_isolation.objects.cpu_shares import cpu_shares as cpu_shares
    from pytest_isolation.objects.eventually import eventually as eventually
    from pytest_isolation.objects.ipc import IpcNamespace as IpcNamespace
    from pytest_isolation.objects.ipc import Queue as Queue
    from pytest_isolation.objects.ipc import Segment as Segment
    from pytest_isolation.objects.ipc import SemaphoreSet as SemaphoreSet
    from pytest_isolation.objects.iptables import Iptables as Iptables
    from pytest_isolation.objects.isolation import Isolation as Isolation
    from pytest_isolation.objects.loop import LoopDevice as LoopDevice
    from pytest_isolation.objects.mount import MountNamespace as MountNamespace
    from pytest_isolation.objects.netns import NetNamespace as NetNamespace
    from pytest_isolation.objects.nftables import Nftables as Nftables
    from pytest_isolation.objects.overlay import OverlayFs as OverlayFs
    from pytest_isolation.objects.pid import PidNamespace as PidNamespace
    from pytest_isolation.objects.pid import PidProcess as PidProcess
    from pytest_isolation.objects.ping import PingResult as PingResult
    from pytest_isolation.objects.time_ns import TimeNamespace as TimeNamespace
    from pytest_isolation.objects.tmpfs import Tmpfs as Tmpfs
    from pytest_isolation.objects.tmpfs import Usage as Usage
    from pytest_isolation.objects.union import Branch as Branch
    from pytest_isolation.objects.union import UnionFs as UnionFs
    from pytest_isolation.objects.user import UserNamespace as UserNamespace
    from pytest_isolation.objects.uts import UtsNamespace as UtsNamespace
    from pytest_isolation.objects.veth import VethEnd as VethEnd
    from pytest_isolation.objects.veth import VethPair as VethPair

#: What pytest loads with this package, whichever way it came to it; registered once.
pytest_plugins: list[str] = ["pytest_isolation.plugin"]

_HOMES = {
    "Address": "_kernel.rtnetlink",
    "Branch": "objects.union",
    "Cgroup": "objects.cgroup",
    "CgroupEvents": "objects.cgroup",
    "CgroupNamespace": "objects.cgroup_ns",
    "CgroupUsage": "objects.cgroup",
    "Container": "objects.container",
    "Chain": "_kernel.netfilter",
    "Change": "objects._layers",
    "ChildError": "errors",
    "ChrootRoot": "objects.chroot",
    "ClosedError": "errors",
    "Controller": "objects.cgroup",
    "Counters": "_kernel.rtnetlink",
    "CpuMax": "objects.cgroup",
    "Inside": "objects._place",
    "IpcNamespace": "objects.ipc",
    "Iptables": "objects.iptables",
    "Isolation": "objects.isolation",
    "IsolationError": "errors",
    "KernelError": "errors",
    "LeakError": "errors",
    "Link": "_kernel.rtnetlink",
    "LoopDevice": "objects.loop",
    "Mount": "_kernel.procfs",
    "MountNamespace": "objects.mount",
    "Neighbour": "_kernel.rtnetlink",
    "NetNamespace": "objects.netns",
    "NftCounter": "_kernel.nftables",
    "NftSet": "_kernel.nftables",
    "Nftables": "objects.nftables",
    "OverlayFs": "objects.overlay",
    "PidNamespace": "objects.pid",
    "PidProcess": "objects.pid",
    "PingResult": "objects.ping",
    "ProcCgroup": "_kernel.cgroupfs",
    "Process": "objects._process",
    "Queue": "objects.ipc",
    "Route": "_kernel.rtnetlink",
    "Rule": "_kernel.netfilter",
    "RuleError": "errors",
    "Segment": "objects.ipc",
    "SemaphoreSet": "objects.ipc",
    "Special": "objects._layers",
    "Symlink": "objects._layers",
    "Table": "_kernel.netfilter",
    "TimeNamespace": "objects.time_ns",
    "Tmpfs": "objects.tmpfs",
    "TooBusyError": "errors",
    "UnionFs": "objects.union",
    "UnknownKnobError": "errors",
    "Unsupported": "errors",
    "Usage": "objects.tmpfs",
    "UserNamespace": "objects.user",
    "UtsNamespace": "objects.uts",
    "VethEnd": "objects.veth",
    "VethPair": "objects.veth",
    "controllers": "objects.cgroup",
    "cpu_shares": "objects.cpu_shares",
    "eventually": "objects.eventually",
    "inside": "objects._place",
    "is_opaque": "objects._layers",
    "is_whiteout": "objects._layers",
    "proc_cgroups": "objects.cgroup",
    "tree": "objects._layers",
}

__all__ = [
    "Address",
    "Branch",
    "Cgroup",
    "CgroupEvents",
    "CgroupNamespace",
    "CgroupUsage",
    "Chain",
    "Change",
    "ChildError",
    "ChrootRoot",
    "ClosedError",
    "Container",
    "Controller",
    "Counters",
    "CpuMax",
    "Inside",
    "IpcNamespace",
    "Iptables",
    "Isolation",
    "IsolationError",
    "KernelError",
    "LeakError",
    "Link",
    "LoopDevice",
    "Mount",
    "MountNamespace",
    "Neighbour",
    "NetNamespace",
    "NftCounter",
    "NftSet",
    "Nftables",
    "OverlayFs",
    "PidNamespace",
    "PidProcess",
    "PingResult",
    "ProcCgroup",
    "Process",
    "Queue",
    "Route",
    "Rule",
    "RuleError",
    "Segment",
    "SemaphoreSet",
    "Special",
    "Symlink",
    "Table",
    "TimeNamespace",
    "Tmpfs",
    "TooBusyError",
    "UnionFs",
    "UnknownKnobError",
    "Unsupported",
    "Usage",
    "UserNamespace",
    "UtsNamespace",
    "VethEnd",
    "VethPair",
    "controllers",
    "cpu_shares",
    "eventually",
    "inside",
    "is_opaque",
    "is_whiteout",
    "proc_cgroups",
    "tree",
]


# No __dir__: pytest asks a plugin for every name in dir(), which would load everything into every run.
def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    import importlib

    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
