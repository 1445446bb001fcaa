"""Chapter 8: cgroup, what processes may use.

Namespaces decide what a process sees; control groups decide how much it may use, and keep the books on what it used.
A cgroup is a directory: `mkdir` makes one, a file in it holds each limit, and writing a pid to another file moves a
process in. What a process starts is born in the same group, so a limit holds for all of a container.

There are two versions. In the first each controller (cpu, memory, pids, ...) can be a tree of its own; in the second
all share one. A machine may have both: the names of the files differ, and what they do is the same.
"""

import errno
import os
import sys

import pytest

from pytest_isolation import KernelError, TooBusyError, controllers, cpu_shares, eventually, inside, proc_cgroups


def measured(*groups, **options):
    """`cpu_shares`, tried again when the machine was too busy to tell; in the end it says just that."""
    for _ in range(20):
        try:
            return cpu_shares(*groups, **options)
        except TooBusyError as error:
            last = error
    raise last


def test_the_table_of_controllers():
    """/proc/cgroups lists what this kernel was built with; `controllers()` adds which version serves it, and where."""
    rows = {row.controller: row for row in proc_cgroups()}
    assert rows["cpu"].enabled
    assert rows["cpu"].num_cgroups >= 1
    cpu = controllers()["cpu"]
    assert cpu.version in {1, 2}
    assert (cpu.home / "cgroup.procs").exists()
    if cpu.version == 1:
        assert rows["cpu"].hierarchy > 0


def test_a_child_is_born_in_the_same_group(cgroup_cpu):
    """A command of the group, its child, and its child's child: all are in it, and nobody had to move them."""
    name = cgroup_cpu.path("cpu").name
    places = cgroup_cpu.run("cat /proc/self/cgroup; sh -c 'sh -c \"cat /proc/self/cgroup\"; :'", shell=True).stdout
    assert sum(line.endswith(name) and "cpu" in line.split(":")[1].split(",") for line in places.splitlines()) == 2
    with open("/proc/self/cgroup", encoding="ascii") as own:
        assert name not in own.read()  # pytest itself was never inside


def test_shares_divide_one_cpu(cgroup_cpu):
    """Two groups that both want all of one CPU, with shares of 700 and 300, get 70 and 30 per cent of it."""
    cgroup_cpu.shares = 40_960  # both together, against all others on this machine, who have 1024
    heavy, light = cgroup_cpu.child(shares=700), cgroup_cpu.child(shares=300)
    assert measured(heavy, light, seconds=0.5) == pytest.approx((0.7, 0.3), abs=0.05)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="pytest may use one CPU only")
def test_shares_do_not_divide_two(cgroup_cpu):
    """With a CPU for each of the two there is nothing to share: both get all of theirs, whatever their shares are.

    Shares say who goes first where two are waiting for the same CPU. They are no limit: who is alone gets everything.
    """
    # The most there is, so that all others on this machine hardly count.
    cgroup_cpu.shares = 262_144 if controllers()["cpu"].version == 1 else 102_400
    heavy, light = cgroup_cpu.child(shares=700), cgroup_cpu.child(shares=300)
    first, second, *_ = sorted(os.sched_getaffinity(0))
    assert measured(heavy, light, seconds=0.5, cpu=(first, second)) == pytest.approx((0.5, 0.5), abs=0.05)


def test_a_quota_is_a_limit(cgroup_cpu):
    """10 ms of CPU time in every 100 ms, and no more, even where nobody else wants the CPU: then it is throttled."""
    cgroup_cpu.set_cpu_max(10_000, 100_000)
    with cgroup_cpu.popen(["sh", "-c", "while :; do :; done"]):
        assert cgroup_cpu.wait_event("nr_throttled", timeout=30) >= 1
        cgroup_cpu.wait_event("nr_throttled", timeout=30)  # and again, in a later period
    assert cgroup_cpu.events().throttled_us > 0


def test_who_wants_too_much_memory_is_killed(cgroup_memory):
    """32 MiB are the group's limit. `tail` of an endless line keeps all of it: the kernel kills it with SIGKILL."""
    cgroup_memory["memory.swappiness" if "memory.swappiness" in cgroup_memory else "memory.swap.max"] = 0
    cgroup_memory.memory_max = "32M"
    done = cgroup_memory.run(["tail", "/dev/zero"], check=False)
    assert done.returncode == -9
    assert cgroup_memory.wait_event("oom_kill", timeout=10) == 1
    assert cgroup_memory.usage().memory_peak_bytes <= 32 << 20


def test_a_fork_too_many_is_refused(cgroup_pids):
    """Three processes may be in the group. The fourth is not made: fork(2) gives EAGAIN."""
    cgroup_pids.pids_max = 3
    program = """
import os
children = []
try:
    while True:
        pid = os.fork()
        if pid == 0:
            os.read(0, 1)
            os._exit(0)
        children.append(pid)
except OSError as error:
    print(len(children), error.errno)
"""
    with cgroup_pids.popen([sys.executable, "-I", "-S", "-c", program], ready="line:^2 ", may_exit=True) as process:
        assert process.log.split() == ["2", str(errno.EAGAIN)]
    assert cgroup_pids.events().pids_max == 1


def test_a_frozen_process_does_not_run(cgroup_freezer, tmp_path):
    """Frozen, a process uses no CPU time and writes nothing, and cannot tell afterwards. Thawed, it goes on."""
    counting = "i=0; while :; do i=$((i+1)); echo $i > count; done"
    with cgroup_freezer.popen(["sh", "-c", counting], cwd=tmp_path, ready=(tmp_path / "count").exists) as process:
        cgroup_freezer.freeze()

        def state():
            with open(f"/proc/{process.pid}/stat", encoding="ascii") as file:
                fields = file.read().rpartition(")")[2].split()
            return fields[11:13], (tmp_path / "count").read_text()

        stopped = state()
        sum(range(3_000_000))  # while somebody else has a CPU
        assert state() == stopped
        cgroup_freezer.thaw()
        assert eventually(lambda: state()[1] != stopped[1], timeout=30)


def test_what_is_written_to_a_disk_is_on_the_books(cgroup_io, tmp_path):
    """One MiB, written past the page cache, stands on the group's account.

    The first version counts on a disk only once somebody has a limit there: here a terabyte a second, which limits
    nobody.
    """
    cgroup_io.set_io_max(tmp_path, write_bps=10**12)
    before = cgroup_io.usage().written_bytes
    cgroup_io.run(["dd", "if=/dev/zero", f"of={tmp_path}/file", "bs=64k", "count=16", "oflag=direct"])
    assert cgroup_io.usage().written_bytes - before >= 1 << 20


def test_a_running_process_is_moved_in_by_its_pid(isolation, cgroup_cpu):
    """Writing a pid to cgroup.procs moves that process, with all its threads; two pids in one write are refused."""
    world = isolation.uts_namespace()
    with world.popen(["sleep", "1000"]) as one, world.popen(["sleep", "1000"]) as other:
        assert cgroup_cpu["cgroup.procs"] == ""
        with pytest.raises(KernelError) as refused:
            cgroup_cpu["cgroup.procs"] = f"{one.pid} {other.pid}"
        assert refused.value.errno == errno.EINVAL
        assert f"'{one.pid} {other.pid}'" in str(refused.value)  # what was being written
        cgroup_cpu.attach(one.pid)
        assert cgroup_cpu["cgroup.procs"] == str(one.pid)
        with open(f"/proc/{one.pid}/cgroup", encoding="ascii") as file:
            assert cgroup_cpu.path().name in file.read()


def test_a_hierarchy_mounted_a_second_time(cgroup_cpu, mount_namespace, tmp_path):
    """A hierarchy is one tree, however often mounted: a second place, seen by this test alone, has the same groups."""
    cgroup_cpu.shares = 512
    home = controllers()["cpu"]
    if home.version == 1:
        mount_namespace.mount("none", tmp_path, "cgroup", data=mounted_controllers(home.mount))
    else:
        mount_namespace.mount("none", tmp_path, "cgroup2")
    second = tmp_path / os.path.relpath(cgroup_cpu.path("cpu"), home.mount)
    knob = "cpu.shares" if home.version == 1 else "cpu.weight"
    assert mount_namespace.run(["cat", second / knob]).stdout.strip() == cgroup_cpu[knob]
    mount_namespace.run(["mkdir", second / "made-there"])
    assert (cgroup_cpu.path("cpu") / "made-there").is_dir()
    assert os.listdir(tmp_path) == []  # outside, nothing is mounted there


def mounted_controllers(place):
    """The options that a mounted v1 hierarchy was mounted with: the same ones lead to the same tree."""
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        line = next(line for line in file if line.split()[4] == str(place))
    known = {row.controller for row in proc_cgroups()}
    return ",".join(word for word in line.split()[-1].split(",") if word in known)


def test_packets_of_one_group_are_counted(isolation, netns):
    """The firewall can tell whose packets they are: the rule counts what members of one group send, and nobody else.

    In the first version the controller net_cls marks a group's packets with a number. Where no hierarchy has it, the
    path of the group in the tree of the second version says the same.
    """
    net_cls = controllers().get("net_cls")
    if net_cls is not None and net_cls.version == 1:
        group = isolation.cgroup(controllers=["net_cls"], knobs={"net_cls.classid": 0x100001})
        match = ["--cgroup", "0x100001"]
    else:
        group = isolation.cgroup(controllers=[])
        place = group.run(["grep", "^0::", "/proc/self/cgroup"]).stdout
        match = ["--path", place.strip().removeprefix("0::/")]
    netns.run(["iptables", "-A", "OUTPUT", "-p", "icmp", "-m", "cgroup", *match])
    ping = ["ping", "-q", "-c", "1", "127.0.0.1"]

    def packets():
        return int(netns.run(["iptables", "-nvxL", "OUTPUT"]).stdout.splitlines()[2].split()[0])

    netns.run(ping)
    assert packets() == 0
    inside(group, netns).run(ping)
    assert packets() == 1  # the request; the reply is the kernel's own
