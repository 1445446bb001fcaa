"""The builder: one method per kind; it closes what it built, last first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, TypeVar, final

from pytest_isolation.errors import ClosedError
from pytest_isolation.objects.cgroup_ns import CgroupNamespace
from pytest_isolation.objects.chroot import ChrootRoot
from pytest_isolation.objects.ipc import IpcNamespace
from pytest_isolation.objects.mount import MountNamespace
from pytest_isolation.objects.netns import NetNamespace
from pytest_isolation.objects.pid import PidNamespace
from pytest_isolation.objects.time_ns import TimeNamespace
from pytest_isolation.objects.user import UserNamespace
from pytest_isolation.objects.uts import UtsNamespace
from pytest_isolation.objects.veth import VethPair

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from pytest_isolation.objects._object import KernelObject

K = TypeVar("K", bound="KernelObject")


@final
class Isolation:
    """Builds kernel objects and closes them at the end of its scope, last first, every one of them.

    The fixtures `isolation`, `class_isolation`, `module_isolation`, `package_isolation` and `session_isolation` are
    builders of those scopes; without pytest it is a context manager.
    """

    def __init__(self) -> None:
        self._built: list[KernelObject] = []
        self._closed = False

    def _add(self, make: Callable[..., K], *args: Any, **options: Any) -> K:
        if self._closed:
            message = f"this builder is closed: its scope has ended, so it makes no {make.__name__} any more"
            raise ClosedError(message)
        made = make(*args, **options)
        made._owner = self  # noqa: SLF001 - the builder is its lifetime
        self._built.append(made)
        return made

    def close(self) -> None:
        """Close what was built, last first.

        Raises:
            ExceptionGroup: every failure; all the others were closed.
        """
        self._closed = True
        errors: list[Exception] = []
        while self._built:
            made = self._built.pop()
            try:
                made.close()
            except ExceptionGroup as group:
                errors.append(group)
        if errors:
            message = f"{len(errors)} object(s) could not be taken away whole"
            raise ExceptionGroup(message, errors)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # -- one method per kind; arguments as the class has them

    def netns(self, **options: Any) -> NetNamespace:
        """A network namespace, see `NetNamespace`: lo_up, user, outer."""
        return self._add(NetNamespace, **options)

    def veth_pair(self, **options: Any) -> VethPair:
        """Two connected namespaces, see `VethPair`: ipv4, ipv6, ifnames, mtu, mac, netns, up, outer, user."""
        return self._add(VethPair, **options)

    def pid_namespace(self, **options: Any) -> PidNamespace:
        """A pid namespace with its own /proc, see `PidNamespace`: init, extra_env, proc, user."""
        return self._add(PidNamespace, **options)

    def mount_namespace(self, **options: Any) -> MountNamespace:
        """A mount namespace, see `MountNamespace`: propagation, copy_of, user."""
        return self._add(MountNamespace, **options)

    def uts_namespace(self, **options: Any) -> UtsNamespace:
        """A uts namespace, see `UtsNamespace`: hostname, domainname, user."""
        return self._add(UtsNamespace, **options)

    def ipc_namespace(self, **options: Any) -> IpcNamespace:
        """An ipc namespace, see `IpcNamespace`: user, outer."""
        return self._add(IpcNamespace, **options)

    def user_namespace(self, **options: Any) -> UserNamespace:
        """A user namespace, see `UserNamespace`: uid_map, gid_map, setgroups."""
        return self._add(UserNamespace, **options)

    def cgroup_namespace(self, **options: Any) -> CgroupNamespace:
        """A cgroup namespace, see `CgroupNamespace`: user."""
        return self._add(CgroupNamespace, **options)

    def time_namespace(self, **options: Any) -> TimeNamespace:
        """A time namespace, see `TimeNamespace`: monotonic_s, boottime_s, user."""
        return self._add(TimeNamespace, **options)

    def chroot_root(self, *programs: Any, **options: Any) -> ChrootRoot:
        """A root of its own, see `ChrootRoot`: programs to add, path, pivot."""
        return self._add(ChrootRoot, *programs, **options)
