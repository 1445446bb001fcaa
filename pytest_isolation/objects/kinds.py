"""The table of kinds: one line for each kind of kernel object. What is done to every kind goes by this table."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pytest_isolation.objects.cgroup import Cgroup
from pytest_isolation.objects.cgroup_ns import CgroupNamespace
from pytest_isolation.objects.chroot import ChrootRoot
from pytest_isolation.objects.container import Container
from pytest_isolation.objects.ipc import IpcNamespace
from pytest_isolation.objects.iptables import Iptables
from pytest_isolation.objects.loop import LoopDevice
from pytest_isolation.objects.mount import MountNamespace
from pytest_isolation.objects.netns import NetNamespace
from pytest_isolation.objects.nftables import Nftables
from pytest_isolation.objects.overlay import OverlayFs
from pytest_isolation.objects.pid import PidNamespace
from pytest_isolation.objects.time_ns import TimeNamespace
from pytest_isolation.objects.tmpfs import Tmpfs
from pytest_isolation.objects.union import UnionFs
from pytest_isolation.objects.user import UserNamespace
from pytest_isolation.objects.uts import UtsNamespace
from pytest_isolation.objects.veth import VethPair

if TYPE_CHECKING:
    from pytest_isolation.objects._object import KernelObject


class Kind(NamedTuple):
    """One kind: its class, and what it needs to be made without `user=`."""

    make: type[KernelObject]
    needs: str


KINDS: tuple[Kind, ...] = (
    Kind(NetNamespace, "CAP_SYS_ADMIN"),
    Kind(VethPair, "CAP_SYS_ADMIN"),
    Kind(PidNamespace, "CAP_SYS_ADMIN"),
    Kind(MountNamespace, "CAP_SYS_ADMIN"),
    Kind(UtsNamespace, "CAP_SYS_ADMIN"),
    Kind(IpcNamespace, "CAP_SYS_ADMIN"),
    Kind(UserNamespace, "nothing"),
    Kind(CgroupNamespace, "CAP_SYS_ADMIN"),
    Kind(Cgroup, "writable cgroup file systems"),
    Kind(TimeNamespace, "CAP_SYS_ADMIN"),
    Kind(ChrootRoot, "CAP_SYS_CHROOT"),
    Kind(OverlayFs, "CAP_SYS_ADMIN"),
    Kind(UnionFs, "CAP_SYS_ADMIN"),
    Kind(Tmpfs, "CAP_SYS_ADMIN"),
    Kind(LoopDevice, "CAP_SYS_ADMIN"),
    Kind(Iptables, "CAP_SYS_ADMIN"),
    Kind(Nftables, "CAP_SYS_ADMIN"),
    Kind(Container, "CAP_SYS_ADMIN"),
)
