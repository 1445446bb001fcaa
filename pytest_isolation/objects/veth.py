"""veth pairs: a virtual cable with an end in each of two network namespaces. veth(4)"""

from __future__ import annotations

import contextlib
import errno
import functools
import re
import secrets
import socket as _socket
from ipaddress import IPv4Network, ip_interface
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, final

from pytest_isolation._kernel import rtnetlink
from pytest_isolation._state import ledger
from pytest_isolation._state.keeper_client import start_run
from pytest_isolation._state.run import run
from pytest_isolation.errors import KernelError
from pytest_isolation.objects._object import KernelObject
from pytest_isolation.objects._place import Place
from pytest_isolation.objects.netns import NetNamespace, check_ifname, no_dad

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_isolation._kernel.rtnetlink import Counters, Interface, Link
    from pytest_isolation.objects._entering import Entry
    from pytest_isolation.objects._process import Process
    from pytest_isolation.objects.netns import HasAddress
    from pytest_isolation.objects.ping import PingResult
    from pytest_isolation.objects.user import UserNamespace

#: Addresses of a pair, when none are given; each pair is alone in its two namespaces.
IPV4 = ("10.0.0.1/24", "10.0.0.2/24")
IPV6 = ("fd00::1/64", "fd00::2/64")


@final
class VethEnd(Place):
    """One end of a veth pair, in its network namespace; commands run in that namespace.

    Attributes:
        ifname: its name.
        ifindex: its number in its namespace.
        netns: the namespace it is in.
        ipv4: its IPv4 address without prefix length, or None.
        ipv6: its IPv6 address without prefix length, or None.
        peer: the other end.
    """

    def __init__(self, pair: VethPair, ifname: str, ifindex: int, netns: NetNamespace) -> None:
        self._pair = pair
        self.ifname: str = ifname
        self.ifindex: int = ifindex
        self.netns: NetNamespace = netns
        self.ipv4: str | None = None
        self.ipv6: str | None = None
        self.peer: VethEnd

    def _entries(self) -> tuple[Entry, ...]:
        self._pair._check_open()
        return self.netns._entries()

    def _started(self, process: Process) -> None:
        self.netns._started(process)

    def __str__(self) -> str:
        return f"{self.ifname} in {self.netns}"

    def __repr__(self) -> str:
        return f"<VethEnd {self}>"

    # -- what the kernel says of it, each time anew

    def link(self) -> Link:
        """All that the kernel says of this end now."""
        return self.netns.rtnl.link(self.ifindex)

    @property
    def operstate(self) -> str:
        """`UP`, or `DOWN`; `LOWERLAYERDOWN`: this end is up, the other is not, and both are in one namespace."""
        return self.link().operstate

    @property
    def carrier(self) -> bool:
        """Is there a signal, which is: are both ends up?"""
        return self.link().carrier

    @property
    def mac(self) -> str:
        """Its hardware address."""
        return self.link().mac

    @property
    def mtu(self) -> int:
        """Its MTU in bytes."""
        return self.link().mtu

    @property
    def peer_ifindex(self) -> int | None:
        """The other end's ifindex, in the other end's namespace (`eth0@if2`)."""
        return self.link().peer_ifindex

    @property
    def peer_netnsid(self) -> int | None:
        """This namespace's id for the other end's namespace; None when both ends are in one. `ip netns list-id`"""
        return self.link().link_netnsid

    @property
    def ipv6_link_local(self) -> str | None:
        """Its link-local address with its scope, `fe80::...%eth0`, to be used in this end's namespace."""
        for address in self.netns.addresses(self.ifname):
            if address.ip.is_link_local and address.ip.version == 6:
                return f"{address.ip}%{self.ifname}"
        return None

    def counters(self) -> Counters:
        """Packets, bytes, errors and drops of this end since it was made."""
        return self.link().counters

    # -- changing it

    def up(self) -> None:
        """Set it up; returns when the kernel has settled its state."""
        self.netns.rtnl.do(rtnetlink.set_link(self.ifindex, up=True))
        self._settle()

    def down(self) -> None:
        """Set it down; the other end loses its carrier."""
        self.netns.rtnl.do(rtnetlink.set_link(self.ifindex, up=False))
        self._settle()

    def _settle(self) -> None:
        # RTM_GETLINK makes the kernel work off the link's pending event: on both ends, as both may change.
        for end in (self, self.peer):
            end.netns.rtnl.settle(end.ifindex)

    def add_address(self, address: str) -> None:
        """Give it an address with prefix length, usable when this returns.

        Raises:
            ValueError: it does not parse.
            KernelError: EEXIST, it has that address.
        """
        if not isinstance(address, str):
            message = f"address={address!r}: allowed is text like 10.0.0.1/24 or fd00::1/64"
            raise TypeError(message)
        (interface,) = _parse((address,), "address", None)
        rtnl = self.netns.rtnl
        with rtnl.watching_addresses():
            rtnl.do(rtnetlink.add_address(self.ifindex, interface))
            if interface.version == 6 and self.operstate == "UP":
                rtnl.wait_usable(self.ifindex, [interface.ip.packed])
        self._remember(interface)

    def _remember(self, interface: Interface) -> None:
        if interface.version == 4:
            self.ipv4 = self.ipv4 or _text(interface)
        else:
            self.ipv6 = self.ipv6 or _text(interface)

    def move_to(self, netns: NetNamespace) -> None:
        """Move it to another namespace. As the kernel does it, it arrives down and without addresses.

        Raises:
            KernelError: EEXIST, there is a link of that name.
        """
        target = netns.fileno()
        self.netns.rtnl.do(rtnetlink.set_link(self.ifindex, netns=target))
        self.netns = netns
        self.ifindex = netns.link(self.ifname).ifindex
        self.ipv4 = self.ipv6 = None

    def __enter__(self) -> NoReturn:
        message = f"an end of a link is no lifetime; to be inside {self.netns} for a block: `with inside(...)`"
        raise TypeError(message)

    def __exit__(self, *_: object) -> None:
        """Never reached; there for the error that names `inside`."""

    def socket(
        self, family: int = _socket.AF_INET, kind: int = _socket.SOCK_STREAM, protocol: int = 0
    ) -> _socket.socket:
        """`NetNamespace.socket` of this end's namespace."""
        return self.netns.socket(family, kind, protocol)

    def connect(self, address: tuple[str | HasAddress, int], timeout: float = 5.0) -> _socket.socket:
        """`NetNamespace.connect` from this end's namespace."""
        return self.netns.connect(address, timeout)

    def listen(self, port: int = 0, host: str = "0.0.0.0", backlog: int = 128) -> _socket.socket:  # noqa: S104 - its own namespace
        """`NetNamespace.listen` in this end's namespace."""
        return self.netns.listen(port, host, backlog)

    def ping(
        self, target: Any, *, count: int = 1, size: int = 56, timeout: float = 1.0, family: int | None = None
    ) -> PingResult:
        """`NetNamespace.ping` from this end's namespace."""
        return self.netns.ping(target, count=count, size=size, timeout=timeout, family=family)


@final
class VethPair(KernelObject):
    """Two ends of a virtual cable, each in a namespace of its own; `a, b = pair`.

    Makes a veth pair, and the network namespaces that were not given. The kernel removes the pair with the first of
    its namespaces; an end in a namespace that lives on is deleted. Needs CAP_NET_ADMIN in both, CAP_SYS_ADMIN for
    new ones. It is usable for the first packet, IPv4 and IPv6, link-local addresses included.

    Args:
        ipv4: address with prefix length of each end; None for none.
        ipv6: likewise.
        ifnames: name of each end, at most 15 bytes.
        mtu: of both ends, 68 to 65,535 bytes; with IPv6 at least 1,280.
        mac: hardware address of each end, `"02:00:00:00:00:01"`; None for a random one.
        netns: namespace of each end; None for a new one.
        up: bring each end up?
        outer: the first end is in the namespace that pytest lives in.
        user: the user namespace that owns the new namespaces.
    """

    kind: ClassVar[str] = "veth_pair"

    def __init__(
        self,
        *,
        ipv4: Sequence[str | None] | None = None,
        ipv6: Sequence[str | None] | None = None,
        ifnames: Sequence[str] | None = None,
        mtu: int | None = None,
        mac: Sequence[str | None] = (None, None),
        netns: Sequence[NetNamespace | None] = (None, None),
        up: Sequence[bool] = (True, True),
        outer: bool = False,
        user: UserNamespace | None = None,
    ) -> None:
        spaces = list(_two(netns, "netns"))
        if outer and spaces[0] is not None:
            message = "outer=True puts the first end into pytest's own namespace: netns[0] must be None"
            raise ValueError(message)
        names = tuple(_two(ifnames or (f"pi{secrets.token_hex(6)}" if outer else "eth0", "eth0"), "ifnames"))
        for name in names:
            check_ifname(name)
        if spaces[0] is not None and spaces[0] is spaces[1] and names[0] == names[1]:
            message = f"ifnames={names!r}: both ends are in one namespace, so their names must differ"
            raise ValueError(message)
        if mtu is not None and (not isinstance(mtu, int) or not 68 <= mtu <= 65535):
            message = f"mtu={mtu!r}: allowed are 68 to 65535 bytes"
            raise ValueError(message)
        if ipv4 is None:
            ipv4 = _free_outer_addresses() if outer else IPV4
        if ipv6 is None:
            ipv6 = (None, None) if outer or (mtu is not None and mtu < _IPV6_MTU_MIN) else IPV6
        self._addresses = _addresses(tuple(_two(ipv4, "ipv4")), tuple(_two(ipv6, "ipv6")))
        macs = tuple(_parse_mac(one) for one in _two(mac, "mac"))
        states = tuple(bool(one) for one in _two(up, "up"))
        for space, interfaces in zip(spaces, self._addresses, strict=True):
            if space is not None:
                _check_given(space, interfaces)
        self._create(lambda: self._make(names, mtu, macs, spaces, states, outer, user), on_spawner=user is None)

    def _make(
        self,
        names: tuple[str, ...],
        mtu: int | None,
        macs: tuple[bytes | None, ...],
        spaces: list[NetNamespace | None],
        states: tuple[bool, ...],
        outer: bool,  # noqa: FBT001
        user: UserNamespace | None,
    ) -> None:
        self._given = [space for space in spaces if space is not None]
        homes: list[NetNamespace] = []
        for position, space in enumerate(spaces):
            if space is None:
                space = self._new_home(position, user, outer=outer and position == 0)  # noqa: PLW2901
                space._owner = self
                self._teardown.push("close the namespace of an end", space.close)
            homes.append(space)
        a, b = homes
        alias = self._announce(names[0], a) if outer else None
        pair = rtnetlink.new_veth((names[0], names[1]), mtu=mtu, macs=(macs[0], macs[1]), alias=alias)
        a.rtnl.do(rtnetlink.in_netns(pair, b.fileno()))
        if self._given:
            self._teardown.push("delete the link", lambda: self._delete(names, homes))
        ifindexes = a.rtnl.ifindexes(names[0])
        self.ends: tuple[VethEnd, ...] = tuple(
            VethEnd(self, name, ifindex, home) for name, ifindex, home in zip(names, ifindexes, homes, strict=True)
        )
        self.ends[0].peer, self.ends[1].peer = self.ends[1], self.ends[0]
        with contextlib.ExitStack() as watching:
            # With IPv6 addresses, confirm them and the link-local ones; without, nobody waits for those.
            confirm = all(states) and any(one.version == 6 for end in self._addresses for one in end)
            for home in homes if confirm else ():
                watching.enter_context(home.rtnl.watching_addresses())
            for position in (1, 0):
                self._configure(position, states[position], fresh=user is None and homes[position] not in self._given)
            for end in self.ends:
                end.netns.rtnl.settle(end.ifindex)
            for end, addresses in zip(self.ends, self._addresses, strict=True) if confirm else ():
                added = [one.ip.packed for one in addresses if one.version == 6]
                rtnl = end.netns.rtnl
                rtnl.wait_usable(end.ifindex, [*added, *rtnl.tentative(end.ifindex)])  # the link-local one

    def _new_home(self, position: int, user: UserNamespace | None, *, outer: bool) -> NetNamespace:
        if outer:
            self._given.append(home := NetNamespace(outer=True))
            return home
        if user is not None:
            return NetNamespace(lo_up=False, user=user)
        return NetNamespace._for_link(frozenset(one.version for one in self._addresses[position]))

    def _announce(self, ifname: str, outer: NetNamespace) -> str:
        """Before the link in the machine's own namespace is made: keeper and ledger know of it, by its alias."""
        if any(link.ifname == ifname for link in outer.links()):
            raise KernelError(errno.EEXIST, f"RTM_NEWLINK(veth {ifname})", None, "The machine has a link of that name")
        taken = [route.destination for route in outer.routes() if route.destination.prefixlen]
        for interface in self._addresses[0]:
            for other in taken:
                if other.version == interface.version and interface.network.overlaps(other):
                    message = f"{interface} overlaps {other}, which the machine has a route for"
                    raise ValueError(message)
        start_run()
        alias = f"pytest-isolation {secrets.token_hex(16)}"
        entry = ledger.Entry(run().id, "link", ifname=ifname, alias=alias)
        self._teardown.push("strike the link off the ledger", entry.strike)
        return alias

    def _delete(self, names: tuple[str, ...], homes: list[NetNamespace]) -> None:
        """Delete the link from an end whose namespace lives on; the other end goes with it."""
        ends = getattr(self, "ends", ())
        places = [(end.ifname, end.netns) for end in ends] or list(zip(names, homes, strict=True))
        for name, home in places:
            if home.closed:
                continue
            try:
                home.rtnl.do(rtnetlink.delete_link(home.rtnl.ifindexes(name)[0]))
            except KernelError as error:
                if error.errno != errno.ENODEV:  # it went with another namespace
                    raise
            return

    def _configure(self, position: int, up: bool, *, fresh: bool) -> None:  # noqa: FBT001
        end, addresses = self.ends[position], self._addresses[position]
        if not fresh:
            end.netns._do_inside(lambda: no_dad(end.ifname))
        messages = _configuration(end.ifindex, tuple(addresses), up, end.netns not in self._given)
        if messages:
            end.netns.rtnl.do(*messages)
        for interface in addresses:
            end._remember(interface)

    @property
    def a(self) -> VethEnd:
        """The first end."""
        return self.ends[0]

    @property
    def b(self) -> VethEnd:
        """The second end."""
        return self.ends[1]

    def __iter__(self) -> Iterator[VethEnd]:
        return iter(self.ends)

    def __str__(self) -> str:
        ends = getattr(self, "ends", ())
        return f"{self.kind} {' - '.join(end.ifname for end in ends)}".strip()


def _check_given(netns: NetNamespace, interfaces: list[Interface]) -> None:
    """Refuse a namespace that is closed, or that has a link in the network of one of the addresses."""
    if not isinstance(netns, NetNamespace):
        message = f"netns={netns!r}: allowed are a NetNamespace, or None for a new one"
        raise TypeError(message)
    for known in netns.addresses():
        for interface in interfaces:
            if known.ip.version == interface.version and known.interface.network.overlaps(interface.network):
                message = f"{interface} overlaps {known.interface}, which {known.ifname} of {netns} has"
                raise ValueError(message)


def _two(values: Sequence[Any], name: str) -> Sequence[Any]:
    if isinstance(values, str) or len(values) != 2:
        message = f"{name}={values!r}: two values, one for each end"
        raise ValueError(message)
    return values


def _parse(values: Sequence[str | None], name: str, version: int | None) -> list[Interface]:
    found: list[Interface] = []
    for value in values:
        if value is None:
            continue
        try:
            interface = ip_interface(value)
        except ValueError as error:
            message = f"{name}={value!r}: {error}; an address with its prefix length is like 10.0.0.1/24 or fd00::1/64"
            raise ValueError(message) from None
        if version not in {None, interface.version}:
            message = f"{name}={value!r} is an IPv{interface.version} address"
            raise ValueError(message)
        if "/" not in str(value):
            message = f"{name}={value!r} has no prefix length: {value}/{24 if interface.version == 4 else 64}"
            raise ValueError(message)
        found.append(interface)
    return found


@functools.lru_cache(maxsize=64)
def _text(interface: Interface) -> str:
    return str(interface.ip)


@functools.lru_cache(maxsize=64)
def _configuration(
    ifindex: int,
    addresses: tuple[Interface, ...],
    up: bool,  # noqa: FBT001 - one key of the cache
    lo_up: bool,  # noqa: FBT001
) -> tuple[rtnetlink.Message, ...]:
    """What is sent to an end's namespace in one batch; the same for most pairs."""
    links = [rtnetlink.set_link(ifindex, up=True)] if up else []
    added = [rtnetlink.add_address(ifindex, interface) for interface in addresses]
    return (*links, *added, *([rtnetlink.LO_UP] if lo_up else []))


@functools.lru_cache(maxsize=64)
def _addresses(ipv4: tuple[str | None, ...], ipv6: tuple[str | None, ...]) -> tuple[list[Interface], list[Interface]]:
    ends: tuple[list[Interface], list[Interface]] = ([], [])
    for version, values, name in ((4, ipv4, "ipv4"), (6, ipv6, "ipv6")):
        both = [_parse((value,), f"{name}[{position}]", version) for position, value in enumerate(values)]
        if both[0] and both[1] and both[0][0].ip == both[1][0].ip:
            message = f"{name}={tuple(values)!r}: both ends have the same address"
            raise ValueError(message)
        for end, found in zip(ends, both, strict=True):
            end.extend(found)
    return ends


def _parse_mac(mac: str | None) -> bytes | None:
    if mac is None:
        return None
    if not isinstance(mac, str) or not re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", mac):
        message = f"mac={mac!r}: six bytes like 02:00:00:00:00:01 are allowed"
        raise ValueError(message)
    packed = bytes.fromhex(mac.replace(":", ""))
    if packed[0] & 1 or not any(packed):
        message = f"mac={mac!r}: a multicast or zero address cannot be a link's own"
        raise ValueError(message)
    return packed


_IPV6_MTU_MIN = 1280


def _free_outer_addresses() -> tuple[str, str]:
    """For a pair with an end in the machine's own namespace: a /30 of RFC 2544's range that has no route yet.

    At random, as other runs choose as well: two would have to take the same of 32,768 within a millisecond.
    """
    with NetNamespace(outer=True) as outer:
        taken = [route.destination for route in outer.routes(table=None) if route.destination.prefixlen]
    base = IPv4Network("198.18.0.0/15")
    while True:
        network = IPv4Network((int(base.network_address) + 4 * secrets.randbelow(base.num_addresses // 4), 30))
        if not any(network.overlaps(other) for other in taken if other.version == 4):
            first, second = network.hosts()
            return f"{first}/30", f"{second}/30"
