"""Network namespaces, by the word of iproute2 and /proc."""

import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import threading
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from pytest_isolation import ClosedError, KernelError, NetNamespace, inside
from pytest_isolation._state import mounts
from pytest_isolation._state.spawner import spawner


def test_it_is_new_and_has_lo_alone(netns, ip):
    """Another namespace than pytest's; lo is up and answers."""
    assert not os.path.samestat(os.stat(netns.path), os.stat("/proc/self/ns/net"))
    links = ip(netns, "link")
    assert [link["ifname"] for link in links] == ["lo"]
    assert "UP" in links[0]["flags"]
    assert netns.run(["readlink", "/proc/self/ns/net"]).stdout.strip() == f"net:[{netns.ns_id[1]}]"


@pytest.mark.parametrize("netns", [{"lo_up": False}], indirect=True)
def test_lo_may_stay_down(netns, ip):
    """As the kernel makes it; up, its state is UNKNOWN."""
    (link,) = ip(netns, "link")
    assert link["operstate"] == "DOWN"
    assert "UP" not in link["flags"]
    assert netns.link("lo").operstate == "DOWN"
    result = netns.ping("127.0.0.1", timeout=0.5)
    assert not result
    assert "unreachable" in str(result).lower()
    netns.run(["ip", "link", "set", "lo", "up"])
    assert netns.link("lo").operstate == "UNKNOWN"
    assert netns.ping("127.0.0.1")


def test_it_ends_with_its_last_reference(nothing_left):
    """Nothing of it is left: links, descriptors, processes."""
    with nothing_left():
        with NetNamespace() as ns:
            ns.run(["ip", "link", "add", "type", "veth"])
        assert ns.closed


def test_a_path_for_other_programs(netns):
    """`path` and `enter_command` lead nsenter(1) into it."""
    expected = f"net:[{netns.ns_id[1]}]\n"
    ask = ["readlink", "/proc/self/ns/net"]
    assert subprocess.check_output(["nsenter", f"--net={netns.path}", *ask], text=True) == expected
    assert subprocess.check_output([*netns.enter_command.split(), *ask], text=True) == expected
    assert os.path.samestat(os.stat(netns.path), os.fstat(netns.fileno()))


def test_links_are_as_iproute2_shows_them(isolation, ip):
    """Names, numbers, flags, state, MTU, hardware address, kind, alias."""
    pair = isolation.veth_pair(mtu=1400, mac=("02:00:00:00:00:0a", None))
    netns = pair.a.netns
    netns.run(["ip", "link", "set", "eth0", "alias", "my cable"])
    shown = {link["ifname"]: link for link in ip(netns, "link")}
    links = {link.ifname: link for link in netns.links()}
    assert shown.keys() == links.keys() == {"lo", "eth0"}
    for name, link in links.items():
        assert link.ifindex == shown[name]["ifindex"]
        assert link.mtu == shown[name]["mtu"]
        assert link.operstate == shown[name]["operstate"]
        assert link.mac == shown[name]["address"]
        assert link.kind == shown[name].get("linkinfo", {}).get("info_kind", "")
        assert {"UP", "LOWER_UP"} <= link.flags
        assert link.flags - {"RUNNING"} == set(shown[name]["flags"])
    assert (links["eth0"].alias, links["eth0"].mtu, links["eth0"].mac) == ("my cable", 1400, "02:00:00:00:00:0a")
    assert links["eth0"].carrier
    assert links["eth0"].peer_ifindex == pair.b.ifindex == shown["eth0"]["link_index"]
    assert links["eth0"].link_netnsid == shown["eth0"]["link_netnsid"]
    assert netns.link("eth0") == links["eth0"] or netns.link("eth0").ifindex == links["eth0"].ifindex


def test_a_link_that_is_not_there(netns):
    """ENODEV, with the names of those that are."""
    with pytest.raises(KernelError, match=r"RTM_GETLINK\('eth7'\).*ENODEV.*are: lo") as caught:
        netns.link("eth7")
    assert caught.value.errno == errno.ENODEV


def test_addresses_are_as_iproute2_shows_them(veth_pair, ip):
    """With prefix, scope and link; all of them, or those of one link."""
    netns = veth_pair.a.netns
    shown = {
        (link["ifname"], f"{info['local']}/{info['prefixlen']}", info["scope"])
        for link in ip(netns, "address")
        for info in link["addr_info"]
    }
    found = {(one.ifname, str(one.interface), one.scope) for one in netns.addresses()}
    assert found == shown
    assert ("lo", "127.0.0.1/8", "host") in found
    assert ("eth0", "10.0.0.1/24", "global") in found
    assert {one.ifname for one in netns.addresses("eth0")} == {"eth0"}
    assert not any(one.tentative for one in netns.addresses())
    assert ip_interface("fd00::1/64") in [one.interface for one in netns.addresses("eth0")]


def test_routes_are_as_iproute2_shows_them(veth_pair, ip):
    """Destination, gateway, link, of the main table and of all."""
    netns = veth_pair.a.netns
    netns.add_route("default", via="10.0.0.2")
    netns.add_route("default", via="fd00::2")
    netns.add_route("192.0.2.0/24", ifname="eth0")
    shown = {
        (route["dst"].replace("default", "0.0.0.0/0"), route.get("gateway"), route["dev"])
        for route in ip(netns, "route")
    } | {
        (route["dst"].replace("default", "::/0"), route.get("gateway"), route["dev"])
        for route in ip(netns, "-6", "route")
    }
    found = {(str(one.destination), str(one.gateway) if one.gateway else None, one.ifname) for one in netns.routes()}
    assert found == {(ip_network(dst).with_prefixlen, gateway, dev) for dst, gateway, dev in shown}
    assert ("0.0.0.0/0", "10.0.0.2", "eth0") in found
    assert ("192.0.2.0/24", None, "eth0") in found
    local = {str(one.destination) for one in netns.routes(255)}
    assert "10.0.0.1/32" in local
    assert set(netns.routes(None)) >= set(netns.routes()) | set(netns.routes(255))


def test_neighbours_are_as_iproute2_shows_them(veth_pair, ip):
    """After a ping the peer's hardware address is known."""
    host, guest = veth_pair
    assert host.ping(guest)
    found = {str(one.address): one for one in host.netns.neighbours()}
    assert found["10.0.0.2"].mac == guest.mac
    assert found["10.0.0.2"].ifname == "eth0"
    assert found["10.0.0.2"].state in {"REACHABLE", "STALE", "DELAY", "PROBE"}
    assert {one["dst"]: one.get("lladdr") for one in ip(host.netns, "neigh")}["10.0.0.2"] == guest.mac


@pytest.mark.parametrize(
    "arguments, error, fragment",
    [
        (("nonsense",), ValueError, "nonsense"),
        (("192.0.2.1/24",), ValueError, "host bits"),
        (("default", "nonsense"), ValueError, "nonsense"),
        (("default", "203.0.113.1"), KernelError, "ENETUNREACH"),
        (("192.0.2.0/24", None, "eth7"), KernelError, "ENODEV"),
        (("10.0.0.0/24", None, "eth0"), KernelError, "EEXIST"),
    ],
)
def test_a_route_that_cannot_be(veth_pair, arguments, error, fragment):
    """Nothing was added."""
    netns = veth_pair.a.netns
    before = netns.run(["ip", "route"]).stdout
    with pytest.raises(error, match=fragment):
        netns.add_route(*arguments)
    assert netns.run(["ip", "route"]).stdout == before


# -- sysctls


def test_sysctls_are_its_own(netns):
    """Read, written, and read back by a process inside; the machine's stay."""
    outside = Path("/proc/sys/net/ipv4/ip_forward").read_text()
    netns.sysctl["net.ipv4.ip_forward"] = 1
    assert netns.sysctl["net.ipv4.ip_forward"] == "1"
    assert netns.run(["cat", "/proc/sys/net/ipv4/ip_forward"]).stdout == "1\n"
    netns.sysctl["net/ipv4/ip_forward"] = False
    assert netns.run(["cat", "/proc/sys/net/ipv4/ip_forward"]).stdout == "0\n"
    netns.sysctl["net.ipv4.ip_local_port_range"] = "10000 10010"
    assert netns.sysctl["net.ipv4.ip_local_port_range"].split() == ["10000", "10010"]
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == outside
    assert "net.ipv4.ip_forward" in netns.sysctl
    assert "net.ipv4.no_such_thing" not in netns.sysctl
    assert "net.ipv4.conf.lo.forwarding" in list(netns.sysctl)


@pytest.mark.parametrize(
    "name, value, error, fragment",
    [
        ("kernel.hostname", "x", ValueError, r'only those named "net'),
        ("net", 1, ValueError, "net.something"),
        ("net.ipv4...kernel.hostname", "x", ValueError, "net.something"),
        ("net/../kernel/hostname", "x", ValueError, "net.something"),
        ("net.ipv4.\0", "x", ValueError, "net.something"),
        (7, "x", ValueError, "net.something"),
        ("net.ipv4.no_such_thing", 1, KernelError, "ENOENT.*no such sysctl"),
        ("net.ipv4.ip_forward", "nonsense", KernelError, "EINVAL.*write 'nonsense'|write 'nonsense'.*EINVAL"),
    ],
)
def test_a_sysctl_that_cannot_be(netns, name, value, error, fragment):
    """Nothing outside of net.* is ever touched."""
    before = Path("/proc/sys/kernel/hostname").read_text()
    with pytest.raises(error, match=fragment):
        netns.sysctl[name] = value
    if value != "nonsense":
        with pytest.raises(error):
            netns.sysctl[name]
    assert Path("/proc/sys/kernel/hostname").read_text() == before


def test_a_sysctl_cannot_be_deleted(netns):
    """It is no dictionary's entry."""
    with pytest.raises(TypeError, match="cannot be deleted"):
        del netns.sysctl["net.ipv4.ip_forward"]


# -- /sys


def test_children_see_its_own_sys(veth_pair):
    """/sys/class/net shows the links of the namespace, as with `ip netns exec`; the rest of /sys stays."""
    outside = os.listdir("/sys/class/net")
    host = veth_pair.a
    assert sorted(host.run(["ls", "/sys/class/net"]).stdout.split()) == ["eth0", "lo"]
    assert sorted(host.call_in_child(lambda: os.listdir("/sys/class/net"))) == ["eth0", "lo"]
    assert host.run(["cat", "/sys/class/net/eth0/address"]).stdout.strip() == host.mac
    assert os.listdir("/sys/class/net") == outside
    assert sorted(host.run(["ls", "/sys/fs/cgroup"]).stdout.split()) == sorted(os.listdir("/sys/fs/cgroup"))


def test_mounts_of_a_child_stay_inside(netns, tmp_path):
    """The view has mounts of its own: what a command mounts, pytest does not see."""
    netns.run(["mount", "-t", "tmpfs", "none", tmp_path])
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_mounts_of_pytest_are_seen_by_later_children(netns, tmp_path):
    """What is mounted outside after the first command is there for the second, where the tree is shared."""
    netns.run(["true"])
    (tmp_path / "file").write_text("from outside")
    assert netns.run(["cat", tmp_path / "file"]).stdout == "from outside"


# -- ping


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", ip_address("127.0.0.1"), ip_address("::1"), "127.9.9.9"])
def test_ping_lo(netns, address):
    """IPv4 and IPv6, as text or as addresses."""
    result = netns.ping(address)
    assert result
    assert (result.sent, result.received, result.loss, result.reason) == (1, 1, 0.0, "")
    assert len(result.rtts_s) == 1
    assert 0 < result.rtts_s[0] < 1
    assert str(address) in str(result)


def test_ping_takes_ends_and_namespaces(veth_pair):
    """An end, a namespace, or either with the family asked for."""
    host, guest = veth_pair
    assert host.ping(guest).target == host.ping(guest.netns).target == "10.0.0.2"
    assert host.ping(guest, family=6).target == host.ping(guest.netns, family=6).target == "fd00::2"
    assert guest.ping(host.ipv6_link_local)


def count_icmp(netns, field):
    header, values = (line.split()[1:] for line in netns.run(["grep", "^Icmp:", "/proc/net/snmp"]).stdout.splitlines())
    return int(dict(zip(header, values, strict=True))[field])


def test_ping_sends_what_was_asked(veth_pair):
    """The kernel of the other side counts the requests; the size is on the wire, fragments and all."""
    host, guest = veth_pair
    assert host.ping(guest, count=7).received == 7
    assert count_icmp(guest.netns, "InEchos") == 7
    assert count_icmp(guest.netns, "OutEchoReps") == 7
    before = guest.counters().rx_bytes
    assert host.ping(guest, size=1000)
    assert guest.counters().rx_bytes - before >= 1000 + 8 + 20
    for size in (0, 1, 1472, 1473, 65507):
        assert host.ping(guest, size=size), size
        assert host.ping(guest, size=size, family=6), size


def test_ping_that_is_not_answered_says_so(veth_pair):
    """Falsy, with the reason: nobody there, no route, a refusal, or the deadline."""
    host, guest = veth_pair
    nobody = host.ping("192.0.2.1")
    assert not nobody
    assert "ENETUNREACH" in nobody.reason
    guest.netns.sysctl["net.ipv4.icmp_echo_ignore_all"] = 1
    silent = host.ping(guest, count=3, timeout=0.3)
    assert (silent.sent, silent.received, silent.loss) == (3, 0, 1.0)
    assert silent.reason.startswith("no answer within")
    assert "0 of 3 came back" in str(silent)
    assert "no answer" in repr(silent)


def test_ping_a_gateway_that_refuses(isolation):
    """An ICMP error of a router is the reason."""
    pair = isolation.veth_pair()
    host, router = pair
    host.netns.add_route("default", via=router.ipv4)
    router.netns.sysctl["net.ipv4.ip_forward"] = 1
    result = host.ping("192.0.2.1")
    assert not result
    assert "Unreachable" in result.reason


def test_ping_counts_what_is_lost(veth_pair):
    """Some came back: true, with the loss and the reason for the rest."""
    host, guest = veth_pair
    guest.netns.sysctl["net.ipv4.icmp_ratelimit"] = 0
    guest.netns.run(["ip", "addr", "add", "10.0.0.3/24", "dev", "eth0"])
    assert host.ping("10.0.0.3", count=5).received == 5


@pytest.mark.parametrize(
    "target, options, error, fragment",
    [
        ("nowhere", {}, ValueError, "'nowhere' is no IP address; names are not resolved"),
        ("", {}, ValueError, "no IP address"),
        ("10.0.0.300", {}, ValueError, "no IP address"),
        ("10.0.0.1/24", {}, ValueError, "no IP address"),
        (None, {}, TypeError, "allowed are an address, an end of a link, or a netns"),
        (7, {}, TypeError, "allowed are"),
        ("127.0.0.1", {"count": 0}, ValueError, "count=0"),
        ("127.0.0.1", {"count": 65536}, ValueError, "count=65536"),
        ("127.0.0.1", {"size": -1}, ValueError, "size=-1"),
        ("127.0.0.1", {"size": 65508}, ValueError, "size=65508"),
        ("127.0.0.1", {"timeout": 0}, ValueError, "timeout=0"),
        ("127.0.0.1", {"timeout": -1}, ValueError, "timeout=-1"),
        ("127.0.0.1", {"family": 5}, ValueError, "family=5"),
        ("127.0.0.1", {"family": 6}, ValueError, "IPv6"),
        ("fe80::1%eth7", {}, KernelError, "ENODEV"),
    ],
)
def test_a_ping_that_cannot_be(netns, nothing_left, target, options, error, fragment):
    """Refused before anything is sent."""
    with nothing_left(), pytest.raises(error, match=fragment):
        netns.ping(target, **options)


def test_ping_a_namespace_without_addresses(isolation, netns):
    """There is nothing to ping but lo, which is another's."""
    with pytest.raises(ValueError, match="has no address to ping"):
        netns.ping(isolation.netns())


# -- sockets


def test_sockets_are_born_inside_and_used_anywhere(veth_pair):
    """A listener in one namespace and a client in the other, both in pytest's own process."""
    host, guest = veth_pair
    with guest.netns.listen(80) as server, host.netns.connect((guest, 80)) as client:
        peer, address = server.accept()
        with peer:
            assert address[0] == "10.0.0.1"
            client.sendall(b"hello")
            assert peer.recv(5) == b"hello"
            table = guest.run(["cat", "/proc/net/tcp"]).stdout
            assert "0200000A:0050" in table


def test_listen_on_ipv6_and_a_free_port(veth_pair):
    """Port 0 is any; the host may be an IPv6 address, and the connection's target too."""
    host, guest = veth_pair
    with guest.netns.listen(host="::") as server:
        port = server.getsockname()[1]
        assert port > 0
        host.netns.connect((guest.ipv6, port)).close()
        host.netns.connect((f"{guest.ipv6_link_local.partition('%')[0]}%eth0", port)).close()


def test_a_socket_of_any_kind(netns):
    """Raw and packet sockets as well; a connection to a port where nobody listens is refused."""
    netns.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()
    with netns.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind(("lo", 0))
    with pytest.raises(ConnectionRefusedError):
        netns.connect(("127.0.0.1", 80))
    with pytest.raises(KernelError, match=r"socket\(\d+, .*E(AFNOSUPPORT|PROTONOSUPPORT|SOCKTNOSUPPORT|INVAL)"):
        netns.socket(socket.AF_INET, socket.SOCK_SEQPACKET)


def test_a_connection_that_nobody_answers(veth_pair):
    """TimeoutError after the time given."""
    host, guest = veth_pair
    host.run(["ip", "neigh", "add", "10.0.0.9", "lladdr", guest.mac, "dev", "eth0"])
    with pytest.raises(TimeoutError):
        host.netns.connect(("10.0.0.9", 80), timeout=0.1)


@pytest.mark.parametrize("host", ["nowhere", "10.0.0.300", ""])
def test_connect_resolves_no_names(netns, nothing_left, host):
    """Names belong to the outer world's resolver."""
    with nothing_left(), pytest.raises(ValueError, match=r"IPv4|address"):
        netns.connect((host, 80))


def test_two_listeners_on_one_port(netns, nothing_left):
    """The second is refused, and closed."""
    with netns.listen(80), nothing_left(), pytest.raises(OSError, match="in use"):
        netns.listen(80)


def test_sockets_in_asyncio(veth_pair):
    """An event loop serves and calls across the namespaces without entering any."""
    host, guest = veth_pair

    async def echo(reader, writer):
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def main():
        server = await asyncio.start_server(echo, sock=guest.netns.listen(7))
        async with server:
            reader, writer = await asyncio.open_connection(sock=host.netns.connect((guest, 7)))
            writer.write(b"over the cable\n")
            line = await reader.readline()
            writer.close()
            await writer.wait_closed()
            return line

    assert asyncio.run(main()) == b"over the cable\n"


# -- publish


def test_publish_gives_it_a_name(isolation, nothing_left):
    """`ip netns exec` finds it; closing takes the name away."""
    isolation.netns().run(["true"])
    name = f"test-{os.urandom(8).hex()}"
    with nothing_left():
        with NetNamespace() as ns:
            path = ns.publish(name)
            assert path == Path("/run/netns", name)
            shown = subprocess.check_output(["ip", "netns", "exec", name, "readlink", "/proc/self/ns/net"], text=True)
            assert shown == f"net:[{ns.ns_id[1]}]\n"
            with pytest.raises(FileExistsError):
                ns.publish(name)
            assert path.exists()
        assert not path.exists()


def test_a_name_that_is_taken_stays(isolation):
    """Somebody else's published namespace is not touched."""
    path = Path("/run/netns", f"test-{os.urandom(8).hex()}")
    made = not path.parent.exists()
    path.parent.mkdir(exist_ok=True)
    path.write_text("taken")
    try:
        ns = isolation.netns()
        with pytest.raises(FileExistsError):
            ns.publish(path.name)
        ns.close()
        assert path.read_text() == "taken"
    finally:
        path.unlink()
        if made:
            with contextlib.suppress(OSError):  # somebody else's name is in there by now
                path.parent.rmdir()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "/abs", "a\0b", "x" * 256, "ü" * 128, None, 7])
def test_a_name_that_cannot_be_published(netns, nothing_left, name):
    """Refused with what is allowed; no file was made."""
    with nothing_left(), pytest.raises(ValueError, match=r"name=.*allowed are 1 to 255 bytes"):
        netns.publish(name)


# -- ipr


def test_ipr_is_pyroute2_in_this_namespace(veth_pair, ip):
    """Whatever else it can do, it does here."""
    netns = veth_pair.a.netns
    assert {link.get("ifname") for link in netns.ipr.get_links()} == {"lo", "eth0"}
    index = netns.ipr.link_lookup(ifname="eth0")[0]
    netns.ipr.link("set", index=index, mtu=1300)
    assert {link["ifname"]: link["mtu"] for link in ip(netns, "link")}["eth0"] == 1300
    assert netns.ipr is netns.ipr


def test_ipr_keeps_to_its_thread(netns):
    """On another thread it would talk to that thread's own namespace."""
    handle = netns.ipr
    errors = []

    def use(what):
        try:
            what()
        except RuntimeError as error:
            errors.append(str(error))

    for what in (lambda: netns.ipr, lambda: handle.get_links()):  # noqa: PLW0108 - the look-up as well
        thread = threading.Thread(target=use, args=(what,))
        thread.start()
        thread.join()
    assert len(errors) == 2
    assert all("belongs to thread" in error for error in errors)


def test_a_method_of_ipr_taken_along_keeps_to_its_thread_too(netns):
    """`links = netns.ipr.get_links`, called on another thread."""
    method = netns.ipr.get_links
    errors = []

    def use():
        try:
            list(method())
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert errors
    assert "belongs to thread" in errors[0]


def test_ipr_and_an_event_loop(netns):
    """Refused, whether it is made there or brought along."""
    handle = netns.ipr

    async def main():
        with pytest.raises(RuntimeError, match="event loop"):
            handle.get_links()
        with pytest.raises(RuntimeError, match="event loop"):
            netns.ipr  # noqa: B018 - asking is what is refused

    asyncio.run(main())


def test_ipr_and_a_fork(netns):
    """A forked child would share its socket."""
    handle = netns.ipr

    def work():
        with pytest.raises(RuntimeError, match="belongs to process"):
            handle.get_links()

    netns.call_in_child(work)
    assert [link.get("ifname") for link in handle.get_links()] == ["lo"]


def test_ipr_of_a_closed_namespace(isolation, nothing_left):
    """Closed with it, descriptors, threads and all."""
    isolation.netns().ipr.close()
    with nothing_left():
        with NetNamespace() as ns:
            ns.ipr.get_links()
            threads = threading.active_count()
        with pytest.raises(ClosedError):
            ns.ipr  # noqa: B018 - asking is what is refused
    assert threading.active_count() <= threads


# -- outer, user, forks


def test_the_outer_namespace(isolation, nothing_left):
    """Pytest's own, with the same verbs; closing it takes nothing away."""
    with nothing_left(), NetNamespace(outer=True) as outer:
        assert outer.ns_id[1] == os.stat("/proc/self/ns/net").st_ino
        assert {link.ifname for link in outer.links()} == set(os.listdir("/sys/class/net")) - {"bonding_masters"}
        assert outer.run(["readlink", "/proc/self/ns/net"]).stdout == os.readlink("/proc/self/ns/net") + "\n"


def test_closing_the_outer_namespace_spares_what_it_did_not_start(isolation):
    """A process of the run that merely lives there as well goes on."""
    other = isolation.uts_namespace()
    with other.popen(["sleep", 1000]) as process, NetNamespace(outer=True) as outer:
        outer.run(["true"])
        outer.close()
        assert process.poll() is None


def test_one_that_a_user_namespace_owns(isolation, ip):
    """All of it works without being root outside of that user namespace."""
    user = isolation.user_namespace()
    netns = isolation.netns(user=user)
    assert [link["ifname"] for link in ip(netns, "link")] == ["lo"]
    assert netns.ping("127.0.0.1")
    assert netns.ping("::1")
    netns.sysctl["net.ipv4.ip_forward"] = 1
    assert netns.run(["cat", "/proc/sys/net/ipv4/ip_forward"]).stdout == "1\n"
    assert netns.run(["stat", "-Lc", "%i", "/proc/self/ns/user"]).stdout == f"{user.ns_id[1]}\n"
    with netns.listen(80), netns.connect(("127.0.0.1", 80)):
        pass
    assert sorted(netns.run(["ls", "/sys/class/net"]).stdout.split()) == ["lo"]


def test_outer_and_user_do_not_go_together(isolation, nothing_left):
    """Nobody can own the machine's."""
    user = isolation.user_namespace()
    with nothing_left(), pytest.raises(ValueError, match="outer=True"):
        NetNamespace(outer=True, user=user)


def test_links_of_a_pool_forked_meanwhile_do_not_hold_it(isolation):
    """A forked child lets go of our descriptors: the namespace ends when we close it."""
    pair = isolation.veth_pair(netns=(isolation.netns(), None))
    stays = pair.a.netns
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(tell, b"!")
            signal.pause()
        finally:
            os._exit(0)
    try:
        assert os.read(ready, 1) == b"!"
        held = [os.stat(f"/proc/{pid}/fd/{fd}").st_ino for fd in os.listdir(f"/proc/{pid}/fd")]
        assert pair.b.netns.ns_id[1] not in held
        assert stays.ns_id[1] not in held
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(tell)


def test_inside_has_the_same_view(isolation, netns):
    """A combination shows /sys of its network namespace as well."""
    combined = inside(netns, isolation.uts_namespace())
    assert combined.run(["ls", "/sys/class/net"]).stdout == "lo\n"


def test_json_of_iproute2_runs_inside_a_pair(veth_pair):
    """Two namespaces, two lists of links."""
    first, second = (json.loads(end.run(["ip", "-j", "link", "show", "eth0"]).stdout)[0] for end in veth_pair)
    assert first["address"] != second["address"]


def test_a_published_name_is_for_the_whole_machine_where_the_run_has_mounts_of_its_own(netns):
    """`ip netns exec` finds it from the machine's mounts and from the run's; closed, it is gone from both."""
    mounts.enter()
    name = f"isolation-{os.getpid()}"
    path = netns.publish(name)
    machine = f"--mount=/proc/{os.getpid()}/fd/{spawner().mounts_of_machine}"
    for entering in ([], ["nsenter", machine]):
        command = [*entering, "ip", "netns", "exec", name, "readlink", "/proc/self/ns/net"]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert shown == f"net:[{netns.ns_id[1]}]\n"
    netns.close()
    assert not path.exists()
    assert (
        name
        not in subprocess.run(["nsenter", machine, "ip", "netns"], capture_output=True, text=True, check=True).stdout
    )
