"""The contenders that the floor is compared to: each one a process of its own, driven line by line by run.py.

`workers.py NAME` answers the same requests as floor.c, `JOB` and `cycles N JOB`, each with one line:
`ok SETUP_US TEARDOWN_US` or `error WHY`. Its first line is `ready VERSION JOB...`, or `missing WHY` if what it needs is
not there. It ends when its stdin does. The public methods of a class below are its jobs.

This file needs nothing but the standard library to start: mininet lives in the system's own Python.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import inspect
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

now = time.perf_counter

IFA_F_NODAD = 0x02
ECHO_RESENT_AFTER_S = 0.05
ECHO_GIVEN_UP_AFTER_S = 5.0
FIRST_PACKET_DEADLINE_S = 0.5


def sample(start: float, ready: float, gone: float | None = None) -> tuple[float, float]:
    """What happened from `start` to `ready` is setup, what happened from there to `gone` is teardown."""
    return (ready - start) * 1e6, ((gone or ready) - ready) * 1e6


def noop() -> None:
    """What is called inside."""


def ten_rules(rule: str) -> list[str]:
    """A rule for each of ten ports."""
    return [rule % port for port in range(1000, 1010)]


RULES_NFT = "\n".join(
    [
        "table inet filter {\n  chain input { type filter hook input priority 0; policy accept;",
        *ten_rules("    tcp dport %d accept"),
        "  }\n}\n",
    ]
)
RULES_IPTABLES = "\n".join(["*filter", *ten_rules("-A INPUT -p tcp --dport %d -j ACCEPT"), "COMMIT\n"])


class Missing(Exception):  # noqa: N818 - not an error: the row says so
    """What this contender needs is not installed."""


class Worker:
    """A contender: its public methods are jobs, what `stack` holds goes when the process ends."""

    version = "-"

    def __init__(self) -> None:
        self.stack = contextlib.ExitStack()

    @classmethod
    def jobs(cls) -> list[str]:
        """The names of the jobs that this contender does."""
        methods = inspect.getmembers(cls, inspect.isfunction)
        return [
            name for name, method in methods if method.__qualname__.startswith(f"{cls.__name__}.") and name[0] != "_"
        ]


class Bare(Worker):
    """`subprocess.run` as everybody writes it, and no namespace at all."""

    version = f"Python-{sys.version.split()[0]}"

    def run(self) -> tuple[float, float]:
        """Run `true`."""
        t0 = now()
        subprocess.run(["true"], capture_output=True, text=True, check=True)
        return sample(t0, now())


class Project(Worker):
    """This project, from this checkout."""

    def __init__(self) -> None:
        super().__init__()
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
        try:
            import pytest_isolation
            from pytest_isolation import NetNamespace, VethPair  # noqa: F401
        except ImportError as error:
            raise Missing(f"`import pytest_isolation` failed: {error}") from error
        self._api: Any = pytest_isolation
        self.version = "pytest-isolation-checkout"
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            self.version = f"pytest-isolation-{importlib.metadata.version('pytest-isolation')}"
        self._room = self.stack.enter_context(NetNamespace())
        self._waiting: Any = None

    def _made_and_closed(self, make: Any, **arguments: Any) -> tuple[float, float]:
        t0 = now()
        made = make(**arguments)
        t1 = now()
        made.close()
        return sample(t0, t1, now())

    def netns(self) -> tuple[float, float]:
        """A network namespace, lo up."""
        return self._made_and_closed(self._api.NetNamespace)

    def _veth(self, families: tuple[int, ...], **arguments: Any) -> tuple[float, float]:
        t0 = now()
        pair = self._api.VethPair(**arguments)
        host, guest = pair
        answers = [host.ping(guest, family=family, timeout=1.0) for family in families]
        t1 = now()
        pair.close()
        t2 = now()
        for answer in answers:
            if not answer:
                raise RuntimeError(f"the first echo was lost: {answer}")
        return sample(t0, t1, t2)

    def veth4(self) -> tuple[float, float]:
        """A pair with IPv4 addresses, until the first echo."""
        return self._veth((4,), ipv6=(None, None))

    def veth6(self) -> tuple[float, float]:
        """A pair with IPv6 addresses, until the first echo."""
        return self._veth((6,), ipv4=(None, None))

    def veth46(self) -> tuple[float, float]:
        """A pair as the fixture makes it, until the first echo of each family."""
        return self._veth((4, 6))

    def _first_packet(self, family: int) -> tuple[float, float]:
        """A fresh pair as the fixture makes it; 1 if the first packet was lost, where others give microseconds."""
        with self._api.VethPair() as pair:
            host, guest = pair
            return float(not host.ping(guest, family=family, timeout=FIRST_PACKET_DEADLINE_S)), 0.0

    def first_packet4(self) -> tuple[float, float]:
        """Lost over IPv4?"""
        return self._first_packet(4)

    def first_packet6(self) -> tuple[float, float]:
        """Lost over IPv6?"""
        return self._first_packet(6)

    def pidns_init(self) -> tuple[float, float]:
        """A pid namespace with its own /proc and an init."""
        return self._made_and_closed(self._api.PidNamespace)

    def pidns_proc(self) -> tuple[float, float]:
        """The same, and one command run in it."""
        t0 = now()
        pidns = self._api.PidNamespace()
        pidns.run(["true"])
        t1 = now()
        pidns.close()
        return sample(t0, t1, now())

    def uts(self) -> tuple[float, float]:
        """A uts namespace."""
        return self._made_and_closed(self._api.UtsNamespace)

    def ipc(self) -> tuple[float, float]:
        """An ipc namespace."""
        return self._made_and_closed(self._api.IpcNamespace)

    def mount(self) -> tuple[float, float]:
        """A mount namespace."""
        return self._made_and_closed(self._api.MountNamespace)

    def cgroup(self) -> tuple[float, float]:
        """A cgroup namespace."""
        return self._made_and_closed(self._api.CgroupNamespace)

    def overlay(self) -> tuple[float, float]:
        """A writable overlay over one layer."""
        return self._made_and_closed(self._api.OverlayFs)

    def user(self) -> tuple[float, float]:
        """A user namespace with its maps."""
        return self._made_and_closed(self._api.UserNamespace)

    def _firewall(self, make: Any, ruleset: str, **arguments: Any) -> tuple[float, float]:
        builder = self._api.Isolation()
        netns = builder.netns()
        t0 = now()
        getattr(builder, make)(netns, **arguments).apply(ruleset)
        t1 = now()
        builder.close()
        return sample(t0, t1, now())

    def firewall(self) -> tuple[float, float]:
        """Ten rules by libnftables, in a netns that is there; both go at the end of the test."""
        return self._firewall("nftables", RULES_NFT)

    def firewall_iptables(self) -> tuple[float, float]:
        """Ten rules by iptables-restore."""
        return self._firewall("iptables", RULES_IPTABLES)

    def cgroup_cpu(self) -> tuple[float, float]:
        """On a machine that was quiet: a cgroup with shares, and one command born in it."""
        time.sleep(0.1)
        t0 = now()
        group = self._api.Cgroup(shares=700)
        group.run(["true"], capture_output=False)
        t1 = now()
        group.close()
        return sample(t0, t1, now())

    def cgroup_attach(self) -> tuple[float, float]:
        """The same with a process that runs already, moved in by its pid, and back."""
        if self._waiting is None:
            self._waiting = subprocess.Popen(["sleep", "infinity"])
            self.stack.callback(self._waiting.wait)
            self.stack.callback(self._waiting.kill)
        time.sleep(0.1)
        t0 = now()
        group = self._api.Cgroup(shares=700)
        group.attach(self._waiting.pid)
        t1 = now()
        group.close()
        return sample(t0, t1, now())

    def run(self) -> tuple[float, float]:
        """Run `true` in a netns."""
        t0 = now()
        self._room.run(["true"])
        return sample(t0, now())

    def call(self) -> tuple[float, float]:
        """Call a function in a netns, in place."""
        t0 = now()
        self._room.call(noop)
        return sample(t0, now())


class Pyroute2(Worker):
    """pyroute2 as its documentation uses it: named namespaces, one request after the other."""

    def __init__(self) -> None:
        super().__init__()
        try:
            import pyroute2
        except ImportError as error:
            raise Missing("pyroute2 is not installed") from error
        self.version = f"pyroute2-{importlib.metadata.version('pyroute2')}"
        self._api: Any = pyroute2
        self.stack.callback(pyroute2.NetNS("room").remove)

    def netns(self) -> tuple[float, float]:
        """`NetNS`, lo up."""
        t0 = now()
        ns = self._api.NetNS("one")
        ns.link("set", index=1, state="up")
        t1 = now()
        ns.remove()
        return sample(t0, t1, now())

    def _veth(self, family: int) -> tuple[float, float]:
        t0 = now()
        host, guest = self._api.NetNS("host"), self._api.NetNS("guest")
        host.link("add", ifname="eth0", kind="veth", peer={"ifname": "eth0", "net_ns_fd": "guest"})
        for ns in host, guest:
            ns.link("set", index=1, state="up")
            ns.link("set", index=ns.link_lookup(ifname="eth0")[0], state="up")
        for ns, last in (host, 1), (guest, 2):
            index = ns.link_lookup(ifname="eth0")[0]
            if family == socket.AF_INET:
                ns.addr("add", index=index, address=f"10.0.0.{last}", prefixlen=24)
            else:
                ns.addr("add", index=index, address=f"fd00::{last}", prefixlen=64, flags=IFA_F_NODAD)
        self._api.netns.pushns("host")
        try:
            await_echo(family, "10.0.0.2" if family == socket.AF_INET else "fd00::2")
        finally:
            self._api.netns.popns()
        t1 = now()
        host.remove()
        guest.remove()
        return sample(t0, t1, now())

    def veth4(self) -> tuple[float, float]:
        """Two `NetNS` and a pair between them, until the first IPv4 echo."""
        return self._veth(socket.AF_INET)

    def veth6(self) -> tuple[float, float]:
        """The same over IPv6."""
        return self._veth(socket.AF_INET6)

    def run(self) -> tuple[float, float]:
        """Run `true` by NSPopen."""
        t0 = now()
        process = self._api.NSPopen("room", ["true"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.communicate()
        t1 = now()
        process.release()
        return sample(t0, t1, now())

    def call(self) -> tuple[float, float]:
        """Call a function between pushns and popns."""
        t0 = now()
        self._api.netns.pushns("room")
        noop()
        self._api.netns.popns()
        return sample(t0, now())


def await_echo(family: int, address: str) -> None:
    """Send an ICMP echo from this thread's netns, again and again, until one is answered."""
    v4 = family == socket.AF_INET
    protocol, request, reply = (socket.IPPROTO_ICMP, 8, 0) if v4 else (socket.IPPROTO_ICMPV6, 128, 129)
    echo = struct.pack("!BBHHH", request, 0, 0xFFFF - 0x0800 - 0x0001, 1, 0)  # the kernel sums an ICMPv6 one itself
    with socket.socket(family, socket.SOCK_RAW, protocol) as raw:
        raw.settimeout(ECHO_RESENT_AFTER_S)
        deadline = now() + ECHO_GIVEN_UP_AFTER_S
        while now() < deadline:
            with contextlib.suppress(OSError):
                raw.sendto(echo, (address, 0))
                while raw.recv(512)[20 if v4 else 0] != reply:
                    pass
                return
    raise RuntimeError(f"no echo from {address}")


class Programs(Worker):
    """`ip`, `unshare` and `nsenter`, as a shell script calls them."""

    def __init__(self) -> None:
        super().__init__()
        absent = [p for p in ("ip", "unshare", "nsenter") if shutil.which(p) is None]
        if absent:
            raise Missing(f"not installed: {', '.join(absent)}")
        said = subprocess.run(["ip", "-V"], capture_output=True, text=True, check=True).stdout
        self.version = next((word.strip(",") for word in said.split() if word.startswith("iproute2")), "iproute2")
        self._null = os.open(os.devnull, os.O_RDWR)
        self._do("ip netns add room")
        self.stack.callback(self._do, "ip netns del room")

    def _do(self, *commands: str) -> None:
        """Run each command as cheaply as Python can: a vfork, no pipes."""
        quiet = [(os.POSIX_SPAWN_DUP2, self._null, fd) for fd in (0, 1, 2)]
        for command in commands:
            words = command.split()
            _, status = os.waitpid(os.posix_spawnp(words[0], words, os.environ, file_actions=quiet), 0)
            if status:
                raise RuntimeError(f"`{command}` failed")

    def _script(self, setup: tuple[str, ...], teardown: tuple[str, ...] = ()) -> tuple[float, float]:
        t0 = now()
        self._do(*setup)
        t1 = now()
        self._do(*teardown)
        return sample(t0, t1, now())

    def netns(self) -> tuple[float, float]:
        """`ip netns add`, lo up."""
        return self._script(("ip netns add one", "ip -n one link set lo up"), ("ip netns del one",))

    def _veth(self, host: str, guest: str, nodad: str, ping: str) -> tuple[float, float]:
        if shutil.which("ping") is None:
            raise Missing("ping is not installed")
        ends = ("host", host), ("guest", guest)
        return self._script(
            (
                "ip netns add host",
                "ip netns add guest",
                "ip -n host link add eth0 type veth peer name eth0 netns guest",
                *(f"ip -n {ns} link set {link} up" for ns, _ in ends for link in ("lo", "eth0")),
                *(f"ip -n {ns} addr add {address} dev eth0{nodad}" for ns, address in ends),
                f"ip netns exec host ping {ping} {guest.partition('/')[0]}",
            ),
            ("ip netns del host", "ip netns del guest"),
        )

    def veth4(self) -> tuple[float, float]:
        """The pair created in place, until ping is answered."""
        return self._veth("10.0.0.1/24", "10.0.0.2/24", "", "-q -c1 -W5")

    def veth6(self) -> tuple[float, float]:
        """The same over IPv6."""
        return self._veth("fd00::1/64", "fd00::2/64", " nodad", "-6 -q -c1 -W5")

    def pidns_proc(self) -> tuple[float, float]:
        """`unshare --pid`, with its own /proc."""
        return self._script(("unshare --pid --fork --mount-proc true",))

    def uts(self) -> tuple[float, float]:
        """`unshare --uts`."""
        return self._script(("unshare --uts true",))

    def ipc(self) -> tuple[float, float]:
        """`unshare --ipc`."""
        return self._script(("unshare --ipc true",))

    def mount(self) -> tuple[float, float]:
        """`unshare --mount`."""
        return self._script(("unshare --mount true",))

    def cgroup(self) -> tuple[float, float]:
        """`unshare --cgroup`."""
        return self._script(("unshare --cgroup true",))

    def user(self) -> tuple[float, float]:
        """`unshare --user`."""
        return self._script(("unshare --user --map-root-user true",))

    def _firewall(self, *commands: str, ruleset: str = "") -> tuple[float, float]:
        for command in commands:
            if shutil.which(command.split()[0]) is None:
                raise Missing(f"{command.split()[0]} is not installed")
        self._do("ip netns add fire")
        try:
            with tempfile.NamedTemporaryFile("w") as file:
                file.write(ruleset)
                file.flush()
                enter = "nsenter --net=/run/netns/fire"
                t0 = now()
                self._do(*(f"{enter} {command.replace('RULESET', file.name)}" for command in commands))
                t1 = now()
        finally:
            self._do("ip netns del fire")
        return sample(t0, t1, now())

    def firewall_nft(self) -> tuple[float, float]:
        """`nft -f`."""
        return self._firewall("nft -f RULESET", ruleset=RULES_NFT)

    def firewall_restore(self) -> tuple[float, float]:
        """`iptables-restore`."""
        return self._firewall("iptables-restore RULESET", ruleset=RULES_IPTABLES)

    def firewall_ten_times(self) -> tuple[float, float]:
        """`iptables`, once for each rule."""
        return self._firewall(*ten_rules("iptables -A INPUT -p tcp --dport %d -j ACCEPT"))

    def _run(self, *argv: str) -> tuple[float, float]:
        t0 = now()
        subprocess.run([*argv, "true"], capture_output=True, text=True, check=True)
        return sample(t0, now())

    def run_nsenter(self) -> tuple[float, float]:
        """Run `true` in a netns by nsenter, from Python."""
        return self._run("nsenter", "--net=/run/netns/room")

    def run_ip(self) -> tuple[float, float]:
        """Run `true` in a netns by `ip netns exec`, from Python."""
        return self._run("ip", "netns", "exec", "room")


class Mininet(Worker):
    """Debian's mininet: two hosts without a switch."""

    def __init__(self) -> None:
        super().__init__()
        try:
            from mininet import log, net, node
        except ImportError as error:
            raise Missing("mininet is not installed") from error
        if shutil.which("mnexec") is None:
            raise Missing("mininet is not installed: no mnexec")
        log.setLogLevel("error")
        net.Mininet.inited = True  # or it would raise limits and sysctls of the whole machine
        self.version = f"mininet-{net.VERSION}"
        self._net, self._node = net, node
        self._room = node.Host("room")
        self.stack.callback(self._room.terminate)

    def netns(self) -> tuple[float, float]:
        """A host: a netns with a shell in it."""
        t0 = now()
        host = self._node.Host("one")
        t1 = now()
        host.terminate()
        return sample(t0, t1, now())

    def veth4(self) -> tuple[float, float]:
        """Two hosts and a link, until ping is answered."""
        if shutil.which("ping") is None:
            raise Missing("ping is not installed")
        t0 = now()
        network = self._net.Mininet(controller=None)
        try:
            hosts = [network.addHost(f"h{last}", ip=f"10.0.0.{last}/24") for last in (1, 2)]
            network.addLink(*hosts)
            network.start()
            said = hosts[0].cmd("ping -q -c1 -W5 10.0.0.2")
            t1 = now()
        finally:
            network.stop()
        t2 = now()
        if " 0% packet loss" not in said:
            raise RuntimeError(f"ping said {said.strip()!r}")
        return sample(t0, t1, t2)

    def run(self) -> tuple[float, float]:
        """Run `true` by the host's shell."""
        t0 = now()
        self._room.cmd("/bin/true")
        return sample(t0, now())


WORKERS: dict[str, type[Worker]] = {
    "bare": Bare,
    "project": Project,
    "pyroute2": Pyroute2,
    "programs": Programs,
    "mininet": Mininet,
}


def answer(worker: Worker, line: str) -> str:
    """Do what one request asks for."""
    *cycles, job = line.split()
    do_once = getattr(worker, job)
    try:
        samples = [do_once() for _ in range(int(cycles[1]) if cycles else 1)]
    except Exception as error:  # noqa: BLE001 - whatever it is, it belongs into the table
        return f"error {type(error).__name__}: {' '.join(str(error).split())}"
    return f"ok {sum(setup for setup, _ in samples):.2f} {sum(teardown for _, teardown in samples):.2f}"


def main() -> None:
    """Serve until stdin ends; nothing but answers is written where the answers go."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        worker = WORKERS[sys.argv[1]]()
    except Missing as why:
        print("missing", why, file=answers)
        return
    with worker.stack:
        print("ready", worker.version, *worker.jobs(), file=answers)
        for line in sys.stdin:
            print(answer(worker, line), file=answers)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # the driver is gone
        main()
