"""The verbs `run`, `popen`, `call` and `call_in_child`: what comes back, and what they leave, which is nothing."""

import contextlib
import ipaddress
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pytest_isolation import ChildError, IsolationError, eventually

#: builder's method, name under /proc/PID/ns
NAMESPACES = [
    ("netns", "net"),
    ("pid_namespace", "pid"),
    ("mount_namespace", "mnt"),
    ("uts_namespace", "uts"),
    ("ipc_namespace", "ipc"),
    ("user_namespace", "user"),
    ("cgroup_namespace", "cgroup"),
    ("time_namespace", "time"),
]
IN_PLACE = [pair for pair in NAMESPACES if pair[1] not in {"pid", "user", "time"}]
#: A child in a session of its own, whose parent has gone: `$1` receives its pid.
DAEMON = 'setsid sh -c \'sleep 1000 & echo $! >"$1".new; mv "$1".new "$1"\' sh "$1"'


def number_of(link):
    return int(re.search(r"\d+", link)[0])


def pid_from(path):
    return int(eventually(lambda: path.exists() and path.read_text()))


# -- run


@pytest.mark.parametrize("method, name", NAMESPACES)
def test_run_is_inside(isolation, method, name, ns_link):
    """A command sees the object's namespace, and pytest stays where it was."""
    place = getattr(isolation, method)()
    outside = ns_link("thread-self", name)
    link = place.run(["readlink", f"/proc/self/ns/{name}"]).stdout.strip()
    assert number_of(link) == place.ns_id[1] == os.stat(place.path).st_ino
    assert link != outside
    assert ns_link("thread-self", name) == outside


def test_run_returns_a_completed_process(netns):
    """As subprocess.run does, with text and captured output."""
    done = netns.run(["sh", "-c", "echo out; echo err >&2"])
    assert isinstance(done, subprocess.CompletedProcess)
    assert (done.returncode, done.stdout, done.stderr) == (0, "out\n", "err\n")
    assert done.args == ["sh", "-c", "echo out; echo err >&2"]


def test_argv_takes_what_people_have_at_hand(netns, tmp_path):
    """Items may be str, bytes, Path, int and addresses."""
    items = ["a b", b"c", tmp_path, 7, ipaddress.ip_address("10.0.0.1"), ipaddress.ip_address("fd00::1")]
    printed = netns.run(["printf", "%s|", *items]).stdout
    assert printed == f"a b|c|{tmp_path}|7|10.0.0.1|fd00::1|"


def test_a_shell_where_asked(netns):
    """A string is a command line with shell=True."""
    assert netns.run("echo $((6 * 7))", shell=True).stdout == "42\n"


@pytest.mark.parametrize(
    "argv, options, error, fragment",
    [
        ("ip link", {}, TypeError, r"argv is a list .* not 'ip link': pass \['ip link'\], or shell=True"),
        (b"ip", {}, TypeError, "argv is a list"),
        (7, {}, TypeError, "argv is a list"),
        (None, {}, TypeError, "argv is a list"),
        ([], {}, ValueError, "argv is empty"),
        (["echo", None], {}, TypeError, "argv item None is a NoneType"),
        (["echo", 1.5], {}, TypeError, "argv item 1.5 is a float"),
        (["echo", True], {}, TypeError, "argv item True is a bool"),
        (["echo", "a\0b"], {}, ValueError, "contains a NUL"),
        (["echo", b"a\0b"], {}, ValueError, "contains a NUL"),
        (["echo", "a"], {"shell": True}, TypeError, "with shell=True the command is one string"),
        (["true"], {"preexec_fn": print}, TypeError, "preexec_fn is not possible"),
        (["true"], {"no_such_option": 1}, TypeError, "no_such_option"),
        (["/no/such/program"], {}, FileNotFoundError, "/no/such/program"),
        (["no-such-program"], {}, FileNotFoundError, "no-such-program"),
        (["/etc/passwd"], {}, PermissionError, "/etc/passwd"),
        (["/etc"], {}, PermissionError, "/etc"),
        (["true"], {"cwd": "/no/such/directory"}, FileNotFoundError, "/no/such/directory"),
    ],
)
@pytest.mark.parametrize("verb", ["run", "popen"])
@pytest.mark.parametrize("method", ["netns", "pid_namespace", "user_namespace"])
def test_a_command_that_cannot_start(isolation, nothing_left, method, verb, argv, options, error, fragment):
    """It says why, starts nothing and keeps nothing."""
    place = getattr(isolation, method)()
    place.run(["true"])
    with nothing_left(), pytest.raises(error, match=fragment):
        getattr(place, verb)(argv, **options)
    assert place.run(["echo", "still usable"]).stdout == "still usable\n"


@pytest.mark.parametrize("data", ["text", b"text"])
def test_input_is_fed(netns, data):
    """As text or bytes."""
    assert netns.run(["cat"], input=data).stdout == "text"


def test_bytes_where_asked(netns):
    """text=False leaves what was printed as it is."""
    assert netns.run(["printf", r"\377\n"], text=False).stdout == b"\xff\n"


def test_output_that_is_no_text_is_kept(netns):
    """Without an encoding asked for, no byte is lost; with one, it is an error as in subprocess."""
    assert netns.run(["printf", r"\377"]).stdout.encode(errors="surrogateescape") == b"\xff"
    with pytest.raises(UnicodeDecodeError):
        netns.run(["printf", r"\377"], encoding="utf-8")


def test_output_goes_to_pytest_where_asked(netns, capfd):
    """capture_output=False prints where pytest prints."""
    done = netns.run(["echo", "seen"], capture_output=False)
    assert done.stdout is None
    assert capfd.readouterr().out == "seen\n"


def test_much_output_and_unread_input(netns):
    """Megabytes on both streams, and input that nobody reads, block nothing."""
    done = netns.run(["sh", "-c", "head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2"], input="x" * 3_000_000)
    assert (len(done.stdout), len(done.stderr)) == (3_000_000, 3_000_000)
    assert len(netns.run(["cat"], input="x" * 3_000_000).stdout) == 3_000_000


def test_a_failing_command_shows_what_it_printed(netns):
    """ChildError is a CalledProcessError with both streams in its text."""
    with pytest.raises(ChildError) as caught:
        netns.run(["sh", "-c", "echo to-out; echo to-err >&2; exit 3"])
    error = caught.value
    assert isinstance(error, subprocess.CalledProcessError)
    assert isinstance(error, IsolationError)
    assert (error.returncode, error.stdout, error.stderr) == (3, "to-out\n", "to-err\n")
    assert "exit status 3" in str(error)
    assert "to-out" in str(error)
    assert "to-err" in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.stderr) == (str(error), error.stderr)


def test_a_failure_may_be_what_is_wanted(netns):
    """check=False returns the status, and a signal as a negative one."""
    assert netns.run(["sh", "-c", "exit 3"], check=False).returncode == 3
    assert netns.run(["sh", "-c", "kill -9 $$"], check=False).returncode == -signal.SIGKILL


def test_environment(netns, monkeypatch):
    """extra_env adds, env replaces; what pytest changed just now is seen."""
    monkeypatch.setenv("FROM_PYTEST", "1")
    assert netns.run("echo $FROM_PYTEST$ADDED", shell=True, extra_env={"ADDED": 2}).stdout == "12\n"
    replaced = netns.run(["/usr/bin/env"], env={"ONLY": "this"}).stdout
    assert "ONLY=this\n" in replaced
    assert "FROM_PYTEST" not in replaced


@pytest.mark.parametrize("method", ["netns", "mount_namespace", "pid_namespace", "user_namespace"])
def test_working_directory_and_umask_are_those_of_the_moment(isolation, method, tmp_path, monkeypatch):
    """Whatever thread does the spawning."""
    place = getattr(isolation, method)()
    monkeypatch.chdir(tmp_path)
    assert place.run(["pwd"]).stdout == f"{tmp_path}\n"
    assert place.run(["pwd"], cwd="/usr").stdout == "/usr\n"
    before = os.umask(0o027)
    try:
        assert place.run("umask", shell=True).stdout.strip().lstrip("0") == "27"
    finally:
        os.umask(before)
    assert os.getcwd() == str(tmp_path)


@pytest.mark.parametrize("method, name", NAMESPACES)
def test_a_command_gets_no_descriptor_of_ours(isolation, method, name):
    """Only its three streams."""
    place = getattr(isolation, method)()
    shown = place.run(["ls", "/proc/self/fd"]).stdout.split()
    assert shown == ["0", "1", "2", "3"]  # the last is the directory that ls reads


def test_run_does_not_wait_for_whoever_holds_the_pipe(netns, gone):
    """It returns when the command exits; what the command left running ends with the namespace."""
    done = netns.run(["sh", "-c", "sleep 1000 & echo $!"])
    left = int(done.stdout)
    assert number_of(os.readlink(f"/proc/{left}/ns/net")) == netns.ns_id[1]
    netns.close()
    gone(left)


def test_a_daemon_that_wiped_its_environment_ends_with_the_namespace(netns, tmp_path, gone):
    """Neither setsid, nor an orphan's life, nor `env -i` hides a process."""
    netns.run(["setsid", "env", "-i", "/bin/sh", "-c", "/bin/sleep 1000 & echo $! >$0", tmp_path / "pid"])
    left = pid_from(tmp_path / "pid")
    assert Path(f"/proc/{left}/comm").read_text() in {"sleep\n", "sh\n"}
    netns.close()
    gone(left)


@pytest.mark.parametrize("method", ["netns", "pid_namespace", "user_namespace"])
def test_a_timeout_ends_the_whole_tree(isolation, method, tmp_path, nothing_left):
    """The command, its children, and those that went into a session of their own and lost their parent."""
    place = getattr(isolation, method)()
    place.run(["true"])
    with nothing_left():
        with pytest.raises(subprocess.TimeoutExpired) as caught:
            place.run(
                ["sh", "-c", f"echo begun; sleep 1000 & {DAEMON}; sleep 1000", "sh", tmp_path / "pid"], timeout=2.0
            )
        assert caught.value.stdout == b"begun\n"
        assert (tmp_path / "pid").exists()


def test_a_signal_in_the_middle_of_a_run_ends_its_tree(netns, tmp_path, nothing_left):
    """An exception in the waiting thread, as an interrupt raises it, leaves no command behind."""

    class InterruptError(Exception):
        pass

    def interrupt(*_):
        raise InterruptError

    netns.run(["true"])
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with nothing_left():
            script = f"{DAEMON}; kill -USR1 {os.getpid()}; sleep 1000"
            with pytest.raises(InterruptError):
                netns.run(["sh", "-c", script, "sh", tmp_path / "pid"])
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_many_threads_at_once(isolation, ns_link):
    """Each thread's command lives where that thread wanted it."""
    spaces = [isolation.netns() for _ in range(4)]
    wrong = []

    def work(space):
        for _ in range(10):
            link = space.run(["readlink", "/proc/self/ns/net"]).stdout
            if number_of(link) != space.ns_id[1]:
                wrong.append(link)

    threads = [threading.Thread(target=work, args=(space,)) for space in spaces]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# -- popen


@pytest.mark.parametrize("method, name", NAMESPACES)
def test_with_popen_ends_the_tree(isolation, method, name, tmp_path, nothing_left):
    """A process inside, and after the block nothing of it or of what it started."""
    place = getattr(isolation, method)()
    place.run(["true"])
    with nothing_left():
        with place.popen(["sh", "-c", f"{DAEMON}; sleep 1000", "sh", tmp_path / "pid"]) as process:
            assert isinstance(process, subprocess.Popen)
            child = pid_from(tmp_path / "pid")
            if name != "pid":  # which shows its own numbers
                assert number_of(os.readlink(f"/proc/{child}/ns/{name}")) == place.ns_id[1]
            assert number_of(os.readlink(f"/proc/{process.pid}/ns/{name}")) == place.ns_id[1]
        assert process.returncode == -signal.SIGTERM


def test_the_log_has_both_streams_in_order(netns):
    """What the process printed, and what it says when it is asked to stop, stays readable after the block."""
    script = "trap 'echo bye; exit 0' TERM; echo one; echo two >&2; while :; do sleep 0.01; done"
    with netns.popen(["sh", "-c", script]) as process:
        process.wait_for("^two$")
        assert process.log == "one\ntwo\n"
    assert process.log == "one\ntwo\nbye\n"
    assert process.returncode == 0


def test_output_may_go_elsewhere(netns):
    """stdout=PIPE is Popen's own; the log then has stderr only."""
    with netns.popen(["sh", "-c", "echo out; echo err >&2; sleep 1000"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "out\n"
        process.wait_for("err")
        assert process.log == "err\n"


def test_a_dialogue(netns):
    """Its input may be a pipe, and communicate() is Popen's."""
    with netns.popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, may_exit=True) as process:
        assert process.communicate("to and fro", timeout=10)[0] == "to and fro"
    assert process.returncode == 0


def test_wait_for_returns_the_match(netns):
    """A regular expression, searched in every line, as text or compiled."""
    with netns.popen(["sh", "-c", "echo noise; echo listening on 4242; sleep 1000"]) as process:
        assert process.wait_for(r"^listening on (\d+)$")[1] == "4242"
        assert process.wait_for(re.compile("NOISE", re.IGNORECASE))[0] == "noise"


def test_wait_for_says_what_it_saw_instead(netns):
    """A process that goes on without it: the deadline's error shows the log; one that exits: the status as well."""
    with netns.popen(["sh", "-c", "echo something else; sleep 1000"]) as process:
        process.wait_for("else")
        with pytest.raises(TimeoutError, match=r"(?s)wanted.*0\.05 s.*something else"):
            process.wait_for("wanted", timeout=0.05)
    died = pytest.raises(ChildError, match=r"(?s)exit status 4.*wanted.*something else")
    with netns.popen(["sh", "-c", "echo something else; exit 4"], may_exit=True) as process, died:
        process.wait_for("wanted")


SERVER = """
import socket, sys, time
family, kind, port = (int(word) for word in sys.argv[1:])
time.sleep(0.05)
sock = socket.socket(family, kind)
sock.bind(("", port))
if kind == socket.SOCK_STREAM:
    sock.listen()
time.sleep(1000)
"""


@pytest.mark.parametrize(
    "family, kind, ready",
    [
        (socket.AF_INET, socket.SOCK_STREAM, "port:80"),
        (socket.AF_INET, socket.SOCK_STREAM, "port:80/tcp"),
        (socket.AF_INET6, socket.SOCK_STREAM, "port:80"),
        (socket.AF_INET, socket.SOCK_DGRAM, "port:80/udp"),
        (socket.AF_INET6, socket.SOCK_DGRAM, "port:80/udp"),
    ],
)
def test_ready_when_a_port_listens(netns, family, kind, ready):
    """When popen returns, the kernel has the socket, and a client can come."""
    argv = [sys.executable, "-I", "-S", "-c", SERVER, int(family), int(kind), 80]
    with netns.popen(argv, ready=ready):
        protocol = "tcp" if kind == socket.SOCK_STREAM else "udp"
        if protocol == "tcp":
            netns.connect(("127.0.0.1" if family == socket.AF_INET else "::1", 80)).close()
        table = netns.run(f"cat /proc/net/{protocol} /proc/net/{protocol}6", shell=True).stdout
        assert ":0050 " in table


def test_ready_when_a_line_is_printed(netns):
    """Printed before the wait or during it."""
    with netns.popen(["sh", "-c", "sleep 0.05; echo up and running; sleep 1000"], ready="line:^up") as process:
        assert process.log == "up and running\n"


@pytest.mark.usefixtures("read_only_system")
def test_ready_when_a_path_is_there(chroot_root):
    """The path as the process sees it: below its own root."""
    chroot_root.add("/bin/sh", "/bin/sleep")
    script = ["/bin/sh", "-c", "/bin/sleep 0.05; echo > /ready-now; /bin/sleep 1000"]
    with chroot_root.popen(script, ready="path:/ready-now"):
        assert (chroot_root.path / "ready-now").exists()
        assert not Path("/ready-now").exists()


def test_ready_when_a_callable_says_so(netns, tmp_path):
    """Polled until it returns something true."""
    flag = tmp_path / "flag"
    with netns.popen(["sh", "-c", "sleep 0.05; echo >$0; sleep 1000", flag], ready=flag.exists):
        assert flag.exists()


@pytest.mark.parametrize("ready", ["port:80", "port:53/udp", "line:never", "path:/never", lambda: False])
def test_not_ready_in_time(netns, ready, nothing_left):
    """A TimeoutError that says what was awaited and shows the log; the tree has been ended."""
    netns.run(["true"])
    with nothing_left(), pytest.raises(TimeoutError, match=r"(?s)did not show .* within 1\.0 s.*so far"):
        netns.popen(["sh", "-c", "echo so far; sleep 1000 & sleep 1000"], ready=ready, timeout=1.0)


@pytest.mark.parametrize("ready", ["port:80", "port:53/udp", "line:never", "path:/never", lambda: False])
def test_dead_before_it_was_ready(netns, ready, nothing_left):
    """A ChildError at once, not after the time is up, with status and log."""
    netns.run(["true"])
    with nothing_left():
        start = time.monotonic()
        with pytest.raises(ChildError, match=r"(?s)exit status 3.*exited before.*cannot bind"):
            netns.popen(["sh", "-c", "echo cannot bind >&2; exit 3"], ready=ready, timeout=60.0)
        assert time.monotonic() - start < 50


def test_a_readiness_callable_that_fails(netns, nothing_left):
    """Its exception comes out, and the tree has been ended."""
    netns.run(["true"])
    with nothing_left(), pytest.raises(ZeroDivisionError):
        netns.popen(["sleep", 1000], ready=lambda: 1 / 0)


@pytest.mark.parametrize(
    "ready",
    ["", "port", "port:", "port:http", "port:0", "port:65536", "port:80/sctp", "port:-1", "file:/x", "line:", 80],
)
def test_a_readiness_nobody_knows(netns, ready, nothing_left):
    """Refused with what is allowed, before anything starts."""
    with nothing_left(), pytest.raises((ValueError, TypeError), match=r"ready=.*allowed are \"port:80\""):
        netns.popen(["sleep", 1000], ready=ready)


def test_a_bad_regular_expression(netns, nothing_left):
    """Leaves no process behind."""
    netns.run(["true"])
    with nothing_left(), pytest.raises(re.error):
        netns.popen(["sleep", 1000], ready="line:(")


def test_dying_early_is_an_error(netns):
    """A server that is gone before its block ends did not serve."""
    early = pytest.raises(ChildError, match=r"(?s)exit status 5.*before the end of its `with`.*last words")
    with early, netns.popen(["sh", "-c", "echo last words; exit 5"]) as process:
        eventually(lambda: process.poll() is not None)


def test_an_exit_of_zero_is_early_too(netns):
    """A server that said goodbye politely did not serve either."""
    with pytest.raises(ChildError, match="may_exit=True"), netns.popen(["true"]) as process:
        eventually(lambda: process.poll() is not None)


def test_may_exit(netns):
    """Where the end is expected, any status is fine."""
    with netns.popen(["sh", "-c", "exit 5"], may_exit=True) as process:
        assert process.wait(timeout=10) == 5


def test_the_body_s_own_error_comes_first(netns):
    """An early death is added to it as a note."""
    with pytest.raises(ZeroDivisionError) as caught, netns.popen(["sh", "-c", "exit 5"]) as process:
        raise_it(eventually(lambda: process.poll() is not None and ZeroDivisionError()))
    assert any("exit status 5" in note for note in caught.value.__notes__)


def test_stop_is_the_signal_that_asks(netns):
    """Another than SIGTERM, where the program wants another."""
    script = "trap 'echo int; exit 0' INT; trap 'echo term; exit 0' TERM; echo set; while :; do sleep 0.01; done"
    with netns.popen(["sh", "-c", script], ready="line:set", stop=signal.SIGINT) as process:
        pass
    assert process.log == "set\nint\n"


def test_after_the_grace_it_is_killed(netns):
    """A process that does not want to go goes."""
    with netns.popen(["sh", "-c", "trap '' TERM; echo set; sleep 1000"], ready="line:set", grace=0.1) as process:
        pass
    assert process.returncode == -signal.SIGKILL


def test_a_stopped_process_ends_too(netns):
    """SIGSTOP holds SIGTERM back, and SIGKILL not."""
    with netns.popen(["sleep", 1000], grace=0.1) as process:
        process.send_signal(signal.SIGSTOP)
    assert process.returncode is not None


def test_what_is_left_running_ends_with_the_object(isolation, tmp_path, gone):
    """No `with`, no wait: the namespace takes it along."""
    space = isolation.netns()
    process = space.popen(["sh", "-c", f"{DAEMON}; sleep 1000", "sh", tmp_path / "pid"])
    daemon = pid_from(tmp_path / "pid")
    space.close()
    assert process.returncode is not None
    gone(daemon)
    gone(process.pid)


def test_end_may_be_called_twice(netns):
    """And the log is still there."""
    process = netns.popen(["sh", "-c", "echo hello; sleep 1000"], ready="line:hello")
    process.end()
    process.end()
    assert process.log == "hello\n"


# -- call


@pytest.mark.parametrize("method, name", IN_PLACE)
def test_call_is_inside_and_back(isolation, method, name, ns_link, tmp_path, monkeypatch):
    """On this very thread, closures and all; afterwards it is where it was."""
    monkeypatch.chdir(tmp_path)
    place = getattr(isolation, method)()
    outside = ns_link("thread-self", name)
    seen = []

    def work(value, *, key):
        seen.append((threading.get_ident(), os.getcwd()))
        return ns_link("thread-self", name), value, key

    link, *rest = place.call(work, 1, key=2)
    assert number_of(link) == place.ns_id[1]
    assert rest == [1, 2]
    assert seen == [(threading.get_ident(), str(tmp_path))]
    assert ns_link("thread-self", name) == outside
    assert os.getcwd() == str(tmp_path)


@pytest.mark.parametrize("method, name", IN_PLACE)
def test_call_comes_back_after_an_exception(isolation, method, name, ns_link):
    """Which is the very object that was raised."""
    place = getattr(isolation, method)()
    outside = ns_link("thread-self", name)
    error = KeyError("mine")

    def work():
        raise error

    with pytest.raises(KeyError) as caught:
        place.call(work)
    assert caught.value is error
    assert ns_link("thread-self", name) == outside


def test_call_nests(isolation, ns_link):
    """A call within a call comes back to the outer one's place."""
    one, two = isolation.netns(), isolation.netns()

    def inner():
        return ns_link("thread-self", "net")

    def outer():
        before = inner()
        return before, two.call(inner), inner()

    first, second, third = map(number_of, one.call(outer))
    assert first == third == one.ns_id[1]
    assert second == two.ns_id[1]


@pytest.mark.parametrize("method", ["pid_namespace", "user_namespace", "time_namespace", "chroot_root"])
def test_what_pytest_never_enters(isolation, method):
    """The refusal names the verbs that do."""
    place = getattr(isolation, method)()
    with pytest.raises(TypeError, match=r"never enters .*run, popen, or call_in_child"):
        place.call(os.getpid)


# -- call_in_child


@pytest.mark.parametrize("method, name", NAMESPACES)
def test_call_in_child_is_inside(isolation, method, name, ns_link, nothing_left, tmp_path, monkeypatch):
    """Every kind, with arguments and closures; another process, and the result comes back."""
    monkeypatch.chdir(tmp_path)
    place = getattr(isolation, method)()
    here = os.getpid()

    def work(value, *, key):
        assert os.getpid() != here
        inode = os.stat(f"/proc/self/ns/{name}").st_ino
        return inode, value, key, os.getcwd()

    with nothing_left():
        assert place.call_in_child(work, 1, key=2) == (place.ns_id[1], 1, 2, str(tmp_path))


@pytest.mark.usefixtures("read_only_system")
def test_call_in_child_in_a_root(chroot_root):
    """It sees the new root and nothing else, and starts in it."""
    chroot_root.mkdir("/only/this")

    def work():
        return os.listdir("/"), os.getcwd()

    assert chroot_root.call_in_child(work) == (["only"], "/")


class OnlyInTheChildError(Exception):
    """Pickles, and cannot be made again."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


class UnpicklableError(Exception):
    """Cannot even be pickled."""

    def __init__(self):
        super().__init__("holds a lock")
        self.lock = threading.Lock()


def raise_it(error):
    raise error


@pytest.mark.parametrize(
    "error",
    [
        ValueError("one", 2),
        KeyError("key"),
        OSError(2, "no such thing", "/path"),
        AssertionError("1 == 2"),
        SystemExit(3),
        KeyboardInterrupt(),
        ChildError(3, ["cmd"], "out", "err", "note"),
    ],
)
def test_an_exception_comes_back(netns, error):
    """As what it is, with the child's traceback as its cause."""
    with pytest.raises(type(error)) as caught:
        netns.call_in_child(raise_it, error)
    assert caught.value.args == error.args
    assert str(caught.value) == str(error)
    if isinstance(error, Exception):
        assert "raise_it" in str(caught.value.__cause__)


def test_an_assertion_comes_back_with_its_explanation(netns):
    """Pytest's rewriting works in the child too."""

    def work():
        value = 40 + 1
        assert value == 42

    with pytest.raises(AssertionError, match="41 == 42"):
        netns.call_in_child(work)


@pytest.mark.parametrize("outcome", [pytest.skip, pytest.fail, pytest.xfail])
def test_outcomes_come_back(netns, outcome):
    """pytest.skip in the child skips, pytest.fail fails."""
    with pytest.raises(outcome.Exception, match="the reason"):
        netns.call_in_child(outcome, "the reason")


@pytest.mark.parametrize("error", [OnlyInTheChildError(1, 2), UnpicklableError()])
def test_an_exception_that_cannot_be_pickled(netns, error):
    """Its name, its words and its traceback come back."""
    with pytest.raises(IsolationError, match=rf"{type(error).__name__} .*cannot be pickled.*: {error}") as caught:
        netns.call_in_child(raise_it, error)
    assert "raise_it" in str(caught.value.__cause__)


@pytest.mark.parametrize("result", [threading.Lock(), lambda: None, (number for number in ())])
def test_a_result_that_cannot_be_pickled(netns, result, nothing_left):
    """An error that says so, and no hang."""
    with nothing_left(), pytest.raises((TypeError, AttributeError, pickle.PicklingError), match=r"(?i)pickle"):
        netns.call_in_child(lambda: result)


def test_a_large_result(netns):
    """More than a pipe holds."""
    assert netns.call_in_child(lambda: "x" * 5_000_000) == "x" * 5_000_000


@pytest.mark.parametrize("method", ["netns", "pid_namespace"])
def test_a_killed_child(isolation, method, nothing_left):
    """ChildError with the signal."""
    place = getattr(isolation, method)()
    with nothing_left():
        with pytest.raises(ChildError, match=r"(?s)SIGKILL.*gone before the callable returned") as caught:
            place.call_in_child(lambda: os.kill(os.getpid(), signal.SIGKILL))
        assert caught.value.returncode == -signal.SIGKILL


@pytest.mark.parametrize("method", ["netns", "pid_namespace"])
def test_a_child_that_leaves_by_itself(isolation, method):
    """ChildError with the status."""
    place = getattr(isolation, method)()
    with pytest.raises(ChildError) as caught:
        place.call_in_child(os._exit, 7)
    assert caught.value.returncode == 7


def test_a_grandchild_that_holds_the_pipe_holds_nobody_up(netns, gone):
    """The child's end is what counts."""

    def work():
        pid = os.fork()
        if pid == 0:
            os.setsid()
            time.sleep(1000)
        return pid

    left = netns.call_in_child(work)
    netns.close()
    gone(left)


def test_what_a_child_prints_is_captured_once(netns, capfd):
    """And what was in pytest's buffers is not printed a second time."""
    sys.stdout.write("before, ")
    netns.call_in_child(print, "in the child")
    assert capfd.readouterr().out == "before, in the child\n"


def test_a_child_holds_none_of_our_descriptors(isolation):
    """It is inside by living there, not by holding references to everything else."""
    other, netns = isolation.netns(), isolation.netns()

    def work():
        links = []
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):
                links.append(os.stat(f"/proc/self/fd/{name}").st_ino)
        return links

    inodes = netns.call_in_child(work)
    assert netns.ns_id[1] not in inodes
    assert other.ns_id[1] not in inodes


def test_an_interrupt_ends_the_child(netns, nothing_left):
    """The exception of a signal handler in the waiting thread comes out, and the child is gone."""

    class InterruptError(Exception):
        pass

    def interrupt(*_):
        raise InterruptError

    parent = os.getpid()

    def work():
        os.kill(parent, signal.SIGUSR1)
        time.sleep(1000)

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with nothing_left(), pytest.raises(InterruptError):
            netns.call_in_child(work)
    finally:
        signal.signal(signal.SIGUSR1, before)
