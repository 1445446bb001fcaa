"""Chapter 9: iptables and nftables, who may pass, and under which address.

Every network namespace has a firewall of its own. The kernel calls it at five places (hooks) on a packet's way; at
each of them stand chains, lists of rules, sorted into tables by what they are for: `raw`, `mangle`, `nat`, `filter`. A
rule says which packets it means, and what becomes of them. Each rule counts the packets that it met, which is how a
firewall is watched at its work.

iptables has these tables and chains from the start, nftables has those that one makes; the hooks are the same. A
container engine uses three rules of all this for every container: let it out under the host's address (masquerade),
publish its ports (DNAT), and drop the rest.
"""

import errno
import socket

import pytest

SHORT_S = 0.3
CLIENT, SERVER = "10.1.0.2", "10.2.0.2"


# -- drop and reject


def test_a_dropped_ping(veth_pair, isolation):
    """DROP: the packet is gone, nobody hears of it. Only the rule's counter knows."""
    host, guest = veth_pair
    assert host.ping(guest)
    iptables = isolation.iptables(guest)
    iptables.append("INPUT", "-p icmp -j DROP")
    assert not host.ping(guest, count=1, timeout=SHORT_S)
    (rule,) = iptables.rules("filter", "INPUT")
    assert (rule.text, rule.packets, rule.bytes) == ("-p icmp -j DROP", 1, 84)  # 56 bytes, ICMP's 8, and IP's 20
    assert "1       84 DROP" in iptables.run("-L INPUT -v -n -x")  # as one sees it in a terminal


def connect(client, server, port, timeout=5.0):
    """What a client sees: `connected`, the error's name, or `silence`."""
    try:
        client.connect((server, port), timeout=timeout).close()
    except TimeoutError:
        return "silence"
    except OSError as error:
        return errno.errorcode[error.errno]
    return "connected"


def test_reject_against_drop(veth_pair, isolation):
    """DROP leaves a client waiting for an answer that never comes; REJECT sends one, which can be chosen."""
    server, client = veth_pair
    iptables = isolation.iptables(server)
    iptables.append("INPUT", "-p tcp --dport 81 -j DROP")
    iptables.append("INPUT", "-p tcp --dport 82 -j REJECT")
    iptables.append("INPUT", "-p tcp --dport 83 -j REJECT --reject-with tcp-reset")
    iptables.append("INPUT", "-p tcp --dport 84 -j REJECT --reject-with icmp-admin-prohibited")
    with server.listen(80), server.listen(81), server.listen(82):
        assert connect(client, server.ipv4, 80) == "connected"
        assert connect(client, server.ipv4, 81, SHORT_S) == "silence"
        assert connect(client, server.ipv4, 82) == "ECONNREFUSED"  # ICMP port unreachable, though somebody listens
    assert connect(client, server.ipv4, 83) == "ECONNREFUSED"  # a TCP reset: as if nobody listened
    assert connect(client, server.ipv4, 84) == "EHOSTUNREACH"
    dropped, *rejected = iptables.rules("filter", "INPUT")
    assert dropped.packets >= 1  # TCP tries again, in vain
    assert [rule.packets for rule in rejected] == [1, 1, 1]  # one packet each was enough


# -- three hosts: inner - router - outside


@pytest.fixture
def hosts(isolation):
    """Three hosts in a row. The router forwards; outside knows no way back to inner, whose address is private."""
    inner, to_inner = isolation.veth_pair(ipv4=(f"{CLIENT}/24", "10.1.0.1/24"), ipv6=(None, None))
    to_outside, outside = isolation.veth_pair(
        netns=(to_inner.netns, None),
        ifnames=("eth1", "eth0"),
        ipv4=("10.2.0.1/24", f"{SERVER}/24"),
        ipv6=(None, None),
    )
    inner.netns.add_route("default", via="10.1.0.1")
    router = to_inner.netns
    router.sysctl["net.ipv4.ip_forward"] = 1
    assert [link.ifname for link in router.links()] == ["lo", "eth0", "eth1"]
    assert to_outside.ping(outside)
    return inner, router, outside


def source_seen(server, client, target, port=80):
    """The client's address, as the server sees it."""
    with server.listen(port) as listening, client.connect((target, port)):
        peer, address = listening.accept()
        peer.close()
    return address[0]


def masquerading(inner, router, outside, firewall):
    """The same story for both firewalls."""
    # The request gets there; the answer has nowhere to go.
    with outside.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800)) as listening:
        assert not inner.ping(outside, timeout=SHORT_S)
        assert socket.inet_ntoa(listening.recv(100)[12:16]) == CLIENT
    firewall.masquerade("eth1", source="10.1.0.0/24")
    assert inner.ping(outside)
    assert source_seen(outside, inner, SERVER) == "10.2.0.1"  # the router's address on that side
    assert not outside.ping("10.1.0.2", timeout=SHORT_S)  # and still nobody gets in by themselves
    (rule,) = firewall.rules("nat")
    assert rule.packets == 2  # two flows: rules of nat are asked for the first packet of each
    return rule


def test_masquerade_lets_an_inner_host_out(hosts, isolation):
    """Packets leave under the router's address, and the kernel remembers whose they were, to give back the answers."""
    inner, router, outside = hosts
    rule = masquerading(inner, router, outside, isolation.iptables(router))
    assert rule.text == "-s 10.1.0.0/24 -o eth1 -j MASQUERADE"


def published(inner, router, outside, firewall):
    """The same story for both firewalls."""
    assert connect(outside, "10.2.0.1", 8080) == "ECONNREFUSED"  # nobody listens at the router
    firewall()
    with inner.listen(80) as server:
        for client, target in ((outside, "10.2.0.1"), (router, "10.2.0.1")):
            with client.connect((target, 8080)) as sock:
                peer, address = server.accept()
                with peer:
                    peer.sendall(b"inner")
                    assert sock.recv(5) == b"inner"
                if client is outside:
                    assert address[0] == SERVER  # DNAT changes where to, not where from
                    assert sock.getpeername() == ("10.2.0.1", 8080)  # and the client never notices


def test_dnat_publishes_a_port_as_a_container_engine_does(hosts, isolation):
    """A chain of the engine's own, asked for whatever is addressed to the host, whether it arrives or starts here."""
    inner, router, outside = hosts
    iptables = isolation.iptables(router)

    def publish():
        iptables.new_chain("DOCKER", table="nat")
        iptables.append("PREROUTING", "-m addrtype --dst-type LOCAL -j DOCKER", table="nat")
        iptables.append("OUTPUT", "! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER", table="nat")
        iptables.append("DOCKER", "! -i eth0 -p tcp --dport 8080 -j DNAT --to-destination 10.1.0.2:80", table="nat")

    published(inner, router, outside, publish)
    rules = {rule.chain: rule for rule in iptables.rules("nat")}
    assert rules["DOCKER"].packets == rules["PREROUTING"].packets + rules["OUTPUT"].packets == 2


def test_one_call_publishes_a_port(hosts, isolation):
    """`dnat` writes these rules."""
    inner, router, outside = hosts
    iptables = isolation.iptables(router)
    published(inner, router, outside, lambda: iptables.dnat(8080, (inner, 80), local=True))
    assert [(rule.chain, rule.packets) for rule in iptables.rules("nat")] == [("PREROUTING", 1), ("OUTPUT", 1)]


# -- the way of a packet

TABLES = {
    "raw": ["PREROUTING", "OUTPUT"],
    "mangle": ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"],
    "nat": ["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"],
    "filter": ["INPUT", "FORWARD", "OUTPUT"],
}
FORWARDED = [
    ("raw", "PREROUTING"), ("mangle", "PREROUTING"), ("nat", "PREROUTING"),
    ("mangle", "FORWARD"), ("filter", "FORWARD"),
    ("mangle", "POSTROUTING"), ("nat", "POSTROUTING"),
]  # fmt: skip
ARRIVING = [
    ("raw", "PREROUTING"), ("mangle", "PREROUTING"), ("nat", "PREROUTING"),
    ("mangle", "INPUT"), ("filter", "INPUT"), ("nat", "INPUT"),
]  # fmt: skip
LEAVING = [
    ("raw", "OUTPUT"), ("mangle", "OUTPUT"), ("nat", "OUTPUT"), ("filter", "OUTPUT"),
    ("mangle", "POSTROUTING"), ("nat", "POSTROUTING"),
]  # fmt: skip


@pytest.fixture
def watched(hosts, isolation):
    """A router with one rule in every chain of every table, that counts UDP packets to port 9, and does nothing."""
    inner, router, outside = hosts
    iptables = isolation.iptables(router)
    for table, chains in TABLES.items():
        rules = "".join(f"-A {chain} -p udp --dport 9\n" for chain in chains)
        iptables.apply(f"*{table}\n{rules}COMMIT\n")
    # The chains of nat are asked about the first packet of a connection, and connections are tracked only where a rule
    # needs that: this one, for a link that is not there.
    iptables.masquerade("eth2")
    outside.netns.add_route("10.1.0.0/24", via="10.2.0.1")
    return inner, router, outside, iptables


def way(sender, receiver, address, firewall):
    """Send one UDP packet to port 9: the chains that it went through, in the kernel's order."""
    with receiver.socket(kind=socket.SOCK_DGRAM) as receiving, sender.socket(kind=socket.SOCK_DGRAM) as sending:
        receiving.bind(("0.0.0.0", 9))
        receiving.settimeout(5)
        sending.sendto(b"hello", (address, 9))
        assert receiving.recv(100) == b"hello"
    hooks = ["prerouting", "input", "forward", "output", "postrouting"]
    place = {(one.table, one.name): (hooks.index(one.hook), one.priority) for one in firewall.chains()}
    met = [(rule.table, rule.chain) for rule in firewall.rules() if rule.packets]
    assert all(rule.packets <= 1 for rule in firewall.rules())
    return sorted(met, key=place.__getitem__)


def test_the_way_of_a_forwarded_packet(watched):
    """From one link to another: PREROUTING, then the router decides where to, FORWARD, POSTROUTING."""
    inner, _, outside, iptables = watched
    assert way(inner, outside, SERVER, iptables) == FORWARDED


def test_the_way_of_a_packet_that_arrives(watched):
    """For the router itself: it is not forwarded but INPUT."""
    _, router, outside, iptables = watched
    assert way(outside, router, "10.2.0.1", iptables) == ARRIVING


def test_the_way_of_a_packet_that_starts_here(watched):
    """From the router itself: nothing came in, so there is no PREROUTING but OUTPUT."""
    _, router, outside, iptables = watched
    assert way(router, outside, SERVER, iptables) == LEAVING


# -- nftables: the same hooks, and tables and chains of one's own

FILTER = """
table inet filter {
    chain input {
        type filter hook input priority filter; policy accept;
        %s
    }
}
"""


def test_a_dropped_ping_with_nftables(veth_pair, isolation):
    """A rule counts only when it says so, and where in it that stands matters: what comes before has to match."""
    host, guest = veth_pair
    nftables = isolation.nftables(guest)
    assert nftables.tables() == ()  # nothing is there from the start
    nftables.apply(FILTER % "icmp type echo-request counter drop")
    assert not host.ping(guest, timeout=SHORT_S)
    assert guest.ping("127.0.0.1", timeout=SHORT_S).received == 0  # from anywhere
    (rule,) = nftables.rules("filter", "input")
    assert (rule.text, rule.packets, rule.bytes) == ("icmp type echo-request counter drop", 2, 168)


def test_reject_against_drop_with_nftables(veth_pair, isolation):
    """A map says it in one rule: which port, and what becomes of it."""
    server, client = veth_pair
    nftables = isolation.nftables(server)
    nftables.apply(
        FILTER
        % """
        tcp dport 81 counter drop
        tcp dport 82 counter reject
        tcp dport 83 counter reject with tcp reset
        tcp dport 84 counter reject with icmp type admin-prohibited
        tcp dport vmap { 85 : drop, 86 : accept }
        """
    )
    with server.listen(80), server.listen(81), server.listen(82), server.listen(86):
        assert connect(client, server.ipv4, 80) == "connected"
        assert connect(client, server.ipv4, 81, SHORT_S) == "silence"
        assert connect(client, server.ipv4, 82) == "ECONNREFUSED"
        assert connect(client, server.ipv4, 85, SHORT_S) == "silence"
        assert connect(client, server.ipv4, 86) == "connected"
    assert connect(client, server.ipv4, 83) == "ECONNREFUSED"
    assert connect(client, server.ipv4, 84) == "EHOSTUNREACH"
    dropped, *rejected, _ = nftables.rules("filter", "input")
    assert dropped.packets >= 1
    assert [rule.packets for rule in rejected] == [1, 1, 1]


def test_masquerade_with_nftables(hosts, isolation):
    """The same, in a chain of type nat at the hook postrouting."""
    inner, router, outside = hosts
    nftables = isolation.nftables(router)
    rule = masquerading(inner, router, outside, nftables)
    assert rule.text == 'ip saddr 10.1.0.0/24 oifname "eth1" counter masquerade'
    (chain,) = nftables.chains("nat")
    assert (chain.type, chain.hook, chain.priority) == ("nat", "postrouting", 100)


def test_dnat_with_nftables(hosts, isolation):
    """Two base chains ask the engine's own; the published ports could as well be a map, changed while it is in use."""
    inner, router, outside = hosts
    nftables = isolation.nftables(router)
    ruleset = """
        table ip nat {
            map published { type inet_service : ipv4_addr . inet_service; }
            chain engine { tcp dport @ports counter dnat ip to tcp dport map @published; }
            set ports { type inet_service; }
            chain prerouting {
                type nat hook prerouting priority dstnat;
                fib daddr type local counter jump engine
            }
            chain output {
                type nat hook output priority -100;
                ip daddr != 127.0.0.0/8 fib daddr type local counter jump engine
            }
        }
    """

    def publish():
        nftables.apply(ruleset)
        nftables.add_element("published", "8080 : 10.1.0.2 . 80", table="nat", family="ip")
        nftables.add_element("ports", 8080, table="nat", family="ip")

    published(inner, router, outside, publish)
    rules = {rule.chain: rule for rule in nftables.rules("nat")}
    assert rules["engine"].packets == 2
    assert rules["prerouting"].packets == rules["output"].packets == 1


# iptables's chains, in the language of nftables: it is these that iptables-nft makes
PRIORITIES = {"raw": -300, "mangle": -150, "nat": -100, "filter": 0}


@pytest.fixture
def watched_by_nftables(hosts, isolation):
    """The same chains at the same places; that they are these is nobody's order but ours."""
    inner, router, outside = hosts
    nftables = isolation.nftables(router)
    lines = []
    for table, chains in TABLES.items():
        lines.append(f"table ip {table} {{")
        for chain in chains:
            late = table == "nat" and chain in {"INPUT", "POSTROUTING"}
            kind = "nat" if table == "nat" else "filter"
            priority = 100 if late else PRIORITIES[table]
            lines.append(f"chain {chain} {{\ntype {kind} hook {chain.lower()} priority {priority};")
            lines.append("udp dport 9 counter\n}")
        lines.append("}")
    nftables.apply("\n".join(lines))
    nftables.masquerade("eth2")  # so that connections are tracked
    outside.netns.add_route("10.1.0.0/24", via="10.2.0.1")
    return inner, router, outside, nftables


def test_the_ways_of_packets_with_nftables(watched_by_nftables):
    """Where a packet goes is the kernel's doing, whichever program wrote the rules."""
    inner, router, outside, nftables = watched_by_nftables
    ruleset = f"flush ruleset\n{nftables.save()}"
    assert way(inner, outside, SERVER, nftables) == FORWARDED
    nftables.apply(ruleset)  # the counters at 0 again
    assert way(outside, router, "10.2.0.1", nftables) == ARRIVING
    nftables.apply(ruleset)
    assert way(router, outside, SERVER, nftables) == LEAVING


def test_both_write_the_same_rules(netns, isolation):
    """iptables-nft speaks to nf_tables: what it made, nftables lists."""
    iptables, nftables = isolation.iptables(netns, variant="nft"), isolation.nftables(netns)
    iptables.append("INPUT", "-s 10.0.0.0/8 -p tcp --dport 22 -j DROP")
    (rule,) = nftables.rules("filter", "INPUT")
    assert rule.text == "ip saddr 10.0.0.0/8 tcp dport 22 counter drop"
