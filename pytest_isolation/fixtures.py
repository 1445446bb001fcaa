"""The catalogue of fixtures: builders of every scope, and for each kind its default. All of them need Linux.

Each default takes indirect parametrisation with the builder method's arguments:
`@pytest.mark.parametrize("netns", [{"lo_up": False}], indirect=True)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from pytest_isolation._plugin import scopes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_isolation.objects.cgroup import Cgroup
    from pytest_isolation.objects.cgroup_ns import CgroupNamespace
    from pytest_isolation.objects.chroot import ChrootRoot
    from pytest_isolation.objects.ipc import IpcNamespace
    from pytest_isolation.objects.iptables import Iptables
    from pytest_isolation.objects.isolation import Isolation
    from pytest_isolation.objects.mount import MountNamespace
    from pytest_isolation.objects.netns import NetNamespace
    from pytest_isolation.objects.nftables import Nftables
    from pytest_isolation.objects.overlay import OverlayFs
    from pytest_isolation.objects.pid import PidNamespace
    from pytest_isolation.objects.time_ns import TimeNamespace
    from pytest_isolation.objects.user import UserNamespace
    from pytest_isolation.objects.uts import UtsNamespace
    from pytest_isolation.objects.veth import VethPair


def _builder() -> Iterator[Isolation]:
    from pytest_isolation.objects import _process
    from pytest_isolation.objects.isolation import Isolation

    _process.current_scope = scopes.current
    with Isolation() as builder:
        yield builder


@pytest.fixture
def isolation() -> Iterator[Isolation]:
    """The builder of this test: one method per kind of kernel object, all closed when the test ends, last first.

    Depends on nothing; each method says what it needs.

        def test_two_hosts(isolation):
            server, client = isolation.veth_pair()
            assert client.ping(server)
    """
    yield from _builder()


@pytest.fixture(scope="class")
def class_isolation() -> Iterator[Isolation]:
    """A builder whose objects live as long as the test class; what a test starts on them ends with that test."""
    yield from _builder()


@pytest.fixture(scope="module")
def module_isolation() -> Iterator[Isolation]:
    """A builder whose objects live as long as the module; what a test starts on them ends with that test."""
    yield from _builder()


@pytest.fixture(scope="package")
def package_isolation() -> Iterator[Isolation]:
    """A builder whose objects live as long as the package; what a test starts on them ends with that test."""
    from pytest_isolation.objects import _process
    from pytest_isolation.objects.isolation import Isolation

    _process.current_scope = scopes.current
    builders = scopes.PackageBuilders(Isolation)
    scopes.package_builders.append(builders)
    yield cast("Isolation", builders)
    scopes.package_builders.remove(builders)
    builders.leave(None)


@pytest.fixture(scope="session")
def session_isolation() -> Iterator[Isolation]:
    """A builder whose objects live as long as the session; what a test starts on them ends with that test."""
    yield from _builder()


def _options(request: pytest.FixtureRequest) -> dict[str, Any]:
    options = getattr(request, "param", {})
    if not isinstance(options, dict):
        message = (
            f"fixture {request.fixturename!r} takes a dict of {request.fixturename}() arguments as its parameter, "
            f"not {options!r}"
        )
        raise pytest.UsageError(message)
    return options


@pytest.fixture
def netns(isolation: Isolation, request: pytest.FixtureRequest) -> NetNamespace:
    """A network namespace with lo up: `isolation.netns()`. Needs CAP_SYS_ADMIN.

    def test_alone(netns):
        assert [link.ifname for link in netns.links()] == ["lo"]
    """
    return isolation.netns(**_options(request))


@pytest.fixture
def veth_pair(isolation: Isolation, request: pytest.FixtureRequest) -> VethPair:
    """Two network namespaces with a cable between them, ready for the first packet: `isolation.veth_pair()`.

    Needs CAP_SYS_ADMIN.

        def test_ping(veth_pair):
            host, guest = veth_pair
            assert host.ping(guest)
    """
    return isolation.veth_pair(**_options(request))


@pytest.fixture
def pid_namespace(isolation: Isolation, request: pytest.FixtureRequest) -> PidNamespace:
    """A pid namespace with its own /proc and a reaping init: `isolation.pid_namespace()`. Needs CAP_SYS_ADMIN.

    def test_alone(pid_namespace):
        assert len(pid_namespace.processes()) == 1
    """
    return isolation.pid_namespace(**_options(request))


@pytest.fixture
def mount_namespace(isolation: Isolation, request: pytest.FixtureRequest) -> MountNamespace:
    """A private copy of the mounts: `isolation.mount_namespace()`. Needs CAP_SYS_ADMIN.

    def test_tmpfs(mount_namespace):
        mount_namespace.tmpfs("/mnt")
        assert "tmpfs" in mount_namespace.run(["df", "/mnt"]).stdout
    """
    return isolation.mount_namespace(**_options(request))


@pytest.fixture
def uts_namespace(isolation: Isolation, request: pytest.FixtureRequest) -> UtsNamespace:
    r"""A host name of one's own: `isolation.uts_namespace()`. Needs CAP_SYS_ADMIN.

    def test_name(uts_namespace):
        uts_namespace.hostname = "happy.life.com"
        assert uts_namespace.run(["hostname"]).stdout == "happy.life.com\n"
    """
    return isolation.uts_namespace(**_options(request))


@pytest.fixture
def ipc_namespace(isolation: Isolation, request: pytest.FixtureRequest) -> IpcNamespace:
    """System V and POSIX IPC objects of one's own: `isolation.ipc_namespace()`. Needs CAP_SYS_ADMIN.

    def test_segment(ipc_namespace):
        ipc_namespace.run(["ipcmk", "-M", "100"])
        assert len(ipc_namespace.segments()) == 1
    """
    return isolation.ipc_namespace(**_options(request))


@pytest.fixture
def user_namespace(isolation: Isolation, request: pytest.FixtureRequest) -> UserNamespace:
    r"""Root inside, the caller outside: `isolation.user_namespace()`. Needs no privilege on most kernels.

    def test_root_inside(user_namespace):
        assert user_namespace.run(["id", "-u"]).stdout == "0\n"
    """
    return isolation.user_namespace(**_options(request))


@pytest.fixture
def cgroup_namespace(isolation: Isolation, request: pytest.FixtureRequest) -> CgroupNamespace:
    r"""The run's cgroup seen as the root: `isolation.cgroup_namespace()`. Needs CAP_SYS_ADMIN.

    def test_root(cgroup_namespace):
        assert "0::/\n" in cgroup_namespace.run(["cat", "/proc/self/cgroup"]).stdout
    """
    return isolation.cgroup_namespace(**_options(request))


@pytest.fixture
def cgroup_cpu(isolation: Isolation, request: pytest.FixtureRequest) -> Cgroup:
    """A cgroup with the controller cpu: `isolation.cgroup()`. Needs writable cgroup file systems.

    Several `cgroup_*` fixtures of one test are one and the same cgroup, with the controllers of all of them.

        def test_shares_70_30(cgroup_cpu):
            heavy, light = cgroup_cpu.child(shares=700), cgroup_cpu.child(shares=300)
            assert cpu_shares(heavy, light) == approx((0.7, 0.3), abs=0.05)
    """
    return isolation._cgroup_view("cpu", _options(request))


@pytest.fixture
def cgroup_memory(isolation: Isolation, request: pytest.FixtureRequest) -> Cgroup:
    """A cgroup with the controller memory, see `cgroup_cpu`: `isolation.cgroup(controllers=["memory"])`.

    @pytest.mark.parametrize("cgroup_memory", [{"memory_max": "32M"}], indirect=True)
    def test_out_of_memory(cgroup_memory):
        cgroup_memory.run(["tail", "/dev/zero"], check=False)
        assert cgroup_memory.wait_event("oom_kill") == 1
    """
    return isolation._cgroup_view("memory", _options(request))


@pytest.fixture
def cgroup_pids(isolation: Isolation, request: pytest.FixtureRequest) -> Cgroup:
    """A cgroup with the controller pids, see `cgroup_cpu`: `isolation.cgroup(controllers=["pids"])`.

    def test_no_fork(cgroup_pids):
        cgroup_pids.pids_max = 1
        assert "fork" in cgroup_pids.run("true; /bin/true | true", shell=True, check=False).stderr
    """
    return isolation._cgroup_view("pids", _options(request))


@pytest.fixture
def cgroup_cpuset(isolation: Isolation, request: pytest.FixtureRequest) -> Cgroup:
    """A cgroup with the controller cpuset, see `cgroup_cpu`: `isolation.cgroup(controllers=["cpuset"])`.

    def test_one_cpu(cgroup_cpuset):
        cgroup_cpuset.cpus = cgroup_cpuset.cpus[:1]
        assert cgroup_cpuset.run(["nproc"]).stdout.strip() == "1"
    """
    return isolation._cgroup_view("cpuset", _options(request))


@pytest.fixture
def cgroup_freezer(isolation: Isolation, request: pytest.FixtureRequest) -> Cgroup:
    """A cgroup that can be frozen, see `cgroup_cpu`: `isolation.cgroup(controllers=["freezer"])`.

    def test_frozen(cgroup_freezer):
        with cgroup_freezer.popen(["yes"]):
            cgroup_freezer.freeze()
            assert cgroup_freezer.frozen
    """
    return isolation._cgroup_view("freezer", _options(request))


@pytest.fixture
def cgroup_io(isolation: Isolation, request: pytest.FixtureRequest) -> Cgroup:
    """A cgroup with the controller io (v1: blkio), see `cgroup_cpu`: `isolation.cgroup(controllers=["io"])`.

    def test_written(cgroup_io, tmp_path):
        cgroup_io.set_io_max(tmp_path, write_bps=10**12)
        cgroup_io.run(["dd", "if=/dev/zero", f"of={tmp_path}/file", "bs=64k", "count=1", "oflag=direct"])
        assert cgroup_io.usage().written_bytes >= 65536
    """
    return isolation._cgroup_view("io", _options(request))


@pytest.fixture
def time_namespace(isolation: Isolation, request: pytest.FixtureRequest) -> TimeNamespace:
    """Clocks with an offset, which indirect parametrisation gives: `isolation.time_namespace()`. Needs CAP_SYS_ADMIN.

    @pytest.mark.parametrize("time_namespace", [{"boottime_s": 86400}], indirect=True)
    def test_uptime(time_namespace):
        assert float(time_namespace.run(["cat", "/proc/uptime"]).stdout.split()[0]) > 86400
    """
    return isolation.time_namespace(**_options(request))


@pytest.fixture
def chroot_root(isolation: Isolation, request: pytest.FixtureRequest) -> ChrootRoot:
    r"""An empty root to be filled: `isolation.chroot_root()`. Needs CAP_SYS_CHROOT.

    def test_pwd(chroot_root):
        chroot_root.add("/bin/bash")
        assert chroot_root.run(["/bin/bash", "-c", "pwd"]).stdout == "/\n"
    """
    return isolation.chroot_root(**_options(request))


@pytest.fixture
def overlay_fs(isolation: Isolation, request: pytest.FixtureRequest) -> OverlayFs:
    """A writable overlay over a layer with a file `a`: `isolation.overlay_fs()`. Needs CAP_SYS_ADMIN.

    def test_delete(overlay_fs):
        (overlay_fs.merged / "a").unlink()
        assert is_whiteout(overlay_fs.upper / "a")
    """
    return isolation.overlay_fs(**_options(request))


@pytest.fixture
def iptables(isolation: Isolation, netns: NetNamespace, request: pytest.FixtureRequest) -> Iptables:
    """The iptables rules of the test's `netns`: `isolation.iptables(netns)`. Needs CAP_NET_ADMIN and iptables.

    def test_dropped(netns, iptables):
        iptables.append("INPUT", "-p icmp -j DROP")
        assert not netns.ping("127.0.0.1")
        assert iptables.rules("filter", "INPUT")[0].packets == 1
    """
    options: dict[str, Any] = {"netns": netns} | _options(request)
    return isolation.iptables(**options)


@pytest.fixture
def nftables(isolation: Isolation, netns: NetNamespace, request: pytest.FixtureRequest) -> Nftables:
    """The nftables ruleset of the test's `netns`: `isolation.nftables(netns)`. Needs CAP_NET_ADMIN and nftables.

    def test_dropped(netns, nftables):
        nftables.new_table("filter")
        nftables.new_chain("input", hook="input")
        nftables.append("input", "icmp type echo-request counter drop")
        assert not netns.ping("127.0.0.1")
        assert nftables.rules("filter", "input")[0].packets == 1
    """
    options: dict[str, Any] = {"netns": netns} | _options(request)
    return isolation.nftables(**options)
