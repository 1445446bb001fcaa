"""What tests use besides: each behaves around the fixtures as it does without them."""

import asyncio
import contextlib
import faulthandler
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pytest

from pytest_isolation import NetNamespace, eventually, inside


def links(netns):
    return sorted(link.ifname for link in netns.links())


# -- threads


def test_threads_run_commands_and_callables_side_by_side(isolation):
    """Eight threads, two namespaces: each job is in the one it asked for."""
    spaces = [isolation.netns(), isolation.netns()]
    for number, space in enumerate(spaces):
        space.run(["ip", "link", "add", f"br{number}", "type", "bridge"])

    def work(number):
        space, own = spaces[number % 2], f"br{number % 2}"
        seen = space.call(lambda: sorted(name for _, name in socket.if_nameindex()))
        listed = space.run(["ls", "/sys/class/net"]).stdout.split()
        forked = space.call_in_child(lambda: sorted(name for _, name in socket.if_nameindex())) if number < 4 else seen
        return seen == listed == forked == [own, "lo"]

    before = sorted(name for _, name in socket.if_nameindex())
    with ThreadPool(8) as pool:
        assert all(pool.map(work, range(48)))
        assert all(
            names == before for names in pool.map(lambda _: sorted(n for _, n in socket.if_nameindex()), range(16))
        )


def test_threads_build_and_close_side_by_side(isolation):
    """Builders are used from many threads at once; every object works, and all are closed."""

    def build(_):
        with NetNamespace() as netns:
            isolation.uts_namespace(hostname="happy")
            return netns.run(["cat", "/proc/net/dev"]).stdout.count(":")

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(build, range(24))) == [1] * 24


def test_a_thread_that_is_inside_does_not_take_others_along(netns):
    """`with inside(...)` holds for the calling thread alone."""
    outer = os.readlink("/proc/thread-self/ns/net")
    with inside(netns):
        assert os.readlink("/proc/thread-self/ns/net") != outer
        with ThreadPoolExecutor(1) as pool:  # born inside, and so inside: as the kernel has it
            assert pool.submit(os.readlink, "/proc/thread-self/ns/net").result() != outer
    assert os.readlink("/proc/thread-self/ns/net") == outer


def test_no_thread_shows_up_in_threading(netns):
    """A test that counts threads counts its own."""
    netns.run(["true"])
    assert [thread.name for thread in threading.enumerate() if "isolation" in thread.name.lower()] == []
    assert threading.active_count() == len(threading.enumerate())


# -- asyncio


async def serve_one(listener):
    async def answer(reader, writer):
        writer.write((await reader.readline()).upper())
        await writer.drain()
        writer.close()

    return await asyncio.start_server(answer, sock=listener)


async def ask(sock):
    reader, writer = await asyncio.open_connection(sock=sock)
    writer.write(b"hello\n")
    answer = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return answer


def test_asyncio_serves_on_sockets_born_inside(veth_pair):
    """One loop outside serves and asks across two namespaces, and runs commands there meanwhile."""
    server, client = veth_pair

    async def main():
        async with await serve_one(server.netns.listen(7)):
            answers = await asyncio.gather(*(ask(client.netns.connect((server, 7))) for _ in range(5)))
            output = await asyncio.to_thread(client.run, ["echo", "besides"])
        return answers, output.stdout

    assert asyncio.run(main()) == ([b"HELLO\n"] * 5, "besides\n")


def test_asyncio_in_a_thread(veth_pair):
    """The loop runs in a thread of its own, the test asks from the main one."""
    server, client = veth_pair
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        running = asyncio.run_coroutine_threadsafe(serve_one(server.netns.listen(7)), loop).result(10)
        with client.netns.connect((server, 7)) as sock:
            sock.sendall(b"hello\n")
            assert sock.makefile("rb").readline() == b"HELLO\n"
        loop.call_soon_threadsafe(running.close)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_a_running_loop_may_run_commands_and_is_refused_inside(netns):
    """`with inside` would take every task along; the verbs do not."""

    async def main():
        assert netns.run(["echo", "here"]).stdout == "here\n"
        assert netns.call(lambda: [name for _, name in socket.if_nameindex()]) == ["lo"]
        with pytest.raises(RuntimeError, match="event loop"), inside(netns):
            pass
        process = await asyncio.create_subprocess_exec("echo", "asyncio's own", stdout=subprocess.PIPE)
        return (await process.communicate())[0]

    assert asyncio.run(main()) == b"asyncio's own\n"


# -- multiprocessing


@pytest.fixture
def helpers_of_multiprocessing():
    """Ends the processes that multiprocessing itself leaves running until Python ends."""
    yield
    multiprocessing.forkserver._forkserver._stop()
    multiprocessing.resource_tracker._resource_tracker._stop()


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_pool_that_outlives_a_netns_does_not_keep_it(isolation, method, helpers_of_multiprocessing):
    """A pool made while a veth pair is open: one namespace is closed, and the kernel takes the other end away."""
    near, far = NetNamespace(), isolation.netns()
    isolation.veth_pair(netns=(near, far))
    with multiprocessing.get_context(method).Pool(2) as pool:
        workers = {worker.pid for worker in multiprocessing.active_children()}
        assert set(pool.map(_pid, range(8), chunksize=1)) <= workers
        assert links(far) == ["eth0", "lo"]
        near.close()
        eventually(lambda: links(far) == ["lo"], 10.0)
        assert set(pool.map(_pid, range(8), chunksize=1)) <= workers


def _pid(_):
    return os.getpid()


def _isolate(_):
    with NetNamespace() as netns:
        return netns.run(["ls", "/sys/class/net"]).stdout.split()


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_workers_of_a_fork_pool_use_isolation_of_their_own(netns):
    """A fork starts afresh: its own spawner, keeper and run; the parent's goes on."""
    netns.run(["true"])
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_isolate, range(4)) == [["lo"]] * 4
    assert netns.run(["ls", "/sys/class/net"]).stdout.split() == ["lo"]


# -- what pytest and the process have


def test_capfd_sees_what_commands_print_to_it(netns, capfd):
    """A command without captured output prints where pytest's own descriptors lead."""
    netns.run(["sh", "-c", "echo out; echo err >&2"], capture_output=False)
    os.write(1, b"own\n")
    assert capfd.readouterr() == ("out\nown\n", "err\n")
    assert netns.run(["echo", "kept"]).stdout == "kept\n"
    assert capfd.readouterr() == ("", "")


def test_capsys_sees_what_callables_print(netns, capsys):
    """`call` runs on this thread: its output is the test's."""
    netns.call(print, "from inside")
    assert capsys.readouterr().out == "from inside\n"


def test_a_forked_child_does_not_print_twice(netns, capfd):
    """What the test had printed before stays printed once."""
    print("before")
    netns.call_in_child(print, "in the child")
    print("after")
    assert capfd.readouterr().out.split("\n") == ["before", "in the child", "after", ""]


def test_tmp_path_is_the_same_inside(mount_namespace, netns, tmp_path):
    """Commands, callables and children read and write there."""
    (tmp_path / "from-outside").write_text("hello")
    for place in (mount_namespace, netns, inside(mount_namespace, netns)):
        assert place.run(["cat", tmp_path / "from-outside"]).stdout == "hello"
        assert place.call((tmp_path / "from-outside").read_text) == "hello"
        place.call_in_child((tmp_path / "from-inside").write_text, "there")
        assert (tmp_path / "from-inside").read_text() == "there"


@pytest.mark.parametrize("fixture", ["netns", "mount_namespace", "pid_namespace", "user_namespace", "time_namespace"])
def test_commands_follow_a_changed_directory(request, fixture, tmp_path, monkeypatch):
    """monkeypatch.chdir before or after the fixture: commands and children start where pytest is."""
    place = request.getfixturevalue(fixture)
    tmp_path.chmod(0o755)
    assert place.run(["pwd", "-P"]).stdout.strip() == os.getcwd()
    monkeypatch.chdir(tmp_path)
    assert place.run(["pwd", "-P"]).stdout.strip() == str(tmp_path)
    assert place.call_in_child(os.getcwd) == str(tmp_path)
    assert place.run(["pwd", "-P"], cwd="/").stdout.strip() == "/"
    assert os.getcwd() == str(tmp_path)


@pytest.mark.parametrize("fixture", ["netns", "mount_namespace", "pid_namespace", "user_namespace", "time_namespace"])
@pytest.mark.parametrize("umask", [0o077, 0o002])
def test_commands_follow_a_changed_umask(request, fixture, umask):
    """umask(2) is the process's, whichever thread starts the command."""
    place = request.getfixturevalue(fixture)
    before = os.umask(umask)
    try:
        assert int(place.run(["sh", "-c", "umask"]).stdout, 8) == umask
    finally:
        assert os.umask(before) == umask


def test_signal_handlers_are_called_during_a_command(netns):
    """A handler of the test runs while it waits, and the command's result comes all the same."""
    seen = []
    before = signal.signal(signal.SIGALRM, lambda *_: seen.append(netns.run(["echo", "in the handler"]).stdout))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert netns.run(["sh", "-c", "sleep 0.3; echo done"]).stdout == "done\n"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert seen == ["in the handler\n"]


def test_a_handler_that_raises_ends_the_command(netns):
    """An exception out of a handler ends the wait, and the command's whole tree."""

    class Enough(Exception):  # noqa: N818 - it is no error
        pass

    def handler(*_):
        raise Enough

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(Enough):
            netns.run(["sh", "-c", "sleep 1234.5 & sleep 1234.5"])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert subprocess.run(["pgrep", "-f", "^sleep 1234.5"], check=False, capture_output=True).stdout == b""


def test_children_of_the_test_are_left_to_the_test(netns, pid_namespace):
    """os.wait() meets the children that the test made, and nobody of ours."""
    netns.run(["true"])
    pid_namespace.run(["true"])
    own = subprocess.Popen(["sleep", "0.05"])
    assert os.waitpid(-1, 0) == (own.pid, 0)
    own.returncode = 0
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_signal_dispositions_and_masks_are_not_changed(netns, pid_namespace):
    """Neither pytest's own, nor what its commands get."""
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    own = subprocess.run(["grep", "^Sig[BIC]", "/proc/self/status"], text=True, capture_output=True, check=True).stdout
    for place in (netns, pid_namespace):
        assert place.run(["grep", "^Sig[BIC]", "/proc/self/status"]).stdout == own
    assert {number: signal.getsignal(number) for number in signal.valid_signals()} == handlers
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask


def test_faulthandler_works_around_a_command(netns, tmp_path):
    """A traceback asked for while a command runs, as pytest's faulthandler_timeout does, shows the test."""
    with (tmp_path / "trace").open("w+") as file:
        faulthandler.dump_traceback_later(0.05, file=file)
        try:
            netns.run(["sleep", "0.3"])
        finally:
            faulthandler.cancel_dump_traceback_later()
        file.seek(0)
        assert "test_faulthandler_works_around_a_command" in file.read()


# -- other plugins, in sessions of their own


@pytest.fixture
def gone(machine, monkeypatch):
    """A function that waits until nothing is alive that was started since with this test's mark."""
    value = f"{os.getpid()}-{time.monotonic_ns()}"
    monkeypatch.setenv("ISOLATION_TEST", value)
    yield lambda: eventually(lambda: machine.processes(f"ISOLATION_TEST={value}") == {}, 10.0)
    for pid in machine.processes(f"ISOLATION_TEST={value}"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


HANGS = """
    def test_hangs(netns, pid_namespace, isolation):
        netns.popen(["setsid", "sh", "-c", "sleep 1000 & sleep 1000"])
        pid_namespace.popen(["sleep", "1000"])
        isolation.chroot_root()
        netns.run(["sh", "-c", "touch reached; sleep 1000 & sleep 1000"])

    def test_after(netns):
        assert netns.run(["echo", "on"]).stdout == "on\\n"
"""


def test_pytest_timeouts_signal_method_ends_the_test_alone(pytester, gone):
    """The hanging command is ended with its tree, the test fails, the session goes on."""
    pytester.makepyfile(HANGS)
    result = pytester.runpytest_subprocess("-p", "pytest_timeout", "--timeout=2", "--timeout-method=signal")
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*Timeout*"])
    gone()


def test_pytest_timeouts_thread_method_ends_the_session_and_nothing_is_left(pytester, gone):
    """It writes the stacks and ends the process, as documented; the keeper takes the rest away."""
    pytester.makepyfile(HANGS)
    result = pytester.runpytest_subprocess("-p", "pytest_timeout", "--timeout=2", "--timeout-method=thread")
    assert result.ret == 1
    assert "Timeout" in result.stderr.str() + result.stdout.str()
    assert "test_hangs" in result.stderr.str() + result.stdout.str()
    assert "passed" not in result.stdout.str()
    gone()


def test_pdb_stops_inside_the_test_with_everything_alive(pytester, gone):
    """`--pdb`: the debugger's commands reach the test's objects, and teardown comes after it."""
    pytester.makepyfile(
        """
        def test_fails(veth_pair):
            a, b = veth_pair
            server = a.popen(["sleep", "1000"])
            assert a is b
        """
    )
    result = pytester.run(
        sys.executable,
        "-m",
        "pytest",
        "--pdb",
        stdin=b"p bool(b.ping(a)), server.poll()\np a.run(['echo', 'x' * 3]).stdout\nc\n",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*(True, None)", "*'xxx\\n'"])
    gone()


def test_a_breakpoint_in_the_test(pytester, gone):
    """`breakpoint()` while a command runs."""
    pytester.makepyfile(
        """
        def test_stops(netns):
            server = netns.popen(["sleep", "1000"])
            breakpoint()
            assert server.poll() is None
        """
    )
    result = pytester.run(sys.executable, "-m", "pytest", stdin=b"p server.poll()\nc\n")
    result.assert_outcomes(passed=1)
    gone()


MANY = """
    import pytest

    @pytest.fixture(scope="module")
    def space(module_isolation):
        return module_isolation.netns()

    @pytest.mark.parametrize("number", range(6))
    def test_each(number, space, veth_pair, pid_namespace, chroot_root, uts_namespace, isolation):
        a, b = veth_pair
        assert a.ping(b)
        assert space.run(["true"]).returncode == 0
        assert pid_namespace.run(["sh", "-c", "echo $$"]).stdout
        outer, inner = isolation.veth_pair(outer=True)
        assert outer.ping(inner)
"""


@pytest.mark.parametrize("args", [["-n2"], ["-n2", "--dist", "loadscope"]], ids=" ".join)
def test_xdist_workers_stand_side_by_side(pytester, gone, args):
    """Two workers do the same at once, links in the machine's own namespace included."""
    pytester.makepyfile(test_one=MANY, test_two=MANY)
    result = pytester.runpytest_subprocess("-p", "xdist", *args)
    result.assert_outcomes(passed=12)
    gone()


@pytest.mark.parametrize("args", [[], ["-p", "xdist", "-n2"]], ids=["alone", "xdist"])
def test_an_interrupt_in_the_middle_of_a_command_leaves_nothing(pytester, gone, args):
    """Ctrl-C to the session: it ends as interrupted, with its teardown."""
    pytester.makepyfile(HANGS)
    reached = pytester.path / "reached"
    process = pytester.popen(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *args],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    eventually(reached.exists, 30.0)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: controller and workers
    output, _ = process.communicate(timeout=30)
    assert process.returncode == pytest.ExitCode.INTERRUPTED, output.decode()
    assert b"KeyboardInterrupt" in output
    gone()
    assert not list(Path("/run/netns").glob("pi*"))
