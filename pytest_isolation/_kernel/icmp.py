"""ICMP echo, packed and read. RFC 792, RFC 4443; icmp(7), raw(7)"""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

ECHO_REQUEST = {4: 8, 6: 128}
ECHO_REPLY = {4: 0, 6: 129}
_SOL_RAW, _ICMP_FILTER, _ICMP6_FILTER = 255, 1, 1
_REASONS = {
    (4, 3, 0): "Destination Net Unreachable", (4, 3, 1): "Destination Host Unreachable",
    (4, 3, 2): "Destination Protocol Unreachable", (4, 3, 3): "Destination Port Unreachable",
    (4, 3, 4): "Fragmentation Needed", (4, 3, 9): "Destination Net Prohibited",
    (4, 3, 10): "Destination Host Prohibited", (4, 3, 13): "Packet Filtered", (4, 11, 0): "Time To Live Exceeded",
    (6, 1, 0): "No Route To Destination", (6, 1, 1): "Administratively Prohibited", (6, 1, 3): "Address Unreachable",
    (6, 1, 4): "Port Unreachable", (6, 2, 0): "Packet Too Big", (6, 3, 0): "Hop Limit Exceeded",
}  # fmt: skip


def checksum(data: bytes) -> int:
    """The Internet checksum. RFC 1071"""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(~total & 0xFFFF)


def open_socket(version: int) -> socket.socket:
    """A raw ICMP socket in the network namespace of the calling thread. Needs CAP_NET_RAW."""
    if version == 4:
        return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    return socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)


def prepare(sock: socket.socket, version: int) -> None:
    """Let only replies and errors through to a raw socket: a busy namespace must not fill it."""
    sock.setblocking(False)  # noqa: FBT003
    if version == 4:
        wanted = {0, 3, 11, 12}
        sock.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("=I", ~sum(1 << kind for kind in wanted) & 0xFFFFFFFF))
    else:
        blocked = [0xFFFFFFFF] * 8
        for kind in (1, 2, 3, 4, 129):
            blocked[kind >> 5] &= ~(1 << (kind & 31)) & 0xFFFFFFFF
        sock.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, struct.pack("=8I", *blocked))


def echo_request(version: int, identifier: int, sequence: int, payload: bytes) -> bytes:
    """An echo request; the kernel fills in the checksum of IPv6, which covers addresses."""
    header = struct.pack("!BBHHH", ECHO_REQUEST[version], 0, 0, identifier, sequence)
    if version == 4:
        header = struct.pack("!BBHHH", ECHO_REQUEST[version], 0, checksum(header + payload), identifier, sequence)
    return header + payload


def read(version: int, data: bytes) -> tuple[str, int, int] | None:
    """What came in: ("reply" or the name of an error, identifier, sequence); None for anything else."""
    if version == 4:
        data = data[(data[0] & 15) * 4 :] if data else b""
    if len(data) < 8:
        return None
    kind, code, _, identifier, sequence = struct.unpack_from("!BBHHH", data)
    if kind == ECHO_REPLY[version]:
        return "reply", identifier, sequence
    quoted = data[8:]
    inner = quoted[(quoted[0] & 15) * 4 :] if version == 4 and quoted else quoted[40:]
    if len(inner) < 8 or inner[0] != ECHO_REQUEST[version]:
        return None
    identifier, sequence = struct.unpack_from("!HH", inner, 4)
    return _REASONS.get((version, kind, code), f"ICMP type {kind} code {code}"), identifier, sequence


def parse_target(text: str) -> tuple[IPv4Address | IPv6Address, str | None]:
    """`10.0.0.2`, `fd00::2` or `fe80::1%eth0`: the address and its scope."""
    address, _, scope = text.partition("%")
    return ip_address(address), scope or None
