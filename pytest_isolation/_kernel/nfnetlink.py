"""nf_tables over netlink, as far as no program is needed for it: what is there, has it changed, take it away.

Each call opens a socket in the network namespace of the calling thread and closes it: an open one would keep the
namespace alive. linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import TYPE_CHECKING

from pytest_isolation._kernel.rtnetlink import (
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    attributes,
    text,
)
from pytest_isolation.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Iterable

NETLINK_NETFILTER = 12
NFNL_SUBSYS_NFTABLES = 10
NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END = 0x10, 0x11
NFT_MSG_NEWTABLE, NFT_MSG_GETTABLE, NFT_MSG_DELTABLE, NFT_MSG_NEWGEN, NFT_MSG_GETGEN = 0, 1, 2, 15, 16
NFTA_TABLE_NAME, NFTA_GEN_ID = 1, 1
#: The kernel fills at most this much of an answer.
_DATAGRAM_MAX = 1 << 15

#: Address families of nf_tables, by the number of their NFPROTO_.
FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_NUMBERS = {name: number for number, name in FAMILIES.items()}
#: What `generation` returns where nothing was ever changed.
PRISTINE = 1


def _message(kind: int, flags: int, sequence: int, family: int = 0, resource: int = 0, payload: bytes = b"") -> bytes:
    header = struct.pack("=IHHII", 20 + len(payload), kind, NLM_F_REQUEST | flags, sequence, 0)
    return header + struct.pack("!BBH", family, 0, resource) + payload


def _nftables(kind: int) -> int:
    return NFNL_SUBSYS_NFTABLES << 8 | kind


def _open(words: str) -> socket.socket:
    try:
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    except OSError as error:
        raise KernelError(error.errno or 0, f"{words}: socket(AF_NETLINK, NETLINK_NETFILTER)") from error


def _answers(sock: socket.socket, words: str) -> list[tuple[int, int, bytes]]:
    """One datagram, as (type, family, attributes); an error that it holds is raised, an acknowledgement is left out."""
    data = sock.recv(_DATAGRAM_MAX)
    found, offset = [], 0
    while offset + 16 <= len(data):
        length, kind = struct.unpack_from("=IH", data, offset)
        body = data[offset + 16 : offset + length]
        if kind == NLMSG_ERROR:
            number = -struct.unpack_from("=i", body)[0]
            if number:
                raise KernelError(number, words)
        found.append((kind, body[0] if body else 0, body[4:]))
        offset += (length + 3) & ~3
    return found


def generation() -> int:
    """Of the calling thread's network namespace: a number that grows with every change to its ruleset.

    Raises:
        KernelError: EPERM without CAP_NET_ADMIN; EINVAL, EPROTONOSUPPORT from a kernel without nf_tables.
    """
    words = "NFT_MSG_GETGEN"
    with _open(words) as sock:
        sock.send(_message(_nftables(NFT_MSG_GETGEN), 0, 1))
        ((kind, _, payload),) = _answers(sock, words)
    if kind != _nftables(NFT_MSG_NEWGEN):
        raise KernelError(errno.EPROTO, words)
    number: int = struct.unpack("!I", attributes(payload)[NFTA_GEN_ID])[0]
    return number


def tables() -> tuple[tuple[str, str], ...]:
    """(family, name) of every table of the calling thread's network namespace."""
    words = "NFT_MSG_GETTABLE"
    found: list[tuple[str, str]] = []
    with _open(words) as sock:
        sock.send(_message(_nftables(NFT_MSG_GETTABLE), NLM_F_DUMP, 1))
        while True:
            for kind, family, payload in _answers(sock, words):
                if kind == NLMSG_DONE:
                    return tuple(found)
                if kind == _nftables(NFT_MSG_NEWTABLE):
                    name = os.fsdecode(attributes(payload)[NFTA_TABLE_NAME].rstrip(b"\0"))
                    found.append((FAMILIES.get(family, str(family)), name))


def delete_tables(which: Iterable[tuple[str, str]] | None = None) -> None:
    """Delete tables, with all that is in them, in one transaction: those of (family, name), or with None every one.

    Raises:
        KernelError: ENOENT, there is no such table; none was deleted.
    """
    # Without a name, and of no family: all of them.
    chosen = (
        [(0, b"", "")]
        if which is None
        else [(_NUMBERS[family], text(NFTA_TABLE_NAME, name), f"{family} {name}") for family, name in which]
    )
    if not chosen:
        return
    last = len(chosen)
    parts = [_message(NFNL_MSG_BATCH_BEGIN, 0, 0, resource=NFNL_SUBSYS_NFTABLES)]
    for number, (family, name, _) in enumerate(chosen, 1):
        flags = NLM_F_ACK if number == last else 0
        parts.append(_message(_nftables(NFT_MSG_DELTABLE), flags, number, family, 0, name))
    parts.append(_message(NFNL_MSG_BATCH_END, 0, last + 1, resource=NFNL_SUBSYS_NFTABLES))
    words = f"NFT_MSG_DELTABLE({', '.join(title for _, _, title in chosen)})"
    with _open(words) as sock:
        sock.send(b"".join(parts))
        _answers(sock, words)
