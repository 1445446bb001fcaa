"""iptables: packet filter and address translation of one network namespace, by the programs. iptables(8)"""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, ClassVar, NamedTuple, final

from pytest_isolation._kernel import netfilter, nfnetlink
from pytest_isolation.errors import RuleError, Unsupported
from pytest_isolation.objects._firewall import (
    Firewall,
    Ruleset,
    check_address,
    check_choice,
    check_dnat,
    check_link,
    check_source,
    family_of,
    find_program,
    host_port,
    read_ruleset,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_isolation._kernel.netfilter import Chain, Rule, Table
    from pytest_isolation.objects._process import Argument
    from pytest_isolation.objects.netns import HasAddress, NetNamespace
    from pytest_isolation.objects.veth import VethEnd

VARIANTS = ("nft", "legacy")
#: Address family -> its program, and the file that lists the legacy tables in use.
FAMILIES = {"ip": "iptables", "ip6": "ip6tables"}
_LEGACY_TABLES = {"ip": "/proc/thread-self/net/ip_tables_names", "ip6": "/proc/thread-self/net/ip6_tables_names"}
#: The legacy programs lock a file of the machine's, /run/xtables.lock, and make it. What they change is one namespace's
#: tables, so they lock that namespace instead.
_ENVIRONMENT = {"XTABLES_LOCKFILE": "/proc/self/ns/net"}


class _State(NamedTuple):
    """What was there.

    Attributes:
        generation: of nf_tables, with the nft variant.
        tables: (family, name) of each table.
        saved: iptables-save's text by family; empty where nothing was there.
    """

    generation: int | None
    tables: tuple[tuple[str, str], ...]
    saved: dict[str, str]


@final
class Iptables(Firewall):
    """The iptables rules of a network namespace, by the programs iptables, ip6tables, and their -save and -restore.

    Makes nothing until it is told to; closed, it puts the rules back that were there before it. In a namespace that
    goes away with it, they go with that. Needs CAP_NET_ADMIN over the namespace, and the programs. The machine's own
    firewall is out of its reach.

    Args:
        netns: the network namespace, or an end of a veth pair for that end's; None for a new one of its own.
        variant: `nft` for iptables-nft, whose rules are nf_tables's; `legacy` for iptables-legacy, whose rules are
            ip_tables's; None for what `iptables` is on this machine.
    """

    kind: ClassVar[str] = "iptables"

    def __init__(self, netns: NetNamespace | VethEnd | None = None, *, variant: str | None = None) -> None:
        if variant is not None:
            check_choice("variant", variant, VARIANTS)
        self._infix = f"-{variant}" if variant else ""
        self._variant = variant or ""
        super().__init__(netns)

    def _prepare(self) -> None:
        path = self._program("ip")
        if not self._variant:
            target = os.path.basename(os.path.realpath(path))
            self._variant = "legacy" if "legacy" in target else "nft" if "nft" in target else self._ask_variant(path)

    @staticmethod
    def _ask_variant(path: str) -> str:
        import subprocess

        said = subprocess.run([path, "-V"], capture_output=True, text=True, check=False).stdout
        return "nft" if "nf_tables" in said else "legacy"

    def _program(self, family: str, suffix: str = "") -> str:
        name = f"{FAMILIES[family]}{self._infix}{suffix}"
        path = find_program(name)
        if path is None:
            raise Unsupported(self.kind, f"there is no program {name!r}", "install the package iptables")
        return path

    @property
    def variant(self) -> str:
        """`nft` or `legacy`: whose rules they are in the kernel."""
        return self._variant

    # -- as it was before

    def _begin(self) -> None:
        self._before = self._state()

    def _return_to_before(self) -> None:
        self._return_to(self._before)

    def _used_tables(self) -> tuple[tuple[str, str], ...]:
        if self._variant == "nft":
            return tuple(
                (family, name)
                for family, name in self._inside(nfnetlink.tables)
                if family in FAMILIES and name in netfilter.XTABLES
            )
        return self._inside(_legacy_tables)

    def _state(self) -> _State:
        generation = self._generation() if self._variant == "nft" else None
        if generation == nfnetlink.PRISTINE:
            return _State(generation, (), {})
        tables = self._used_tables()
        return _State(generation, tables, {family: self._save(family) for family in {family for family, _ in tables}})

    def _return_to(self, state: _State) -> None:
        if state.generation is not None and self._generation() == state.generation:
            return
        if state.generation == nfnetlink.PRISTINE:
            self._inside(nfnetlink.delete_tables)
            return
        now = self._used_tables()
        added = [table for table in now if table not in state.tables]
        if self._variant == "nft":
            self._inside(lambda: nfnetlink.delete_tables(added))
        for family in sorted({family for family, _ in (*now, *state.tables)}):
            present, before = self._save(family), state.saved.get(family, "")
            if netfilter.without_counters(present) == netfilter.without_counters(before):
                continue
            # A legacy table stays for as long as its namespace does: what was not there is emptied.
            gone = netfilter.emptied(present) if self._variant == "legacy" else ""
            if gone:
                self._restore(gone, family)
            if before:
                self._restore(before, family)

    # -- the programs

    def _do(self, path: str, words: Sequence[Argument], text: str | None, command: str) -> str:
        done = self._netns.run([path, *words], input=text, check=False, extra_env=_ENVIRONMENT)
        if done.returncode:
            message: str = done.stderr or done.stdout
            known = "can't initialize ip" in message and any(f"table `{name}'" in message for name in netfilter.XTABLES)
            if known and "Table does not exist" in message:
                remedy = "a kernel built with CONFIG_IP_NF_IPTABLES_LEGACY, or variant='nft'"
                raise Unsupported(self.kind, message.strip().partition("\n")[0], remedy)
            raise RuleError(os.path.basename(path), command, message)
        output: str = done.stdout
        return output

    def _save(self, family: str) -> str:
        return self._do(self._program(family, "-save"), ["-c"], None, "-c")

    def _restore(self, text: str, family: str, *options: str) -> None:
        self._do(self._program(family, "-restore"), ["-w", "-c", *options], text, text)

    def run(self, command: str | Sequence[Argument], *, family: str = "ip") -> str:
        """One iptables command, what stands behind `iptables` in a shell; returns what it prints.

        Args:
            command: its words: a list, or text that is split as a shell does: `"-A INPUT -p icmp -j DROP"`.
            family: `ip` for iptables, `ip6` for ip6tables.

        Raises:
            RuleError: it was refused, in iptables's own words; nothing was changed.
        """
        self._check_open()
        check_choice("family", family, tuple(FAMILIES))
        words = shlex.split(command) if isinstance(command, str) else list(command)
        return self._do(self._program(family), ["-w", *words], None, shlex.join(map(str, words)))

    def apply(self, ruleset: Ruleset, *, family: str = "ip", keep: bool = False) -> None:
        """Load a whole ruleset at once, all of it or nothing, by iptables-restore.

        Args:
            ruleset: text as `save` returns it and iptables-save(8) prints it, or the path of a file.
            family: `ip`, or `ip6` for ip6tables-restore.
            keep: add to the tables that it names; otherwise they are replaced. Other tables stay as they are.

        Raises:
            RuleError: it was refused; nothing was changed.
        """
        self._check_open()
        check_choice("family", family, tuple(FAMILIES))
        text = read_ruleset(ruleset)
        # Each table is committed on its own: after a failure in the second one the first would be there.
        before = self._state() if text.count("COMMIT") > 1 else None
        try:
            self._restore(text, family, *(["--noflush"] if keep else []))
        except RuleError:
            if before is not None:
                self._return_to(before)
            raise

    def save(self, *, family: str = "ip") -> str:
        """The ruleset with its counters, as text that `apply` takes; empty when there is no table. iptables-save(8)"""
        self._check_open()
        check_choice("family", family, tuple(FAMILIES))
        return self._save(family)

    def flush(self) -> None:
        """Remove every rule and chain of every table, IPv4 and IPv6; policies are ACCEPT again."""
        self._check_open()
        tables = self._used_tables()
        if self._variant == "nft":
            self._inside(lambda: nfnetlink.delete_tables(tables))
            return
        for family in sorted({family for family, _ in tables}):
            self._restore(netfilter.emptied(self._save(family)), family)

    # -- what is there

    def tables(self, *, family: str = "ip") -> tuple[Table, ...]:
        """The tables in use: one that nobody has put anything into is not there."""
        return tuple(netfilter.parse_iptables_save(self.save(family=family), family)[0])

    def chains(self, table: str | None = None, *, family: str = "ip") -> tuple[Chain, ...]:
        """The chains of the tables in use, or of one; the built-in ones with hook, priority, policy and its counters.

        Raises:
            ValueError: there is no such table in iptables.
        """
        _check_table(table)
        chains = netfilter.parse_iptables_save(self.save(family=family), family)[1]
        return tuple(one for one in chains if table in {None, one.table})

    def rules(self, table: str | None = None, chain: str | None = None, *, family: str = "ip") -> tuple[Rule, ...]:
        """The rules, or those of one table, or chain, with their counters, in the order of their chains.

        Raises:
            ValueError: there is no such table in iptables.
        """
        _check_table(table)
        rules = netfilter.parse_iptables_save(self.save(family=family), family)[2]
        return tuple(one for one in rules if table in {None, one.table} and chain in {None, one.chain})

    # -- changing it

    def append(self, chain: str, rule: str, *, table: str = "filter", family: str = "ip") -> None:
        """Add a rule at the end of a chain: `append("INPUT", "-p icmp -j DROP")`. See `run` for what it raises."""
        self.run(["-t", table, "-A", chain, *shlex.split(rule)], family=family)

    def insert(self, chain: str, rule: str, position: int = 1, *, table: str = "filter", family: str = "ip") -> None:
        """Add a rule so that it is number `position` of its chain, from 1. See `run` for what it raises."""
        self.run(["-t", table, "-I", chain, position, *shlex.split(rule)], family=family)

    def delete(self, rule: Rule) -> None:
        """Delete a rule that `rules` returned; of equal ones in its chain the first.

        Raises:
            RuleError: it is not there any more.
        """
        self.run(["-t", rule.table, "-D", rule.chain, *shlex.split(rule.text)], family=rule.family)

    def new_chain(self, chain: str, *, table: str = "filter", family: str = "ip") -> None:
        """Make a chain for rules to jump to (`-j CHAIN`).

        Raises:
            RuleError: there is one of that name.
        """
        self.run(["-t", table, "-N", chain], family=family)

    def policy(self, chain: str, policy: str, *, table: str = "filter", family: str = "ip") -> None:
        """Decide what becomes of packets that no rule of a built-in chain has decided on: `accept` or `drop`."""
        self.run(["-t", table, "-P", chain, policy.upper()], family=family)

    # -- address translation

    def masquerade(self, ifname: str, *, source: str | None = None, family: str = "ip") -> None:
        """Give packets that leave by a link that link's own address as their source.

        They have to be forwarded to get there: `netns.sysctl["net.ipv4.ip_forward"] = 1`.

        Args:
            ifname: the link that they leave by.
            source: only those from this address or network.
            family: `ip` or `ip6`.
        """
        check_link(ifname)
        check_choice("family", family, tuple(FAMILIES))
        network = check_source(source, 4 if family == "ip" else 6)
        words = [] if network is None else ["-s", network]
        self.run(["-t", "nat", "-A", "POSTROUTING", *words, "-o", ifname, "-j", "MASQUERADE"], family=family)

    def snat(self, to: str | HasAddress, *, ifname: str | None = None, source: str | None = None) -> None:
        """Give packets that leave the source address `to`.

        Args:
            to: an address, or an end of a link for its own.
            ifname: only those that leave by this link.
            source: only those from this address or network.
        """
        address = check_address("to", to)
        check_link(ifname)
        network = check_source(source, address.version)
        words = [] if network is None else ["-s", network]
        words += [] if ifname is None else ["-o", ifname]
        family = family_of(address)
        self.run(["-t", "nat", "-A", "POSTROUTING", *words, "-j", "SNAT", "--to-source", address], family=family)

    def dnat(
        self,
        port: int,
        to: tuple[str | HasAddress, int],
        *,
        address: str | HasAddress | None = None,
        ifname: str | None = None,
        protocol: str = "tcp",
        local: bool = False,
    ) -> None:
        """Publish a port: send what arrives for it on to another host and port.

        Args:
            port: the published port, 1 to 65,535.
            to: (address or end of a link, port) that it leads to.
            address: only packets to this address; None: to any that this namespace has.
            ifname: only packets that arrive by this link.
            protocol: `tcp`, `udp` or `sctp`.
            local: packets that this namespace itself sends to it, too.
        """
        host, inner, published = check_dnat(port, to, address, protocol)
        check_link(ifname)
        match: list[Argument] = ["-m", "addrtype", "--dst-type", "LOCAL"] if published is None else ["-d", published]
        match += ["-p", protocol, "--dport", port, "-j", "DNAT", "--to-destination", host_port(host, inner)]
        arriving = [] if ifname is None else ["-i", ifname]
        family = family_of(host)
        self.run(["-t", "nat", "-A", "PREROUTING", *arriving, *match], family=family)
        if local:
            self.run(["-t", "nat", "-A", "OUTPUT", *match], family=family)


def _check_table(table: str | None) -> None:
    if table is not None:
        check_choice("table", table, sorted(netfilter.XTABLES))


def _legacy_tables() -> tuple[tuple[str, str], ...]:
    """On a thread in the namespace: the legacy tables in use."""
    found = []
    for family, path in _LEGACY_TABLES.items():
        try:
            with open(path, encoding="ascii") as file:
                found += [(family, name) for name in file.read().split()]
        except FileNotFoundError:  # a kernel without them, or one whose module is not loaded yet
            continue
    return tuple(found)
