"""Containers: a process that lives in one of each. Nothing here but the other objects, made in the right order."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, TypeVar, final

from pytest_isolation._kernel import syscalls, uapi
from pytest_isolation.objects._object import KernelObject
from pytest_isolation.objects._place import Inside, Place, inside
from pytest_isolation.objects.cgroup import Cgroup
from pytest_isolation.objects.cgroup_ns import CgroupNamespace
from pytest_isolation.objects.chroot import ChrootRoot
from pytest_isolation.objects.ipc import IpcNamespace
from pytest_isolation.objects.iptables import Iptables
from pytest_isolation.objects.netns import NetNamespace
from pytest_isolation.objects.overlay import OverlayFs
from pytest_isolation.objects.pid import PidNamespace
from pytest_isolation.objects.user import UserNamespace
from pytest_isolation.objects.uts import UtsNamespace
from pytest_isolation.objects.veth import VethEnd, VethPair

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_isolation.objects._entering import Entry
    from pytest_isolation.objects._layered import Layer
    from pytest_isolation.objects._process import Process
    from pytest_isolation.objects.chroot import StrPath

K = TypeVar("K", bound=KernelObject)
#: Root inside is this id outside, which owns nothing there.
_FIRST_ID, _IDS = 100_000, 65_536
_DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9)}
_PORTS = range(1, 1 << 16)


@final
class Container(KernelObject, Place):
    """A container: a root from layers, every namespace but time, limits, and a link to a host that publishes ports.

    Makes one of each of the objects that are its attributes, and closes them with it. Root inside is an ordinary user
    outside, with no capability over anything that is not the container's own. Needs root.

    Args:
        layers: of the root, the uppermost first, as for `overlay_fs`; the programs are in a layer below them.
        programs: programs to be in the root with what they load, as for `chroot_root`.
        volumes: {path inside: directory or file of the host}, which are shown there and cannot be written.
        publish: {port of the host: port inside}, TCP.
        memory_max: bytes, or text like `"64M"`.
        pids_max: how many processes and threads.
        hostname: its host name; None for the machine's.
    """

    kind: ClassVar[str] = "container"

    def __init__(
        self,
        *layers: Layer,
        programs: Sequence[StrPath] = (),
        volumes: Mapping[str, StrPath] | None = None,
        publish: Mapping[int, int] | None = None,
        memory_max: int | str | None = None,
        pids_max: int | None = None,
        hostname: str | None = "container",
    ) -> None:
        if isinstance(programs, (str, os.PathLike)):
            message = f"programs={programs!r}: allowed is a sequence of programs"
            raise TypeError(message)
        for name, given in (("volumes", volumes), ("publish", publish)):
            if given is not None and not isinstance(given, Mapping):
                message = f"{name}={given!r}: allowed is a dict, or None"
                raise TypeError(message)
        for ports in (publish or {}).items():
            if not all(isinstance(port, int) and port in _PORTS for port in ports):
                message = f"publish={publish!r}: allowed are {{port of the host: port inside}}, each 1 to 65535"
                raise ValueError(message)
        self._world: Inside | None = None

        def make() -> None:
            self._make_root(layers, programs, volumes or {})
            self._make_network(publish or {})
            self._make_world(hostname, memory_max, pids_max)

        self._create(make, on_spawner=False)

    def _own(self, part: K) -> K:
        part._owner = self
        self._teardown.push(f"close its {part.kind}", part.close)
        return part

    def _make_root(
        self, layers: tuple[Layer, ...], programs: Sequence[StrPath], volumes: Mapping[str, StrPath]
    ) -> None:
        self.system: ChrootRoot = self._own(ChrootRoot(*programs))
        for folder in ("/proc", "/dev", "/tmp"):  # noqa: S108 - in the root
            self.system.mkdir(folder, 0o1777 if folder == "/tmp" else 0o755)  # noqa: S108
        for name, numbers in _DEVICES.items():
            self.system.mknod(f"/dev/{name}", stat.S_IFCHR | 0o666, os.makedev(*numbers))
        self.overlay: OverlayFs = self._own(OverlayFs(*layers, self.system.path))
        self.root: ChrootRoot = self._own(ChrootRoot(path=self.overlay.merged, pivot=True))
        for target, source in volumes.items():
            self.root.bind(source, target, readonly=True)

    def _make_network(self, publish: Mapping[int, int]) -> None:
        ids = [(0, _FIRST_ID, _IDS)]
        self.user: UserNamespace = self._own(UserNamespace(uid_map=ids, gid_map=ids))
        self.net: NetNamespace = self._own(NetNamespace(user=self.user))
        self.host: NetNamespace = self._own(NetNamespace())
        self.veth: VethPair = self._own(
            VethPair(
                netns=(self.host, self.net),
                ifnames=("container", "eth0"),
                ipv4=("10.1.0.1/24", "10.1.0.2/24"),
                ipv6=(None, None),
            )
        )
        self.net.add_route("default", via="10.1.0.1")
        self.host.sysctl["net.ipv4.ip_forward"] = 1
        self.firewall: Iptables = self._own(Iptables(self.host))
        self.firewall.append("POSTROUTING", "-s 10.1.0.0/24 ! -o container -j MASQUERADE", table="nat")
        for port, inner in publish.items():
            self.firewall.dnat(port, (self.end, inner), local=True)

    def _make_world(self, hostname: str | None, memory_max: int | str | None, pids_max: int | None) -> None:
        self.pid: PidNamespace = self._own(PidNamespace())
        self.uts: UtsNamespace = self._own(UtsNamespace(hostname=hostname, user=self.user))
        self.ipc: IpcNamespace = self._own(IpcNamespace(user=self.user))
        self.cgroup_namespace: CgroupNamespace = self._own(CgroupNamespace(user=self.user))
        controllers = ("memory", "pids")
        self.cgroup: Cgroup = self._own(Cgroup(controllers=controllers, memory_max=memory_max, pids_max=pids_max))
        flags = uapi.MS_NOSUID | uapi.MS_NODEV | uapi.MS_NOEXEC
        # By a process in the new pid namespace, of which it tells.
        inside(self.root, self.pid).call_in_child(syscalls.mount, "proc", "/proc", "proc", flags)
        self._world = inside(
            self.root, self.user, self.net, self.pid, self.uts, self.ipc, self.cgroup_namespace, self.cgroup
        )

    @property
    def end(self) -> VethEnd:
        """Its end of the link to the host."""
        return self.veth.b

    def _entries(self) -> tuple[Entry, ...]:
        self._check_open()
        return () if self._world is None else self._world._entries()

    def _started(self, process: Process) -> None:
        if self._world is not None:
            self._world._started(process)

    def _explain_missing(self, words: list[str | bytes] | str) -> None:
        if self._world is not None:
            self._world._explain_missing(words)

    def _explain_failure(self, error: OSError) -> None:
        if self._world is not None:
            self._world._explain_failure(error)
