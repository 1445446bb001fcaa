"""What nft prints: JSON, and its own language, captured from nftables 1.0.6."""

import json

from pytest_isolation import Chain, NftCounter, NftSet, Rule, Table
from pytest_isolation._kernel import nftables

#: `nft -s -a list ruleset`
TEXTS = """\
table inet filter { # handle 1
\tcounter dropped { # handle 4
\t\tcomment "cc"
\t}

\tset blocked { # handle 5
\t\ttype ipv4_addr
\t\tflags interval
\t\tcounter
\t\telements = { 1.1.1.1-1.1.1.9 counter, 10.0.0.0/8 counter,
\t\t\t     192.168.1.1 counter }
\t}

\tset ports { # handle 6
\t\ttype inet_service
\t\tcomment "ports"
\t}

\tset pairs { # handle 7
\t\ttype ipv4_addr . inet_service
\t\telements = { 10.0.0.1 . 80,
\t\t\t     10.0.0.2 . 443 }
\t}

\tset dyn { # handle 8
\t\ttype ipv4_addr
\t\tflags dynamic,timeout
\t\ttimeout 1h
\t}

\tset names { # handle 9
\t\ttypeof ip saddr
\t\telements = { 1.2.3.4 comment "x" }
\t}

\tmap m { # handle 10
\t\ttype inet_service : verdict
\t\telements = { 80 : accept, 81 : jump c }
\t}

\tmap n { # handle 11
\t\ttype inet_service : ipv4_addr
\t\telements = { 80 : 10.0.0.1 }
\t}

\tchain c { # handle 1
\t\tcomment "chain comment"
\t\tcounter name "dropped" drop comment "why # handle 3" # handle 12
\t}

\tchain input { # handle 2
\t\ttype filter hook input priority filter - 5; policy drop;
\t\tip saddr @blocked counter drop # handle 13
\t\ttcp dport { 22, 80, 81 } accept # handle 15
\t\ttcp dport vmap { 22 : accept, 23 : drop, 24 : jump c } # handle 17
\t\ttcp dport vmap @m # handle 18
\t\tiifname "lo" accept # handle 19
\t}

\tchain out { # handle 3
\t\ttype route hook output priority mangle; policy accept;
\t}
}
table ip nat { # handle 2
\tchain pre { # handle 1
\t\ttype nat hook prerouting priority dstnat; policy accept;
\t\ttcp dport 80 counter dnat to 10.0.0.1:80 # handle 2
\t}
}
table netdev nd { # handle 3
\tchain i { # handle 1
\t\ttype filter hook ingress device "lo" priority filter; policy accept;
\t}
}
"""
#: `nft -j list ruleset`
LISTED = json.dumps(
    {
        "nftables": [
            {"metainfo": {"version": "1.0.6", "release_name": "Lester Gooch #5", "json_schema_version": 1}},
            {"table": {"family": "inet", "name": "filter", "handle": 1}},
            {
                "counter": {
                    "family": "inet",
                    "name": "dropped",
                    "table": "filter",
                    "handle": 4,
                    "comment": "cc",
                    "packets": 0,
                    "bytes": 0,
                }
            },
            {
                "set": {
                    "family": "inet",
                    "name": "blocked",
                    "table": "filter",
                    "type": "ipv4_addr",
                    "handle": 5,
                    "flags": ["interval"],
                    "elem": [
                        {"elem": {"val": {"range": ["1.1.1.1", "1.1.1.9"]}, "counter": {"packets": 0, "bytes": 0}}},
                        {
                            "elem": {
                                "val": {"prefix": {"addr": "10.0.0.0", "len": 8}},
                                "counter": {"packets": 0, "bytes": 0},
                            }
                        },
                        {"elem": {"val": "192.168.1.1", "counter": {"packets": 0, "bytes": 0}}},
                    ],
                    "stmt": [{"counter": None}],
                }
            },
            {
                "set": {
                    "family": "inet",
                    "name": "ports",
                    "table": "filter",
                    "type": "inet_service",
                    "handle": 6,
                    "comment": "ports",
                }
            },
            {
                "set": {
                    "family": "inet",
                    "name": "pairs",
                    "table": "filter",
                    "type": ["ipv4_addr", "inet_service"],
                    "handle": 7,
                    "elem": [{"concat": ["10.0.0.1", 80]}, {"concat": ["10.0.0.2", 443]}],
                }
            },
            {
                "set": {
                    "family": "inet",
                    "name": "dyn",
                    "table": "filter",
                    "type": "ipv4_addr",
                    "handle": 8,
                    "flags": ["timeout"],
                    "timeout": 3600,
                }
            },
            {
                "set": {
                    "family": "inet",
                    "name": "names",
                    "table": "filter",
                    "type": "ipv4_addr",
                    "handle": 9,
                    "elem": [{"elem": {"val": "1.2.3.4", "comment": "x"}}],
                }
            },
            {
                "map": {
                    "family": "inet",
                    "name": "m",
                    "table": "filter",
                    "type": "inet_service",
                    "handle": 10,
                    "map": "verdict",
                    "elem": [[80, {"accept": None}], [81, {"jump": {"target": "c"}}]],
                }
            },
            {
                "map": {
                    "family": "inet",
                    "name": "n",
                    "table": "filter",
                    "type": "inet_service",
                    "handle": 11,
                    "map": "ipv4_addr",
                    "elem": [[80, "10.0.0.1"]],
                }
            },
            {"chain": {"family": "inet", "table": "filter", "name": "c", "handle": 1}},
            {
                "chain": {
                    "family": "inet",
                    "table": "filter",
                    "name": "input",
                    "handle": 2,
                    "type": "filter",
                    "hook": "input",
                    "prio": -5,
                    "policy": "drop",
                }
            },
            {
                "chain": {
                    "family": "inet",
                    "table": "filter",
                    "name": "out",
                    "handle": 3,
                    "type": "route",
                    "hook": "output",
                    "prio": -150,
                    "policy": "accept",
                }
            },
            {
                "rule": {
                    "family": "inet",
                    "table": "filter",
                    "chain": "c",
                    "handle": 12,
                    "comment": "why # handle 3",
                    "expr": [{"counter": "dropped"}, {"drop": None}],
                }
            },
            {
                "rule": {
                    "family": "inet",
                    "table": "filter",
                    "chain": "input",
                    "handle": 13,
                    "expr": [
                        {
                            "match": {
                                "op": "==",
                                "left": {"payload": {"protocol": "ip", "field": "saddr"}},
                                "right": "@blocked",
                            }
                        },
                        {"counter": {"packets": 0, "bytes": 0}},
                        {"drop": None},
                    ],
                }
            },
            {
                "rule": {
                    "family": "inet",
                    "table": "filter",
                    "chain": "input",
                    "handle": 15,
                    "expr": [
                        {
                            "match": {
                                "op": "==",
                                "left": {"payload": {"protocol": "tcp", "field": "dport"}},
                                "right": {"set": [22, 80, 81]},
                            }
                        },
                        {"accept": None},
                    ],
                }
            },
            {
                "rule": {
                    "family": "inet",
                    "table": "filter",
                    "chain": "input",
                    "handle": 17,
                    "expr": [
                        {
                            "vmap": {
                                "key": {"payload": {"protocol": "tcp", "field": "dport"}},
                                "data": {
                                    "set": [
                                        [22, {"accept": None}],
                                        [23, {"drop": None}],
                                        [24, {"jump": {"target": "c"}}],
                                    ]
                                },
                            }
                        }
                    ],
                }
            },
            {
                "rule": {
                    "family": "inet",
                    "table": "filter",
                    "chain": "input",
                    "handle": 18,
                    "expr": [{"vmap": {"key": {"payload": {"protocol": "tcp", "field": "dport"}}, "data": "@m"}}],
                }
            },
            {
                "rule": {
                    "family": "inet",
                    "table": "filter",
                    "chain": "input",
                    "handle": 19,
                    "expr": [
                        {"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "lo"}},
                        {"accept": None},
                    ],
                }
            },
            {"table": {"family": "ip", "name": "nat", "handle": 2}},
            {
                "chain": {
                    "family": "ip",
                    "table": "nat",
                    "name": "pre",
                    "handle": 1,
                    "type": "nat",
                    "hook": "prerouting",
                    "prio": -100,
                    "policy": "accept",
                }
            },
            {
                "rule": {
                    "family": "ip",
                    "table": "nat",
                    "chain": "pre",
                    "handle": 2,
                    "expr": [
                        {
                            "match": {
                                "op": "==",
                                "left": {"payload": {"protocol": "tcp", "field": "dport"}},
                                "right": 80,
                            }
                        },
                        {"counter": {"packets": 0, "bytes": 0}},
                        {"dnat": {"addr": "10.0.0.1", "port": 80}},
                    ],
                }
            },
            {"table": {"family": "netdev", "name": "nd", "handle": 3}},
            {
                "chain": {
                    "family": "netdev",
                    "table": "nd",
                    "name": "i",
                    "handle": 1,
                    "type": "filter",
                    "hook": "ingress",
                    "prio": 0,
                    "policy": "accept",
                }
            },
        ]
    }
)


def test_a_listing():
    """Everything typed; a rule's text comes from the second listing, by its handle."""
    found = nftables.parse_listing(LISTED, TEXTS)
    assert found.tables == [Table("inet", "filter"), Table("ip", "nat"), Table("netdev", "nd")]
    assert found.chains == [
        Chain("inet", "filter", "c"),
        Chain("inet", "filter", "input", "filter", "input", -5, "drop"),
        Chain("inet", "filter", "out", "route", "output", -150, "accept"),
        Chain("ip", "nat", "pre", "nat", "prerouting", -100, "accept"),
        Chain("netdev", "nd", "i", "filter", "ingress", 0, "accept"),
    ]
    shared, blocked, ports, verdicts, mapped, lo, published = found.rules
    text = 'counter name "dropped" drop comment "why # handle 3"'
    assert shared == Rule("inet", "filter", "c", text, None, None, shared.handle)
    assert (blocked.text, blocked.packets, blocked.bytes) == ("ip saddr @blocked counter drop", 0, 0)
    assert ports.text == "tcp dport { 22, 80, 81 } accept"
    assert verdicts.text == "tcp dport vmap { 22 : accept, 23 : drop, 24 : jump c }"
    assert (mapped.text, lo.text) == ("tcp dport vmap @m", 'iifname "lo" accept')
    assert (published.table, published.chain, published.text) == (
        "nat",
        "pre",
        "tcp dport 80 counter dnat to 10.0.0.1:80",
    )
    assert found.counters == [NftCounter("inet", "filter", "dropped", 0, 0)]
    place = ("inet", "filter")
    assert found.sets == [
        NftSet(*place, "blocked", "ipv4_addr", ("interval",), ("1.1.1.1-1.1.1.9", "10.0.0.0/8", "192.168.1.1")),
        NftSet(*place, "ports", "inet_service"),
        NftSet(*place, "pairs", "ipv4_addr . inet_service", (), ("10.0.0.1 . 80", "10.0.0.2 . 443")),
        NftSet(*place, "dyn", "ipv4_addr", ("timeout",)),
        NftSet(*place, "names", "ipv4_addr", (), ("1.2.3.4",)),
        NftSet(*place, "m", "inet_service : verdict", (), ("80 : accept", "81 : jump c")),
        NftSet(*place, "n", "inet_service : ipv4_addr", (), ("80 : 10.0.0.1",)),
    ]


def test_a_rule_that_went_between_the_two_listings_is_left_out():
    texts = "".join(line for line in TEXTS.splitlines(keepends=True) if "vmap @m" not in line)
    before, now = (nftables.parse_listing(LISTED, one).rules for one in (TEXTS, texts))
    assert [rule.text for rule in before if rule not in now] == ["tcp dport vmap @m"]


def test_the_text_of_each_table():
    """Together they are the whole, and each is a ruleset."""
    texts = nftables.split_tables(TEXTS)
    assert list(texts) == [Table("inet", "filter"), Table("ip", "nat"), Table("netdev", "nd")]
    assert "".join(texts.values()) == TEXTS
    assert all(text.endswith("}\n") for text in texts.values())


def test_an_empty_ruleset():
    empty = nftables.parse_listing('{"nftables": [{"metainfo": {"version": "1.0.6"}}]}', "")
    assert empty == ([], [], [], [], [])
    assert nftables.split_tables("") == {}
