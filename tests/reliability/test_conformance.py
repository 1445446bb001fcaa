"""What is true of every kind of kernel object, by the table of kinds."""

import contextlib
import errno
import gc
import inspect
import mmap
import os
import re
import shutil
import signal
import socket
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import pytest

from pytest_isolation import (
    ClosedError,
    Iptables,
    Isolation,
    KernelError,
    MountNamespace,
    NetNamespace,
    Nftables,
    PidNamespace,
    UserNamespace,
    VethPair,
)
from pytest_isolation._kernel import cgroupfs, nfnetlink, nftables, procfs, rtnetlink, syscalls
from pytest_isolation._state import fds, keeper_client, ledger, mounts
from pytest_isolation._state.keeper_client import keeper, start_run
from pytest_isolation._state.run import run
from pytest_isolation.objects.kinds import KINDS

PATIENCE_S = 3.0
EVERY_KIND = pytest.mark.parametrize("kind", [kind.make for kind in KINDS], ids=lambda make: make.kind)
#: Kinds that nothing can live in: what else of theirs refuses once they are closed.
WITHOUT_VERBS = {
    "overlay_fs": lambda one: one.changes(),
    "union_fs": lambda one: one.changes(),
    "tmpfs": lambda one: one.usage(),
    "loop_device": lambda one: one.usage(),
}


def place_of(one):
    """What commands run in: of a pair its first end, of a firewall its network namespace."""
    return one.a if isinstance(one, VethPair) else one.netns if isinstance(one, (Iptables, Nftables)) else one


def uses_of(one):
    """Ways to use an object, each of which has to be refused when it is closed."""
    if one.kind in WITHOUT_VERBS:
        return [lambda: WITHOUT_VERBS[one.kind](one)]
    if isinstance(one, (Iptables, Nftables)):
        listing = "-L" if isinstance(one, Iptables) else "list ruleset"
        return [lambda: one.netns, lambda: one.run(listing), one.rules, one.flush, lambda: one.apply("")]
    place = place_of(one)
    return [
        lambda: place.run(["true"]),
        lambda: place.popen(["true"]),
        lambda: place.call(int),
        lambda: place.call_in_child(int),
    ]


@pytest.fixture
def trace():
    """What this process holds and has on the machine: taken before and compared after."""
    start_run()
    with contextlib.suppress(KernelError):
        mounts.directory()
    with NetNamespace() as ns, PidNamespace():  # whatever is made once and stays is there: the next init, modules
        ns.call_in_child(int)
    return Trace()


class Trace:
    """Everything that an object can leave behind; each line is one thing."""

    def __init__(self):
        self.keeper = keeper().ask({"op": "hello"})[0]["pid"]
        self.before = self.look_until_quiet()

    def look_until_quiet(self):
        """The keeper may still be at work on the next pid namespace's init."""
        last = []
        while (now := self.look()) != last:
            last = now
            time.sleep(0.02)
        return now

    def look(self):
        gc.collect()
        found = [f"descriptor to {target}" for _, target in descriptors("self")]
        found += [f"keeper's descriptor to {target.partition(':[')[0]}" for _, target in descriptors(self.keeper)]
        found += ["held descriptor" for _ in fds._held]
        for pid in run().members():
            child = procfs.parent(pid) == self.keeper  # the next pid namespace's init is any number
            found.append("keeper's child" if child else "keeper" if pid == self.keeper else f"process {pid}")
        if mounts._place is not None:
            found += [f"in the run's directory {name}" for name in os.listdir(mounts._place[0])]
            found += [f"mounted in the run {mount.target}" for mount in procfs.mounts() if is_ours(mount.target)]
            found += [f"attached {file}" for file in backing_files() if is_ours(file)]
        published = f"/run/netns/conformance-{os.getpid()}"
        found += [f"mounted {mount.target}" for mount in procfs.mounts("self") if mount.target == published]
        found += [f"file {published}"] if Path(published).exists() else []
        found += [f"link {name}" for _, name in socket.if_nameindex() if name.startswith("pi") and not is_others(name)]
        found += [f"cgroup {path}" for path in our_cgroups()]
        found += [f"ledger {path}" for path in ledger.directory(run().id).glob("*")]
        found += [f"child {child}" for child in children()]
        for task in os.listdir("/proc/self/task"):
            names = ("net", "mnt", "uts", "ipc", "cgroup", "pid_for_children", "time_for_children", "user")
            found += [f"thread's {os.readlink(f'/proc/self/task/{task}/ns/{name}')}" for name in names]
            found.append(f"thread's root {os.readlink(f'/proc/self/task/{task}/root')}")
        return sorted(found)

    def left(self):
        """What is there and was not; the kernel and the keeper take some things away in the background."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            now = self.look()
            new, gone = Counter(now) - Counter(self.before), Counter(self.before) - Counter(now)
            if not (new or gone) or time.monotonic() > deadline:
                self.before = now
                return [*new.elements(), *(f"nothing of {line}" for line in gone.elements())]
            time.sleep(0.005)

    def check(self):
        """Fail unless everything is as it was."""
        assert self.left() == []


def is_ours(path):
    return path.startswith(f"{mounts._place[0]}/")


def backing_files():
    """The files that are attached to loop devices."""
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            yield path.read_text()


def is_others(ifname):
    """Is the link on the ledger of another run on this machine?"""
    ours = ledger.directory(run().id)
    for entry in ours.parent.glob("*/*"):
        with contextlib.suppress(OSError):
            if entry.parent != ours and f'"{ifname}"' in entry.read_text():
                return True
    return False


def our_cgroups():
    """Every cgroup that this run's ledger, or a test of this process, could have left."""
    homes = {one.home for one in cgroupfs.hierarchies()}
    names = [path.name for home in homes for path in Path(home).glob("pytest-isolation-*")]
    others = []
    for path in ledger.directory(run().id).parent.glob("*/*"):
        with contextlib.suppress(OSError):
            others += [path.read_text()] if run().id not in str(path) else []
    return [name for name in names if not any(name in text for text in others)]


def children():
    return [pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]


def descriptors(pid):
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            yield fd, re.sub("/task/[0-9]+", "/task/TID", os.readlink(f"/proc/{pid}/fd/{fd}"))


@EVERY_KIND
def test_closing_twice_is_closing_once(kind, trace):
    """The second close does nothing, and nothing is left after the first."""
    one = kind()
    assert not one.closed
    one.close()
    assert one.closed
    one.close()
    trace.check()


@EVERY_KIND
def test_an_exception_in_the_body_comes_through_and_closes(kind, trace):
    """`with` is lifetime: the object ends with the block, and the exception is nobody else's."""
    with pytest.raises(ZeroDivisionError), kind() as one:
        raise ZeroDivisionError
    assert one.closed
    trace.check()


@EVERY_KIND
def test_use_after_close_is_a_closed_error(kind):
    """Every verb says that the object is closed, and which object that was."""
    one = kind()
    uses = uses_of(one)
    one.close()
    for use in (*uses, one.__enter__):
        with pytest.raises(ClosedError, match=kind.kind):
            use()
    assert "closed" in repr(one)


@EVERY_KIND
def test_an_unclosed_object_warns_and_is_closed(kind, trace):
    """Losing the last reference is a ResourceWarning that names the kind, and nothing is left."""
    kept = [kind()]

    def lose():
        kept.clear()
        gc.collect()

    with pytest.warns(ResourceWarning, match=f"unclosed {kind.kind}"):
        lose()
    trace.check()


@EVERY_KIND
def test_a_closed_object_does_not_warn(kind):
    """Only what was left open is reported."""
    kind().close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gc.collect()


@EVERY_KIND
def test_with_on_a_builders_object_is_a_type_error(kind):
    """A builder's object lives as long as its builder: `with` names `inside` instead, and closes nothing."""
    with Isolation() as builder:
        one = getattr(builder, kind.kind)()
        with pytest.raises(TypeError, match="inside"), one:
            pass
        assert not one.closed
    assert one.closed


@EVERY_KIND
def test_an_object_in_a_forked_copy_refuses_and_closes_nothing(kind):
    """A fork has let go of the descriptors: use there is an error, and close there leaves the original alone."""
    with kind() as one:
        place = place_of(one)

        def in_child():
            for use in uses_of(one) if place is not one else uses_of(one)[:1]:
                with pytest.raises(ClosedError, match="fork"):
                    use()
            one.close()
            return True

        with NetNamespace() as elsewhere:
            assert elsewhere.call_in_child(in_child)
        assert not one.closed
        if kind.kind not in {"chroot_root", "container", *WITHOUT_VERBS}:
            assert place.run(["true"]).returncode == 0


# -- taken away from outside


def test_a_pid_namespace_whose_init_was_killed_closes_quietly(trace):
    """Its end from outside is proven, so close has nothing to say; use before that is a ClosedError."""
    one = PidNamespace()
    os.kill(one.init_pid, signal.SIGKILL)
    assert one.wait_init() == -signal.SIGKILL
    with pytest.raises(ClosedError, match="exited with -9"):
        one.run(["true"])
    one.close()
    trace.check()


@pytest.mark.parametrize("outer", [False, True])
def test_a_veth_pair_whose_link_was_deleted_closes_quietly(outer, trace):
    """Deleting the link from inside is as good as closing it."""
    pair = VethPair(outer=outer)
    pair.b.run(["ip", "link", "delete", pair.b.ifname])
    pair.close()
    trace.check()


def test_a_root_whose_directory_was_removed_closes_quietly(trace):
    """The directory is gone, which is what close wants."""
    from pytest_isolation import ChrootRoot

    root = ChrootRoot()
    shutil.rmtree(root.path)
    root.close()
    trace.check()


@pytest.mark.parametrize("how", ["umount", "umount and unlink"])
def test_a_netns_whose_published_name_was_taken_away_closes_quietly(how, trace):
    """`ip netns delete` from outside is as good as closing."""
    netns = NetNamespace()
    path = netns.publish(f"conformance-{os.getpid()}")
    syscalls.umount2(path)
    if "unlink" in how:
        path.unlink()
    netns.close()
    assert not path.exists()
    trace.check()


# -- every setup fails at each of its steps


class Injected:
    """Calls into the kernel, counted, in forked children as well; the `position`-th one fails with ENOMEM."""

    def __init__(self, position):
        self._position = position
        self._shared = mmap.mmap(-1, 4096)

    def step(self, words):
        """Count a call; True when it is the one to fail."""
        count = int.from_bytes(self._shared[:8], "little") + 1
        self._shared[:8] = count.to_bytes(8, "little")
        if count == self._position:
            self._shared[8 : 8 + len(words)] = words.encode()
        return count == self._position

    @property
    def call(self):
        """The call that failed, or an empty string."""
        return self._shared[8:100].rstrip(b"\0").decode()


_OS_CALLS = (
    "ftruncate",
    "open",
    "dup",
    "mkdir",
    "chmod",
    "memfd_create",
    "pidfd_open",
    "pipe2",
    "symlink",
    "mknod",
    "fork",
)


def _public(owner, of):
    """Names of the functions of a module or class that are written in the module `of`."""
    return {
        name
        for name, value in vars(owner).items()
        if inspect.isfunction(value) and value.__module__ == of and not name.startswith("_")
    }


@contextlib.contextmanager
def failing_at(position):
    """For the block: the `position`-th call of this package into the kernel, or to the keeper, fails."""
    injected = Injected(position)
    with pytest.MonkeyPatch.context() as patch:

        def wrap(owner, name, words, error):
            original = getattr(owner, name)

            def call(*args, **kwargs):
                caller = sys._getframe(1).f_globals.get("__name__", "")
                if caller.startswith("pytest_isolation") and injected.step(words):
                    raise error()
                return original(*args, **kwargs)

            patch.setattr(owner, name, call)

        for name in _public(syscalls, of=syscalls.__name__) - {"fail", "flag_names"}:
            wrap(syscalls, name, f"{name}(", lambda name=name: KernelError(errno.ENOMEM, f"{name}(injected)"))
        for name in _public(rtnetlink.Socket, of=rtnetlink.__name__) - {"close", "detach", "fileno"} | {"__init__"}:
            words = f"rtnetlink.{name}("
            wrap(rtnetlink.Socket, name, words, lambda words=words: KernelError(errno.ENOMEM, f"{words}injected)"))
        for name in _public(nfnetlink, of=nfnetlink.__name__):
            words = f"nfnetlink.{name}("
            wrap(nfnetlink, name, words, lambda words=words: KernelError(errno.ENOMEM, f"{words}injected)"))
        wrap(nftables, "run", "nft(", lambda: KernelError(errno.ENOMEM, "nft(injected)"))
        for name in ("read", "write"):
            words = f"cgroupfs.{name}("
            wrap(cgroupfs, name, words, lambda words=words: KernelError(errno.ENOMEM, f"{words}injected)"))
        words = "keeper.ask("
        wrap(keeper_client.KeeperClient, "ask", words, lambda: KernelError(errno.ENOMEM, "keeper.ask(injected)"))
        wrap(ledger.Entry, "__init__", "ledger(", lambda: OSError(errno.ENOMEM, "no memory", "ledger(injected)"))
        for name in _OS_CALLS:
            words = f"os.{name}("
            wrap(os, name, words, lambda words=words: OSError(errno.ENOMEM, "no memory", f"{words}injected)"))
        yield injected


def every_step(make, trace, after=lambda: None, limit=200):
    """Make it with a failure at call 1, 2, 3, ... until it succeeds, and check each; returns what was made."""
    findings = []
    for position in range(1, limit):
        with failing_at(position) as injected:
            try:
                made, failure = make(), None
            except Exception as error:  # noqa: BLE001 - which one it has to be is checked below
                failure = error
        if not injected.call:
            if failure is not None:
                after()
                raise failure
            assert position > 1, "no step at all"
            if findings:
                made.close()
                pytest.fail("\n".join(findings))
            return made
        where = f"step {position}, {injected.call}injected):"
        if failure is None:
            findings.append(f"{where} was not reported")
        elif getattr(failure, "errno", None) != errno.ENOMEM:
            findings.append(f"{where} was reported as {failure!r}")
        elif getattr(failure, "__notes__", []):
            findings.append(f"{where} {failure.__notes__}")
        made = failure = None
        after()
        findings += [f"{where} left {line}" for line in trace.left()]
    pytest.fail(f"more than {limit} steps")


@EVERY_KIND
def test_a_setup_that_fails_at_any_step_leaves_nothing(kind, trace):
    """ENOMEM at the first call into the kernel, at the second, ...: raised, and everything before it undone."""
    with every_step(kind, trace) as one:
        place = place_of(one)
        if kind.kind not in {"chroot_root", "container", *WITHOUT_VERBS}:
            assert place.run(["true"]).returncode == 0
    trace.check()


VARIANTS = {
    "veth_pair-outer": lambda builder: builder.veth_pair(outer=True),
    "veth_pair-given": lambda builder: builder.veth_pair(netns=(builder.space, None)),
    "pid_namespace-init": lambda builder: builder.pid_namespace(init=["sleep", "1000"]),
    "mount_namespace-copy": lambda builder: builder.mount_namespace(copy_of=builder.mounts),
    "uts_namespace-named": lambda builder: builder.uts_namespace(hostname="happy", domainname="life"),
    "cgroup-limits": lambda builder: builder.cgroup(
        shares=700, quota_us=50_000, memory_max="64M", pids_max=100, cpus=0, controllers=["freezer", "io"]
    ).run(["true"]),
    "cgroup-child": lambda builder: (
        builder.cgroup(controllers=["cpu", "freezer"]).child().child(shares=5).run(["true"])
    ),
    "cgroup-freeze": lambda builder: (group := builder.cgroup(controllers=["freezer"])).freeze() or group.thaw(),
    "chroot_root-pivot": lambda builder: builder.chroot_root("/bin/true", pivot=True).run(["/bin/true"]),
    "chroot_root-bind": lambda builder: builder.chroot_root().bind(builder.source, "/bound", readonly=True),
    "overlay_fs-given": lambda builder: builder.overlay_fs({"a": ""}, builder.source / "lower", upper=builder.upper),
    "overlay_fs-readonly": lambda builder: builder.overlay_fs(readonly=True),
    "overlay_fs-changes": lambda builder: builder.overlay_fs().changes(),
    "loop_device-bare": lambda builder: builder.loop_device(fstype=None),
    "loop_device-xfs": lambda builder: builder.loop_device(fstype="xfs"),
    "iptables-given": lambda builder: builder.iptables(builder.space, variant="nft").append("INPUT", "-j DROP"),
    "iptables-legacy": lambda builder: builder.iptables(builder.space, variant="legacy").append("INPUT", "-j DROP"),
    "nftables-given": lambda builder: builder.nftables(builder.space).run("add table inet filter"),
    "nftables-program": lambda builder: builder.nftables(builder.space, variant="program").run("add table ip nat"),
    "netns-user": lambda builder: builder.netns(user=builder.user),
    "veth_pair-user": lambda builder: builder.veth_pair(user=builder.user),
    "pid_namespace-user": lambda builder: builder.pid_namespace(user=builder.user),
    "mount_namespace-user": lambda builder: builder.mount_namespace(user=builder.user),
}


class Builder:
    """Makes a variant; beside it stands what some of them need."""

    def __init__(self, space, mounts, user, source):
        self.space, self.mounts, self.user, self.source = space, mounts, user, source
        self.upper = source / "upper"
        self._builder = None

    def __getattr__(self, name):
        return getattr(self._builder, name)

    def attempt(self, variant):
        self._builder = Isolation()
        variant(self)
        return self

    def close(self):
        self._builder.close()


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_a_variant_that_fails_at_any_step_leaves_nothing(variant, tmp_path):
    """The same for what arguments add to a setup, and for what is done to an object later."""
    with NetNamespace() as space, MountNamespace() as copied, UserNamespace() as user:
        start_run()
        for one in (space, copied, user):
            one.run(["true"])
        (tmp_path / "kept").touch()
        for name in ("lower", "upper"):
            (tmp_path / name).mkdir()
        mounts.directory()
        builder = Builder(space, copied, user, tmp_path)
        builder.attempt(variant).close()
        every_step(lambda: builder.attempt(variant), Trace(), after=builder.close).close()
    assert sorted(os.listdir(tmp_path)) == ["kept", "lower", "upper"]


def test_a_publication_that_fails_at_any_step_leaves_no_name(trace):
    """After each failure the netns lives on without a name, and the same name can be published."""
    name = f"conformance-{os.getpid()}"
    with NetNamespace() as netns:
        trace = Trace()

        def publish():
            netns.publish(name)
            return netns

        every_step(publish, trace)
    assert not Path("/run/netns", name).exists()
