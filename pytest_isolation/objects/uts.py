"""uts namespaces: a host name and a NIS domain name of one's own. uts_namespaces(7)"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, ClassVar, final

from pytest_isolation._kernel import syscalls
from pytest_isolation.errors import KernelError
from pytest_isolation.objects._namespace import Namespace

if TYPE_CHECKING:
    from pytest_isolation.objects.user import UserNamespace

_NAME_MAX = 64


@final
class UtsNamespace(Namespace):
    """A uts namespace: `hostname` and `domainname` inside differ from those outside.

    Makes one uts namespace, which ends with its last reference. Needs CAP_SYS_ADMIN, or `user`.

    Args:
        hostname: its host name, at most 64 bytes; None: a copy of the one outside.
        domainname: its NIS domain name, at most 64 bytes; None: a copy.
        user: the user namespace that owns it.
    """

    kind: ClassVar[str] = "uts_namespace"
    namespace: ClassVar[str] = "uts"
    _nsenter: ClassVar[str] = "uts"

    def __init__(
        self, *, hostname: str | None = None, domainname: str | None = None, user: UserNamespace | None = None
    ) -> None:
        names = {"hostname": hostname, "domainname": domainname}
        for what, name in names.items():
            if name is not None:
                _check(what, name)

        def configure() -> None:
            if hostname is not None:
                _set_hostname(hostname)
            if domainname is not None:
                syscalls.setdomainname(domainname)

        needed = configure if hostname is not None or domainname is not None else None
        self._create(lambda: self._make_namespace(user, needed), on_spawner=user is None)

    @property
    def hostname(self) -> str:
        """The host name inside; assign to change it. gethostname(2)"""
        return self._do_inside(lambda: os.uname().nodename)

    @hostname.setter
    def hostname(self, name: str) -> None:
        _check("hostname", name)
        self._do_inside(lambda: _set_hostname(name))

    @property
    def domainname(self) -> str:
        """The NIS domain name inside; `(none)` where none was set. getdomainname(2)"""
        return self._do_inside(_domainname)

    @domainname.setter
    def domainname(self, name: str) -> None:
        _check("domainname", name)
        self._do_inside(lambda: syscalls.setdomainname(name))


def _check(what: str, name: str) -> None:
    if not isinstance(name, str) or "\0" in name or len(name.encode()) > _NAME_MAX:
        message = f"{what}={name!r}: allowed are at most {_NAME_MAX} bytes without NUL"
        raise ValueError(message)


def _set_hostname(name: str) -> None:
    try:
        socket.sethostname(name)
    except OSError as error:
        raise KernelError(error.errno or 0, f"sethostname({name!r})") from None


def _domainname() -> str:
    with open("/proc/sys/kernel/domainname", encoding="utf-8") as file:
        return file.read().rstrip("\n")
