"""iptables in a network namespace, the nft and the legacy variant alike."""

import os
import shutil
import subprocess

import pytest

import pytest_isolation
from pytest_isolation import (
    Chain,
    ClosedError,
    Iptables,
    IsolationError,
    NetNamespace,
    Rule,
    RuleError,
    Table,
    Unsupported,
)
from pytest_isolation._kernel import nfnetlink
from pytest_isolation.objects import _firewall

VARIANTS = pytest.mark.parametrize("iptables", [{"variant": "nft"}, {"variant": "legacy"}], indirect=True, ids=str)
SHORT_S = 0.2
TEN_RULES = "".join(f"-A INPUT -p tcp --dport {port} -j ACCEPT\n" for port in range(10))
TEN = f"*filter\n:INPUT ACCEPT [0:0]\n{TEN_RULES}COMMIT\n"


def listed(iptables, *words, family="ip"):
    """What the kernel has, as the program itself prints it when it is run in the netns."""
    name = {"ip": "iptables", "ip6": "ip6tables"}[family]
    environment = {"XTABLES_LOCKFILE": "/proc/self/ns/net"}
    done = iptables.netns.run([f"{name}-{iptables.variant}", *words], extra_env=environment)
    return done.stdout.splitlines()


@pytest.fixture
def machine_is_untouched():
    """No rule on the machine, nor a lock file, that was not there before."""

    def look():
        rules = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
        return rules, os.path.exists("/run/xtables.lock")

    before = look()
    yield
    assert look() == before


pytestmark = pytest.mark.usefixtures("machine_is_untouched")


# -- rules


@VARIANTS
def test_a_dropped_ping_and_its_counter(netns, iptables):
    """The rule is in the kernel, does what it says, and counts."""
    assert netns.ping("127.0.0.1")
    iptables.append("INPUT", "-p icmp -j DROP")
    assert "-A INPUT -p icmp -j DROP" in listed(iptables, "-S")
    assert not netns.ping("127.0.0.1", count=3, timeout=SHORT_S)
    (rule,) = iptables.rules()
    assert rule.packets >= 1
    assert rule.bytes == rule.packets * 84
    assert rule == Rule("ip", "filter", "INPUT", "-p icmp -j DROP", rule.packets, rule.bytes)
    iptables.delete(rule)
    assert iptables.rules() == ()
    assert netns.ping("127.0.0.1")


@VARIANTS
def test_ipv6_is_another_family(netns, iptables):
    """A rule for IPv4 says nothing of IPv6, and the other way round."""
    iptables.append("INPUT", "-p ipv6-icmp -j DROP", family="ip6")
    assert netns.ping("127.0.0.1")
    assert not netns.ping("::1", timeout=SHORT_S)
    assert iptables.rules() == ()
    (rule,) = iptables.rules(family="ip6")
    assert (rule.family, rule.packets) == ("ip6", 1)
    iptables.delete(rule)
    assert netns.ping("::1")


@VARIANTS
def test_insert_puts_it_at_its_place(iptables):
    for target in ("b", "d"):
        iptables.append("INPUT", f"-m comment --comment {target}")
    iptables.insert("INPUT", "-m comment --comment a")
    iptables.insert("INPUT", "-m comment --comment c", 3)
    assert [rule.text[-1] for rule in iptables.rules("filter", "INPUT")] == ["a", "b", "c", "d"]


@VARIANTS
def test_a_rule_with_quotes_comes_back_as_it_was(iptables):
    """Words with spaces are one word; what `rules` returns can be deleted, and appended again."""
    iptables.append("INPUT", '-m comment --comment "two words; $(x)" -j ACCEPT')
    (rule,) = iptables.rules()
    assert "two words; $(x)" in rule.text
    iptables.delete(rule)
    assert iptables.rules() == ()
    iptables.append(rule.chain, rule.text)
    assert iptables.rules() == (rule,)


@VARIANTS
def test_run_takes_any_command_and_returns_what_it_prints(iptables):
    """As text or as words; whatever iptables can do and has no method here."""
    iptables.run("-A INPUT -s 10.0.0.0/8 -j DROP")
    iptables.run(["-I", "INPUT", 1, "-j", "ACCEPT"])
    assert iptables.run("-S INPUT").splitlines() == [
        "-P INPUT ACCEPT",
        "-A INPUT -j ACCEPT",
        "-A INPUT -s 10.0.0.0/8 -j DROP",
    ]


@VARIANTS
def test_a_chain_of_ones_own(netns, iptables):
    """Rules jump to it; it has neither hook nor policy."""
    iptables.new_chain("MINE")
    iptables.append("MINE", "-j DROP")
    iptables.append("INPUT", "-i lo -j MINE")
    assert not netns.ping("127.0.0.1", timeout=SHORT_S)
    assert Chain("ip", "filter", "MINE") in iptables.chains("filter")
    assert [rule.packets for rule in iptables.rules("filter")] == [1, 1]


@VARIANTS
def test_a_policy(netns, iptables):
    """What no rule decides on; the chain counts it."""
    iptables.policy("OUTPUT", "drop")
    assert not netns.ping("127.0.0.1", timeout=SHORT_S)
    (chain,) = [chain for chain in iptables.chains("filter") if chain.name == "OUTPUT"]
    assert chain == Chain("ip", "filter", "OUTPUT", "filter", "output", 0, "drop", 1, 84)


@VARIANTS
def test_what_is_there_without_a_rule(iptables):
    """Nothing: a table comes with the first rule, and with its chains."""
    assert (iptables.tables(), iptables.chains(), iptables.rules()) == ((), (), ())
    assert iptables.save() == ""
    iptables.masquerade("eth0")
    assert iptables.tables() == (Table("ip", "nat"),)
    assert [(one.hook, one.type, one.priority) for one in iptables.chains("nat")] == [
        ("prerouting", "nat", -100),
        ("input", "nat", 100),
        ("output", "nat", -100),
        ("postrouting", "nat", 100),
    ]


# -- whole rulesets


@VARIANTS
def test_a_whole_ruleset_in_one_call(iptables, tmp_path):
    """Text, or a file; what it names is replaced, unless it is to be kept."""
    iptables.append("INPUT", "-j DROP")
    iptables.apply(TEN)
    assert [rule.text for rule in iptables.rules()] == [f"-p tcp -m tcp --dport {n} -j ACCEPT" for n in range(10)]
    (tmp_path / "rules").write_text("*filter\n-A INPUT -j DROP\nCOMMIT")
    iptables.apply(tmp_path / "rules", keep=True)
    assert len(iptables.rules()) == 11
    iptables.apply(tmp_path / "rules")
    assert [rule.text for rule in iptables.rules()] == ["-j DROP"]


@VARIANTS
def test_what_was_saved_can_be_applied(netns, iptables):
    """With its counters."""
    iptables.append("INPUT", "-p icmp")
    iptables.new_chain("MINE")
    iptables.masquerade("eth0")
    assert netns.ping("127.0.0.1")
    before, text = iptables.rules(), iptables.save()
    iptables.flush()
    assert iptables.rules() == ()
    iptables.apply(text)
    assert iptables.rules() == before
    assert iptables.rules("filter")[0].packets == 2  # a request and a reply


@VARIANTS
def test_flush_leaves_nothing(netns, iptables):
    """Of both families; policies let everything through again."""
    for family in ("ip", "ip6"):
        iptables.new_chain("MINE", family=family)
        iptables.append("INPUT", "-j MINE", family=family)
        iptables.policy("INPUT", "DROP", family=family)
        iptables.masquerade("eth0", family=family)
    iptables.flush()
    for family, address in (("ip", "127.0.0.1"), ("ip6", "::1")):
        assert iptables.rules(family=family) == ()
        assert "MINE" not in {chain.name for chain in iptables.chains(family=family)}
        assert netns.ping(address)


# -- address translation


@pytest.fixture
def router(isolation):
    """Inner - router - outside: three namespaces; the router forwards, and outside knows no way to inner."""
    inner, inside = isolation.veth_pair(ipv4=("10.1.0.2/24", "10.1.0.1/24"), ipv6=("fd01::2/64", "fd01::1/64"))
    names, addresses = ("eth1", "eth0"), {"ipv4": ("10.2.0.1/24", "10.2.0.2/24"), "ipv6": ("fd02::1/64", "fd02::2/64")}
    _, outside = isolation.veth_pair(netns=(inside.netns, None), ifnames=names, **addresses)
    inside.netns.sysctl["net.ipv4.ip_forward"] = 1
    inside.netns.sysctl["net.ipv6.conf.all.forwarding"] = 1
    inner.netns.add_route("default", via="10.1.0.1")
    inner.netns.add_route("default", via="fd01::1")
    return inner, inside.netns, outside


def seen_from(outside, inner, host, port=80):
    """The source address of a connection from inner, as the server outside sees it."""
    with outside.netns.listen(port, host="::") as server, inner.netns.connect((host, port)):
        peer, address = server.accept()
        peer.close()
        return address[0].removeprefix("::ffff:")


FIREWALLS = pytest.mark.parametrize(
    "make", [("iptables", "nft"), ("iptables", "legacy"), ("nftables", "library")], ids=str
)


@pytest.fixture
def firewall(isolation, router, request):
    """A firewall of the router's, of the kind that the test is parametrised with."""
    kind, variant = request.getfixturevalue("make")
    return getattr(isolation, kind)(router[1], variant=variant)


@FIREWALLS
def test_masquerade_lets_an_inner_host_out(router, firewall, make):
    """The server outside sees the router's address, and answers that; each family needs a rule of its own."""
    inner, _, outside = router
    assert not inner.ping(outside, timeout=SHORT_S)
    firewall.masquerade("eth1", source="10.1.0.0/24")
    assert inner.ping(outside)
    assert seen_from(outside, inner, "10.2.0.2") == "10.2.0.1"
    assert not inner.ping(outside, family=6, timeout=SHORT_S)
    firewall.masquerade("eth1", family="ip6")
    assert seen_from(outside, inner, "fd02::2") == "fd02::1"
    (rule,) = firewall.rules("nat", family="ip")
    assert rule.packets == 2  # of a flow the first packet is asked about, the others do as it


@FIREWALLS
def test_snat_gives_the_address_that_was_asked_for(router, firewall, make):
    """Another one of the router's, here; the source decides who gets it."""
    inner, space, outside = router
    space.run(["ip", "address", "add", "10.2.0.9/24", "dev", "eth1"])
    firewall.snat("10.2.0.9", ifname="eth1", source="10.1.0.2")
    assert seen_from(outside, inner, "10.2.0.2") == "10.2.0.9"
    firewall.snat("fd02::1", ifname="eth1")
    assert seen_from(outside, inner, "fd02::2") == "fd02::1"


@FIREWALLS
@pytest.mark.parametrize("version", [4, 6])
def test_dnat_publishes_a_port(router, firewall, make, version):
    """Outside connects to the router, inner answers; with `local` the router itself may do so too."""
    inner, space, outside = router
    target, published = (inner.ipv4, "10.2.0.1") if version == 4 else (inner.ipv6, "fd02::1")
    firewall.dnat(8080, (target, 80), ifname="eth1")
    with inner.netns.listen(80, host="::") as server:
        with outside.connect((published, 8080)) as client:
            peer, address = server.accept()
            with peer:
                assert address[0].removeprefix("::ffff:") == client.getsockname()[0]
                peer.sendall(b"inner")
                assert client.recv(5) == b"inner"
        with pytest.raises(ConnectionRefusedError):
            space.connect((published, 8080))
        firewall.dnat(8080, (inner, 80) if version == 4 else (target, 80), address=published, local=True)
        with space.connect((published, 8080)):
            server.accept()[0].close()


NAT_NONSENSE = {
    "masquerade: name": (lambda fw: fw.masquerade("a name far too long"), ValueError, "at most|allowed are 1 to 15"),
    "masquerade: source": (lambda fw: fw.masquerade("eth0", source="10.0.0.1/8"), ValueError, "10.0.0.1/8"),
    "masquerade: versions": (lambda fw: fw.masquerade("eth0", source="fd00::/8"), ValueError, "IPv6"),
    "masquerade: family": (lambda fw: fw.masquerade("eth0", family="inet"), ValueError, "family='inet'.*ip, ip6"),
    "snat: address": (lambda fw: fw.snat("10.0.0"), ValueError, "to='10.0.0'"),
    "dnat: port": (lambda fw: fw.dnat(0, ("10.0.0.1", 80)), ValueError, "port=0.*1 to 65535"),
    "dnat: inner port": (lambda fw: fw.dnat(80, ("10.0.0.1", "http")), ValueError, "to='http'"),
    "dnat: host": (lambda fw: fw.dnat(80, ("inner", 80)), ValueError, "to='inner'"),
    "dnat: no pair": (lambda fw: fw.dnat(80, "10.0.0.1:80"), TypeError, "pair"),
    "dnat: protocol": (lambda fw: fw.dnat(80, ("10.0.0.1", 80), protocol="icmp"), ValueError, "tcp, udp, sctp"),
    "dnat: versions": (lambda fw: fw.dnat(80, ("10.0.0.1", 80), address="::1"), ValueError, "IPv6"),
}


@pytest.mark.parametrize("kind", ["iptables", "nftables"])
@pytest.mark.parametrize("use, error, words", NAT_NONSENSE.values(), ids=NAT_NONSENSE)
def test_nonsense_for_address_translation(isolation, netns, kind, use, error, words):
    """Named, with what is allowed; nothing was changed."""
    firewall = getattr(isolation, kind)(netns)
    with pytest.raises(error, match=words):
        use(firewall)
    assert netns._do_inside(nfnetlink.generation) == nfnetlink.PRISTINE


# -- bad input

REFUSED = {
    "a target with a typo": ("-A INPUT -p icmp -j DORP", "DORP"),
    "a protocol with a typo": ("-A INPUT -p icmpp -j DROP", 'unknown protocol "icmpp" specified'),
    "an option with a typo": ("-A INPUT -p tcp --dprot 80 -j DROP", 'unknown option "--dprot"'),
    "no such chain": ("-A INPT -j DROP", "No chain/target/match by that name"),
    "no such table": ("-t filtre -A INPUT -j DROP", "filtre"),
    "a chain that exists": ("-N TAKEN", "Chain already exists"),
    "a built-in chain": ("-N INPUT", "Chain already exists"),
    "a policy for a chain of one's own": ("-P TAKEN DROP", "TAKEN|Bad built-in chain name"),
    "a chain in a table that has none such": ("-t nat -A FORWARD -j ACCEPT", "No chain/target/match by that name"),
}


@VARIANTS
@pytest.mark.parametrize("command, words", REFUSED.values(), ids=REFUSED)
def test_a_refused_command(iptables, command, words):
    """The rule, and the program's own words; nothing was changed."""
    iptables.new_chain("TAKEN")
    before = iptables.rules(), iptables.chains("filter")
    with pytest.raises(RuleError, match=words) as caught:
        iptables.run(command)
    assert isinstance(caught.value, IsolationError)
    assert command in str(caught.value)
    assert caught.value.program == f"iptables-{iptables.variant}"
    assert (iptables.rules(), iptables.chains("filter")) == before


@VARIANTS
def test_a_refused_ruleset(iptables):
    """The line is shown with those before it, and not one rule of it is there."""
    iptables.append("INPUT", "-j ACCEPT")
    text = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p icmp -j DROP\n-A INPUT -p tcp --dprot 22 -j DROP\nCOMMIT\n"
    with pytest.raises(RuleError, match='unknown option "--dprot"') as caught:
        iptables.apply(text)
    assert ">   4 -A INPUT -p tcp --dprot 22 -j DROP" in str(caught.value)
    assert [rule.text for rule in iptables.rules()] == ["-j ACCEPT"]


@VARIANTS
def test_a_ruleset_whose_second_table_is_refused(iptables):
    """iptables-restore would have committed the first: that is taken back, and so is a table that is new."""
    iptables.append("INPUT", "-j ACCEPT", table="mangle")
    text = "*mangle\n-A INPUT -j DROP\nCOMMIT\n*raw\n-A OUTPUT -j DROP\nCOMMIT\n*filter\n-A INPUT -j NOWHERE\nCOMMIT\n"
    with pytest.raises(RuleError, match="NOWHERE"):
        iptables.apply(text)
    assert [(rule.table, rule.text) for rule in iptables.rules()] == [("mangle", "-j ACCEPT")]


@VARIANTS
def test_a_rule_that_is_gone_cannot_be_deleted(iptables):
    iptables.append("INPUT", "-j ACCEPT")
    (rule,) = iptables.rules()
    iptables.delete(rule)
    with pytest.raises(RuleError):
        iptables.delete(rule)


def test_a_family_or_table_that_iptables_has_not(iptables):
    with pytest.raises(ValueError, match=r"family='inet': allowed are ip, ip6"):
        iptables.append("INPUT", "-j DROP", family="inet")
    with pytest.raises(ValueError, match=r"table='filtre': allowed are filter, mangle, nat, raw, security"):
        iptables.rules("filtre")
    with pytest.raises(ValueError, match="table='filtre'"):
        iptables.chains("filtre")


@pytest.mark.parametrize("kind", ["iptables", "nftables"])
def test_what_is_no_netns(isolation, nothing_left, kind):
    """Named, with what is allowed; the machine's own is refused, whichever way it is given."""
    with nothing_left():
        for wrong in ("netns", 7, isolation.uts_namespace, NetNamespace):
            with pytest.raises(TypeError, match="allowed are a NetNamespace, an end of a veth pair, and None"):
                getattr(isolation, kind)(wrong)
        with pytest.raises(ValueError, match="variant='new': allowed are"):
            getattr(isolation, kind)(variant="new")
        with NetNamespace(outer=True) as outer, pytest.raises(ValueError, match="the machine's own firewall"):
            getattr(isolation, kind)(outer)
        with NetNamespace() as space:
            pass
        with pytest.raises(ClosedError, match="netns is closed"):
            getattr(isolation, kind)(space)


@pytest.mark.parametrize("kind", ["iptables", "nftables"])
def test_an_outer_end_is_the_machines_own(isolation, kind):
    """A pair with one end in the machine's namespace: a firewall for that end would be the machine's."""
    host, guest = isolation.veth_pair(outer=True)
    with pytest.raises(ValueError, match="the machine's own firewall is not touched"):
        getattr(isolation, kind)(host)
    assert getattr(isolation, kind)(guest).netns is guest.netns


@pytest.mark.parametrize("kind", ["iptables", "nftables"])
def test_a_netns_that_was_closed_first(kind):
    """Use says so; closing has nothing left to do."""
    space = NetNamespace()
    firewall = getattr(pytest_isolation, kind.capitalize())(space)
    firewall.masquerade("eth0")
    space.close()
    with pytest.raises(ClosedError, match="netns is closed"):
        firewall.rules()
    firewall.close()


@pytest.mark.parametrize(
    "variant, program", [("nft", "iptables-nft"), ("legacy", "iptables-legacy"), (None, "iptables")]
)
def test_without_the_program(isolation, nothing_left, monkeypatch, variant, program):
    """Unsupported, with the package to install."""
    monkeypatch.setattr(_firewall.shutil, "which", lambda *_args, **_options: None)
    with nothing_left(), pytest.raises(Unsupported, match=f"'{program}'.*install the package iptables"):
        isolation.iptables(variant=variant)


def test_without_the_program_for_ipv6(isolation, monkeypatch):
    """Only what needs it says so."""
    iptables = isolation.iptables(variant="nft")
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, **more: None if name.startswith("ip6") else which(name, **more))
    iptables.append("INPUT", "-j ACCEPT")
    with pytest.raises(Unsupported, match="'ip6tables-nft'"):
        iptables.append("INPUT", "-j ACCEPT", family="ip6")


@pytest.mark.parametrize("kind", ["iptables", "nftables"])
def test_a_kernel_without_nf_tables(isolation, nothing_left, monkeypatch, kind):
    """Nfnetlink answers EINVAL for a subsystem that is not there: Unsupported, with the option it is built with."""
    monkeypatch.setattr(nfnetlink, "NFNL_SUBSYS_NFTABLES", 15)
    monkeypatch.setattr(pytest_isolation.Nftables, "_supported", False)
    with nothing_left(), pytest.raises(Unsupported, match=r"NFT_MSG_GETGEN.*EINVAL.*CONFIG_NF_TABLES") as caught:
        getattr(isolation, kind)()
    assert caught.value.since == "3.13"


# -- its end


@VARIANTS
def test_a_namespace_of_wider_scope_is_as_it_was(isolation, iptables):
    """Closed, it takes away what was added, and puts back what was taken away, counters included."""
    space, variant = iptables.netns, iptables.variant
    with Iptables(space, variant=variant) as one:
        one.append("INPUT", "-j ACCEPT")
        one.masquerade("eth0", family="ip6")
    assert iptables.rules() + iptables.rules(family="ip6") == ()
    assert (variant == "legacy") or iptables.tables() == ()
    iptables.append("INPUT", "-p icmp")
    assert space.ping("127.0.0.1")
    before = listed(iptables, "-S")
    with Iptables(space, variant=variant) as one:
        one.flush()
        one.policy("FORWARD", "drop")
        one.new_chain("MINE")
        one.masquerade("eth0")
        one.append("INPUT", "-j DROP", family="ip6")
    assert listed(iptables, "-S") == before
    assert [rule.packets for rule in iptables.rules()] == [2]
    assert iptables.rules(family="ip6") == ()


@VARIANTS
def test_without_a_change_nothing_is_put_back(iptables):
    """What others did meanwhile in another table, and counters, stay."""
    iptables.append("INPUT", "-p icmp")
    with Iptables(iptables.netns, variant=iptables.variant) as one:
        one.rules()
        assert iptables.netns.ping("127.0.0.1")
    assert [rule.packets for rule in iptables.rules()] == [2]


def test_one_of_its_own(nothing_left):
    """Without a netns it makes one, which ends with it."""
    with nothing_left(), Iptables() as iptables:
        space = iptables.netns
        iptables.append("INPUT", "-j DROP")
        assert not space.ping("127.0.0.1", timeout=SHORT_S)
    assert space.closed


def test_the_variant_is_that_of_the_program(isolation):
    """Without `variant` it is whatever `iptables` is here."""
    said = subprocess.run(["iptables", "-V"], capture_output=True, text=True, check=True).stdout
    assert isolation.iptables().variant == ("nft" if "nf_tables" in said else "legacy")


def test_in_a_namespace_of_another_user(isolation, user_namespace):
    """Owned by a user namespace: the programs run inside it."""
    space = isolation.netns(user=user_namespace)
    iptables = isolation.iptables(space)
    iptables.append("INPUT", "-p icmp -j DROP")
    assert not space.ping("127.0.0.1", timeout=SHORT_S)
    assert [rule.packets for rule in iptables.rules()] == [1]
    iptables.flush()
    assert iptables.rules() == ()
