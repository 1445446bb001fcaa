"""What iptables and nftables share: bound to a network namespace, and when closed it has the rules it had before."""

from __future__ import annotations

import errno
import os
import shutil
from abc import abstractmethod
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pytest_isolation._kernel import nfnetlink, syscalls, uapi
from pytest_isolation.errors import KernelError, Unsupported
from pytest_isolation.objects._object import KernelObject
from pytest_isolation.objects.netns import NetNamespace, check_ifname
from pytest_isolation.objects.veth import VethEnd

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_isolation._kernel.netfilter import Chain, Rule, Table
    from pytest_isolation.objects.netns import HasAddress

T = TypeVar("T")
#: A whole ruleset: its text, or the file it stands in.
Ruleset = str | os.PathLike[str]
_PROTOCOLS = ("tcp", "udp", "sctp")
#: What a kernel answers that knows no nf_tables.
_UNKNOWN = {errno.EINVAL, errno.EPROTONOSUPPORT, errno.EOPNOTSUPP}


class Firewall(KernelObject):
    """Base of `Iptables` and `Nftables`: the rules of one network namespace."""

    _netns: NetNamespace
    _own_netns = False

    def __init__(self, netns: NetNamespace | VethEnd | None) -> None:
        space = netns.netns if isinstance(netns, VethEnd) else netns
        if space is not None and not isinstance(space, NetNamespace):
            message = f"netns={netns!r}: allowed are a NetNamespace, an end of a veth pair, and None for a new netns"
            raise TypeError(message)
        if space is not None:
            if space._outer:
                message = f"netns={netns!r} is the one that pytest lives in: the machine's own firewall is not touched"
                raise ValueError(message)
            space._check_open()
        self._create(lambda: self._make(space), on_spawner=False)

    def _make(self, space: NetNamespace | None) -> None:
        self._prepare()
        if space is None:
            space = NetNamespace()
            space._owner = self
            self._own_netns = True
            self._teardown.push("close its netns", space.close)
        self._netns = space
        self._begin()
        if not self._own_netns:
            self._teardown.push("put the rules back that were there", self._put_back)

    @abstractmethod
    def _prepare(self) -> None:
        """Find the program or library."""

    @abstractmethod
    def _begin(self) -> None:
        """In its namespace: can this kernel do it?"""

    @abstractmethod
    def _return_to_before(self) -> None:
        """Have there what was there before the first change."""

    def _put_back(self) -> None:
        if not self._netns.closed and not self._goes_with_its_netns():
            self._return_to_before()

    def _goes_with_its_netns(self) -> bool:
        """Is a builder at its end, that closes the netns next? Its rules go with it; one by one takes 10 ms."""
        owner = self._netns._owner
        while isinstance(owner, KernelObject):
            owner = owner._owner
        return owner is not None and owner is self._owner and bool(getattr(owner, "_closed", False))

    def _inside(self, fn: Callable[[], T]) -> T:
        """Run `fn` in the namespace: on this thread, which spares two switches to the spawner's, where that may."""
        if self._netns.user is not None:
            return self._netns._do_inside(fn)
        fd = self._netns.fileno()
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            syscalls.setns(fd, uapi.CLONE_NEWNET)
            try:
                return fn()
            finally:
                try:
                    syscalls.setns(here, uapi.CLONE_NEWNET)
                except KernelError:  # the thread is the caller's own: it must not stay
                    syscalls.setns(here, uapi.CLONE_NEWNET)
                    raise
        finally:
            os.close(here)

    def _generation(self) -> int:
        """A number that grows with each change to the namespace's nf_tables.

        Raises:
            Unsupported: this kernel has none.
        """
        try:
            return self._inside(nfnetlink.generation)
        except KernelError as error:
            if error.errno in _UNKNOWN:
                remedy = "a kernel built with CONFIG_NF_TABLES, or modprobe nf_tables"
                raise Unsupported(self.kind, str(error), remedy, "3.13") from error
            raise

    @property
    def netns(self) -> NetNamespace:
        """The network namespace whose rules these are."""
        self._check_open()
        return self._netns

    @abstractmethod
    def apply(self, ruleset: Ruleset) -> None:
        """Load a whole ruleset."""

    @abstractmethod
    def save(self) -> str:
        """The ruleset as text."""

    @abstractmethod
    def flush(self) -> None:
        """Remove every rule, chain and table."""

    @abstractmethod
    def tables(self) -> tuple[Table, ...]:
        """Its tables."""

    @abstractmethod
    def chains(self, table: str | None = None) -> tuple[Chain, ...]:
        """Its chains."""

    @abstractmethod
    def rules(self, table: str | None = None, chain: str | None = None) -> tuple[Rule, ...]:
        """Its rules."""

    def __str__(self) -> str:
        space = getattr(self, "_netns", None)
        return self.kind if space is None else f"{self.kind} of {space}"


def find_program(name: str) -> str | None:
    """The path of a program; an ordinary user's PATH often lacks the directories that firewalls' are in."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """Refuse a value that is none of these."""
    if value not in allowed:
        message = f"{name}={value!r}: allowed are {', '.join(allowed)}"
        raise ValueError(message)


def read_ruleset(ruleset: Ruleset) -> str:
    """The text of a ruleset: itself, or what is in its file."""
    text = ruleset if isinstance(ruleset, str) else Path(ruleset).read_text(encoding="utf-8")
    return text if text.endswith("\n") else f"{text}\n"


# -- what address translation is asked for


def check_address(name: str, value: str | HasAddress) -> IPv4Address | IPv6Address:
    """An address as text, or that of an end of a link."""
    text = value if isinstance(value, str) else value.ipv4 or value.ipv6
    try:
        return ip_address(text or "")
    except ValueError:
        message = f"{name}={value!r}: allowed are an IP address, and an end of a link that has one"
        raise ValueError(message) from None


def check_source(source: str | None, version: int | None = None) -> str | None:
    """An address or a network, as text."""
    if source is None:
        return None
    try:
        network = ip_network(source)
    except ValueError as error:
        message = f"source={source!r}: {error}"
        raise ValueError(message) from None
    if version not in {None, network.version}:
        message = f"source={source!r}: is IPv{network.version}, and the rest is IPv{version}"
        raise ValueError(message)
    return str(network)


def check_link(ifname: str | None) -> None:
    """A name of a link, or None."""
    if ifname is not None:
        check_ifname(ifname)


def check_port(name: str, port: int) -> None:
    """A port number."""
    if not isinstance(port, int) or isinstance(port, bool) or not 0 < port < 1 << 16:
        message = f"{name}={port!r}: allowed are 1 to 65535"
        raise ValueError(message)


def check_dnat(
    port: int, to: tuple[str | HasAddress, int], address: str | HasAddress | None, protocol: str
) -> tuple[IPv4Address | IPv6Address, int, IPv4Address | IPv6Address | None]:
    """Where to, which port there, and the address that is published."""
    check_port("port", port)
    check_choice("protocol", protocol, _PROTOCOLS)
    if not isinstance(to, tuple) or len(to) != 2:
        message = f'to={to!r}: allowed is a pair of an address, or an end of a link, and a port: ("10.0.0.2", 80)'
        raise TypeError(message)
    host, inner = check_address("to", to[0]), to[1]
    check_port("to", inner)
    published = None if address is None else check_address("address", address)
    if published is not None and published.version != host.version:
        message = f"address={address!r}: is IPv{published.version}, and to={to[0]!r} is IPv{host.version}"
        raise ValueError(message)
    return host, inner, published


def family_of(address: IPv4Address | IPv6Address) -> str:
    """`ip` or `ip6`."""
    return "ip" if address.version == 4 else "ip6"


def host_port(host: IPv4Address | IPv6Address, port: int) -> str:
    """An address and a port, as both programs write them."""
    return f"{host}:{port}" if host.version == 4 else f"[{host}]:{port}"
