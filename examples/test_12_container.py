"""Chapter 12: a container by hand.

The kernel knows no containers. It knows the things of the chapters before: roots, namespaces, cgroups, layers, links,
firewall rules. A container is a process that lives in one of each, and an engine is the program that makes them in the
right order. Here is that program, in some thirty lines, without an engine:

    client ---- host ---- container          the client asks 10.2.0.1:8080, a server in the container answers
    10.2.0.2    10.2.0.1
                10.1.0.1  10.1.0.2:80

The host is a network namespace as well, so that the machine's own firewall is not touched.
"""

import os
import sys
import sysconfig
from types import SimpleNamespace

import pytest

from pytest_isolation import inside

PYTHON = os.path.realpath(sys._base_executable)  # the one outside any virtual environment
LIBRARY = sysconfig.get_path("stdlib")
SERVER = [PYTHON, "-ISB", "-u", "-m", "http.server", "80", "--directory", "/srv"]
MEMORY_MAX, PIDS_MAX = 256 << 20, 20
FIRST_ID = 100_000  # who is root inside is this one outside


@pytest.fixture
def container(isolation):
    """Everything that makes a container, each a thing of its own."""
    # The root: two layers of an image, and one on top that takes what the container writes. A volume is a bind.
    system = isolation.chroot_root(PYTHON, "sh", "ls", "mount")
    site = {"srv": {"index.html": "hello from inside\n"}, "proc": {}, "tmp": {}}
    overlay = isolation.overlay_fs(site, system.path)
    (overlay.merged / "tmp").chmod(0o1777)
    root = isolation.chroot_root(path=overlay.merged, pivot=True)
    root.bind(LIBRARY, LIBRARY, readonly=True)

    # The network: a link to the host, which forwards, lends its address to what goes out, and publishes a port.
    user = isolation.user_namespace(uid_map=[(0, FIRST_ID, 65536)], gid_map=[(0, FIRST_ID, 65536)])
    net = isolation.netns(user=user)
    to_inner, inner = isolation.veth_pair(netns=(None, net), ipv4=("10.1.0.1/24", "10.1.0.2/24"), ipv6=(None, None))
    host = to_inner.netns
    _, client = isolation.veth_pair(
        netns=(host, None), ifnames=("eth1", "eth0"), ipv4=("10.2.0.1/24", "10.2.0.2/24"), ipv6=(None, None)
    )
    net.add_route("default", via="10.1.0.1")
    host.sysctl["net.ipv4.ip_forward"] = 1
    firewall = isolation.iptables(host)
    firewall.masquerade("eth1", source="10.1.0.0/24")
    firewall.dnat(8080, (inner, 80))

    # The other namespaces and the limits. /proc is mounted by a process in the new pid namespace, of which it tells.
    pid, uts = isolation.pid_namespace(), isolation.uts_namespace(user=user)
    ipc, cgroup_namespace = isolation.ipc_namespace(user=user), isolation.cgroup_namespace(user=user)
    inside(root, pid).run(["mount", "-t", "proc", "proc", "/proc"])
    cgroup = isolation.cgroup(controllers=("memory", "pids"), memory_max=MEMORY_MAX, pids_max=PIDS_MAX)
    world = inside(root, user, net, pid, uts, ipc, cgroup_namespace, cgroup)
    return SimpleNamespace(world=world, overlay=overlay, pid=pid, cgroup=cgroup, firewall=firewall, client=client)


def get(client, path="/"):
    """What a browser does."""
    with client.connect(("10.2.0.1", 8080)) as sock, sock.makefile("rb") as answer:
        sock.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        return answer.read().decode()


def test_a_server_is_reached_through_the_published_port(container):
    """The client speaks to the host, the server inside answers, and neither has to know of the other."""
    with container.world.popen(SERVER, ready="port:80") as server:
        answer = get(container.client)
        server.wait_for("GET / HTTP")
        assert server.log.startswith("10.2.0.2 - ") or "\n10.2.0.2 - " in server.log  # who asked, as it is
    assert answer.startswith("HTTP/1.0 200 OK")
    assert answer.endswith("hello from inside\n")
    packets = {rule.chain: rule.packets for rule in container.firewall.rules("nat")}
    assert packets == {"PREROUTING": 1, "POSTROUTING": 0}  # one connection was let in, none out


def test_it_goes_out_under_the_address_of_its_host(container):
    """The client knows no way to 10.1.0.2, and needs none: whoever asks it is 10.2.0.1."""
    ask = "import socket; print(socket.create_connection(('10.2.0.2', 81), 10).recv(100).decode())"
    with (
        container.client.listen(81) as listening,
        container.world.popen([PYTHON, "-ISBc", ask], may_exit=True) as asking,
    ):
        listening.settimeout(10)
        peer, address = listening.accept()
        with peer:
            peer.sendall(b"welcome")
        assert asking.wait(10) == 0
    assert (address[0], asking.log) == ("10.2.0.1", "welcome\n")


def test_it_lives_in_one_of_each(container):
    """Not one of its namespaces is pytest's; what it sees of processes and files is its own."""
    names = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"]
    script = f"import os; print(*(os.readlink('/proc/self/ns/' + name) for name in {names}))"
    found = container.world.run([PYTHON, "-ISBc", script]).stdout.split()
    assert [link.split(":")[0] for link in found] == names
    assert not set(found) & {os.readlink(f"/proc/self/ns/{name}") for name in names}
    assert container.world.run("echo $$ /proc/[0-9]*", shell=True).stdout.split()[1] == "/proc/1"
    assert container.world.run(["ls", "/"]).stdout.split() == sorted(os.listdir(container.overlay.merged))


def test_what_it_writes_lands_in_its_own_layer(container):
    """The image stays as it is; and root inside is an ordinary user outside, who may not write where root may."""
    container.world.run("echo mine > /tmp/note", shell=True)
    note = container.overlay.upper / "tmp/note"
    assert (note.read_text(), note.stat().st_uid) == ("mine\n", FIRST_ID)
    assert not (container.overlay.lower[0] / "tmp/note").exists()
    refused = container.world.run("echo theirs > /srv/index.html", shell=True, check=False)
    assert "ermission denied" in refused.stderr


def test_its_limits_hold(container):
    """Too much memory ends the process that asks for it, and the container's server goes on."""
    swap = "memory.swappiness" if "memory.swappiness" in container.cgroup else "memory.swap.max"
    container.cgroup[swap] = 0
    with container.world.popen(SERVER, ready="port:80"):
        greedy = container.world.run([PYTHON, "-ISBc", f"bytearray({2 * MEMORY_MAX})"], check=False)
        assert greedy.returncode == -9
        assert container.cgroup.wait_event("oom_kill", timeout=10) == 1
        assert "hello from inside" in get(container.client)
    assert (container.cgroup.memory_max, container.cgroup.pids_max) == (MEMORY_MAX, PIDS_MAX)


def test_it_ends_with_its_first_process(container):
    """There is nothing to stop but pid 1: the kernel ends everything that is in its pid namespace."""
    with container.world.popen(SERVER, ready="port:80", may_exit=True) as server:
        container.pid.kill()
        assert server.wait(10) == -9


def test_the_same_in_five_lines(isolation):
    """`container` makes the same of the same objects, each of which it still is: `.overlay`, `.cgroup`, `.firewall`."""
    site, files = {"srv": {"index.html": "hello from inside\n"}}, {LIBRARY: LIBRARY}
    box = isolation.container(site, programs=[PYTHON], volumes=files, publish={8080: 80}, memory_max="256M")
    ends = {"ipv4": ("10.2.0.1/24", "10.2.0.2/24"), "ifnames": ("eth1", "eth0"), "ipv6": (None, None)}
    _, client = isolation.veth_pair(netns=(box.host, None), **ends)
    with box.popen(SERVER, ready="port:80"):
        assert get(client).endswith("hello from inside\n")
