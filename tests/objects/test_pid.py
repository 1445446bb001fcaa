"""pid namespaces: numbers, the init, /proc, signals, and the end of everything inside."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_isolation import ChildError, ClosedError, KernelError, PidNamespace, eventually


def numbers(pid):
    """The pids of a process, outermost first, as the kernel lists them."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("NSpid:"))
    return [int(word) for word in line.split()[1:]]


def test_a_world_of_its_own(pid_namespace):
    """Its init and ps itself are all there is."""
    shown = pid_namespace.run(["ps", "axo", "pid=,comm="]).stdout.split("\n")
    assert next(line.split() for line in shown if line) == ["1", "init"]
    assert len([line for line in shown if line]) == 2


def test_the_init_has_two_numbers(pid_namespace):
    """1 inside, an ordinary one outside."""
    assert numbers(pid_namespace.init_pid)[-2:] == [pid_namespace.init_pid, 1]
    assert os.stat(f"/proc/{pid_namespace.init_pid}/ns/pid").st_ino == pid_namespace.ns_id[1]
    assert Path(f"/proc/{pid_namespace.init_pid}/comm").read_text() == "init\n"
    assert pid_namespace.init_status is None


def test_processes_lists_everything_inside(pid_namespace, gone):
    """Numbers inside and outside, parent, name and command line; the init first."""
    with pid_namespace.popen(["sleep", 1000]) as process:
        init, sleeper = pid_namespace.processes()
        assert (init.pid_inside, init.pid_outside, init.comm) == (1, pid_namespace.init_pid, "init")
        assert sleeper.pid_outside == process.pid
        assert numbers(process.pid)[-1] == sleeper.pid_inside
        assert (sleeper.comm, sleeper.command, sleeper.ppid_inside) == ("sleep", "sleep 1000", 0)
        assert sleeper.state in {"S", "R", "D"}  # D: while the program is read from the disk
    assert len(pid_namespace.processes()) == 1


def test_proc_is_mounted_anew(pid_namespace):
    """/proc inside shows these processes only; outside nothing has changed."""
    seen = [name for name in pid_namespace.run(["ls", "/proc"]).stdout.split() if name.isdigit()]
    assert len(seen) == 2
    assert Path("/proc/self").resolve().name == str(os.getpid())
    assert "proc" in pid_namespace.run(["stat", "-fc", "%T", "/proc"]).stdout
    assert sum(" /proc " in line for line in Path("/proc/self/mountinfo").read_text().splitlines()) == 1


@pytest.mark.parametrize("pid_namespace", [{"proc": False}], indirect=True)
def test_the_outer_proc_shows_the_wrong_world(pid_namespace):
    """Asked for on purpose: ps sees everybody."""
    assert len(pid_namespace.run(["ps", "axo", "pid="]).stdout.split()) > 2


def test_a_process_inside_cannot_reach_out(pid_namespace):
    """It cannot signal what it has no number for; `kill -1` spares pytest."""
    assert pid_namespace.run(["kill", "-0", os.getpid()], check=False).returncode != 0
    assert pid_namespace.run("kill -9 -1; echo still here", shell=True).stdout == "still here\n"


def test_kill_0_stays_inside(pid_namespace):
    """A command's process group is its own."""
    assert pid_namespace.run(["sh", "-c", "kill -TERM 0"], check=False).returncode == -signal.SIGTERM


def test_the_init_reaps_orphans(pid_namespace):
    """An orphan is adopted by pid 1, and is no zombie when it ends."""
    pid_namespace.run(["sh", "-c", "sleep 0.05 & exec true"])
    eventually(lambda: [one.comm for one in pid_namespace.processes()] == ["init"])


def test_an_orphan_s_parent_is_the_init(pid_namespace):
    """Whoever started it."""
    pid_namespace.run(["sh", "-c", "sleep 1000 &"])
    orphan = eventually(lambda: [one for one in pid_namespace.processes() if one.comm == "sleep"])[0]
    assert orphan.ppid_inside == 1
    status = Path(f"/proc/{orphan.pid_outside}/status").read_text()
    assert f"PPid:\t{pid_namespace.init_pid}\n" in status


def test_the_end_of_the_init_is_everybody_s(isolation, gone):
    """SIGKILL to pid 1, and the kernel kills all the others."""
    space = isolation.pid_namespace()
    process = space.popen(["sh", "-c", "setsid sleep 1000 & sleep 1000"], may_exit=True)
    inside = eventually(lambda: [one.pid_outside for one in space.processes()] if len(space.processes()) == 4 else [])
    space.kill()
    assert process.returncode == -signal.SIGKILL
    for pid in inside:
        gone(pid)
    assert space.init_status == -signal.SIGKILL
    with pytest.raises(ClosedError, match="is dead: its init exited with -9"):
        space.run(["true"])
    with pytest.raises(ClosedError, match="is dead"):
        space.call_in_child(os.getpid)
    assert space.processes() == ()


def test_closing_ends_everything(nothing_left, warm, gone):
    """Daemons, stopped processes, those that ignore signals."""
    with nothing_left():
        with PidNamespace() as space:
            process = space.popen(
                ["sh", "-c", "trap '' TERM HUP INT; setsid sleep 1000 & kill -STOP $$"], may_exit=True
            )
            inside = eventually(
                lambda: [one.pid_outside for one in space.processes()] if len(space.processes()) >= 3 else []
            )
        for pid in inside:
            gone(pid)
        assert process.returncode == -signal.SIGKILL


def test_killed_from_outside(isolation, gone):
    """Somebody else ends its init: an error that says so, and closing it is fine."""
    space = PidNamespace()
    os.kill(space.init_pid, signal.SIGKILL)
    assert space.wait_init() == -signal.SIGKILL
    with pytest.raises(ClosedError, match="is dead: its init exited with -9"):
        space.run(["true"])
    space.close()
    assert isolation.pid_namespace().run(["echo", "another"]).stdout == "another\n"


# -- an init of one's own


def test_a_program_as_pid_1(isolation):
    """It is pid 1, its output is in the log, and when it ends so does the namespace, with its status."""
    space = isolation.pid_namespace(init=["sh", "-c", "echo I am $$; echo and complain >&2; sleep 0.1; exit 7"])
    assert space.wait_init() == 7
    assert space.init_status == 7
    assert space.log == "I am 1\nand complain\n"
    with pytest.raises(ClosedError, match=r"(?s)exited with 7.*I am 1"):
        space.run(["true"])


def test_commands_beside_an_init_of_one_s_own(isolation):
    """They live as long as it does."""
    space = isolation.pid_namespace(init=["sleep", 1000])
    assert "sleep 1000" in space.run(["ps", "axo", "pid=,args="]).stdout
    assert Path(f"/proc/{space.init_pid}/cmdline").read_bytes() == b"sleep\x001000\x00"
    with pytest.raises(TimeoutError, match=r"still lives after 0.05 s"):
        space.wait_init(0.05)


def test_an_init_has_the_signals_of_a_shell_s_child(isolation):
    """None ignored, none blocked: SIGPIPE and SIGCHLD as well."""
    space = isolation.pid_namespace(init=["sh", "-c", "grep -E '^Sig(Blk|Ign)' /proc/self/status; sleep 1000"])
    text = eventually(lambda: space.log if "SigIgn" in space.log else "")
    # 32 and 33 are glibc's own: no program can set them, and posix_spawn(3), as make(1) uses it, leaves them ignored.
    assert [int(line.split()[1], 16) & ~(0b11 << 31) for line in text.splitlines()] == [0, 0]


def test_a_given_init_gets_the_signals_it_handles(isolation):
    """kill() sends any; as pid 1 it ignores those without a handler, as the kernel wants it."""
    script = "trap 'echo got it; exit 3' USR1; echo set; while :; do sleep 0.01; done"
    space = isolation.pid_namespace(init=["sh", "-c", script])
    eventually(lambda: "set" in space.log)
    space.kill(signal.SIGTERM)
    assert space.init_status is None
    space.kill(signal.SIGUSR1)
    assert space.wait_init() == 3
    assert space.log == "set\ngot it\n"


def test_an_init_s_environment_and_directory(isolation, tmp_path, monkeypatch):
    """Pytest's of the moment, and extra_env added."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FROM_PYTEST", "1")
    space = isolation.pid_namespace(init=["sh", "-c", "pwd; echo $FROM_PYTEST$ADDED"], extra_env={"ADDED": 2})
    space.wait_init()
    assert space.log == f"{tmp_path}\n12\n"


def test_an_init_holds_none_of_our_descriptors(isolation, netns):
    """Just its three streams."""
    space = isolation.pid_namespace(init=["sh", "-c", "ls -v /proc/self/fd; echo end; sleep 1000"])
    eventually(lambda: "end" in space.log)
    assert space.log.split() == ["0", "1", "2", "3", "end"]
    default = isolation.pid_namespace()
    folder = f"/proc/{default.init_pid}/fd"
    # It lets go of what it got from its maker right after it has said that it is there.
    eventually(lambda: sorted(os.listdir(folder)) == ["0", "1", "2"])
    assert {os.readlink(f"{folder}/{fd}") for fd in range(3)} == {"/dev/null"}


@pytest.mark.parametrize(
    "init, error, fragment",
    [
        ("sleep 1000", TypeError, "argv is a list of a program and its arguments, not 'sleep 1000'"),
        ([], ValueError, "argv is empty"),
        (["sleep", None], TypeError, "argv item None"),
        (["a\0b"], ValueError, "NUL"),
        (["no-such-program"], OSError, "no-such-program"),
        (["/no/such/program"], OSError, "/no/such/program"),
        (["/etc/passwd"], OSError, "/etc/passwd"),
    ],
)
def test_an_init_that_cannot_be(isolation, nothing_left, init, error, fragment):
    """Refused, and no namespace is left."""
    with nothing_left(), pytest.raises(error, match=fragment):
        isolation.pid_namespace(init=init)


def test_a_script_without_an_interpreter_as_init(isolation, nothing_left, tmp_path):
    """What execve(2) refuses is an error of the builder, not a namespace that is dead at once."""
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    with nothing_left(), pytest.raises(OSError, match="script"):
        isolation.pid_namespace(init=[script])


def test_an_init_whose_directory_has_gone(isolation, nothing_left, tmp_path, monkeypatch):
    """The working directory of pytest was removed: an error, and nothing is left."""
    doomed = tmp_path / "doomed"
    doomed.mkdir()
    monkeypatch.chdir(doomed)
    doomed.rmdir()
    try:
        with pytest.raises(OSError, match=r"No such file|ENOENT"):
            isolation.pid_namespace(init=["sleep", 1000])
    finally:
        monkeypatch.undo()


# -- the rest


def test_call_in_child_has_a_number_inside(pid_namespace):
    """It is neither 1 nor the number outside, and its parent is out of sight."""
    pid, parent, seen = pid_namespace.call_in_child(lambda: (os.getpid(), os.getppid(), os.listdir("/proc")))
    assert 1 < pid < 100
    assert parent == 0
    assert str(pid) in seen


def test_a_timeout_inside(pid_namespace):
    """Ends the command, not the namespace."""
    with pytest.raises(subprocess.TimeoutExpired):
        pid_namespace.run(["sleep", 1000], timeout=0.2)
    assert pid_namespace.run(["echo", "alive"]).stdout == "alive\n"


def test_exit_statuses_are_true(pid_namespace):
    """Neither the init nor the keeper takes them away."""
    for status in (0, 7, 127):
        assert pid_namespace.run(["sh", "-c", f"exit {status}"], check=False).returncode == status
    with pytest.raises(ChildError, match="exit status 7"):
        pid_namespace.run([sys.executable, "-I", "-S", "-c", "import sys; sys.exit(7)"])


def test_one_that_a_user_namespace_owns(isolation):
    """Root inside, pid 1, its own /proc."""
    user = isolation.user_namespace()
    space = isolation.pid_namespace(user=user)
    assert space.run(["ps", "axo", "pid=,comm="]).stdout.split()[:2] == ["1", "init"]
    assert space.run(["id", "-u"]).stdout == "0\n"
    assert os.stat(f"/proc/{space.init_pid}/ns/user").st_ino == user.ns_id[1]
    assert space.call_in_child(os.getpid) < 100


def test_enter_command(pid_namespace):
    """Pasted into a terminal it leads in, /proc included."""
    shown = subprocess.check_output([*pid_namespace.enter_command.split(), "ps", "axo", "pid="], text=True)
    assert len(shown.split()) == 2


def test_many_at_once(isolation):
    """Each command in its own."""
    spaces = [isolation.pid_namespace() for _ in range(10)]
    assert len({space.init_pid for space in spaces}) == 10
    assert [len(space.run(["ps", "axo", "pid="]).stdout.split()) for space in spaces] == [2] * 10


def test_kill_of_a_dead_one(isolation):
    """Says that it is dead."""
    space = isolation.pid_namespace(init=["true"])
    space.wait_init()
    with pytest.raises(ClosedError, match="is dead: its init exited with 0"):
        space.kill()


@pytest.mark.parametrize("signum", [-1, 65, 1000])
def test_a_signal_that_does_not_exist(pid_namespace, signum):
    """Refused, and the init lives."""
    with pytest.raises((OSError, ValueError)):
        pid_namespace.kill(signum)
    assert pid_namespace.init_status is None


def test_the_kernel_s_refusal_is_named(isolation, monkeypatch):
    """A KernelError is an OSError with the call, the errno's name and a hint."""
    error = KernelError(28, "unshare(CLONE_NEWPID)", "its own words", "A hint")
    assert isinstance(error, OSError)
    assert (
        str(error)
        == "unshare(CLONE_NEWPID) = -1 ENOSPC (No space left on device); the kernel says: its own words. A hint"
    )
