"""cgroup namespaces: the cgroup one is in becomes the root that one sees. cgroup_namespaces(7)"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, final

from pytest_isolation._state.keeper_client import start_run
from pytest_isolation.objects._namespace import Namespace

if TYPE_CHECKING:
    from pytest_isolation.objects.user import UserNamespace


@final
class CgroupNamespace(Namespace):
    """A cgroup namespace: /proc/PID/cgroup inside shows paths relative to the cgroup that the run is in.

    Makes one cgroup namespace, which ends with its last reference. Needs CAP_SYS_ADMIN, or `user`.

    Args:
        user: the user namespace that owns it.
    """

    kind: ClassVar[str] = "cgroup_namespace"
    namespace: ClassVar[str] = "cgroup"
    _nsenter: ClassVar[str] = "cgroup"

    def __init__(self, *, user: UserNamespace | None = None) -> None:
        start_run()  # its root is the cgroup of the moment: the run's own, not the one pytest was started in
        self._create(lambda: self._make_namespace(user), on_spawner=user is None)
