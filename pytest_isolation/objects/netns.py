"""Network namespaces: links, addresses, routes, sockets, ping, and commands that live in one. network_namespaces(7)"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import socket as _socket
import sys
import threading
from collections.abc import Iterator, MutableMapping
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast, final

from pytest_isolation._kernel import icmp, rtnetlink, uapi
from pytest_isolation._state import fds, ledger, mounts
from pytest_isolation._state.keeper_client import keeper, start_run
from pytest_isolation._state.run import run
from pytest_isolation._state.spawner import spawner
from pytest_isolation.errors import KernelError, Unsupported
from pytest_isolation.objects import ping as _ping
from pytest_isolation.objects._entering import Entry, Plan, mount_sysfs, new_sysfs
from pytest_isolation.objects._namespace import Namespace
from pytest_isolation.objects._object import asking_for
from pytest_isolation.objects._place import Visit

if TYPE_CHECKING:
    from pyroute2 import IPRoute

    from pytest_isolation._kernel.rtnetlink import Address, Link, Neighbour, Route
    from pytest_isolation.objects.ping import PingResult
    from pytest_isolation.objects.user import UserNamespace

_PUBLISHED = Path("/run/netns")
_NAME_MAX = 255


class HasAddress(Protocol):
    """An end of a link: what `ping` and `connect` take besides an address."""

    @property
    def ipv4(self) -> str | None:
        """Its IPv4 address without prefix."""

    @property
    def ipv6(self) -> str | None:
        """Its IPv6 address without prefix."""


@final
class NetNamespace(Namespace):
    """A network namespace of its own: lo, and what is put into it.

    Makes one network namespace and an rtnetlink socket in it; both end with the last reference, and the kernel removes
    its links then. Needs CAP_SYS_ADMIN, or `user`.

    Args:
        lo_up: bring lo up, so that 127.0.0.1 and ::1 answer; a new namespace has it DOWN.
        user: the user namespace that owns it.
        outer: no new one: the network namespace that pytest itself lives in.
    """

    kind: ClassVar[str] = "netns"
    namespace: ClassVar[str] = "net"
    _nsenter: ClassVar[str] = "net"

    def __init__(self, *, lo_up: bool = True, user: UserNamespace | None = None, outer: bool = False) -> None:
        self._outer = outer
        self._views: list[tuple[int, int]] = []
        self._pings = _ping.Sockets(self._icmp_socket)
        if outer and user is not None:
            message = "outer=True is the namespace pytest lives in, which user= cannot own"
            raise ValueError(message)
        self._create(lambda: self._make(lo_up, user))

    #: IP versions that a link made in it will have; known beforehand, preparing for them costs no entering.
    _versions: frozenset[int] | None = None

    @classmethod
    def _for_link(cls, versions: frozenset[int]) -> NetNamespace:
        """A new one for a link to be made in it: lo down, ready to ping, and addresses usable at once.

        Duplicate address detection is off in it (net.ipv6.conf.default.accept_dad), as nobody else is there.
        """
        space = cls.__new__(cls)
        space._versions = versions
        space.__init__(lo_up=False)
        return space

    def _make(self, lo_up: bool, user: UserNamespace | None) -> None:  # noqa: FBT001
        self._teardown.push("close the ping sockets", self._pings.close)
        if self._outer:
            self._take_outer()
            self._open_rtnetlink()
            return
        if user is None:
            self._make_namespace(None, self._open_rtnetlink)
        else:
            self._user = user
            self._processes = []
            self._fd, netlink = self._ask_for_namespace(user, netlink=True)
            self._rtnl = rtnetlink.Socket(fileno=netlink)
            self._teardown.push("let go of the rtnetlink socket", self._rtnl.detach)
        if lo_up:
            self._rtnl.do(rtnetlink.LO_UP)

    def _open_rtnetlink(self) -> None:
        if self._versions is not None:  # inside already: what the first ping would have to enter for
            no_dad("default")
            with contextlib.suppress(PermissionError):  # no CAP_NET_RAW: the ping itself will say so
                for version in self._versions:
                    self._pings.add(version, icmp.open_socket(version))
        self._rtnl = rtnetlink.Socket()
        fds.hold(self._rtnl.fileno())
        self._teardown.push("close the rtnetlink socket", lambda: fds.release(self._rtnl.detach()))

    @property
    def rtnl(self) -> rtnetlink.Socket:
        """The rtnetlink socket of this namespace."""
        self._check_open()
        return self._rtnl

    # -- what is in it

    def links(self) -> tuple[Link, ...]:
        """Its links, as `ip link` shows them."""
        return self.rtnl.links()

    def link(self, ifname: str) -> Link:
        """The link of that name.

        Raises:
            KernelError: ENODEV, there is none; the message lists those there are.
        """
        links = self.links()
        for link in links:
            if link.ifname == ifname:
                return link
        names = ", ".join(link.ifname for link in links)
        raise KernelError(errno.ENODEV, f"RTM_GETLINK({ifname!r})", None, f"The links of {self} are: {names}")

    def addresses(self, ifname: str | None = None) -> tuple[Address, ...]:
        """Its addresses, or those of one link."""
        return tuple(one for one in self.rtnl.addresses() if ifname in {None, one.ifname})

    def routes(self, table: int | None = 254) -> tuple[Route, ...]:
        """Its routes of one table (254 is main, 255 local), of all with None."""
        return tuple(one for one in self.rtnl.routes() if table in {None, one.table})

    def neighbours(self) -> tuple[Neighbour, ...]:
        """Its neighbour table: which address has which hardware address."""
        return self.rtnl.neighbours()

    def add_route(self, destination: str, via: str | None = None, ifname: str | None = None) -> None:
        """Add a route: `add_route("default", via="10.0.0.1")`, `add_route("192.0.2.0/24", ifname="eth0")`.

        Raises:
            ValueError: an address does not parse.
            KernelError: ENETUNREACH, the gateway is on no link here; EEXIST, there is such a route.
        """
        from ipaddress import ip_address, ip_network

        gateway = None if via is None else ip_address(via)
        if destination == "default":
            destination = "::/0" if gateway is not None and gateway.version == 6 else "0.0.0.0/0"
        ifindex = None if ifname is None else self.link(ifname).ifindex
        self.rtnl.do(rtnetlink.add_route(ip_network(destination), gateway, ifindex))

    @property
    def sysctl(self) -> Sysctls:
        """Its net.* sysctls: `ns.sysctl["net.ipv4.ip_forward"] = 1`. sysctl(8)"""
        return Sysctls(self)

    # -- sockets born inside

    def socket(
        self, family: int = _socket.AF_INET, kind: int = _socket.SOCK_STREAM, protocol: int = 0
    ) -> _socket.socket:
        """A socket born inside; it may be used anywhere, by any thread and event loop, and keeps the namespace alive.

        Raises:
            KernelError: EPERM for SOCK_RAW and SOCK_PACKET without CAP_NET_RAW; EAFNOSUPPORT.
        """
        self._check_open()
        try:
            if self._user is None:
                return self._do_inside(lambda: _socket.socket(family, kind, protocol))
            request = {"op": "socket", "user": self._user.as_request(), "arguments": [int(family), int(kind), protocol]}
            _, made = keeper().ask(request, [self._user.fileno(), self._fd])
        except OSError as error:
            if isinstance(error, KernelError):
                raise
            raise KernelError(error.errno or 0, f"socket({family}, {kind}, {protocol})") from None
        return _socket.socket(fileno=made[0])

    def connect(self, address: tuple[str | HasAddress, int], timeout: float = 5.0) -> _socket.socket:
        """A TCP connection from inside to (host, port); host is an address, or an end of a link.

        Raises:
            TimeoutError: nobody answered within `timeout` seconds.
            ConnectionRefusedError: nobody listens there.
        """
        host, port = address
        text = host if isinstance(host, str) else host.ipv4 or host.ipv6
        if text is None:
            message = f"{host} has no address to connect to"
            raise ValueError(message)
        target, scope = icmp.parse_target(text)
        sock = self.socket(_socket.AF_INET if target.version == 4 else _socket.AF_INET6)
        try:
            sock.settimeout(timeout)
            here = (str(target), port) if target.version == 4 else (str(target), port, 0, self._scope(scope))
            sock.connect(here)
            sock.settimeout(None)
        except BaseException as error:
            sock.close()
            error.add_note(f"while connecting from {self} to {target} port {port}")
            raise
        return sock

    def listen(self, port: int = 0, host: str = "0.0.0.0", backlog: int = 128) -> _socket.socket:  # noqa: S104 - its own namespace
        """A listening TCP socket inside, on `host` and `port` (0: any free one, see `getsockname()`).

        Raises:
            OSError: EADDRINUSE, EADDRNOTAVAIL.
        """
        family = _socket.AF_INET6 if ":" in host else _socket.AF_INET
        sock = self.socket(family)
        try:
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
            sock.listen(backlog)
        except BaseException:
            sock.close()
            raise
        return sock

    def _scope(self, name: str | None) -> int:
        if name is None:
            return 0
        return int(name) if name.isdecimal() else self.link(name).ifindex

    def ping(
        self,
        target: str | IPv4Address | IPv6Address | HasAddress | NetNamespace,
        *,
        count: int = 1,
        size: int = 56,
        timeout: float = 1.0,
        family: int | None = None,
    ) -> PingResult:
        """Send ICMP echo requests from inside; no external program.

        Args:
            target: an address (`fe80::1%eth0` with its link), an end of a link, or a netns (its first address that is
                not of lo).
            count: 1 to 65,535 requests, each as soon as the one before is answered or given up.
            size: bytes of payload, 0 to 65,507.
            timeout: seconds for all of them.
            family: 4 or 6, for a target that has both.

        Returns:
            A result that is true when anything came back, and that says why when nothing did.
        """
        _ping.check(count, size, timeout)
        address, scope = self._resolve(target, family)
        if family not in {None, address.version}:
            message = f"family={family}: {address} is an IPv{address.version} address, not an IPv{family} one"
            raise ValueError(message)
        index = self._scope(scope)
        with asking_for("ping"), self._pings.borrowed(address.version) as sock:
            return _ping.ping(sock, address, scope=index, count=count, size=size, timeout=timeout)

    def _icmp_socket(self, version: int) -> _socket.socket:
        if version == 4:
            return self.socket(_socket.AF_INET, _socket.SOCK_RAW, _socket.IPPROTO_ICMP)
        return self.socket(_socket.AF_INET6, _socket.SOCK_RAW, _socket.IPPROTO_ICMPV6)

    def _resolve(self, target: object, family: int | None) -> tuple[IPv4Address | IPv6Address, str | None]:
        if family not in {None, 4, 6}:
            message = f"family={family!r}: allowed are 4, 6 and None"
            raise ValueError(message)
        if isinstance(target, (IPv4Address, IPv6Address)):
            return target, getattr(target, "scope_id", None)
        if isinstance(target, str):
            try:
                return icmp.parse_target(target)
            except ValueError:
                message = f"target={target!r} is no IP address; names are not resolved in a network namespace"
                raise ValueError(message) from None
        if isinstance(target, NetNamespace):
            ends = [one.ip for one in target.addresses() if one.scope == "global" and family in {None, one.ip.version}]
            if ends:
                return min(ends, key=lambda ip: ip.version), None
        elif hasattr(target, "ipv4") and hasattr(target, "ipv6"):
            end = cast("HasAddress", target)
            for version, text in ((4, end.ipv4), (6, end.ipv6)):
                if text is not None and family in {None, version}:
                    return icmp.parse_target(text)
        else:
            message = f"target={target!r}: allowed are an address, an end of a link, or a netns"
            raise TypeError(message)
        message = f"{target} has no {'' if family is None else f'IPv{family} '}address to ping"
        raise ValueError(message)

    # -- names and handles

    def publish(self, name: str) -> Path:
        """Give it a name under /run/netns, so that `ip netns exec NAME` finds it, until it is closed.

        Raises:
            ValueError: the name is empty, too long, or holds `/`, `..` or NUL.
            FileExistsError: there is such a name already.
            Unsupported: without CAP_SYS_ADMIN.
        """
        self._check_open()
        check_name(name)
        path = _PUBLISHED / name
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        if os.geteuid() != 0:
            raise Unsupported("publish", f"an ordinary user cannot mount at {path}", "run as root")
        start_run()
        with contextlib.ExitStack() as undo, asking_for("publish"):
            entry = ledger.Entry(run().id, "published", path=str(path))
            undo.callback(entry.strike)
            ledger.published_directory(_PUBLISHED)
            undo.callback(ledger.leave_published_directory, _PUBLISHED)
            try:
                os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
            except OSError as error:
                raise KernelError(error.errno or 0, f"open({str(path)!r}, O_CREAT|O_EXCL)") from error
            undo.callback(ledger.unpublish, str(path))
            mounts.bind_for_all(self._fd, path)
            self._teardown.push(f"unpublish {path}", undo.pop_all().close)
        return path

    @property
    def ipr(self) -> IPRoute:
        """A pyroute2 `IPRoute` of this namespace, for everything else; made when first asked for.

        It belongs to the thread that asked first: pyroute2 would silently talk to another thread's own namespace.

        Raises:
            RuntimeError: used from another thread, or on a thread that runs an event loop.
        """
        self._check_open()
        if not hasattr(self, "_ipr"):
            _refuse_event_loop()
            import pyroute2

            with Visit(Plan((Entry("net", self._fd, str(self)),), None, (), None)):
                handle = pyroute2.IPRoute()
            self._ipr = BoundIPRoute(handle, str(self))
            self._teardown.push("close ipr", handle.close)
        self._ipr.check()
        return cast("IPRoute", self._ipr)

    # -- what its children see

    def _entries(self) -> tuple[Entry, ...]:
        *before, own = super()._entries()
        view = None if self._outer else self._view
        return (*before, Entry(own.name, own.fd, own.title, view=view))

    def _view(self, plan: Plan) -> int:
        """On the spawner thread: a mount namespace whose /sys shows this namespace, made on first use.

        It is a copy of the plan's own mount namespace, or of pytest's.
        """
        thread = spawner()
        mnt = plan.find("mnt")
        base = thread.origin["mnt"] if mnt is None else mnt.fd
        for known, view in self._views:
            if os.path.samestat(os.fstat(known), os.fstat(base)):
                return view
        with thread.entered([("mnt", base), ("net", self._fd)]):
            sysfs = new_sysfs()
            try:
                mount_sysfs(sysfs, thread.myself)
            finally:
                os.close(sysfs)
            view = self._teardown.hold(os.open("ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=thread.myself))
        # The copied one is held too: only while it is, its inode number means it.
        self._views.append((self._teardown.hold(os.dup(base)), view))
        return view


def no_dad(ifname: str) -> None:
    """No duplicate address detection on a link (`default`: on those to come): it takes a second and more."""
    path = f"/proc/sys/net/ipv6/conf/{ifname}/accept_dad"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # a kernel without IPv6, or with an MTU too small for it
    except OSError as error:
        if error.errno == errno.EROFS:
            return  # a container's /proc/sys: the link-local address takes its second
        raise
    try:
        os.write(fd, b"0")
    finally:
        os.close(fd)


def check_name(name: str) -> None:
    """A file name for /run/netns."""
    fits = isinstance(name, str) and re.fullmatch(r"[^/\0]+", name) and name not in {".", ".."}
    if not fits or len(os.fsencode(name)) > _NAME_MAX:
        message = f"name={name!r}: allowed are 1 to {_NAME_MAX} bytes without / and NUL, and not . or .."
        raise ValueError(message)


def check_ifname(ifname: str) -> None:
    """A name that the kernel takes for a link."""
    fits = isinstance(ifname, str) and re.fullmatch(r"[^/\0\s:%]+", ifname) and ifname not in {".", ".."}
    if not fits or len(ifname.encode()) > uapi.IFNAME_MAX:
        message = (
            f"ifname={ifname!r}: allowed are 1 to {uapi.IFNAME_MAX} bytes without /, :, %, white space and NUL, "
            "and not . or .."
        )
        raise ValueError(message)


def _refuse_event_loop() -> None:
    events = sys.modules.get("asyncio.events")
    if events is not None and events._get_running_loop() is not None:
        message = "ipr does not work on a thread that runs an event loop: use it from another, or pyroute2.AsyncIPRoute"
        raise RuntimeError(message)


class BoundIPRoute:
    """An IPRoute that refuses other threads than its own, forks, and running event loops."""

    def __init__(self, handle: Any, title: str) -> None:
        self._handle = handle
        self._title = title
        self._thread = threading.get_native_id()
        self._pid = os.getpid()

    def check(self) -> None:
        """Raise unless this thread may use it."""
        if os.getpid() != self._pid:
            message = f"ipr of {self._title} belongs to process {self._pid}: a fork would share its socket"
            raise RuntimeError(message)
        if threading.get_native_id() != self._thread:
            message = (
                f"ipr of {self._title} belongs to thread {self._thread}: on another thread pyroute2 would talk to that "
                "thread's own namespace. Use it there, or make pyroute2.IPRoute() in netns.call()"
            )
            raise RuntimeError(message)
        _refuse_event_loop()

    def __getattr__(self, name: str) -> Any:
        self.check()
        value = getattr(self._handle, name)
        if not callable(value):
            return value

        @functools.wraps(value)
        def checked(*args: Any, **options: Any) -> Any:
            self.check()  # the method may have been taken along to another thread
            return value(*args, **options)

        return checked

    def __repr__(self) -> str:
        return f"<IPRoute of {self._title}>"


class Sysctls(MutableMapping[str, str]):
    """The net.* sysctls of a network namespace, by dotted name; values are text without the newline."""

    def __init__(self, netns: NetNamespace) -> None:
        self._netns = netns

    def _path(self, name: object) -> str:
        parts = name.replace("/", ".").split(".") if isinstance(name, str) else []
        if len(parts) < 2 or parts[0] != "net" or any(part in {"", ".."} or "\0" in part for part in parts):
            message = f'sysctl {name!r}: a network namespace has only those named "net.something"'
            raise ValueError(message)
        return "/proc/sys/" + "/".join(parts)

    def __getitem__(self, name: str) -> str:
        path = self._path(name)
        return self._netns._do_inside(lambda: _read(path))

    def __contains__(self, name: object) -> bool:
        path = self._path(name)
        return self._netns._do_inside(lambda: os.path.exists(path))

    def __setitem__(self, name: str, value: str | int) -> None:
        path = self._path(name)
        self._netns._do_inside(lambda: _write(path, str(int(value)) if isinstance(value, bool) else str(value)))

    def __delitem__(self, name: str) -> None:
        message = f"a sysctl cannot be deleted: {name}"
        raise TypeError(message)

    def __iter__(self) -> Iterator[str]:
        return iter(self._netns._do_inside(_all_names))

    def __len__(self) -> int:
        return len(list(iter(self)))


def _all_names() -> list[str]:
    return [
        os.path.join(folder, name).removeprefix("/proc/sys/").replace("/", ".")
        for folder, _, names in os.walk("/proc/sys/net")
        for name in names
    ]


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().rstrip("\n")
    except OSError as error:
        raise _sysctl_error(error, path, "read") from None


def _write(path: str, value: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise _sysctl_error(error, path, f"write {value!r}") from None


def _sysctl_error(error: OSError, path: str, what: str) -> KernelError:
    hint = {
        errno.ENOENT: "A network namespace has no such sysctl: it may be machine-wide, or its module not loaded",
        errno.EINVAL: "The kernel does not take that value",
        errno.EACCES: "It may not be written in this namespace",
    }.get(error.errno or 0)
    return KernelError(error.errno or 0, f"open({path!r}) to {what}", None, hint)
