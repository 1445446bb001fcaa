"""rtnetlink, packed by hand: the few messages of the hot path, and typed answers. rtnetlink(7)

A socket belongs to the network namespace of the thread that opened it, for good, and keeps that namespace alive.
"""

from __future__ import annotations

import functools
import socket
import struct
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network, ip_address
from typing import TYPE_CHECKING, Self

from pytest_isolation.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Interface = IPv4Interface | IPv6Interface
IPAddress = IPv4Address | IPv6Address

# linux/rtnetlink.h, linux/netlink.h, linux/if_link.h, linux/if_addr.h, linux/neighbour.h
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_GETNEIGH = 30
NLM_F_REQUEST, NLM_F_ACK, NLM_F_EXCL, NLM_F_CREATE, NLM_F_DUMP = 0x1, 0x4, 0x200, 0x400, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
IFF_UP, IFF_LOOPBACK, IFF_LOWER_UP = 0x1, 0x8, 0x10000
IFA_F_NODAD, IFA_F_TENTATIVE = 0x02, 0x40
_RTNLGRP_IPV6_IFADDR = 9
_NETLINK_ADD_MEMBERSHIP, _NETLINK_DROP_MEMBERSHIP = 1, 2
_SOL_NETLINK, _NETLINK_EXT_ACK = 270, 11
#: The kernel fills at most this much of an answer; more would cost an mmap(2) a time.
_DATAGRAM_MAX = 1 << 15
_FLAGS = {
    0x1: "UP", 0x2: "BROADCAST", 0x8: "LOOPBACK", 0x10: "POINTOPOINT", 0x40: "RUNNING", 0x80: "NOARP",
    0x100: "PROMISC", 0x1000: "MULTICAST", 0x10000: "LOWER_UP", 0x20000: "DORMANT",
}  # fmt: skip
_OPERSTATES = ("UNKNOWN", "NOTPRESENT", "DOWN", "LOWERLAYERDOWN", "TESTING", "DORMANT", "UP")
_SCOPES = {0: "global", 200: "site", 253: "link", 254: "host", 255: "nowhere"}
_ROUTE_TYPES = {
    1: "unicast", 2: "local", 3: "broadcast", 4: "anycast", 5: "multicast", 6: "blackhole", 7: "unreachable",
    8: "prohibit",
}  # fmt: skip
_PROTOCOLS = {0: "unspec", 1: "redirect", 2: "kernel", 3: "boot", 4: "static", 9: "ra"}
_NEIGHBOUR_STATES = {
    0x01: "INCOMPLETE", 0x02: "REACHABLE", 0x04: "STALE", 0x08: "DELAY", 0x10: "PROBE", 0x20: "FAILED",
    0x40: "NOARP", 0x80: "PERMANENT",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Counters:
    """Totals of a link since it was made. `ip -s link`"""

    rx_packets: int = 0
    tx_packets: int = 0
    rx_bytes: int = 0
    tx_bytes: int = 0
    rx_errors: int = 0
    tx_errors: int = 0
    rx_dropped: int = 0
    tx_dropped: int = 0


@dataclass(frozen=True, slots=True)
class Link:
    """A link as RTM_GETLINK reports it. `ip -d link`

    Attributes:
        ifname: its name, at most 15 bytes.
        ifindex: its number in its network namespace.
        kind: `veth`, `bridge`, ...; empty for lo and physical ones.
        flags: `UP`, `LOOPBACK`, `LOWER_UP`, ...
        operstate: `UP`, `DOWN`, `LOWERLAYERDOWN`, `UNKNOWN`, ... (RFC 2863)
        carrier: is there a signal on the wire?
        mtu: bytes.
        mac: its hardware address, `02:00:00:00:00:01`.
        peer_ifindex: ifindex of the other end, in the other end's namespace, or None.
        link_netnsid: this namespace's id for the peer's namespace, or None when the peer is here.
        master: ifindex of the bridge it is a port of, or None.
        alias: free text, `ip link set alias`.
        counters: packets, bytes, errors, drops.
    """

    ifname: str
    ifindex: int
    kind: str
    flags: frozenset[str]
    operstate: str
    carrier: bool
    mtu: int
    mac: str
    peer_ifindex: int | None
    link_netnsid: int | None
    master: int | None
    alias: str
    counters: Counters = field(repr=False)


@dataclass(frozen=True, slots=True)
class Address:
    """An address of a link. `ip address`"""

    ifname: str
    ifindex: int
    interface: Interface
    scope: str
    tentative: bool

    @property
    def ip(self) -> IPAddress:
        """The address without its prefix length."""
        return self.interface.ip


@dataclass(frozen=True, slots=True)
class Route:
    """A route. `ip route show table all`; `destination` 0.0.0.0/0 or ::/0 is the default route."""

    destination: IPv4Network | IPv6Network
    gateway: IPAddress | None
    ifname: str | None
    table: int
    kind: str
    protocol: str
    scope: str
    source: IPAddress | None
    metric: int | None


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An entry of the neighbour (ARP, NDP) table. `ip neigh`"""

    address: IPAddress
    mac: str | None
    ifname: str
    state: str


def attribute(number: int, payload: bytes) -> bytes:
    """One netlink attribute, padded to 4 bytes."""
    length = 4 + len(payload)
    return struct.pack("=HH", length, number) + payload + b"\0" * (-length % 4)


def u32(number: int, value: int) -> bytes:
    """A 32-bit attribute."""
    return struct.pack("=HHI", 8, number, value)


def text(number: int, value: str) -> bytes:
    """A NUL-terminated attribute."""
    return attribute(number, value.encode() + b"\0")


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes of a message by number; of a repeated one the last."""
    found = {}
    offset = 0
    while offset + 4 <= len(data):
        length, number = struct.unpack_from("=HH", data, offset)
        if length < 4:
            break
        found[number & 0x3FFF] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def _ifinfo(ifindex: int, flags: int = 0, change: int = 0) -> bytes:
    return struct.pack("=BxHiII", 0, 0, ifindex, flags, change)


@dataclass(frozen=True, slots=True)
class Message:
    """One request: type, flags, payload, and what it says, for an error."""

    kind: int
    flags: int
    payload: bytes
    words: str


@functools.lru_cache(maxsize=64)
def new_veth(
    ifnames: tuple[str, str],
    *,
    mtu: int | None = None,
    macs: tuple[bytes | None, bytes | None] = (None, None),
    alias: str | None = None,
) -> Message:
    """A veth pair whose second end is created in the namespace that `in_netns` adds: moving it costs 15 to 25 ms."""

    def end(position: int) -> bytes:
        mac = macs[position]
        # One queue a direction: the kernel's default, one per CPU, costs a third more.
        parts = [text(3, ifnames[position]), u32(31, 1), u32(32, 1)]  # IFLA_IFNAME, IFLA_NUM_TX_QUEUES, _RX_
        if mtu is not None:
            parts.append(u32(4, mtu))  # IFLA_MTU
        if mac is not None:
            parts.append(attribute(1, mac))  # IFLA_ADDRESS
        return b"".join(parts)

    peer = attribute(1, _ifinfo(0) + end(1) + u32(28, 0))  # VETH_INFO_PEER; IFLA_NET_NS_FD last, for `in_netns`
    info = attribute(18, text(1, "veth") + attribute(2, peer))  # IFLA_LINKINFO: IFLA_INFO_KIND, IFLA_INFO_DATA
    ours = _ifinfo(0) + end(0) + (b"" if alias is None else text(20, alias))  # IFLA_IFALIAS
    words = f"RTM_NEWLINK(veth {ifnames[0]} peer {ifnames[1]}{'' if mtu is None else f' mtu {mtu}'})"
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, ours + info, words)


def in_netns(veth: Message, fd: int) -> Message:
    """The message of `new_veth` with the second end in the network namespace `fd`."""
    return Message(veth.kind, veth.flags, veth.payload[:-4] + struct.pack("=I", fd), veth.words)


def set_link(ifindex: int, *, up: bool | None = None, netns: int | None = None) -> Message:
    """Change a link: up or down, or the namespace it is in."""
    payload = _ifinfo(ifindex, IFF_UP if up else 0, 0 if up is None else IFF_UP)
    words = [] if up is None else ["up" if up else "down"]
    if netns is not None:
        payload += u32(28, netns)
        words.append(f"netns {netns}")
    return Message(RTM_NEWLINK, 0, payload, f"RTM_NEWLINK(ifindex {ifindex} {' '.join(words)})")


@functools.lru_cache(maxsize=256)
def add_address(ifindex: int, interface: Interface) -> Message:
    """Give a link an address; IPv6 without duplicate address detection, which takes a second and more."""
    packed = interface.ip.packed
    family, flags = (socket.AF_INET, 0) if interface.version == 4 else (socket.AF_INET6, IFA_F_NODAD)
    header = struct.pack("=BBBBI", family, interface.network.prefixlen, flags, 0, ifindex)
    payload = header + attribute(2, packed) + attribute(1, packed)  # IFA_LOCAL, IFA_ADDRESS
    return Message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, payload, f"RTM_NEWADDR(ifindex {ifindex} {interface})")


def add_route(destination: IPv4Network | IPv6Network, gateway: IPAddress | None, ifindex: int | None) -> Message:
    """A unicast route in the main table."""
    family = socket.AF_INET if destination.version == 4 else socket.AF_INET6
    scope = 0 if gateway is not None else 253
    payload = struct.pack("=BBBBBBBBI", family, destination.prefixlen, 0, 0, 254, 4, scope, 1, 0)
    if destination.prefixlen:
        payload += attribute(1, destination.network_address.packed)  # RTA_DST
    if gateway is not None:
        payload += attribute(5, gateway.packed)  # RTA_GATEWAY
    if ifindex is not None:
        payload += u32(4, ifindex)  # RTA_OIF
    words = f"RTM_NEWROUTE({destination} via {gateway} ifindex {ifindex})"
    return Message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, payload, words)


def delete_link(ifindex: int) -> Message:
    """Remove a link, of a veth pair both ends."""
    return Message(RTM_DELLINK, 0, _ifinfo(ifindex), f"RTM_DELLINK(ifindex {ifindex})")


#: IFLA_EXT_MASK with RTEXT_FILTER_SKIP_STATS: half of the answer, where nobody wants it.
_WITHOUT_STATISTICS = u32(29, 1 << 3)
LO_UP = set_link(1, up=True)


class Socket:
    """A NETLINK_ROUTE socket of the network namespace that the opening thread is in."""

    def __init__(self, fileno: int | None = None) -> None:
        """Open one, or take over one that was opened elsewhere."""
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE, fileno
            )
        except OSError as error:
            raise KernelError(error.errno or 0, "socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE)") from None
        self._sequence = 0
        self._busy = threading.Lock()
        self._extended = False
        #: While watching: (ifindex, packed IPv6 address) of those that became usable.
        self._usable: set[tuple[int, bytes]] | None = None

    def fileno(self) -> int:
        """Its descriptor."""
        return self._socket.fileno()

    def detach(self) -> int:
        """Its descriptor, which is now the caller's to close."""
        return self._socket.detach()

    def close(self) -> None:
        """Let go of it, and so of its namespace."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def do(self, *messages: Message) -> None:
        """Send the messages in one batch and wait until the kernel has done them.

        Raises:
            KernelError: the first that was refused, with the kernel's own words; the later ones were tried too.
        """
        if not self._extended:
            self._extended = True
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        with self._busy:
            first = self._sequence + 1
            self._sequence = last = self._sequence + len(messages)
            parts = []
            for sequence, message in enumerate(messages, first):
                length = 16 + len(message.payload)
                # An error is always reported: only the last one needs an acknowledgement.
                flags = NLM_F_REQUEST | message.flags | (NLM_F_ACK if sequence == last else 0)
                parts.append(struct.pack("=IHHII", length, message.kind, flags, sequence, 0))
                parts.append(message.payload + b"\0" * (-length % 4))
            self._socket.send(b"".join(parts))
            failure: KernelError | None = None
            sequence = 0
            while sequence != last:
                for kind, answered, flags, payload in self._receive():
                    if kind != NLMSG_ERROR or answered < first:
                        continue  # a notification
                    sequence = answered
                    number = -struct.unpack_from("=i", payload)[0]
                    if number and failure is None:
                        failure = KernelError(number, messages[sequence - first].words, _extended_ack(payload, flags))
        if failure is not None:
            raise failure

    def dump(self, kind: int, header: bytes) -> Iterator[bytes]:
        """Every object of a kind, as the payloads of the answer."""
        with self._busy:
            self._sequence += 1
            sequence = self._sequence
            self._socket.send(
                struct.pack("=IHHII", 16 + len(header), kind, NLM_F_REQUEST | NLM_F_DUMP, sequence, 0) + header
            )
            answers: list[bytes] = []
            while True:
                for answer, number, _, payload in self._receive():
                    if number != sequence:
                        continue
                    if answer == NLMSG_DONE:
                        return iter(answers)
                    if answer == NLMSG_ERROR:
                        raise KernelError(-struct.unpack_from("=i", payload)[0], f"netlink dump of message type {kind}")
                    answers.append(payload)

    def link(self, ifindex: int) -> Link:
        """One link; asking also makes the kernel settle its operstate.

        Raises:
            KernelError: ENODEV, there is no such link.
        """
        return _link(self._get(RTM_GETLINK, _ifinfo(ifindex), f"RTM_GETLINK(ifindex {ifindex})"))

    def settle(self, ifindex: int) -> None:
        """Have the kernel work off a link's pending event, so that its operstate and carrier are those of now."""
        self._get(RTM_GETLINK, _ifinfo(ifindex) + _WITHOUT_STATISTICS, f"RTM_GETLINK(ifindex {ifindex})")

    def links(self) -> tuple[Link, ...]:
        """Every link of the namespace."""
        return tuple(_link(payload) for payload in self.dump(RTM_GETLINK, _ifinfo(0)))

    def _names(self) -> dict[int, str]:
        return {link.ifindex: link.ifname for link in self.links()}

    def addresses(self) -> tuple[Address, ...]:
        """Every address of the namespace."""
        names = self._names()
        found = []
        for payload in self.dump(RTM_GETADDR, struct.pack("=BBBBI", 0, 0, 0, 0, 0)):
            interface, ifindex, tentative, scope = parse_address(payload)
            found.append(Address(names.get(ifindex, "?"), ifindex, interface, scope, tentative))
        return tuple(found)

    def routes(self) -> tuple[Route, ...]:
        """Every route of the namespace, of all tables."""
        names = self._names()
        return tuple(_route(payload, names) for payload in self.dump(RTM_GETROUTE, struct.pack("=BBBBBBBBI", *[0] * 9)))

    def neighbours(self) -> tuple[Neighbour, ...]:
        """Every neighbour entry of the namespace."""
        names = self._names()
        found = []
        for payload in self.dump(RTM_GETNEIGH, struct.pack("=BxHiHBB", 0, 0, 0, 0, 0, 0)):
            ifindex, state = struct.unpack_from("=iH", payload, 4)
            values = attributes(payload[12:])
            if 1 in values:  # NDA_DST
                mac = _mac(values[2]) if 2 in values else None
                name = _NEIGHBOUR_STATES.get(state, "NONE")
                found.append(Neighbour(ip_address(values[1]), mac, names.get(ifindex, "?"), name))
        return tuple(found)

    def ifindexes(self, ifname: str) -> tuple[int, int]:
        """The number of the link of that name, and of a veth's the peer's (in the peer's namespace), else 0.

        Raises:
            KernelError: ENODEV, there is no such link.
        """
        request = _ifinfo(0) + text(3, ifname) + _WITHOUT_STATISTICS
        answer = self._get(RTM_GETLINK, request, f"RTM_GETLINK({ifname})")
        return struct.unpack_from("=i", answer, 4)[0], _optional(attributes(answer[16:]), 5) or 0  # IFLA_LINK

    def _get(self, kind: int, request: bytes, words: str) -> bytes:
        with self._busy:
            self._sequence += 1
            header = struct.pack("=IHHII", 16 + len(request), kind, NLM_F_REQUEST, self._sequence, 0)
            self._socket.send(header + request)
            while True:
                for answer, sequence, _, payload in self._receive():
                    if sequence != self._sequence:
                        continue
                    if answer == NLMSG_ERROR:
                        raise KernelError(-struct.unpack_from("=i", payload)[0], words)
                    if answer == kind - 2:  # RTM_NEWLINK answers RTM_GETLINK
                        return payload

    @contextmanager
    def watching_addresses(self) -> Iterator[None]:
        """For the block: hear of IPv6 addresses as they become usable, for `wait_usable`."""
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _RTNLGRP_IPV6_IFADDR)
        self._usable = set()
        try:
            yield
        finally:
            self._usable = None
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_DROP_MEMBERSHIP, _RTNLGRP_IPV6_IFADDR)

    def tentative(self, ifindex: int) -> list[bytes]:
        """The IPv6 addresses of a link that cannot be used yet."""
        header = struct.pack("=BBBBI", socket.AF_INET6, 0, 0, 0, 0)
        found = [_address_key(payload) for payload in self.dump(RTM_GETADDR, header)]
        return [key[1] for key, tentative in found if tentative and key[0] == ifindex]

    def wait_usable(self, ifindex: int, addresses: Iterable[bytes], timeout: float = 5.0) -> None:
        """While watching, which began before they were added: wait until IPv6 addresses of a link can be used.

        An address without duplicate address detection is never tentative, and yet does not answer before the kernel
        has joined its multicast group; then it sends the RTM_NEWADDR.

        Raises:
            TimeoutError: names the addresses that still could not.
        """
        missing = {(ifindex, packed) for packed in addresses}
        deadline = time.monotonic() + timeout
        while missing := missing - (self._usable or set()):
            left = deadline - time.monotonic()
            self._socket.settimeout(max(left, 0.001))
            try:
                self._receive()
            except TimeoutError:
                shown = ", ".join(str(ip_address(packed)) for _, packed in missing)
                message = f"no word from the kernel within {timeout} s that {shown} (ifindex {ifindex}) can be used"
                raise TimeoutError(message) from None
            finally:
                self._socket.settimeout(None)

    def _receive(self) -> list[tuple[int, int, int, bytes]]:
        """One datagram, as (type, sequence, flags, payload); notes what it says of usable addresses."""
        answers = list(_split(self._socket.recv(_DATAGRAM_MAX)))
        if self._usable is not None:
            for kind, _, _, payload in answers:
                if kind == RTM_NEWADDR:
                    key, tentative = _address_key(payload)
                    if not tentative:
                        self._usable.add(key)
        return answers


def _split(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    offset = 0
    while offset + 16 <= len(data):
        length, kind, flags, sequence, _ = struct.unpack_from("=IHHII", data, offset)
        yield kind, sequence, flags, data[offset + 16 : offset + length]
        offset += (length + 3) & ~3


def _extended_ack(payload: bytes, flags: int) -> str | None:
    if not flags & 0x200:  # NLM_F_ACK_TLVS
        return None
    offset = 4 + 16
    if not flags & 0x100:  # NLM_F_CAPPED: without it the whole request stands before the attributes
        offset = 4 + struct.unpack_from("=I", payload, 4)[0]
    message = attributes(payload[offset:]).get(1)
    return None if message is None else message.rstrip(b"\0").decode(errors="replace")


def _mac(data: bytes) -> str:
    return ":".join(f"{byte:02x}" for byte in data)


def _optional(values: dict[int, bytes], number: int, layout: str = "=I") -> int | None:
    return struct.unpack_from(layout, values[number])[0] if number in values else None


def _link(payload: bytes) -> Link:
    ifindex, flags = struct.unpack_from("=iI", payload, 4)
    values = attributes(payload[16:])
    info = attributes(values.get(18, b""))
    kind = info.get(1, b"").rstrip(b"\0").decode()
    stats = struct.unpack_from("=8Q", values[23]) if 23 in values else (0,) * 8
    operstate = values.get(16, b"\0")[0]
    return Link(
        ifname=values[3].rstrip(b"\0").decode(errors="replace"),
        ifindex=ifindex,
        kind=kind,
        flags=frozenset(name for bit, name in _FLAGS.items() if flags & bit),
        operstate=_OPERSTATES[operstate] if operstate < len(_OPERSTATES) else str(operstate),
        carrier=values.get(33, b"\0") == b"\1",
        mtu=_optional(values, 4) or 0,
        mac=_mac(values.get(1, b"")),
        peer_ifindex=_optional(values, 5) if kind == "veth" else None,
        link_netnsid=_optional(values, 37, "=i"),
        master=_optional(values, 10),
        alias=values.get(20, b"").rstrip(b"\0").decode(errors="replace"),
        counters=Counters(*stats),
    )


def parse_address(payload: bytes) -> tuple[Interface, int, bool, str]:
    """An RTM_NEWADDR: (address with prefix, ifindex, tentative?, scope)."""
    family, prefix, flags, scope, ifindex = struct.unpack_from("=BBBBI", payload)
    values = attributes(payload[8:])
    flags = _optional(values, 8) or flags  # IFA_FLAGS
    packed = values.get(2) or values[1]
    make = IPv4Interface if family == socket.AF_INET else IPv6Interface
    return make((packed, prefix)), ifindex, bool(flags & IFA_F_TENTATIVE), _SCOPES.get(scope, str(scope))


def _address_key(payload: bytes) -> tuple[tuple[int, bytes], bool]:
    """Of an RTM_NEWADDR: ((ifindex, packed address), tentative?)."""
    _, _, flags, _, ifindex = struct.unpack_from("=BBBBI", payload)
    values = attributes(payload[8:])
    flags = _optional(values, 8) or flags  # IFA_FLAGS
    return (ifindex, values.get(2) or values[1]), bool(flags & IFA_F_TENTATIVE)


def _route(payload: bytes, names: dict[int, str]) -> Route:
    family, prefix, _, _, table, protocol, scope, kind = struct.unpack_from("=BBBBBBBB", payload)
    values = attributes(payload[12:])
    v4 = family == socket.AF_INET
    network = (IPv4Network if v4 else IPv6Network)((values.get(1, b"\0" * (4 if v4 else 16)), prefix))
    oif = _optional(values, 4)
    return Route(
        destination=network,
        gateway=ip_address(values[5]) if 5 in values else None,
        ifname=None if oif is None else names.get(oif, "?"),
        table=_optional(values, 15) or table,
        kind=_ROUTE_TYPES.get(kind, str(kind)),
        protocol=_PROTOCOLS.get(protocol, str(protocol)),
        scope=_SCOPES.get(scope, str(scope)),
        source=ip_address(values[7]) if 7 in values else None,
        metric=_optional(values, 6),
    )
