"""nftables: packet filter and address translation of one network namespace, by libnftables or nft. nft(8)"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, ClassVar, NamedTuple, final

from pytest_isolation._kernel import netfilter, nfnetlink, nftables
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
    from pytest_isolation._kernel.nftables import Answer, Listing, NftCounter, NftSet
    from pytest_isolation.objects.netns import HasAddress, NetNamespace
    from pytest_isolation.objects.veth import VethEnd

VARIANTS = ("library", "program")
FAMILIES = tuple(nfnetlink.FAMILIES.values())


class _State(NamedTuple):
    """What was there: nf_tables's generation, and each table's text, with and without what its counters say."""

    generation: int
    texts: dict[Table, str]
    stateless: dict[Table, str]


@final
class Nftables(Firewall):
    """The nftables ruleset of a network namespace, by libnftables in this process, or by the program nft.

    Makes nothing until it is told to; closed, it puts the tables back that were there before it. In a namespace that
    goes away with it, they go with that. Needs CAP_NET_ADMIN over the namespace, and libnftables or nft. The machine's
    own firewall is out of its reach.

    Args:
        netns: the network namespace, or an end of a veth pair for that end's; None for a new one of its own.
        variant: `library` for libnftables, `program` for nft, which is slower, and apart: should it crash, pytest
            lives on; None for the library where there is one.
    """

    kind: ClassVar[str] = "nftables"

    def __init__(self, netns: NetNamespace | VethEnd | None = None, *, variant: str | None = None) -> None:
        if variant is not None:
            check_choice("variant", variant, VARIANTS)
        self._variant = variant or ""
        super().__init__(netns)

    def _prepare(self) -> None:
        has_library = self._variant != "program" and nftables.library() is not None
        self._path = None if has_library else find_program("nft")
        if not has_library and (self._path is None or self._variant == "library"):
            wanted = {"library": "no libnftables.so.1", "program": "no program 'nft'"}
            why = wanted.get(self._variant, "neither libnftables.so.1 nor a program 'nft'")
            raise Unsupported(self.kind, f"there is {why}", "install the package nftables")
        self._variant = "library" if has_library else "program"

    @property
    def variant(self) -> str:
        """`library` or `program`: who does the work."""
        return self._variant

    # -- as it was before

    #: Has a kernel of this process been found to have nf_tables? It does not lose them.
    _supported: ClassVar[bool] = False

    def _begin(self) -> None:
        self._before: _State | None = None  # looked at together with the first command
        if not Nftables._supported:
            self._generation()
            Nftables._supported = True

    def _texts(self, flags: int = 0) -> dict[Table, str]:
        return nftables.split_tables(self._do("list ruleset", flags))

    def _return_to_before(self) -> None:
        state = self._before
        if state is None or self._generation() == state.generation:
            return
        if state.generation == nfnetlink.PRISTINE:
            self._inside(nfnetlink.delete_tables)
            return
        # A table that nobody changed is left alone: its counters go on, and what iptables-nft has put into it, in part
        # beyond what nft can write, stays.
        now = self._texts(nftables.NFT_CTX_OUTPUT_STATELESS)
        changed = [table for table, text in now.items() if text != state.stateless.get(table)]
        lines = [f"delete table {table.family} {table.name}\n" for table in changed]
        lines += [text for table, text in state.texts.items() if now.get(table) != state.stateless[table]]
        if lines:
            self._do("".join(lines))

    # -- library or program

    def _do(self, text: str, flags: int = 0) -> str:
        first = self._before is None

        def job() -> tuple[_State | None, Answer]:
            return _look() if first else None, nftables.run(text, flags)

        if self._path is None:
            state, answer = self._inside(job)
            self._before = state or self._before
        else:
            if first:
                self._before = self._look_by_program()
            answer = self._run_nft(text, flags)
        if not answer.done:
            raise RuleError("nft", text, answer.error or answer.output)
        return answer.output

    def _look_by_program(self) -> _State:
        generation = self._generation()
        if generation == nfnetlink.PRISTINE:
            return _State(generation, {}, {})
        listed = (self._run_nft("list ruleset", flags).output for flags in (0, nftables.NFT_CTX_OUTPUT_STATELESS))
        return _State(generation, *map(nftables.split_tables, listed))

    def _run_nft(self, text: str, flags: int) -> Answer:
        options = [option for flag, option in nftables.OPTIONS.items() if flags & flag]
        # One line as an argument: with -j, what comes from stdin would have to be JSON.
        several = "\n" in text.strip()
        words = ["-f", "-"] if several else ["--", text.strip()]
        done = self._netns.run([str(self._path), *options, *words], input=text if several else "", check=False)
        return nftables.Answer(not done.returncode, done.stdout, done.stderr.replace("/dev/stdin:", "ruleset:"))

    def run(self, commands: str) -> str:
        """Commands in nft's language, all of them in one transaction; returns what they print.

        Args:
            commands: one, or several on lines of their own or with `;` between them: `"list ruleset"`,
                `"add rule inet filter input icmp type echo-request counter drop"`.

        Raises:
            RuleError: one was refused, in nft's own words with its pointer; none was done.
        """
        self._check_open()
        return self._do(commands)

    def apply(self, ruleset: Ruleset) -> None:
        """Load a whole ruleset at once, all of it or nothing, as `nft -f` does: it adds to what is there.

        Args:
            ruleset: text as `save` returns it, or the path of a file; with `flush ruleset` as its first line it
                replaces what is there.

        Raises:
            RuleError: it was refused, in nft's own words with its pointer; nothing was changed.
        """
        self._check_open()
        self._do(read_ruleset(ruleset))

    def save(self) -> str:
        """The ruleset with its counters, as text that `apply` takes; empty when there is no table."""
        return self.run("list ruleset")

    def flush(self) -> None:
        """Remove every table with all that is in it."""
        self.run("flush ruleset")

    # -- what is there

    def _listing(self) -> Listing:
        self._check_open()
        flags = nftables.NFT_CTX_OUTPUT_STATELESS | nftables.NFT_CTX_OUTPUT_HANDLE
        listed, texts = (self._do("list ruleset", one) for one in (nftables.NFT_CTX_OUTPUT_JSON, flags))
        try:
            return nftables.parse_listing(listed, texts)
        except json.JSONDecodeError:
            remedy = "a libnftables and nft built with JSON"
            raise Unsupported(self.kind, f"nft -j printed no JSON, but {listed[:80]!r}", remedy) from None

    def tables(self) -> tuple[Table, ...]:
        """The tables, of every family."""
        return tuple(self._listing().tables)

    def chains(self, table: str | None = None, *, family: str | None = None) -> tuple[Chain, ...]:
        """The chains, or those of one table, or family; base chains with type, hook, priority and policy."""
        _check_family(family)
        chains = self._listing().chains
        return tuple(one for one in chains if table in {None, one.table} and family in {None, one.family})

    def rules(
        self, table: str | None = None, chain: str | None = None, *, family: str | None = None
    ) -> tuple[Rule, ...]:
        """The rules, or those of one table, or chain, in the order of their chains; with `counter`, what it counted."""
        _check_family(family)
        return tuple(
            one
            for one in self._listing().rules
            if table in {None, one.table} and chain in {None, one.chain} and family in {None, one.family}
        )

    def sets(self, table: str | None = None, *, family: str | None = None) -> tuple[NftSet, ...]:
        """The named sets and maps with their elements, or those of one table."""
        _check_family(family)
        sets = self._listing().sets
        return tuple(one for one in sets if table in {None, one.table} and family in {None, one.family})

    def counters(self, table: str | None = None, *, family: str | None = None) -> tuple[NftCounter, ...]:
        """The named counters, or those of one table."""
        _check_family(family)
        counters = self._listing().counters
        return tuple(one for one in counters if table in {None, one.table} and family in {None, one.family})

    # -- changing it

    def new_table(self, table: str = "filter", *, family: str = "inet") -> None:
        """Make a table.

        Raises:
            RuleError: there is one of that name.
        """
        check_choice("family", family, FAMILIES)
        self.run(f"create table {family} {table}")

    def new_chain(
        self,
        chain: str,
        *,
        table: str = "filter",
        family: str = "inet",
        hook: str | None = None,
        type: str = "filter",  # noqa: A002 - nft's word for it
        priority: int = 0,
        policy: str = "accept",
    ) -> None:
        """Make a chain: a base chain with `hook`, otherwise one for rules to jump to (`jump CHAIN`).

        Args:
            chain: its name.
            table: where it goes; the table has to exist.
            family: of that table.
            hook: where the kernel calls it: `prerouting`, `input`, `forward`, `output`, `postrouting`.
            type: `filter`, `nat` or `route`.
            priority: its place among the chains of that hook; the lowest is called first.
            policy: what becomes of packets that no rule has decided on: `accept` or `drop`.

        Raises:
            RuleError: there is one of that name, or no such table.
        """
        check_choice("family", family, FAMILIES)
        base = f" {{ type {type} hook {hook} priority {priority}; policy {policy}; }}" if hook else ""
        self.run(f"create chain {family} {table} {chain}{base}")

    def policy(self, chain: str, policy: str, *, table: str = "filter", family: str = "inet") -> None:
        """Decide what becomes of packets that no rule of a base chain has decided on: `accept` or `drop`."""
        check_choice("family", family, FAMILIES)
        # By the library a chain that is not there would be made.
        if not any(one.name == chain and one.hook for one in self.chains(table, family=family)):
            raise RuleError("nft", f"policy {policy} for {family} {table} {chain}", "there is no such base chain")
        self.run(f"chain {family} {table} {chain} {{ policy {policy.lower()}; }}")

    def append(self, chain: str, rule: str, *, table: str = "filter", family: str = "inet") -> None:
        """Add a rule at the end of a chain: `append("input", "icmp type echo-request counter drop")`.

        Raises:
            RuleError: it was refused, in nft's own words with its pointer.
        """
        check_choice("family", family, FAMILIES)
        self.run(f"add rule {family} {table} {chain} {rule}")

    def insert(self, chain: str, rule: str, position: int = 1, *, table: str = "filter", family: str = "inet") -> None:
        """Add a rule so that it is number `position` of its chain, from 1. See `append` for what it raises."""
        check_choice("family", family, FAMILIES)
        # nft's index is that of an existing rule, from 0, in front of which the new one goes; without it: the first.
        if position == 1:
            self.run(f"insert rule {family} {table} {chain} {rule}")
            return
        self.run(f"add rule {family} {table} {chain} index {position - 2} {rule}")

    def delete(self, rule: Rule) -> None:
        """Delete a rule that `rules` returned.

        Raises:
            RuleError: it is not there any more.
        """
        self.run(f"delete rule {rule.family} {rule.table} {rule.chain} handle {rule.handle}")

    def add_element(self, name: str, *elements: object, table: str = "filter", family: str = "inet") -> None:
        """Put elements into a named set or map: `add_element("blocked", "10.0.0.7")`; `"80 : accept"` into a map.

        Raises:
            RuleError: there is no such set, or an element is not of its type.
        """
        self._change_elements("add", name, elements, table, family)

    def delete_element(self, name: str, *elements: object, table: str = "filter", family: str = "inet") -> None:
        """Take elements out of a named set or map.

        Raises:
            RuleError: there is no such set, or an element is not in it.
        """
        self._change_elements("delete", name, elements, table, family)

    def _change_elements(self, verb: str, name: str, elements: Sequence[object], table: str, family: str) -> None:
        check_choice("family", family, FAMILIES)
        if not elements:
            message = f"{verb}_element({name!r}): which elements?"
            raise TypeError(message)
        self.run(f"{verb} element {family} {table} {name} {{ {', '.join(map(str, elements))} }}")

    # -- address translation, in a table `nat` of its own, made when first needed

    def _append_nat(self, family: str, chain: str, rule: str) -> None:
        _, _, priority = netfilter.base("nat", chain.upper())
        self.run(
            f"add table {family} nat\n"
            f"add chain {family} nat {chain} {{ type nat hook {chain} priority {priority}; }}\n"
            f"add rule {family} nat {chain} {rule}\n"
        )

    def masquerade(self, ifname: str, *, source: str | None = None, family: str = "ip") -> None:
        """Give packets that leave by a link that link's own address as their source.

        They have to be forwarded to get there: `netns.sysctl["net.ipv4.ip_forward"] = 1`.

        Args:
            ifname: the link that they leave by.
            source: only those from this address or network.
            family: `ip` or `ip6`.
        """
        check_link(ifname)
        check_choice("family", family, ("ip", "ip6"))
        network = check_source(source, 4 if family == "ip" else 6)
        match = "" if network is None else f"{family} saddr {network} "
        self._append_nat(family, "postrouting", f'{match}oifname "{ifname}" counter masquerade')

    def snat(self, to: str | HasAddress, *, ifname: str | None = None, source: str | None = None) -> None:
        """Give packets that leave the source address `to`.

        Args:
            to: an address, or an end of a link for its own.
            ifname: only those that leave by this link.
            source: only those from this address or network.
        """
        address = check_address("to", to)
        check_link(ifname)
        network, family = check_source(source, address.version), family_of(address)
        match = "" if network is None else f"{family} saddr {network} "
        match += "" if ifname is None else f'oifname "{ifname}" '
        self._append_nat(family, "postrouting", f"{match}counter snat to {address}")

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
        family = family_of(host)
        match = "fib daddr type local" if published is None else f"{family} daddr {published}"
        rule = f"{match} {protocol} dport {port} counter dnat to {host_port(host, inner)}"
        self._append_nat(family, "prerouting", rule if ifname is None else f'iifname "{ifname}" {rule}')
        if local:
            self._append_nat(family, "output", rule)


def _look() -> _State:
    """On a thread in the namespace: what is there, by the library."""
    generation = nfnetlink.generation()
    if generation == nfnetlink.PRISTINE:
        return _State(generation, {}, {})
    listed = (nftables.run("list ruleset", flags).output for flags in (0, nftables.NFT_CTX_OUTPUT_STATELESS))
    return _State(generation, *map(nftables.split_tables, listed))


def _check_family(family: str | None) -> None:
    if family is not None:
        check_choice("family", family, FAMILIES)
