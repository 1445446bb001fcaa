"""The builder: one method per kind; it closes what it built, last first."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Self, TypeVar, final

from pytest_isolation.errors import ClosedError
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
    from collections.abc import Callable
    from types import TracebackType

    from pytest_isolation.objects._object import KernelObject

P = ParamSpec("P")
K = TypeVar("K", bound="KernelObject")


class _Builds(Generic[P, K]):
    """A method that builds one kind: `isolation.netns(...)` takes what `NetNamespace(...)` takes."""

    def __init__(self, make: Callable[P, K], doc: str | None) -> None:
        self._make = make
        self.__doc__ = doc

    def __get__(self, builder: Isolation, owner: type[Isolation] | None = None) -> Callable[P, K]:
        return functools.partial(builder._add, self._make)


def _builds(make: Callable[P, K]) -> Callable[[Callable[[Isolation], None]], _Builds[P, K]]:
    """Turn a method that has only a name and a docstring into one that takes and makes what `make` does."""
    return lambda method: _Builds(make, method.__doc__)


def _check_arguments(make: Callable[..., object], kind: str, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    parameters, positional = _parameters(make)
    unknown = sorted(set(options) - set(parameters))
    if not unknown and (len(args) <= positional or parameters[0].startswith("*")):
        return
    given = f"has no argument {unknown[0]!r}" if unknown else f"takes its arguments by name, not {args[positional]!r}"
    message = f"{kind}() {given}; it takes {', '.join(parameters)}"
    raise TypeError(message)


@functools.cache
def _parameters(make: Callable[..., object]) -> tuple[tuple[str, ...], int]:
    """The names of its arguments, and how many of them may be given without."""
    found = inspect.signature(make).parameters.values()
    names = tuple(f"*{one.name}" if one.kind is one.VAR_POSITIONAL else one.name for one in found)
    return names, sum(one.kind is one.POSITIONAL_OR_KEYWORD for one in found)


@final
class Isolation:
    """Builds kernel objects and closes them at the end of its scope, last first, every one of them.

    The fixtures `isolation`, `class_isolation`, `module_isolation`, `package_isolation` and `session_isolation` are
    builders of those scopes; without pytest it is a context manager.
    """

    def __init__(self) -> None:
        self._built: list[KernelObject] = []
        self._closed = False
        self._shared_cgroup: Cgroup | None = None

    def _add(self, make: Callable[..., K], *args: Any, **options: Any) -> K:
        kind = make.kind  # type: ignore[attr-defined]
        if self._closed:
            message = f"this builder is closed: its scope has ended, so it makes no {kind} any more"
            raise ClosedError(message)
        _check_arguments(make, kind, args, options)
        made = make(*args, **options)
        made._owner = self
        self._built.append(made)
        return made

    def _cgroup_view(self, controller: str, options: dict[str, Any]) -> Cgroup:
        """One cgroup for all that ask here, with the controllers of all of them."""
        options = {**options, "controllers": (controller, *options.get("controllers", ()))}
        if self._shared_cgroup is None:
            self._shared_cgroup = self.cgroup(**options)
        else:
            _check_arguments(Cgroup, Cgroup.kind, (), options)
            self._shared_cgroup._extend(options)
        return self._shared_cgroup

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

    # -- one method per kind, with the arguments of its class

    @_builds(NetNamespace)
    def netns(self) -> None:
        """A network namespace. Arguments: see `NetNamespace`."""

    @_builds(VethPair)
    def veth_pair(self) -> None:
        """Two network namespaces with a cable between them. Arguments: see `VethPair`."""

    @_builds(PidNamespace)
    def pid_namespace(self) -> None:
        """A pid namespace with its own /proc and init. Arguments: see `PidNamespace`."""

    @_builds(MountNamespace)
    def mount_namespace(self) -> None:
        """A copy of the mounts, to be changed at will. Arguments: see `MountNamespace`."""

    @_builds(UtsNamespace)
    def uts_namespace(self) -> None:
        """A host name of its own. Arguments: see `UtsNamespace`."""

    @_builds(IpcNamespace)
    def ipc_namespace(self) -> None:
        """System V and POSIX IPC objects of its own. Arguments: see `IpcNamespace`."""

    @_builds(UserNamespace)
    def user_namespace(self) -> None:
        """Other user and group ids inside than outside. Arguments: see `UserNamespace`."""

    @_builds(CgroupNamespace)
    def cgroup_namespace(self) -> None:
        """The run's cgroup seen as the root. Arguments: see `CgroupNamespace`."""

    @_builds(Cgroup)
    def cgroup(self) -> None:
        """A cgroup: limits and accounts for what is born in it. Arguments: see `Cgroup`."""

    @_builds(TimeNamespace)
    def time_namespace(self) -> None:
        """Clocks with an offset. Arguments: see `TimeNamespace`."""

    @_builds(ChrootRoot)
    def chroot_root(self) -> None:
        """A root directory, filled with the given programs. Arguments: see `ChrootRoot`."""

    @_builds(OverlayFs)
    def overlay_fs(self) -> None:
        """Layers of directories shown as one, changes in the uppermost. Arguments: see `OverlayFs`."""

    @_builds(UnionFs)
    def union_fs(self) -> None:
        """Branches shown as one, by overlayfs or AUFS. Arguments: see `UnionFs`."""

    @_builds(Tmpfs)
    def tmpfs(self) -> None:
        """An empty file system in memory. Arguments: see `Tmpfs`."""

    @_builds(LoopDevice)
    def loop_device(self) -> None:
        """A disk made of a file, its file system mounted. Arguments: see `LoopDevice`."""

    @_builds(Iptables)
    def iptables(self) -> None:
        """The iptables rules of a network namespace. Arguments: see `Iptables`."""

    @_builds(Nftables)
    def nftables(self) -> None:
        """The nftables ruleset of a network namespace. Arguments: see `Nftables`."""

    @_builds(Container)
    def container(self) -> None:
        """A container, made of the others. Arguments: see `Container`."""
