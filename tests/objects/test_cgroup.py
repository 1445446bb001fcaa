"""cgroups: what the kernel says of those that are born in them."""

import errno
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pytest_isolation import (
    IsolationError,
    KernelError,
    TooBusyError,
    UnknownKnobError,
    Unsupported,
    controllers,
    cpu_shares,
    eventually,
    inside,
)
from pytest_isolation._kernel import cgroupfs
from pytest_isolation._state.run import run
from pytest_isolation.objects import cgroup as cgroup_module
from pytest_isolation.objects.cgroup import CpuMax, shares_of, weight_of
from pytest_isolation.objects.cpu_shares import judge

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to write to the cgroup file systems")
BUSY = ["sh", "-c", "while :; do :; done"]


def lines_of(pid="self"):
    return Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines()


def is_in(pid, group, controller):
    """Does the kernel say that the process is in the group?"""
    name = group.path(controller).name
    kernels = {"io": "blkio"}.get(controller, controller)
    return any(
        line.endswith(f"/{name}") and (kernels in line.split(":")[1].split(",") or line.startswith("0::"))
        for line in lines_of(pid)
    )


ALL = ("cpu", "cpuset", "freezer", "io", "memory", "pids")


@pytest.mark.parametrize("names", [*[(name,) for name in ALL], ALL], ids="-".join)
def test_a_command_is_born_inside(isolation, nothing_left, names):
    """In each controller's group, from its first instruction; pytest stays outside, the spawner thread too."""
    with nothing_left():
        group = isolation.cgroup(controllers=names)
        before = lines_of()
        with group.popen(["sleep", "1000"]) as process:
            assert all(is_in(process.pid, group, name) for name in names)
            assert process.pid in group.processes()
            assert lines_of() == before
            for task in os.listdir("/proc/self/task"):
                assert lines_of(f"self/task/{task}") == before
        places = group.run(["cat", "/proc/self/cgroup"]).stdout
        assert group.path(names[0]).name in places
        assert any(line.endswith(group.path().name) for line in group.call_in_child(lines_of))
        group.close()
        assert not any(path.exists() for path in [Path(path) for path in group._directories])


def test_no_controller_at_all(isolation):
    """A v2 cgroup below the run's own."""
    group = isolation.cgroup(controllers=())
    assert group.path().parent == run().cgroup
    assert group.run(["grep", "^0::", "/proc/self/cgroup"]).stdout.strip().endswith(group.path().name)
    assert group.controllers == ()


def test_with_other_places(isolation):
    """A group and namespaces, of a user namespace too; the order does not matter."""
    group, netns, user = isolation.cgroup(controllers=["cpu", "pids"]), isolation.netns(), isolation.user_namespace()
    world = isolation.pid_namespace()
    for places in ((netns, group), (group, user), (world, group, netns)):
        place = inside(*places)
        done = place.run("cat /proc/self/cgroup; readlink /proc/self/ns/net", shell=True).stdout
        assert done.count(group.path().name) == 3  # cpu, cpuacct, pids
        if netns in places:
            assert f"net:[{netns.ns_id[1]}]" in done


def test_pytest_never_enters(isolation):
    group = isolation.cgroup()
    with pytest.raises(TypeError, match="pytest itself never enters cgroup"), inside(group):
        pass
    with pytest.raises(TypeError, match="pytest itself never enters cgroup"):
        group.call(int)
    for pid in (os.getpid(), int(os.listdir("/proc/self/task")[-1])):
        with pytest.raises(ValueError, match="pytest itself"):
            group.attach(pid)
        with pytest.raises(ValueError, match="pytest itself"):
            group["cgroup.procs"] = pid
    with pytest.raises(ValueError, match="pytest itself"):
        group["tasks"] = 0


def test_two_cgroups_are_two_of_a_kind(isolation):
    one, other = isolation.cgroup(), isolation.cgroup()
    with pytest.raises(ValueError, match="two of a kind: cgroup"):
        inside(one, other)
    assert inside(one, one).run(["true"]).returncode == 0


# -- knobs


def test_knobs_by_their_kernel_names(isolation):
    """What is written is what the file says, and what a typed argument wrote."""
    group = isolation.cgroup(shares=700, knobs={"cpu.cfs_burst_us": 0})
    path = group.path("cpu")
    assert group["cpu.shares"] == (path / "cpu.shares").read_text().strip() == "700"
    group["cpu.shares"] = 300
    assert (path / "cpu.shares").read_text() == "300\n"
    assert "cpu.shares" in group
    assert "cpu.weight" not in group
    assert {"cpu.shares", "cpu.stat", "cpuacct.usage"} <= set(group.knobs)


def test_typed_knobs(isolation):
    group = isolation.cgroup(
        controllers=["cpu"],
        weight=100,
        quota_us=20_000,
        period_us=50_000,
        memory_max="64M",
        pids_max=7,
        cpus=0,
        mems="0",
    )
    assert set(group.controllers) == {"cpu", "cpuacct", "memory", "pids", "cpuset"}
    assert (group.shares, group.weight) == (1024, 100)
    assert group.cpu_max == CpuMax(20_000, 50_000)
    assert (group.memory_max, group.pids_max, group.cpus, group.mems) == (64 << 20, 7, (0,), (0,))
    group.set_cpu_max(None)
    group.memory_max = group.pids_max = None
    group.weight, group.cpus = 50, group.cpus
    assert (group.cpu_max, group.memory_max, group.pids_max) == (CpuMax(None, 100_000), None, None)
    assert group["cpu.shares"] == "512"


@pytest.mark.parametrize("shares, weight", [(2, 1), (1024, 100), (512, 50), (102_400, 10_000), (700, 68), (300, 29)])
def test_the_formula(shares, weight):
    """The kernel's own: a weight of 100 is 1024 shares."""
    assert weight_of(shares) == weight
    assert shares_of(weight) == pytest.approx(shares, rel=0.02, abs=9)


@pytest.mark.parametrize(
    "name, message",
    [
        ("cpu.sharez", r"no interface file 'cpu.sharez'; the nearest is 'cpu.shares'\. There are: .*cpu\.stat"),
        ("cpu.weight", "it is of cgroup v2, and here that is cpu.shares"),
        ("cpu.max", "here that is cpu.cfs_quota_us and cpu.cfs_period_us"),
        ("memory.max", "here that is memory.limit_in_bytes .*controller 'memory' is not among its own: cpu"),
    ],
)
def test_an_unknown_knob(isolation, nothing_left, name, message):
    group = isolation.cgroup()
    with pytest.raises(UnknownKnobError, match=message):
        group[name]
    with pytest.raises(KeyError):
        group[name] = 1
    with nothing_left(), pytest.raises(UnknownKnobError, match=re.escape(name)):
        isolation.cgroup(knobs={name: 1})


@pytest.mark.parametrize(
    "names, knob, value, number, allowed",
    [
        (["cpu"], "cpu.cfs_period_us", 5, errno.EINVAL, "1000 to 1000000"),
        (["cpu"], "cpu.cfs_quota_us", "some", errno.EINVAL, "1000 microseconds and more"),
        (["cpuset"], "cpuset.cpus", "99999", errno.ERANGE, "CPUs of the parent's"),
        (["pids"], "pids.max", -5, errno.EINVAL, "0 to 4194304"),
        (["memory"], "memory.limit_in_bytes", "much", errno.EINVAL, "bytes"),
        (["freezer"], "freezer.state", "COLD", errno.EINVAL, "FROZEN and THAWED"),
        (["cpu"], "cgroup.procs", "1 2", errno.EINVAL, "one pid a write"),
    ],
)
def test_a_refused_value(isolation, nothing_left, names, knob, value, number, allowed):
    """The data, the kernel's answer, and what is allowed; as an argument, nothing was created."""
    group = isolation.cgroup(controllers=names)
    with pytest.raises(KernelError, match=allowed) as refused:
        group[knob] = value
    assert refused.value.errno == number
    assert f"{knob}', {str(value)!r})" in refused.value.call
    with nothing_left(), pytest.raises(KernelError, match=allowed):
        isolation.cgroup(controllers=names, knobs={knob: value})


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"shares": 1}, ValueError, "shares=1: allowed are 2 to 262144"),
        ({"shares": 262_145}, ValueError, "shares=262145: allowed are 2 to 262144"),
        ({"shares": "700"}, TypeError, "shares='700': allowed is an int"),
        ({"weight": 0}, ValueError, "weight=0: allowed are 1 to 10000"),
        ({"shares": 2, "weight": 1}, ValueError, "give one"),
        ({"quota_us": 999}, ValueError, "quota_us=999: allowed are 1000 and more.*EINVAL"),
        ({"period_us": 999}, ValueError, "period_us=999: allowed are 1000 to 1000000.*EINVAL"),
        ({"memory_max": -1}, ValueError, "memory_max=-1: allowed are 0 and more"),
        ({"memory_max": "lots"}, ValueError, "memory_max='lots'.*'64M'"),
        ({"pids_max": 1 << 23}, ValueError, "pids_max=8388608: allowed are 0 to 4194304"),
        ({"cpus": "a"}, ValueError, "cpus='a'.*'0-2,5'"),
        ({"cpus": []}, ValueError, r"cpus=\[\]"),
        ({"mems": True}, ValueError, "mems=True"),
        ({"controllers": "cpu"}, TypeError, "controllers='cpu': allowed is a sequence"),
        ({"controllers": ["cqu"]}, ValueError, "there is no controller 'cqu'; there are .*cpu, "),
        ({"controllers": [1]}, TypeError, "1 is no name of a controller"),
        ({"knobs": ["cpu.shares"]}, TypeError, "knobs=.*allowed is a dict"),
        ({"knobs": {"../x": 1}}, TypeError, "no name of an interface file"),
        ({"knobs": {"cpu.shares": 1.5}}, TypeError, "cpu.shares=1.5: allowed is text or a number"),
    ],
)
def test_bad_arguments(isolation, nothing_left, options, error, message):
    """Refused before anything is made."""
    with nothing_left(), pytest.raises(error, match=message):
        isolation.cgroup(**options)


def test_a_controller_that_is_absent(isolation, nothing_left):
    """Nobody has mounted it: what to do is said."""
    absent = [name for name, one in controllers().items() if one.version is None]
    if not absent:
        pytest.skip("every controller is mounted here")
    with nothing_left(), pytest.raises(Unsupported, match=r"no cgroup file system that serves it.*Remedy: mount it"):
        isolation.cgroup(controllers=[absent[0]])


def test_a_controller_that_is_not_delegated(isolation, nothing_left, monkeypatch):
    """In v2 the cgroup above has to hand it on."""
    tree = cgroupfs.Hierarchy(2, ("cpu", "memory"), "/cg", "/cg/job", ("cpu",))
    monkeypatch.setattr(cgroup_module, "_known_hierarchies", lambda: (tree,))
    with (
        nothing_left(),
        pytest.raises(Unsupported, match=r"subtree_control does not list it: it lists cpu\..*echo \+memory"),
    ):
        isolation.cgroup(controllers=["memory"])


def test_what_needs_another_controller_says_so(isolation):
    group = isolation.cgroup()
    for use in (lambda: group.memory_max, group.freeze, lambda: group.pids_max, lambda: group.wait_event("oom_kill")):
        with pytest.raises(ValueError, match=r"needs the controller '\w+'.*has cpu, cpuacct: name it in controllers="):
            use()
    with pytest.raises(ValueError, match="has no controller 'memory'; it has cpu"):
        group.path("memory")
    with pytest.raises(ValueError, match=r"wait_event\('no'\): allowed are oom_kill"):
        group.wait_event("no")


# -- children


def test_children_to_any_depth(isolation, nothing_left):
    """Closed leaf first with the uppermost, after everything in them has been ended."""
    with nothing_left():
        group = isolation.cgroup(controllers=["cpu", "memory"])
        deepest = group
        processes = []
        for depth in range(5):
            deepest = deepest.child(shares=100 + depth)
            assert deepest.path("memory").parent == deepest.parent.path("memory")
            processes.append(deepest.popen(["sleep", "1000"]))
        assert deepest["cpu.shares"] == "104"
        assert group.children[0].children == (group.children[0].children[0],)
        paths = [path for one in (group, deepest) for path in one.paths.values()]
        group.close()
        assert deepest.closed
        assert not any(path.exists() for path in paths)
        assert all(process.poll() is not None for process in processes)


def test_a_child_closed_before(isolation):
    group = isolation.cgroup()
    child, other = group.child(), group.child()
    child.close()
    assert group.children == (other,)
    with group.child() as third:
        assert third.path().exists()
    assert group.children == (other,)


def test_a_child_has_no_controller_that_its_parent_has_not(isolation, nothing_left):
    group = isolation.cgroup()
    with nothing_left(), pytest.raises(ValueError, match="has no controller memory, so its children have none"):
        group.child(memory_max=1 << 30)


def test_a_child_with_some_of_the_controllers(isolation):
    """In the others its processes are where the parent's are."""
    group = isolation.cgroup(controllers=["cpu", "pids"])
    child = group.child(controllers=["pids"])
    with child.popen(["sleep", "1000"]) as process:
        assert is_in(process.pid, child, "pids")
        assert is_in(process.pid, group, "cpu")
        assert group.path("pids") in child.path("pids").parents


def test_groups_that_others_made_below_go_too(isolation, nothing_left):
    """By hand, or by a program inside: with what runs in them."""
    with nothing_left():
        group = isolation.cgroup()
        below = group.path() / "one/two"
        below.mkdir(parents=True)
        stray = subprocess.Popen(["setsid", "sleep", "1000"])
        (below / "cgroup.procs").write_text(str(stray.pid))
        group.close()
        assert stray.wait() == -signal.SIGKILL
        assert not below.exists()


# -- processes


def test_strays_are_ended(isolation, gone):
    """Double fork, a session of their own, no environment: they are in the group, and go with it."""
    group = isolation.cgroup()
    pid = int(group.run("setsid env -i sleep 1000 >/dev/null 2>&1 & echo $!", shell=True).stdout)
    group.close()
    assert gone(pid)


def test_attach_and_back(isolation):
    """A running process comes in with all its threads, and goes back where it was when the group is closed."""
    process = subprocess.Popen(["sleep", "1000"])
    try:
        before = lines_of(process.pid)
        group = isolation.cgroup(controllers=["cpu", "memory"])
        group.attach(process.pid)
        assert is_in(process.pid, group, "cpu")
        assert is_in(process.pid, group, "memory")
        assert group.processes() == (process.pid,)
        group.close()
        assert lines_of(process.pid) == before
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("pid", [0, -1, True, "12", 1.5], ids=repr)
def test_attach_something_else(isolation, pid):
    with pytest.raises(ValueError, match="allowed is the pid of a process"):
        isolation.cgroup().attach(pid)


def test_attach_nobody(isolation):
    process = subprocess.Popen(["true"])
    process.wait()
    with pytest.raises(KernelError, match="ESRCH"):
        isolation.cgroup().attach(process.pid)


# -- memory, pids


def test_an_oom_kill_is_awaited(isolation):
    """By the kernel's word, also when it happened before; each call waits for one that no earlier one returned for."""
    group = isolation.cgroup(memory_max="16M", knobs={"memory.swappiness": 0})
    assert group.events().oom_kill == 0
    with pytest.raises(TimeoutError, match=r"no oom_kill within 0.05 s.*oom_kill=0"):
        group.wait_event("oom_kill", timeout=0.05)
    with group.popen(["tail", "/dev/zero"], may_exit=True) as process:
        assert group.wait_event("oom_kill", timeout=60) == 1
        assert process.wait(60) == -signal.SIGKILL
    with pytest.raises(TimeoutError, match="beyond the 1 seen before"):
        group.wait_event("oom_kill", timeout=0.05)
    assert group.events().memory_max > 0
    assert group.usage().memory_peak_bytes == 16 << 20


def test_a_full_group(isolation, nothing_left):
    """Joining passes, so it is the command's start that fails, with EAGAIN; a parent's limit counts too."""
    group = isolation.cgroup(pids_max=2)
    child = group.child()
    with group.popen(["sleep", "1000"]), child.popen(["sleep", "1000"]), nothing_left():
        for one in (group, child):
            with pytest.raises(KernelError, match=rf"EAGAIN.*{group} is full: pids.max is 2") as refused:
                one.run(["true"])
            assert refused.value.errno == errno.EAGAIN
            with pytest.raises(KernelError, match="EAGAIN"):
                one.call_in_child(int)
        assert group.usage().pids == 2
    assert group.run(["true"]).returncode == 0


def test_a_refused_fork_is_awaited(isolation):
    group = isolation.cgroup(pids_max=1)
    done = group.run("/bin/true; :", shell=True, check=False)
    assert "fork" in done.stderr
    assert group.wait_event("pids_max", timeout=10) >= 1


def test_throttling_is_awaited(isolation):
    group = isolation.cgroup(quota_us=2_000)
    with group.popen(BUSY):
        assert group.wait_event("nr_throttled", timeout=60) >= 1
        assert group.wait_event("throttled_us", timeout=60) > 0
    assert group.usage().cpu_ns > 0


def test_one_cpu(isolation):
    group = isolation.cgroup(cpus=0)
    assert group.run(["nproc"]).stdout == "1\n"
    assert os.sched_getaffinity(0) == os.sched_getaffinity(os.getpid())
    isolation.netns().run(["true"])


# -- freezer


def cpu_ticks(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]


def test_frozen_and_thawed(isolation):
    """Frozen, it uses no CPU time; nobody can join; thawed, it goes on."""
    group = isolation.cgroup(controllers=["freezer"])
    with group.popen(BUSY) as process:
        group.freeze()
        assert group.frozen
        assert group["freezer.state"] == "FROZEN"
        ticks = cpu_ticks(process.pid)
        sum(range(2_000_000))
        assert cpu_ticks(process.pid) == ticks
        with pytest.raises(IsolationError, match="is frozen: what joins it would stop"):
            group.run(["true"])
        group.thaw()
        assert not group.frozen
        eventually(lambda: cpu_ticks(process.pid) != ticks, timeout=60)


@pytest.mark.parametrize("names", [["freezer"], ["cpu", "freezer", "memory"]], ids="-".join)
def test_closing_what_is_frozen(isolation, names, gone):
    """Killed, thawed, and gone; a single command too, while the others stay frozen."""
    group = isolation.cgroup(controllers=names)
    other = group.popen(["sleep", "1000"])
    stray = int(group.run("setsid env -i sleep 1000 >/dev/null 2>&1 & echo $!", shell=True).stdout)
    with group.popen(["sleep", "1000"]):
        group.freeze()
    assert group.frozen
    assert other.poll() is None
    group.close()
    assert gone(stray)
    assert other.poll() is not None


def test_closing_a_child_of_what_is_frozen(isolation, gone):
    """The parent, and what is in it, stays frozen."""
    group = isolation.cgroup(controllers=["freezer"])
    child = group.child()
    stray = int(child.run("setsid env -i sleep 1000 >/dev/null 2>&1 & echo $!", shell=True).stdout)
    group.freeze()
    assert child.frozen
    with pytest.raises(IsolationError, match="stays frozen as long as"):
        child.thaw()
    child.close()
    assert gone(stray)
    assert group.frozen


# -- cpu_shares


def test_cpu_shares_of_three(isolation):
    """The fractions are in the order of the groups, and make one."""
    group = isolation.cgroup()
    groups = [group.child(shares=shares) for shares in (100, 300, 600)]
    for _ in range(20):
        try:
            fractions = cpu_shares(*groups)
        except TooBusyError:
            continue
        break
    assert fractions == pytest.approx((0.1, 0.3, 0.6), abs=0.05)
    assert sum(fractions) == pytest.approx(1)
    assert all(one.processes() == () for one in groups)


@pytest.mark.parametrize(
    "arguments, options, error, message",
    [
        (1, {}, TypeError, "two groups or more, not 1"),
        (2, {"seconds": 0}, ValueError, "seconds=0: allowed are 0.1 and more"),
        (2, {"cpu": 4096}, ValueError, "cpu=4096: allowed is one CPU, or one for each group, of 0"),
        (2, {"cpu": (0,)}, ValueError, r"cpu=\(0,\)"),
    ],
)
def test_cpu_shares_of_nonsense(isolation, arguments, options, error, message):
    group = isolation.cgroup()
    with pytest.raises(error, match=message):
        cpu_shares(*[group] * arguments, **options)
    with pytest.raises(TypeError, match="not 'cpu'"):
        cpu_shares("cpu", group)


MS = 1_000_000


@pytest.mark.parametrize(
    "looks, pinned, idle, message",
    [
        ([(0, 0), (70, 30), (140, 60)], (0, 0), {0: 0.0}, None),
        ([(0, 0), (35, 15), (70, 30)], (0, 0), {0: 0.1}, None),  # limited by a quota, not by others
        ([(0, 0), (14, 6), (28, 12)], (0, 0), {0: 0.0}, "others, or the hypervisor, 0.16 s"),
        ([(0, 0), (80, 20), (140, 60)], (0, 0), {0: 0.0}, "0.80:0.20 and then 0.60:0.40, which is not steady enough"),
        ([(0, 0), (0, 0), (0, 0)], (0, 0), {0: 0.2}, "the groups had 0.00 s"),
        ([(0, 0), (100, 100), (200, 200)], (0, 1), {0: 0.0, 1: 0.0}, None),
        ([(0, 0), (100, 80), (200, 160)], (0, 1), {0: 0.0, 1: 0.0}, "of CPU 1 the groups had 0.16 s"),
    ],
)
def test_a_verdict_or_none(looks, pinned, idle, message):
    """Of 0.2 s: what the groups and others had, and how steadily."""
    looks = [[one * MS for one in look] for look in looks]
    if message is None:
        assert sum(judge(looks, pinned, 0.2, idle)) == pytest.approx(1)
        return
    with pytest.raises(TooBusyError, match=message):
        judge(looks, pinned, 0.2, idle)


# -- fixtures


def test_two_fixtures_show_one_group(cgroup_cpu, cgroup_memory, cgroup_pids):
    """Its processes are in all of the controllers."""
    assert cgroup_cpu is cgroup_memory is cgroup_pids
    with cgroup_memory.popen(["sleep", "1000"]) as process:
        assert all(is_in(process.pid, cgroup_cpu, name) for name in ("cpu", "memory", "pids"))


@pytest.mark.parametrize("cgroup_cpu", [{"shares": 700}], indirect=True)
@pytest.mark.parametrize("cgroup_memory", [{"memory_max": "32M"}], indirect=True)
def test_fixtures_take_arguments(cgroup_memory, cgroup_cpu):
    assert cgroup_cpu["cpu.shares"] == "700"
    assert cgroup_cpu.memory_max == 32 << 20


def test_the_other_fixtures(cgroup_cpuset, cgroup_freezer, cgroup_io):
    assert cgroup_io.controllers == ("cpuset", "freezer", "io")
    assert cgroup_io.run(["true"]).returncode == 0


# -- its end


def test_removed_from_outside(isolation):
    """Gone is gone."""
    group = isolation.cgroup(controllers=["cpu", "memory"])
    for path in group.paths.values():
        path.rmdir()
    group.close()


def test_a_group_that_cannot_be_emptied_says_who_is_in_it(isolation, monkeypatch):
    """Every step is tried: the other hierarchy's directory is gone, the ledger has let go only of nothing."""
    from pytest_isolation._state import cgroups

    group = isolation.cgroup(controllers=["memory"])
    process = subprocess.Popen(["sleep", "1000"])
    group.path().joinpath("cgroup.procs").write_text(str(process.pid))
    try:
        with monkeypatch.context() as patch:
            patch.setattr(signal, "pidfd_send_signal", lambda *_: None)
            with pytest.raises(TimeoutError, match=rf"could not be emptied.*inside: {process.pid} \(sleep 1000\)"):
                cgroups.remove(group._directories, timeout=0.05)
        assert time.monotonic() > 0
    finally:
        process.kill()
        process.wait()


def test_closing_never_ends_pytest(isolation, monkeypatch):
    """A thread of pytest that is in it for the moment of a spawn: close waits, whoever else is ended."""
    from pytest_isolation._state import cgroups
    from pytest_isolation._state.spawner import spawner

    group = isolation.cgroup()
    paths = list(group._group().tasks)

    def job():
        with spawner().joined(paths), pytest.raises(TimeoutError, match="no process that it tells of"):
            cgroups.remove(group._directories, timeout=0.05)

    spawner().run(job)
    group.close()
