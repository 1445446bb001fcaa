"""Chapter 2: pid, a world with its own process number one.

In a pid namespace, numbers begin at 1 again. Its first process is its init: it sees nobody outside, everybody outside
sees it (under another number), it adopts the orphans inside, and with its end everything inside ends.

What ps shows does not come from the namespace, though: ps reads /proc. Only a /proc mounted inside shows the inside,
which is why `pid_namespace` mounts one.
"""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from pytest_isolation import ClosedError, eventually

# A shell that stays: as pid 1 it lives until somebody ends it.
SHELL = ["sh", "-c", "echo I am pid $$; while :; do sleep 1000; done"]


def test_sh_is_pid_1_and_alone(isolation):
    """A shell as the first process: it is pid 1, and `ps axf` shows it and ps itself, nothing else."""
    world = isolation.pid_namespace(init=["sh", "-c", "echo I am pid $$; ps axf; exit 7"])
    assert world.wait_init() == 7
    first, _header, shell, ps = world.log.splitlines()
    assert first == "I am pid 1"
    assert shell.split()[0] == "1"
    assert " sh -c echo" in shell
    assert ps.split()[0] == "2"
    assert ps.endswith(" ps axf")


def test_from_outside_it_has_another_pid(isolation):
    """The same process has one number per namespace: 1 inside, an ordinary one outside."""
    world = isolation.pid_namespace(init=SHELL)
    assert world.init_pid != 1
    (line,) = [line for line in Path(f"/proc/{world.init_pid}/status").read_text().splitlines() if "NSpid" in line]
    assert line.split()[-2:] == [str(world.init_pid), "1"]
    assert os.readlink(f"/proc/{world.init_pid}/ns/pid") != os.readlink("/proc/self/ns/pid")


def test_what_comes_later_is_seen_from_both_sides(isolation):
    """A command started into the namespace lives with pid 1 there, and is an ordinary process outside as well."""
    world = isolation.pid_namespace(init=SHELL)
    with world.popen(["sleep", "2000"]) as sleep:
        listed = world.run(["ps", "axo", "args="]).stdout
        assert "sh -c echo I am pid $$" in listed
        assert "sleep 2000" in listed
        (seen,) = [process for process in world.processes() if process.pid_outside == sleep.pid]
        assert seen.pid_inside < 100
        assert os.readlink(f"/proc/{sleep.pid}/ns/pid") == f"pid:[{world.ns_id[1]}]"


@pytest.fixture
def outside():
    """An ordinary process of the machine."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def test_nobody_outside_can_be_reached(pid_namespace, outside):
    """A pid of the outside means nothing inside: there is no such process to signal."""
    with pytest.raises(ProcessLookupError):
        pid_namespace.call_in_child(os.kill, outside.pid, signal.SIGKILL)
    assert outside.poll() is None


def test_with_the_outer_proc_ps_shows_the_wrong_world(isolation):
    """Without a /proc of its own the numbers are new, and ps still shows the old ones, pytest itself among them."""
    world = isolation.pid_namespace(proc=False)
    own_pid, *listed = world.run(["sh", "-c", "echo $$; ps axo pid="]).stdout.split()
    assert str(os.getpid()) in listed
    assert int(own_pid) < 100  # what the shell is told: one of the first numbers of a new world
    with world.popen(["sleep", "1000"]) as sleep:
        assert str(sleep.pid) in world.run(["ps", "axo", "pid="]).stdout.split()
        with pytest.raises(ProcessLookupError):  # the number that ps shows means nothing in here
            world.call_in_child(os.kill, sleep.pid, 0)


def test_killing_pid_1_ends_everything_inside(isolation):
    """Its end is everybody's: the kernel kills all others with SIGKILL, and nothing can enter any more."""
    world = isolation.pid_namespace(init=SHELL)
    sleepers = [world.popen(["sleep", "1000"], may_exit=True) for _ in range(3)]
    world.run(["sh", "-c", "setsid sleep 1000 & setsid sleep 1000 &"])  # in the background, with nobody waiting
    assert len(world.processes()) >= 6
    world.kill()
    assert world.init_status == -signal.SIGKILL
    assert [sleeper.wait(timeout=10) for sleeper in sleepers] == [-signal.SIGKILL] * 3
    assert world.processes() == ()
    with pytest.raises(ClosedError, match="is dead"):
        world.run(["true"])


def orphan(world):
    """Start a sleep in the background of a shell that exits at once; its pid inside, as text."""
    return world.run(["sh", "-c", "sleep 1000 & echo $!"]).stdout.strip()


def test_orphans_are_adopted_by_pid_1(pid_namespace):
    """When its parent exits, a process gets a new one: the init of its own namespace, not the machine's."""
    pid = orphan(pid_namespace)
    assert pid_namespace.run(["ps", "-o", "ppid=", "-p", pid]).stdout.strip() == "1"


def test_orphans_are_reaped_by_pid_1(pid_namespace):
    """When the orphan ends, pid 1 collects its exit status; nothing is left of it."""
    pid = orphan(pid_namespace)
    pid_namespace.run(["kill", "-KILL", pid])
    eventually(lambda: pid not in pid_namespace.run(["ps", "axo", "pid="]).stdout.split())


def test_a_pid_1_that_does_not_reap_collects_zombies(isolation):
    """Any program can be pid 1, not every one knows the job: with `sleep` as init, the dead orphan stays a zombie."""
    world = isolation.pid_namespace(init=["sleep", "1000"])
    pid = orphan(world)
    world.run(["kill", "-KILL", pid])
    eventually(lambda: world.run(["ps", "-o", "stat=", "-p", pid]).stdout.startswith("Z"))
    assert int(pid) in [process.pid_inside for process in world.processes() if process.state == "Z"]


def test_pid_1_hears_only_the_signals_it_handles(isolation):
    """From inside, pid 1 is safe even from SIGKILL; from outside it is a process like any other."""
    world = isolation.pid_namespace(init=SHELL)
    world.run(["sh", "-c", "kill -TERM 1; kill -KILL 1"])
    assert world.init_status is None
    os.kill(world.init_pid, signal.SIGKILL)
    assert world.wait_init() == -signal.SIGKILL
