"""Ping without an external program: ICMP echo through a raw socket of the network namespace."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_isolation._kernel import icmp
from pytest_isolation._state import fds

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from ipaddress import IPv4Address, IPv6Address

_MAX_SIZE = 65507


@dataclass(frozen=True)
class PingResult:
    """What came back; true when at least one reply did, otherwise it says why not.

    Attributes:
        target: the address.
        sent: echo requests sent, or tried.
        received: replies.
        rtts_s: round-trip times of the replies, in seconds.
        reason: why replies are missing; empty when none are.
    """

    target: str
    sent: int
    received: int
    rtts_s: tuple[float, ...]
    reason: str = ""

    @property
    def loss(self) -> float:
        """The part that did not come back, 0.0 to 1.0."""
        return 1.0 - self.received / self.sent if self.sent else 1.0

    def __bool__(self) -> bool:
        return self.received > 0

    def __str__(self) -> str:
        text = f"ping {self.target}: {self.received} of {self.sent} came back"
        if self.rtts_s:
            times = [1000 * value for value in self.rtts_s]
            text += f", {min(times):.3f}/{sum(times) / len(times):.3f}/{max(times):.3f} ms (min/avg/max)"
        return f"{text}; {self.reason}" if self.reason else text

    __repr__ = __str__


class Sockets:
    """The raw ICMP sockets of one network namespace: borrowed for a ping and kept for the next."""

    def __init__(self, make: Callable[[int], socket.socket]) -> None:
        self._make = make
        self._idle: dict[int, list[socket.socket]] = {4: [], 6: []}

    def add(self, version: int, sock: socket.socket) -> None:
        """One more to borrow."""
        fds.hold(sock.fileno())
        icmp.prepare(sock, version)
        self._idle[version].append(sock)

    @contextlib.contextmanager
    def borrowed(self, version: int) -> Iterator[socket.socket]:
        """One that nobody else uses meanwhile, with nothing in it."""
        if not self._idle[version]:
            self.add(version, self._make(version))
        sock = self._idle[version].pop()
        try:
            with contextlib.suppress(BlockingIOError):
                while True:  # replies to others, while it lay idle
                    sock.recv(1)
            yield sock
        finally:
            self._idle[version].append(sock)

    def close(self) -> None:
        """Close them: each keeps the namespace alive."""
        for idle in self._idle.values():
            while idle:
                fds.release(idle.pop().detach())


def check(count: int, size: int, timeout: float) -> None:
    """Refuse what no ping can do."""
    if not 1 <= count <= 0xFFFF:
        message = f"count={count!r}: allowed are 1 to 65535 echo requests"
        raise ValueError(message)
    if not 0 <= size <= _MAX_SIZE:
        message = f"size={size!r}: allowed are 0 to {_MAX_SIZE} bytes of payload"
        raise ValueError(message)
    if not timeout > 0:
        message = f"timeout={timeout!r}: allowed is any number of seconds above 0"
        raise ValueError(message)


def ping(
    sock: socket.socket, address: IPv4Address | IPv6Address, *, scope: int, count: int, size: int, timeout: float
) -> PingResult:
    """Send `count` echo requests one after another, each as soon as the one before is answered or given up."""
    version = address.version
    destination = (str(address), 0) if version == 4 else (str(address), 0, 0, scope)
    identifier = int.from_bytes(os.urandom(2), "big")
    payload = os.urandom(size)
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    deadline = time.monotonic() + timeout
    times: list[float] = []
    reason = ""
    sent = 0
    for sequence in range(1, count + 1):
        # The deadline is for all of them; what one leaves, the next may use.
        share = (deadline - time.monotonic()) / (count - sequence + 1)
        if share <= 0:
            break
        sent += 1
        start = time.monotonic()
        try:
            sock.sendto(icmp.echo_request(version, identifier, sequence, payload), destination)
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, "?")
            reason = f"sendto({address}) = -1 {name} ({os.strerror(error.errno or 0)})"
            continue
        outcome = _await(sock, poll, version, identifier, sequence, start + share)
        if outcome == "reply":
            times.append(time.monotonic() - start)
        else:
            reason = outcome or f"no answer within {timeout:g} s"
    return PingResult(str(address), sent or 1, len(times), tuple(times), "" if len(times) == sent else reason)


def _await(
    sock: socket.socket, poll: select.poll, version: int, identifier: int, sequence: int, deadline: float
) -> str:
    while True:
        try:
            data = sock.recv(1 << 16)
        except BlockingIOError:
            left = deadline - time.monotonic()
            if left <= 0:
                return ""
            poll.poll(left * 1000)
            continue
        except OSError as error:
            return os.strerror(error.errno or 0)
        found = icmp.read(version, data)
        if found is not None and found[1:] == (identifier, sequence):
            return found[0]
