"""time namespaces: clocks that count from another start. time_namespaces(7)"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, final

from pytest_isolation.errors import KernelError, Unsupported
from pytest_isolation.objects._namespace import Namespace

if TYPE_CHECKING:
    from pytest_isolation.objects.user import UserNamespace


@final
class TimeNamespace(Namespace):
    """A time namespace: the monotonic and boot-time clocks inside are offset; the wall clock is the same everywhere.

    Makes one time namespace, which ends with its last reference. Commands and forked children enter it, pytest never
    does. Needs CAP_SYS_ADMIN, or `user`. Linux 5.6.

    Args:
        monotonic_s: seconds added to CLOCK_MONOTONIC inside; may be negative down to the machine's own uptime.
        boottime_s: seconds added to CLOCK_BOOTTIME inside, which is what /proc/uptime shows.
        user: the user namespace that owns it.
    """

    kind: ClassVar[str] = "time_namespace"
    namespace: ClassVar[str] = "time"
    _nsenter: ClassVar[str] = "time"

    def __init__(self, *, monotonic_s: float = 0, boottime_s: float = 0, user: UserNamespace | None = None) -> None:
        offsets = "".join(
            _offset_line(clock, name, value)
            for clock, name, value in (
                ("monotonic", "monotonic_s", monotonic_s),
                ("boottime", "boottime_s", boottime_s),
            )
        )
        self._create(lambda: self._make(offsets, user), on_spawner=False)

    def _make(self, offsets: str, user: UserNamespace | None) -> None:
        self._user = user
        self._processes = []
        try:
            (self._fd,) = self._ask_for_namespace(user, files=[("timens_offsets", offsets)])
        except KernelError as error:
            if error.errno == 2:
                remedy = "a kernel built with CONFIG_TIME_NS"
                raise Unsupported(self.kind, str(error), remedy, "5.6") from error
            raise


def _offset_line(clock: str, name: str, value: float) -> str:
    try:
        total_ns = round(value * 1_000_000_000)
    except (TypeError, OverflowError, ValueError):
        message = f"{name}={value!r}: allowed is a finite number of seconds"
        raise ValueError(message) from None
    return f"{clock} {total_ns // 1_000_000_000} {total_ns % 1_000_000_000}\n"
