"""What firewalls are made of, in the kernel's words, and what iptables-save prints of it. netfilter(9), iptables(8)"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple


class Table(NamedTuple):
    """A table of a firewall.

    Attributes:
        family: `ip`, `ip6`, and with nftables `inet`, `arp`, `bridge`, `netdev` as well.
        name: with iptables one of five that have a meaning: `raw`, `mangle`, `nat`, `filter`, `security`.
    """

    family: str
    name: str


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain: rules that are gone through one after the other.

    Attributes:
        family: of its table.
        table: its table's name.
        name: its own.
        type: of a base chain, `filter`, `nat` or `route`; None for one that is only jumped to.
        hook: of a base chain, where the kernel calls it: `prerouting`, `input`, `forward`, `output`, `postrouting`, ...
        priority: of a base chain, its place among those of the same hook: the lowest is called first.
        policy: of a base chain, what becomes of a packet that no rule has decided on: `accept` or `drop`.
        packets: decided on by the policy; None with nftables, which does not count them.
        bytes: of those packets.
    """

    family: str
    table: str
    name: str
    type: str | None = None
    hook: str | None = None
    priority: int | None = None
    policy: str | None = None
    packets: int | None = None
    bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule, as it was when it was asked for.

    Attributes:
        family: of its table.
        table: its table's name.
        chain: its chain's name.
        text: the rule in its program's own words, without its place: `-p icmp -j DROP`, `tcp dport 22 accept`.
        packets: that it matched; None for a rule of nftables without `counter`.
        bytes: of those packets.
        handle: its number in its table, with nftables.
    """

    family: str
    table: str
    chain: str
    text: str
    packets: int | None = None
    bytes: int | None = None
    handle: int | None = None


#: Tables of iptables with their priority at a hook, in the order in which a packet goes through them.
_PRIORITIES = {"raw": -300, "mangle": -150, "nat": -100, "filter": 0, "security": 50}
#: The names of iptables's own tables.
XTABLES = frozenset(_PRIORITIES)
_HOOKS = frozenset({"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"})


def base(table: str, chain: str) -> tuple[str, str, int]:
    """Type, hook and priority of a chain that iptables(8) calls built-in."""
    kind = "nat" if table == "nat" else "route" if (table, chain) == ("mangle", "OUTPUT") else "filter"
    late = table == "nat" and chain in {"INPUT", "POSTROUTING"}  # source addresses are changed last
    return kind, chain.lower(), 100 if late else _PRIORITIES.get(table, 0)


def parse_iptables_save(text: str, family: str) -> tuple[list[Table], list[Chain], list[Rule]]:
    """What `iptables-save -c` printed: tables, chains and rules, each in its order."""
    tables: list[Table] = []
    chains: list[Chain] = []
    rules: list[Rule] = []
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
            tables.append(Table(family, table))
        elif found := re.match(r":(\S+) (\S+)(?: \[(\d+):(\d+)\])?", line):
            name, policy = found[1], found[2]
            if policy == "-":
                chains.append(Chain(family, table, name))
            else:
                packets, size = int(found[3] or 0), int(found[4] or 0)
                chains.append(Chain(family, table, name, *base(table, name), policy.lower(), packets, size))
        elif found := re.match(r"(?:\[(\d+):(\d+)\] )?-A (\S+) ?(.*)", line):
            packets, size = int(found[1] or 0), int(found[2] or 0)
            rules.append(Rule(family, table, found[3], found[4], packets, size))
    return tables, chains, rules


def emptied(text: str) -> str:
    """A ruleset for iptables-restore that empties every table of this one."""
    lines = []
    for line in text.splitlines():
        if line.startswith("*") or line == "COMMIT":
            lines.append(line)
        elif (found := re.match(r":(\S+) ", line)) and found[1] in _HOOKS:
            lines.append(f":{found[1]} ACCEPT [0:0]")
    return "".join(f"{line}\n" for line in lines)


def without_counters(text: str) -> str:
    """An iptables-save to compare: without counters, dates, and comments."""
    lines = [re.sub(r"^\[\d+:\d+\] | \[\d+:\d+\]$", "", line) for line in text.splitlines()]
    return "\n".join(line for line in lines if not line.startswith("#"))
