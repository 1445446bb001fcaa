"""nftables in a network namespace, by the library and by the program; what iptables does alike is tested there."""

import json
from pathlib import Path

import pytest

from pytest_isolation import Chain, Nftables, NftCounter, NftSet, Rule, RuleError, Table, Unsupported
from pytest_isolation._kernel import nfnetlink
from pytest_isolation._kernel import nftables as binding
from pytest_isolation.objects import _firewall

VARIANTS = pytest.mark.parametrize("nftables", [{"variant": "library"}, {"variant": "program"}], indirect=True, ids=str)
SHORT_S = 0.2
RULESET = """
table inet filter {
    set blocked { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 1.1.1.1-1.1.1.9 }; }
    map services { type inet_service : verdict; elements = { 80 : accept, 81 : jump mine }; }
    counter seen { }
    chain mine { }
    chain input {
        type filter hook input priority 0; policy accept;
        ip saddr @blocked counter drop
        icmp type echo-request counter name "seen" counter drop comment "no # handle 7"
        tcp dport vmap @services
    }
}
"""


def listed(nftables, *words):
    """What the kernel has, as the program prints it when it is run in the netns."""
    return json.loads(nftables.netns.run(["nft", "-j", "list", "ruleset", *words]).stdout)["nftables"][1:]


@VARIANTS
def test_a_dropped_ping_and_its_counter(netns, nftables):
    """The rule is in the kernel, does what it says, and counts."""
    nftables.new_table()
    nftables.new_chain("input", hook="input")
    assert netns.ping("127.0.0.1")
    nftables.append("input", "icmp type echo-request counter drop")
    assert [next(iter(entry)) for entry in listed(nftables)] == ["table", "chain", "rule"]
    assert not netns.ping("127.0.0.1", timeout=SHORT_S)
    (rule,) = nftables.rules()
    assert rule == Rule("inet", "filter", "input", "icmp type echo-request counter drop", 1, 84, rule.handle)
    assert f"# handle {rule.handle}" in netns.run(["nft", "-a", "list", "ruleset"]).stdout
    nftables.delete(rule)
    assert nftables.rules() == ()
    assert netns.ping("127.0.0.1")


@VARIANTS
def test_a_whole_ruleset_in_one_call(netns, nftables, tmp_path):
    """Everything in it comes back typed."""
    (tmp_path / "rules.nft").write_text(RULESET)
    nftables.apply(tmp_path / "rules.nft")
    assert nftables.tables() == (Table("inet", "filter"),)
    assert nftables.chains() == (
        Chain("inet", "filter", "mine"),
        Chain("inet", "filter", "input", "filter", "input", 0, "accept"),
    )
    assert not netns.ping("127.0.0.1", timeout=SHORT_S)
    blocked, ping, services = nftables.rules("filter", "input")
    assert (blocked.text, blocked.packets) == ("ip saddr @blocked counter drop", 0)
    assert 'comment "no # handle 7"' in ping.text
    assert (ping.packets, ping.bytes) == (1, 84)
    assert services.packets is None  # no counter, no count
    assert nftables.counters() == (NftCounter("inet", "filter", "seen", 1, 84),)
    assert set(nftables.sets()) == {
        NftSet("inet", "filter", "blocked", "ipv4_addr", ("interval",), ("1.1.1.1-1.1.1.9", "10.0.0.0/8")),
        NftSet("inet", "filter", "services", "inet_service : verdict", (), ("80 : accept", "81 : jump mine")),
    }
    for nothing in (nftables.rules, nftables.chains, nftables.sets, nftables.counters):
        assert nothing("filter", family="ip") == nothing("another") == ()


@VARIANTS
def test_what_was_saved_can_be_applied(nftables):
    nftables.apply(RULESET)
    text = nftables.save()
    nftables.flush()
    assert (nftables.tables(), nftables.save().strip(), listed(nftables)) == ((), "", [])
    nftables.apply(text)
    assert nftables.save() == text


@VARIANTS
def test_insert_puts_it_at_its_place(nftables):
    nftables.new_table()
    nftables.new_chain("mine")
    for mark in ("2", "4"):
        nftables.append("mine", f"meta mark {mark}")
    nftables.insert("mine", "meta mark 1")
    nftables.insert("mine", "meta mark 3", 3)
    assert [int(rule.text.split()[-1], 16) for rule in nftables.rules("filter", "mine")] == [1, 2, 3, 4]


@VARIANTS
def test_elements_come_and_go(netns, nftables):
    """What a rule blocks is changed without changing the rule."""
    nftables.apply(RULESET)
    nftables.add_element("blocked", "127.0.0.0/8", "192.168.0.1")
    assert not netns.ping("127.0.0.1", timeout=SHORT_S)
    (blocked,) = [one for one in nftables.sets() if one.name == "blocked"]
    assert {"127.0.0.0/8", "192.168.0.1"} <= set(blocked.elements)
    assert nftables.rules("filter", "input")[0].packets == 1
    nftables.delete_element("blocked", "127.0.0.0/8")
    nftables.add_element("services", "22 : drop")
    (blocked, services) = nftables.sets()
    assert "127.0.0.0/8" not in blocked.elements
    assert "22 : drop" in services.elements


@VARIANTS
def test_a_policy(netns, nftables):
    """Of a base chain; of one that is not there it makes none."""
    nftables.new_table()
    nftables.new_chain("out", hook="output", priority=-5)
    nftables.policy("out", "drop")
    assert nftables.chains() == (Chain("inet", "filter", "out", "filter", "output", -5, "drop"),)
    assert not netns.ping("127.0.0.1", timeout=SHORT_S)
    with pytest.raises(RuleError, match="no such base chain"):
        nftables.policy("output", "drop")
    assert len(nftables.chains()) == 1


@VARIANTS
def test_run_returns_what_is_printed(nftables):
    assert nftables.run("add table ip mine; add chain ip mine c") == ""
    assert nftables.run("list table ip mine") == "table ip mine {\n\tchain c {\n\t}\n}\n"


# -- bad input

REFUSED = {
    "a typo": ("add rule inet filter input tcp dprot 22 drop", "syntax error, unexpected string", "dprot"),
    "no such chain": ("add rule inet filter inptu drop", "No such file or directory", "inptu"),
    "no such table": ("add rule inet filtre input drop", "No such file or directory", "filtre"),
    "a table that exists": ("create table inet filter", "File exists", "filter"),
    "a chain that exists": ("create chain inet filter input", "File exists", "input"),
    "no such hook": ("add chain inet filter x { type filter hook inptu priority 0; }", "unknown chain hook", "inptu"),
    "no such set": ("add element inet filter allowed { 1.1.1.1 }", "No such file or directory", "allowed"),
    "an element of another type": ("add element inet filter blocked { 1.1.1.1 . 80 }", "Error", "1.1.1.1 . 80"),
    "the second of two": ("add table inet x; add rule inet x y drop", "No such file or directory", "y"),
}


@VARIANTS
@pytest.mark.parametrize("command, words, marked", REFUSED.values(), ids=REFUSED)
def test_a_refused_command(nftables, command, words, marked):
    """Nft's own words, and its pointer below what it means; nothing was changed."""
    nftables.apply(RULESET)
    before = nftables.save()
    with pytest.raises(RuleError, match=words) as caught:
        nftables.run(command)
    lines = str(caught.value).splitlines()
    (at,) = [number for number, line in enumerate(lines) if set(line.strip()) == {"^"}]
    assert lines[at - 1] == command
    begin = lines[at].index("^")
    assert marked.startswith(command[begin : begin + lines[at].count("^")])
    assert nftables.save() == before


@VARIANTS
def test_a_refused_ruleset(nftables):
    """The line that is wrong, by its number, with the pointer; not a line of it was done."""
    text = "table inet filter {\n    chain input {\n        type filter hook inptu priority 0;\n    }\n}\n"
    with pytest.raises(RuleError) as caught:
        nftables.apply(f"add table ip fine\n{text}")
    shown = str(caught.value)
    assert "refused a ruleset of 6 lines" in shown
    assert "ruleset:4:26-30: Error: unknown chain hook" in shown
    assert "        type filter hook inptu priority 0;\n                         ^^^^^" in shown
    assert nftables.tables() == ()


def test_names_that_exist(nftables):
    """A table, a chain: once."""
    nftables.new_table()
    nftables.new_chain("mine")
    with pytest.raises(RuleError, match="File exists"):
        nftables.new_table()
    with pytest.raises(RuleError, match="File exists"):
        nftables.new_chain("mine")


def test_a_rule_that_is_gone_cannot_be_deleted(nftables):
    nftables.apply(RULESET)
    rule = nftables.rules()[0]
    nftables.delete(rule)
    with pytest.raises(RuleError, match="No such file or directory"):
        nftables.delete(rule)


def test_nonsense(nftables):
    """Named, with what is allowed; nothing was changed."""
    for use in (
        lambda: nftables.new_table(family="ipv4"),
        lambda: nftables.new_chain("x", family="ipv4"),
        lambda: nftables.append("x", "drop", family="ipv4"),
        lambda: nftables.rules(family="ipv4"),
        lambda: nftables.add_element("x", 1, family="ipv4"),
    ):
        with pytest.raises(ValueError, match=r"family='ipv4': allowed are inet, ip, arp, netdev, bridge, ip6"):
            use()
    with pytest.raises(TypeError, match=r"add_element\('x'\): which elements"):
        nftables.add_element("x")
    assert nftables.netns._do_inside(nfnetlink.generation) == nfnetlink.PRISTINE


def test_without_library_and_program(isolation, nothing_left, monkeypatch):
    """The program where there is no library; Unsupported where there is neither, with the package to install."""
    monkeypatch.setattr(binding, "library", lambda: None)
    assert isolation.nftables().variant == "program"
    with nothing_left(), pytest.raises(Unsupported, match=r"no libnftables.so.1.*install the package nftables"):
        isolation.nftables(variant="library")
    monkeypatch.setattr(_firewall.shutil, "which", lambda *_args, **_options: None)
    with nothing_left(), pytest.raises(Unsupported, match=r"neither .* nor a program 'nft'.*the package nftables"):
        isolation.nftables()
    with nothing_left(), pytest.raises(Unsupported, match="no program 'nft'"):
        isolation.nftables(variant="program")


def test_an_nft_without_json(nftables, monkeypatch):
    monkeypatch.setattr(binding, "run", lambda *_: binding.Answer(True, "no JSON here", ""))  # noqa: FBT003
    with pytest.raises(Unsupported, match="built with JSON"):
        nftables.rules()


# -- its end


@VARIANTS
def test_a_namespace_of_wider_scope_is_as_it_was(nftables):
    """Closed, it takes away what was added, and puts back what was changed; other tables are not touched."""
    space, variant = nftables.netns, nftables.variant
    with Nftables(space, variant=variant) as one:
        one.apply(RULESET)
        one.masquerade("eth0")
    assert listed(nftables) == []
    nftables.apply("table ip a {\n chain c {\n type filter hook input priority 0;\n counter\n }\n}\ntable ip b { }\n")
    assert space.ping("127.0.0.1")
    before = nftables.save()
    handles = [rule.handle for rule in nftables.rules()]
    with Nftables(space, variant=variant) as one:
        one.apply(RULESET)
        one.run("add chain ip b new")
    assert nftables.save() == before
    assert [rule.handle for rule in nftables.rules()] == handles
    with Nftables(space, variant=variant) as one:
        one.flush()
    assert nftables.save() == before
    assert nftables.rules()[0].packets == 2


def test_in_a_builder_that_ends_with_its_netns_nothing_is_put_back(isolation, monkeypatch):
    """It would take 10 ms and more, for nobody: the rules go with the namespace."""
    from pytest_isolation import Isolation

    calls = []
    monkeypatch.setattr(nfnetlink, "delete_tables", lambda *_: calls.append("deleted"))
    with Isolation() as builder:
        pair = builder.veth_pair()
        builder.nftables(pair.a).new_table()
        early = builder.nftables(pair.b)
        early.new_table()
        early.close()
        assert calls == ["deleted"]
    assert calls == ["deleted"]
    nftables = isolation.nftables()
    with Isolation() as builder:
        builder.nftables(nftables.netns).new_table()
    assert calls == ["deleted", "deleted"]


def test_nothing_holds_the_namespace(netns, nftables):
    """The library's socket is closed again: of the namespace's netlink sockets none is left that is for nf_tables."""
    nftables.apply(RULESET)
    nftables.rules()
    lines = netns._do_inside(Path("/proc/thread-self/net/netlink").read_text).splitlines()[1:]
    owners = [line.split()[2] for line in lines if line.split()[1] == str(nfnetlink.NETLINK_NETFILTER)]
    assert set(owners) == {"0"}  # the kernel's own


def test_in_a_namespace_of_another_user(isolation, user_namespace):
    """Owned by a user namespace: done by a forked child in it."""
    space = isolation.netns(user=user_namespace)
    nftables = isolation.nftables(space)
    nftables.apply(RULESET)
    assert not space.ping("127.0.0.1", timeout=SHORT_S)
    assert nftables.counters()[0].packets == 1
    with pytest.raises(RuleError, match=r"(?s)File exists.*\^"):
        nftables.new_table()
