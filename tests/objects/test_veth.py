"""veth pairs, by the word of iproute2 in each namespace; usable for the first packet."""

import os
import socket
import subprocess
from pathlib import Path

import pytest

from pytest_isolation import ClosedError, KernelError, NetNamespace, VethPair, eventually


def shown(ip, end, ifname="eth0"):
    """What iproute2 says of an end."""
    return next(link for link in ip(end, "address") if link["ifname"] == ifname)


def test_a_pair_is_two_namespaces_and_a_cable(veth_pair, ip):
    """Each end in a namespace of its own, each knowing the other's number and namespace."""
    host, guest = veth_pair
    assert (
        len(
            {
                host.netns.ns_id,
                guest.netns.ns_id,
                (os.stat("/proc/self/ns/net").st_dev, os.stat("/proc/self/ns/net").st_ino),
            }
        )
        == 3
    )
    for end, other in ((host, guest), (guest, host)):
        link = shown(ip, end)
        assert link["linkinfo"]["info_kind"] == "veth"
        assert link["operstate"] == "UP"
        assert "LOWER_UP" in link["flags"]
        assert link["ifindex"] == end.ifindex
        assert link["link_index"] == end.peer_ifindex == other.ifindex == other.link().ifindex
        assert link["link_netnsid"] == end.peer_netnsid
        assert link["address"] == end.mac
        assert link["mtu"] == end.mtu == 1500
        assert (end.operstate, end.carrier) == ("UP", True)
        assert end.peer is other
        assert {one["ifname"] for one in ip(end, "link")} == {"lo", "eth0"}


def test_the_first_packet_is_answered(isolation):
    """IPv4, IPv6 and link-local, from either side, without a wait and without a retry."""
    for number in range(25):
        host, guest = isolation.veth_pair()
        target, family = (guest, 4) if number % 2 else (guest, 6)
        result = host.ping(target, family=family, timeout=0.9)
        assert result, result
        assert guest.ping(host.ipv6_link_local.replace(host.ifname, guest.ifname), timeout=0.9)


def test_both_sides_answer(isolation, netns):
    """1.1.1.1/24 and 1.1.1.2/24 ping each other; a third namespace sees nothing."""
    host, guest = isolation.veth_pair(ipv4=("1.1.1.1/24", "1.1.1.2/24"), ipv6=(None, None))
    assert host.ping("1.1.1.2")
    assert guest.ping("1.1.1.1")
    assert not netns.ping("1.1.1.1")
    assert (host.ipv4, guest.ipv4, host.ipv6) == ("1.1.1.1", "1.1.1.2", None)


def test_addresses_are_what_was_asked(isolation, ip):
    """With their prefix lengths, on each end."""
    pair = isolation.veth_pair(ipv4=("192.0.2.1/30", "192.0.2.2/30"), ipv6=("2001:db8::1/126", "2001:db8::2/126"))
    for end, number in zip(pair, (1, 2), strict=True):
        found = {
            f"{one['local']}/{one['prefixlen']}" for one in shown(ip, end)["addr_info"] if one["scope"] == "global"
        }
        assert found == {f"192.0.2.{number}/30", f"2001:db8::{number}/126"}
        assert (end.ipv4, end.ipv6) == (f"192.0.2.{number}", f"2001:db8::{number}")
    assert pair.a.ping(pair.b)
    assert pair.a.ping(pair.b, family=6)


@pytest.mark.parametrize(
    "ipv4, ipv6",
    [
        ((None, None), (None, None)),
        (("10.0.0.1/24", None), (None, "fd00::2/64")),
        ((None, None), ("fd00::1/64", "fd00::2/64")),
    ],
)
def test_addresses_may_be_left_out(isolation, ip, ipv4, ipv6):
    """Then an end has just those it was given, and its link-local one."""
    pair = isolation.veth_pair(ipv4=ipv4, ipv6=ipv6)
    for position, end in enumerate(pair):
        found = {
            f"{one['local']}/{one['prefixlen']}" for one in shown(ip, end)["addr_info"] if one["scope"] == "global"
        }
        assert found == {text for text in (ipv4[position], ipv6[position]) if text}
        assert end.ipv4 == (ipv4[position] and ipv4[position].partition("/")[0])
    assert pair.a.ping(pair.b.ipv6_link_local)


@pytest.mark.parametrize("mtu", [1280, 1500, 9000, 65535])
def test_mtu(isolation, ip, mtu):
    """Of both ends; a packet of that size passes in one piece."""
    host, guest = isolation.veth_pair(mtu=mtu)
    assert shown(ip, host)["mtu"] == shown(ip, guest)["mtu"] == mtu
    before = guest.counters().rx_packets
    assert host.ping(guest, size=min(mtu - 28, 65507))
    assert guest.counters().rx_packets > before


@pytest.mark.parametrize("mtu", [68, 1279])
def test_an_mtu_too_small_for_ipv6(isolation, ip, mtu):
    """IPv4 works, and there is no IPv6 address."""
    host, guest = isolation.veth_pair(mtu=mtu)
    assert shown(ip, host)["mtu"] == mtu
    assert host.ipv6 is None
    assert host.ping(guest, size=8)


def test_names_and_hardware_addresses(isolation, ip):
    """As asked, up to 15 bytes."""
    names, macs = ("left", "x" * 15), ("02:00:00:00:00:01", "0A:00:00:00:00:02")
    pair = isolation.veth_pair(ifnames=names, mac=macs)
    for end, name, mac in zip(pair, names, macs, strict=True):
        link = shown(ip, end, name)
        assert link["address"] == mac.lower() == end.mac
    assert pair.a.ping(pair.b)


def test_default_hardware_addresses_differ(isolation):
    """In every pair and from pair to pair."""
    macs = {end.mac for _ in range(4) for end in isolation.veth_pair()}
    assert len(macs) == 8


def test_one_end_up_alone_has_no_carrier(isolation, ip):
    """With the other end up as well there is one."""
    pair = isolation.veth_pair(up=(True, False))
    assert "NO-CARRIER" in shown(ip, pair.a)["flags"]
    assert (shown(ip, pair.a)["operstate"], pair.a.carrier) == (pair.a.operstate, False)
    assert (shown(ip, pair.b)["operstate"], pair.b.operstate) == ("DOWN", "DOWN")
    pair.b.up()
    assert (shown(ip, pair.a)["operstate"], pair.a.operstate, pair.a.carrier) == ("UP", "UP", True)
    pair.a.down()
    assert (pair.a.operstate, pair.a.carrier, pair.b.carrier) == ("DOWN", False, False)
    assert "UP" not in shown(ip, pair.a)["flags"]
    pair.a.up()
    assert pair.a.ping(pair.b)


def test_one_end_up_alone_beside_the_other(isolation, netns, ip):
    """LOWERLAYERDOWN, which the kernel says where it sees both ends: in one namespace."""
    pair = isolation.veth_pair(netns=(netns, netns), ifnames=("one", "two"), up=(True, False))
    assert (shown(ip, netns, "one")["operstate"], pair.a.operstate) == ("LOWERLAYERDOWN", "LOWERLAYERDOWN")
    pair.b.up()
    assert (shown(ip, netns, "one")["operstate"], pair.a.operstate) == ("UP", "UP")


def test_both_ends_down(isolation, ip):
    """As the kernel makes them."""
    pair = isolation.veth_pair(up=(False, False))
    assert [shown(ip, end)["operstate"] for end in pair] == ["DOWN", "DOWN"]


def test_counters_count(veth_pair, ip):
    """As `ip -s link` does."""
    host, guest = veth_pair
    before = guest.counters()
    assert host.ping(guest, count=10, size=100)
    after = guest.counters()
    assert after.rx_packets - before.rx_packets >= 10
    assert after.tx_packets - before.tx_packets >= 10
    assert after.rx_bytes - before.rx_bytes >= 10 * (100 + 8 + 20)
    stats = next(link for link in ip(guest, "-s", "link") if link["ifname"] == "eth0")["stats64"]
    assert stats["rx"]["packets"] >= after.rx_packets
    assert guest.counters().rx_packets >= stats["rx"]["packets"]


def test_move_to_another_namespace(isolation, netns, ip):
    """Gone from the first list, in the other, and the peer knows."""
    pair = isolation.veth_pair()
    left = pair.b.netns
    pair.b.move_to(netns)
    assert [link["ifname"] for link in ip(left, "link")] == ["lo"]
    link = shown(ip, netns)
    assert link["operstate"] == "DOWN"
    assert link["ifindex"] == pair.b.ifindex == pair.a.peer_ifindex
    assert not [one for one in link["addr_info"] if one["scope"] == "global"]
    assert pair.b.netns is netns
    assert (pair.b.ipv4, pair.b.ipv6) == (None, None)
    listed = {one["nsid"] for one in ip(pair.a, "netns", "list-id")}
    assert pair.a.peer_netnsid in listed
    pair.b.up()
    pair.b.add_address("10.0.0.7/24")
    pair.b.add_address("fd00::7/64")
    assert (pair.b.ipv4, pair.b.ipv6) == ("10.0.0.7", "fd00::7")
    assert pair.a.ping(pair.b)
    assert pair.a.ping(pair.b, family=6)


def test_both_ends_in_one_namespace(isolation, netns, ip):
    """A given one, twice: two names, no netnsid."""
    pair = isolation.veth_pair(netns=(netns, netns), ifnames=("one", "two"))
    assert {link["ifname"] for link in ip(netns, "link")} == {"lo", "one", "two"}
    assert (pair.a.peer_netnsid, pair.b.peer_netnsid) == (None, None)
    assert pair.a.peer_ifindex == pair.b.ifindex


def test_given_namespaces_live_on(isolation, ip):
    """Closing the pair deletes the cable, and not what it was put into."""
    router = isolation.netns()
    with VethPair(netns=(router, None), ifnames=("to-a", "eth0")) as pair:
        assert pair.a.netns is router
        assert pair.a.ping(pair.b)
    assert [link["ifname"] for link in ip(router, "link")] == ["lo"]
    assert router.ping("127.0.0.1")


def test_a_router_between_two(isolation):
    """Two pairs into one namespace, which forwards."""
    router = isolation.netns()
    a = isolation.veth_pair(
        netns=(router, None), ifnames=("a", "eth0"), ipv4=("10.0.1.1/24", "10.0.1.2/24"), ipv6=(None, None)
    )
    b = isolation.veth_pair(
        netns=(router, None), ifnames=("b", "eth0"), ipv4=("10.0.2.1/24", "10.0.2.2/24"), ipv6=(None, None)
    )
    router.sysctl["net.ipv4.ip_forward"] = 1
    a.b.netns.add_route("default", via="10.0.1.1")
    assert not a.b.ping(b.b, timeout=0.2)
    b.b.netns.add_route("default", via="10.0.2.1")
    assert a.b.ping(b.b)


def test_an_end_that_moved_into_a_living_namespace_is_deleted(isolation, netns, ip):
    """Whoever has it at the end."""
    with VethPair() as pair:
        pair.a.move_to(netns)
        assert "eth0" in {link["ifname"] for link in ip(netns, "link")}
    eventually(lambda: [link["ifname"] for link in ip(netns, "link")] == ["lo"])


def test_somebody_else_took_it_away(isolation, netns):
    """Closing a pair whose link is gone already is no error."""
    pair = VethPair(netns=(netns, None))
    netns.run(["ip", "link", "delete", "eth0"])
    pair.close()


def test_nothing_is_left(nothing_left):
    """Namespaces, links, descriptors."""
    with nothing_left(), VethPair() as pair:
        assert pair.a.ping(pair.b)


def test_the_verbs_of_an_end(veth_pair, ns_link):
    """They run in its namespace."""
    for end in veth_pair:
        expected = f"net:[{end.netns.ns_id[1]}]"
        assert end.run(["readlink", "/proc/self/ns/net"]).stdout.strip() == expected
        assert end.call(ns_link, "thread-self", "net") == expected
        assert end.call_in_child(ns_link, "self", "net") == expected
        with end.popen(["sleep", 1000]) as process:
            assert ns_link(process.pid, "net") == expected


def test_a_server_and_a_client(veth_pair):
    """Two hosts, one cable, real programs."""
    server, client = veth_pair
    with server.popen(
        ["/usr/bin/python3", "-m", "http.server", "80", "--directory", "/usr/share/doc"], ready="port:80"
    ):
        assert "<title>" in client.run(["curl", "-sf", f"http://{server.ipv4}"]).stdout


# -- outer


def test_an_outer_end(nothing_left, warm):
    """One end on the machine, with a name nobody else has; deleted explicitly at the end."""
    with nothing_left():
        with VethPair(outer=True) as pair:
            host, guest = pair
            assert host.netns.ns_id[1] == os.stat("/proc/self/ns/net").st_ino
            assert Path(f"/sys/class/net/{host.ifname}").exists()
            assert host.ping(guest)
            assert guest.ping(host)
            with guest.netns.listen(80) as server, socket.create_connection((guest.ipv4, 80), timeout=5) as client:
                server.accept()[0].close()
                assert client.getsockname()[0] == host.ipv4
        assert not Path(f"/sys/class/net/{host.ifname}").exists()


def test_an_outer_name_that_is_taken(nothing_left):
    """The machine's own link stays as it is."""
    before = subprocess.check_output(["ip", "link", "show", "lo"])
    with nothing_left(), pytest.raises(KernelError, match=r"EEXIST.*The machine has a link of that name"):
        VethPair(outer=True, ifnames=("lo", "eth0"))
    assert subprocess.check_output(["ip", "link", "show", "lo"]) == before


def test_outer_addresses_that_the_machine_has_a_route_for(nothing_left):
    """It would cut the machine off."""
    refused = pytest.raises(ValueError, match=r"198\.18\.7\.9/30 overlaps 198\.18\.7\.0/24.*route")
    with VethPair(outer=True, ipv4=("198.18.7.1/24", "198.18.7.2/24")), nothing_left(), refused:
        VethPair(outer=True, ipv4=("198.18.7.9/30", "198.18.7.10/30"))


# -- owned by a user namespace


def test_one_that_a_user_namespace_owns(isolation):
    """The pair, its addresses, ping and commands, all of it."""
    user = isolation.user_namespace()
    host, guest = isolation.veth_pair(user=user)
    assert host.ping(guest)
    assert host.ping(guest, family=6)
    assert guest.ping(host.ipv6_link_local)
    assert os.stat(host.netns.path).st_ino == host.netns.ns_id[1]
    with guest.netns.listen(80), host.netns.connect((guest, 80)):
        pass


# -- bad input: (arguments, error, fragment of the message)

BAD = [
    ({"ifnames": ("x" * 16, "eth0")}, ValueError, "ifname='x{16}': allowed are 1 to 15 bytes"),
    ({"ifnames": ("ü" * 8, "eth0")}, ValueError, "1 to 15 bytes"),
    ({"ifnames": ("", "eth0")}, ValueError, "ifname=''"),
    ({"ifnames": ("a/b", "eth0")}, ValueError, "ifname='a/b'"),
    ({"ifnames": ("eth0", "..")}, ValueError, r"ifname='\.\.'"),
    ({"ifnames": ("eth0", ".")}, ValueError, r"ifname='\.'"),
    ({"ifnames": ("a\0b", "eth0")}, ValueError, "NUL"),
    ({"ifnames": ("a b", "eth0")}, ValueError, "white space"),
    ({"ifnames": ("eth0:1", "eth0")}, ValueError, "ifname='eth0:1'"),
    ({"ifnames": ("eth%d", "eth0")}, ValueError, "ifname='eth%d'"),
    ({"ifnames": (7, "eth0")}, ValueError, "ifname=7"),
    ({"ifnames": ("eth0",)}, ValueError, "ifnames=.*two values"),
    ({"ifnames": "eth0"}, ValueError, "ifnames='eth0': two values"),
    ({"ifnames": ("lo", "eth0")}, KernelError, "EEXIST"),
    ({"ipv4": ("nonsense", None)}, ValueError, r"ipv4\[0\]='nonsense'"),
    ({"ipv4": (None, "10.0.0.300/24")}, ValueError, r"ipv4\[1\]='10.0.0.300/24'"),
    ({"ipv4": ("10.0.0.1", None)}, ValueError, "no prefix length: 10.0.0.1/24"),
    ({"ipv4": ("10.0.0.1/33", None)}, ValueError, r"ipv4\[0\]='10.0.0.1/33'"),
    ({"ipv4": ("fd00::1/64", None)}, ValueError, r"ipv4\[0\]='fd00::1/64' is an IPv6 address"),
    ({"ipv6": ("10.0.0.1/24", None)}, ValueError, r"ipv6\[0\]='10.0.0.1/24' is an IPv4 address"),
    ({"ipv6": ("fd00::1", None)}, ValueError, "no prefix length: fd00::1/64"),
    ({"ipv4": ("10.0.0.1/24", "10.0.0.1/24")}, ValueError, "both ends have the same address"),
    ({"ipv4": ("10.0.0.1/24", "10.0.0.1/16")}, ValueError, "both ends have the same address"),
    ({"ipv6": ("fd00::1/64", "FD00:0::1/64")}, ValueError, "both ends have the same address"),
    ({"ipv4": ("10.0.0.1/24",)}, ValueError, "ipv4=.*two values"),
    ({"ipv4": "10.0.0.1/24"}, ValueError, "ipv4=.*two values"),
    ({"ipv4": (b"10.0.0.1/24", None)}, ValueError, r"ipv4\[0\]"),
    ({"mtu": 67}, ValueError, "mtu=67: allowed are 68 to 65535"),
    ({"mtu": 65536}, ValueError, "mtu=65536"),
    ({"mtu": -1}, ValueError, "mtu=-1"),
    ({"mtu": "1500"}, ValueError, "mtu='1500'"),
    ({"mtu": 1500.0}, ValueError, "mtu=1500.0"),
    ({"mtu": 1000, "ipv6": ("fd00::1/64", "fd00::2/64")}, (ValueError, KernelError), "1280|EINVAL|IPv6"),
    ({"mac": ("nonsense", None)}, ValueError, "mac='nonsense'"),
    ({"mac": ("02:00:00:00:00", None)}, ValueError, "six bytes"),
    ({"mac": ("02:00:00:00:00:0g", None)}, ValueError, "six bytes"),
    ({"mac": ("01:00:00:00:00:01", None)}, ValueError, "multicast"),
    ({"mac": ("00:00:00:00:00:00", None)}, ValueError, "zero"),
    ({"mac": (7, None)}, ValueError, "mac=7"),
    ({"up": (True,)}, ValueError, "up=.*two values"),
    ({"netns": (None,)}, ValueError, "netns=.*two values"),
    ({"ipv4": ("127.0.0.1/8", None), "netns": "same"}, ValueError, "ifnames=.*must differ"),
    ({"no_such_option": 1}, TypeError, "no_such_option"),
]


@pytest.mark.parametrize("options, error, fragment", BAD)
def test_a_pair_that_cannot_be(isolation, nothing_left, options, error, fragment):
    """Refused by name, with what is allowed; neither namespace nor link is left."""
    if options.get("netns") == "same":
        netns = isolation.netns()
        options = options | {"netns": (netns, netns)}
    with nothing_left(), pytest.raises(error, match=fragment):
        isolation.veth_pair(**options)


@pytest.mark.parametrize("position", [0, 1])
def test_a_name_that_is_taken_in_a_given_namespace(isolation, ip, nothing_left, position):
    """The kernel's refusal; what was there stays."""
    netns = isolation.netns()
    isolation.veth_pair(netns=(netns, None))
    before = ip(netns, "link")
    spaces = [None, None]
    spaces[position] = netns
    with nothing_left(), pytest.raises(KernelError, match=r"RTM_NEWLINK\(veth eth0 peer eth0\).*EEXIST"):
        isolation.veth_pair(netns=spaces, ipv4=(None, None), ipv6=(None, None))
    assert [link["ifindex"] for link in ip(netns, "link")] == [link["ifindex"] for link in before]


@pytest.mark.parametrize(
    "ipv4, fragment",
    [
        (("10.0.0.1/24", "10.0.0.2/24"), r"10\.0\.0\.1"),
        (("10.0.0.9/16", "10.0.0.8/16"), r"10\.0\.0\."),
        (("127.0.0.1/8", None), r"127\.0\.0\.1"),
    ],
)
def test_an_address_that_overlaps_in_a_given_namespace(isolation, nothing_left, ipv4, fragment):
    """Two cables with one network: replies would leave by the wrong one."""
    netns = isolation.netns()
    isolation.veth_pair(netns=(netns, None), ipv6=(None, None))
    with nothing_left(), pytest.raises(ValueError, match=fragment):
        isolation.veth_pair(netns=(netns, None), ifnames=("eth1", "eth0"), ipv4=ipv4, ipv6=(None, None))


def test_a_closed_namespace_for_an_end(isolation, nothing_left):
    """Refused before anything is made."""
    netns = NetNamespace()
    netns.close()
    with nothing_left(), pytest.raises(ClosedError, match="netns is closed"):
        isolation.veth_pair(netns=(netns, None))


@pytest.mark.parametrize("bad", ["eth0", 7, object()])
def test_something_else_for_a_namespace(isolation, nothing_left, bad):
    """A TypeError that says what is wanted."""
    with nothing_left(), pytest.raises(TypeError, match="netns"):
        isolation.veth_pair(netns=(bad, None))


@pytest.mark.parametrize(
    "address, error, fragment",
    [
        ("nonsense", ValueError, "nonsense"),
        ("10.0.0.9", ValueError, "no prefix length"),
        ("10.0.0.1/24", KernelError, "EEXIST"),
        (None, (ValueError, TypeError), "address"),
    ],
)
def test_an_address_that_cannot_be_added(veth_pair, ip, address, error, fragment):
    """The end keeps what it has."""
    before = shown(ip, veth_pair.a)["addr_info"]
    with pytest.raises(error, match=fragment):
        veth_pair.a.add_address(address)
    strip = lambda infos: [(info["local"], info["prefixlen"]) for info in infos]  # noqa: E731
    assert strip(shown(ip, veth_pair.a)["addr_info"]) == strip(before)


def test_move_to_where_the_name_is_taken(isolation, ip):
    """The kernel's refusal, and the end is where it was."""
    one, two = isolation.veth_pair(), isolation.veth_pair()
    with pytest.raises(KernelError, match="EEXIST"):
        one.a.move_to(two.a.netns)
    assert shown(ip, one.a)["ifindex"] == one.a.ifindex
    assert one.a.ping(one.b)


def test_a_closed_pair(isolation):
    """Its ends say so."""
    pair = VethPair()
    pair.close()
    pair.close()
    for use in (lambda: pair.a.run(["true"]), lambda: pair.a.operstate, lambda: pair.a.ping("10.0.0.2"), pair.b.up):
        with pytest.raises(ClosedError, match="closed"):
            use()


def test_no_address_of_a_fresh_pair_is_tentative():
    """The link-local ones too. Unconfirmed, some 8 in 100 pairs still have one when they are handed out."""
    for _ in range(100):
        with VethPair() as pair:
            assert [end.netns.rtnl.tentative(end.ifindex) for end in pair] == [[], []]
