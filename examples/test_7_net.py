"""Chapter 7: net, a network of one's own.

A network namespace has its own links, addresses, routes, firewall and ports; a new one has a loopback link that is
down, and nothing else. What connects it with another is a veth pair: a virtual cable, of which each end can be in
another namespace. That is all there is to the network of a container.
"""

import socket

import pytest

LONELY = {"ipv4": (None, None), "ipv6": (None, None), "up": (False, False)}


@pytest.mark.parametrize("netns", [{"lo_up": False}], indirect=True)
def test_a_new_one_has_only_lo_and_that_is_down(netns):
    """Not even 127.0.0.1 answers in there."""
    (lo,) = netns.links()
    assert (lo.ifname, lo.operstate) == ("lo", "DOWN")
    assert "state DOWN" in netns.run(["ip", "link"]).stdout
    assert not netns.ping("127.0.0.1")


@pytest.mark.parametrize("netns", [{"lo_up": False}], indirect=True)
def test_lo_up_has_state_unknown(netns):
    """Up, lo works, and its state is UNKNOWN: there is no wire that could be plugged in or not."""
    netns.run(["ip", "link", "set", "lo", "up"])
    assert "UP" in netns.link("lo").flags
    assert netns.link("lo").operstate == "UNKNOWN"
    assert "state UNKNOWN" in netns.run(["ip", "link"]).stdout
    assert netns.ping("127.0.0.1")


def test_ends_of_a_pair_know_each_other(isolation):
    """Both ends in one namespace: each knows the other's index, which `ip` shows as host@guest."""
    netns = isolation.netns()
    host, guest = isolation.veth_pair(ifnames=("host", "guest"), netns=(netns, netns), **LONELY)
    assert {link.ifname for link in netns.links()} == {"lo", "host", "guest"}
    assert host.peer_ifindex == guest.ifindex
    assert guest.peer_ifindex == host.ifindex
    assert host.peer_netnsid is None
    assert "host@guest" in netns.run(["ip", "link"]).stdout


def test_an_end_moved_is_gone_here_and_shows_a_netnsid(isolation):
    """Move one end: it leaves the first list for the second, and the end that stays tells where its peer went."""
    first, second = isolation.netns(), isolation.netns()
    host, guest = isolation.veth_pair(ifnames=("host", "guest"), netns=(first, first), **LONELY)
    guest.move_to(second)
    assert {link.ifname for link in first.links()} == {"lo", "host"}
    assert {link.ifname for link in second.links()} == {"lo", "guest"}
    assert host.peer_netnsid is not None
    assert f"link-netnsid {host.peer_netnsid}" in first.run(["ip", "link", "show", "host"]).stdout
    assert (host.peer_ifindex, guest.peer_ifindex) == (guest.ifindex, host.ifindex)


@pytest.fixture
def plugged(isolation):
    """A cable between host and guest, each in a namespace of its own; both ends down, and without addresses."""
    return isolation.veth_pair(ifnames=("host", "guest"), **LONELY)


def test_one_end_up_alone_has_no_carrier(plugged):
    """A cable carries a signal when both ends are up, and loses it with either."""
    host, guest = plugged
    host.up()
    assert not host.carrier
    assert "NO-CARRIER" in host.run(["ip", "link", "show", "host"]).stdout
    guest.up()
    assert (host.carrier, guest.carrier) == (True, True)
    assert (host.operstate, guest.operstate) == ("UP", "UP")
    host.down()
    assert (host.carrier, guest.carrier) == (False, False)


def test_no_carrier_because_of_the_other_end_is_lowerlayerdown(isolation, netns):
    """Where the kernel sees why, because the peer is in the same namespace, it says so: the layer below is down."""
    host, guest = isolation.veth_pair(ifnames=("host", "guest"), netns=(netns, netns), **LONELY)
    assert (host.operstate, guest.operstate) == ("DOWN", "DOWN")
    host.up()
    assert (host.operstate, guest.operstate) == ("LOWERLAYERDOWN", "DOWN")
    assert "state LOWERLAYERDOWN" in netns.run(["ip", "link", "show", "host"]).stdout
    guest.up()
    assert (host.operstate, guest.operstate) == ("UP", "UP")


def test_both_sides_answer(plugged):
    """The whole job by hand: an address on each end, both up, and each answers the other's ping."""
    host, guest = plugged
    host.add_address("1.1.1.1/24")
    guest.add_address("1.1.1.2/24")
    host.up()
    guest.up()
    assert host.ping("1.1.1.2", timeout=5)
    assert guest.ping("1.1.1.1", timeout=5)


def test_one_line_does_the_same(isolation):
    """`veth_pair` does all that, and yields when the first packet gets through; ping(8) agrees."""
    host, guest = isolation.veth_pair(ipv4=("1.1.1.1/24", "1.1.1.2/24"))
    assert host.ping(guest)
    assert guest.ping(host)
    host.run(["ping", "-c", 1, guest.ipv4])  # raises when nothing came back
    assert host.counters().rx_packets >= 3


def test_ipv6_link_local(veth_pair):
    """Every link that is up has an IPv6 address that is valid on its cable only, so the link is part of the target."""
    host, guest = veth_pair
    guest_address, _, scope = guest.ipv6_link_local.partition("%")
    assert guest_address.startswith("fe80:")
    assert scope == guest.ifname
    assert host.ping(f"{guest_address}%{host.ifname}")
    host_address = host.ipv6_link_local.partition("%")[0]
    assert guest.ping(f"{host_address}%{guest.ifname}")


def test_a_third_sees_nothing(isolation, netns):
    """Who has no end of the cable has no way there: no link, no route, no answer, not even an echo of the traffic."""
    host, guest = isolation.veth_pair(ipv4=("1.1.1.1/24", "1.1.1.2/24"))
    listening = netns.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))  # ETH_P_ALL: every packet
    with listening:
        assert host.ping(guest, count=10)
        with pytest.raises(BlockingIOError):
            listening.recv(1, socket.MSG_DONTWAIT)
    assert [link.ifname for link in netns.links()] == ["lo"]
    refused = netns.ping(guest)
    assert not refused
    assert "ENETUNREACH" in refused.reason
