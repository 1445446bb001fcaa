"""`inside(...)`: any number of places at once, in any order, and every refusal."""

import asyncio
import ctypes
import itertools
import os
import re
import socket
import subprocess
import threading

import pytest

from pytest_isolation import ClosedError, IsolationError, NetNamespace, eventually, inside
from pytest_isolation.objects import _entering as _place

libc = ctypes.CDLL(None, use_errno=True)
NAMES = {
    "netns": "net",
    "pid_namespace": "pid",
    "mount_namespace": "mnt",
    "uts_namespace": "uts",
    "ipc_namespace": "ipc",
    "user_namespace": "user",
    "cgroup_namespace": "cgroup",
    "time_namespace": "time",
}
ALL = "; ".join(f"readlink /proc/self/ns/{name}" for name in NAMES.values())


def where(text):
    """The namespaces that `ALL` printed, by name: their inode numbers."""
    return {link.partition(":")[0]: int(re.search(r"\d+", link)[0]) for link in text.split()}


def wanted(places):
    return {place.namespace: place.ns_id[1] for place in places}


def test_all_kinds_at_once(isolation):
    """A command lives in every one of them."""
    places = [getattr(isolation, method)() for method in NAMES if method != "user_namespace"]
    assert where(inside(*places).run(ALL, shell=True).stdout) == {
        **where(subprocess.run(ALL, shell=True, capture_output=True, text=True, check=True).stdout),
        **wanted(places),
    }


def test_all_kinds_of_one_owner(isolation):
    """The user namespace, and what it owns."""
    user = isolation.user_namespace()
    places = [user] + [getattr(isolation, method)(user=user) for method in NAMES if method != "user_namespace"]
    assert where(inside(*places).run(ALL, shell=True).stdout) == wanted(places)


@pytest.mark.parametrize("verb", ["run", "call_in_child"])
@pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=lambda order: "".join(map(str, order)))
def test_the_order_does_not_matter(module_places, order, verb):
    """Neither for a command nor for a callable."""
    places = [module_places[position] for position in order]
    combined = inside(*places)
    if verb == "run":
        found = where(combined.run(ALL, shell=True).stdout)
    else:
        found = combined.call_in_child(
            lambda: {name: os.stat(f"/proc/self/ns/{name}").st_ino for name in NAMES.values()}
        )
    assert {place.namespace: found[place.namespace] for place in places} == wanted(places)


@pytest.fixture(scope="module")
def module_places(module_isolation):
    """A namespace owned outside, a user namespace, and two that it owns."""
    user = module_isolation.user_namespace()
    return (
        module_isolation.netns(),
        user,
        module_isolation.uts_namespace(user=user),
        module_isolation.pid_namespace(user=user),
    )


@pytest.mark.usefixtures("read_only_system")
@pytest.mark.parametrize("order", [1, -1])
def test_a_root_and_namespaces(isolation, order):
    """The root is entered last, wherever it stands."""
    root = isolation.chroot_root("/bin/sh", "/bin/ls", "/bin/cat")
    root.mkdir("/proc")
    places = [root, isolation.netns(), isolation.uts_namespace(hostname="in.the.root")][::order]
    combined = inside(*places)
    assert "bin" in combined.run(["/bin/ls", "/"]).stdout.split()
    seen = combined.call_in_child(lambda: (sorted(os.listdir("/")), socket.gethostname(), socket.if_nameindex()))
    assert "bin" in seen[0]
    assert "etc" not in seen[0] or not os.path.exists(root.path / "etc/passwd")
    assert seen[1:] == ("in.the.root", [(1, "lo")])


@pytest.mark.usefixtures("read_only_system")
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("pivot", [False, True])
def test_a_root_and_a_pid_namespace(isolation, pivot, order):
    """The process sees the root's files, and has a number of the pid namespace's."""
    root = isolation.chroot_root("/bin/sh", pivot=pivot)
    pids = isolation.pid_namespace()
    combined = inside(*[root, pids][::order])
    number = int(combined.run(["/bin/sh", "-c", "echo $$"]).stdout)
    assert 1 < number < 100
    with combined.popen(["/bin/sh", "-c", "echo up; read never"], ready="line:up", stdin=subprocess.PIPE) as process:
        assert process.pid in {one.pid_outside for one in pids.processes()}
        assert sorted(os.listdir(f"/proc/{process.pid}/root")) == sorted(os.listdir(root.path))


def test_an_end_of_a_pair_and_a_name(isolation, veth_pair):
    """An end stands for its namespace."""
    uts = isolation.uts_namespace(hostname="guest")
    guest = veth_pair.b
    with inside(uts, guest).popen(["sleep", 1000]) as process:
        assert os.stat(f"/proc/{process.pid}/ns/net").st_ino == guest.netns.ns_id[1]
        assert os.stat(f"/proc/{process.pid}/ns/uts").st_ino == uts.ns_id[1]
    assert inside(guest, uts).call(socket.gethostname) == "guest"


def test_mounts_of_a_pid_namespace_yield(isolation, tmp_path):
    """A mount namespace that was asked for wins over the one that a pid namespace brings along."""
    mounts, pids = isolation.mount_namespace(), isolation.pid_namespace()
    mounts.tmpfs(tmp_path)
    mounts.run(["touch", tmp_path / "here"])
    for places in ((mounts, pids), (pids, mounts)):
        assert inside(*places).run(["ls", tmp_path]).stdout == "here\n"


def test_the_same_place_twice_is_one(netns, veth_pair):
    """Nothing contradicts itself."""
    assert inside(netns, netns).call(lambda: os.stat("/proc/thread-self/ns/net").st_ino) == netns.ns_id[1]
    end = veth_pair.a
    assert inside(end, end.netns).call(lambda: os.stat("/proc/thread-self/ns/net").st_ino) == end.netns.ns_id[1]


# -- with


def test_with_puts_this_thread_inside_and_back(isolation, tmp_path, monkeypatch):
    """All kinds that pytest may enter; the working directory stays, and the others threads too."""
    monkeypatch.chdir(tmp_path)
    kinds = ["netns", "mount_namespace", "uts_namespace", "ipc_namespace", "cgroup_namespace"]
    places = [getattr(isolation, kind)() for kind in kinds]
    look = lambda: {place.namespace: os.stat(f"/proc/thread-self/ns/{place.namespace}").st_ino for place in places}  # noqa: E731
    before = look()
    others = []
    with inside(*places) as combined:
        assert look() == wanted(places)
        assert os.getcwd() == str(tmp_path)
        thread = threading.Thread(target=lambda: others.append(os.stat(f"/proc/{os.getpid()}/ns/uts").st_ino))
        thread.start()
        thread.join()
        assert combined.run(["pwd"]).stdout == f"{tmp_path}\n"
    assert look() == before
    assert os.getcwd() == str(tmp_path)
    assert not set(before.items()) & set(wanted(places).items())


def test_with_sets_only_this_namespace_s_name(uts_namespace):
    """What is done in the block is done inside."""
    outside = socket.gethostname()
    with inside(uts_namespace):
        socket.sethostname("happy.life.com")
        assert socket.gethostname() == "happy.life.com"
    assert socket.gethostname() == outside
    assert uts_namespace.run(["hostname"]).stdout == "happy.life.com\n"


def test_with_comes_back_after_an_exception(netns):
    """And lets it through."""
    before = os.readlink("/proc/thread-self/ns/net")
    with pytest.raises(ZeroDivisionError), inside(netns):
        raise ZeroDivisionError
    assert os.readlink("/proc/thread-self/ns/net") == before


def test_with_nests(isolation):
    """Each block comes back to the one around it; the same object may be used twice."""
    one, two = inside(isolation.netns()), inside(isolation.netns())
    links = [os.readlink("/proc/thread-self/ns/net")]
    with one:
        links.append(os.readlink("/proc/thread-self/ns/net"))
        with two, one:
            assert os.readlink("/proc/thread-self/ns/net") == links[1]
        assert os.readlink("/proc/thread-self/ns/net") == links[1]
    assert os.readlink("/proc/thread-self/ns/net") == links[0]


def test_a_working_directory_of_the_mount_namespace_s_own(mount_namespace, tmp_path, monkeypatch):
    """What the block covers up is covered inside, and not outside; the way back leads to the same directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outside").touch()
    mount_namespace.tmpfs(tmp_path)
    with inside(mount_namespace):
        assert os.listdir(".") == []
    assert os.listdir(".") == ["outside"]


def test_objects_are_used_inside_a_block(isolation):
    """The builder and the verbs of other objects do not care where this thread is."""
    one = isolation.netns()
    outer = os.stat("/proc/thread-self/ns/uts").st_ino
    with inside(one):
        other = isolation.netns()
        uts = isolation.uts_namespace(hostname="made.inside")
        assert other.run(["readlink", "/proc/self/ns/net"]).stdout.strip() == f"net:[{other.ns_id[1]}]"
        assert other.ping("127.0.0.1")
    assert uts.hostname == "made.inside"
    assert os.stat("/proc/thread-self/ns/uts").st_ino == outer


# -- refusals

TWO_OF_A_KIND = list(NAMES)


@pytest.mark.parametrize("method", TWO_OF_A_KIND)
def test_two_of_a_kind(isolation, nothing_left, method):
    """A process lives in one at a time; nothing is entered."""
    one, two = getattr(isolation, method)(), getattr(isolation, method)()
    with nothing_left(), pytest.raises(ValueError, match=rf"two of a kind: {method} .* and {method} "):
        inside(one, two)


def test_two_ends_of_a_pair(veth_pair, nothing_left):
    """They are in two network namespaces."""
    with nothing_left(), pytest.raises(ValueError, match="two of a kind"):
        inside(*veth_pair)


def test_two_roots(isolation, nothing_left):
    """A process has one."""
    one, two = isolation.chroot_root(), isolation.chroot_root()
    with nothing_left(), pytest.raises(ValueError, match="two of a kind"):
        inside(one, two)


@pytest.mark.parametrize("method", ["netns", "uts_namespace", "pid_namespace", "mount_namespace"])
def test_an_owner_that_does_not_fit(isolation, nothing_left, method):
    """A namespace owned by one user namespace cannot be had from within another."""
    owner, other = isolation.user_namespace(), isolation.user_namespace()
    owned = getattr(isolation, method)(user=owner)
    with nothing_left(), pytest.raises(ValueError, match="two of a kind: user_namespace"):
        inside(owned, other)


def test_an_owner_that_nobody_brought(isolation, nothing_left):
    """The kernel is asked whose a namespace is: a bare reference to it does not get past that."""
    owner, other = isolation.user_namespace(), isolation.user_namespace()
    owned = _place.Entry("uts", isolation.uts_namespace(user=owner).fileno(), "a bare uts namespace")
    plain = _place.Entry("net", isolation.netns().fileno(), "a netns of the machine's")
    users = [_place.Entry("user", user.fileno(), str(user)) for user in (owner, other)]
    with nothing_left():
        assert _place.make_plan([owned, users[0], plain]).entries == (plain, users[0], owned)
        for second, fragment in ((users[1], "does not fit user_namespace"), (plain, "is not among the arguments")):
            with pytest.raises(ValueError, match=rf"a bare uts namespace is owned by a user namespace.*{fragment}"):
                _place.make_plan([owned, second])


@pytest.mark.parametrize(
    "arguments, error, fragment",
    [
        ((), TypeError, "at least one"),
        (("netns",), TypeError, "what a process can live in, not 'netns'"),
        ((None,), TypeError, "not None"),
        ((7,), TypeError, "not 7"),
    ],
)
def test_nothing_to_live_in(arguments, error, fragment, nothing_left):
    """Strings and numbers name nothing."""
    with nothing_left(), pytest.raises(error, match=fragment):
        inside(*arguments)


def test_a_pair_is_no_place(veth_pair):
    """Its ends are."""
    with pytest.raises(TypeError, match="not <VethPair"):
        inside(veth_pair)


@pytest.mark.parametrize("method", ["pid_namespace", "user_namespace", "time_namespace", "chroot_root"])
def test_with_and_what_pytest_never_enters(isolation, nothing_left, method):
    """Refused before anything else is entered."""
    place = getattr(isolation, method)()
    netns = isolation.netns()
    with nothing_left(), pytest.raises(TypeError, match=rf"never enters {method}"), inside(netns, place):
        pytest.fail("the block was entered")


def test_with_and_an_owned_namespace(isolation, nothing_left):
    """It comes with its user namespace, which pytest never enters."""
    user = isolation.user_namespace()
    owned = isolation.netns(user=user)
    with nothing_left(), pytest.raises(TypeError, match="never enters user_namespace"), inside(owned):
        pytest.fail("the block was entered")


def test_a_running_event_loop(netns, nothing_left):
    """A task that runs during an await would be inside as well."""

    async def main():
        with inside(netns):
            pytest.fail("the block was entered")

    asyncio.run(asyncio.sleep(0))
    with nothing_left(), pytest.raises(RuntimeError, match=r"runs an event loop.*run, popen, call"):
        asyncio.run(main())


def test_the_verbs_work_under_an_event_loop(netns):
    """They neither stay inside nor give way to another task."""

    async def main():
        netns.call(os.getpid)
        return netns.run(["echo", "from a coroutine"]).stdout

    assert asyncio.run(main()) == "from a coroutine\n"


def test_left_on_another_thread(netns):
    """The thread that went in has to come out."""
    combined = inside(netns)
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    errors = []
    try:
        combined.__enter__()

        def leave():
            try:
                combined.__exit__(None, None, None)
            except IsolationError as error:
                errors.append(str(error))

        thread = threading.Thread(target=leave)
        thread.start()
        thread.join()
        assert "still inside" in errors[0]
        assert os.stat("/proc/thread-self/ns/net").st_ino == netns.ns_id[1]
        combined.__exit__(None, None, None)
        assert os.path.samestat(os.stat("/proc/thread-self/ns/net"), os.fstat(here))
    finally:
        libc.setns(here, 0)
        os.close(here)


def test_moved_away_inside_the_block(isolation, nothing_left):
    """Code that enters something by itself and stays is found out; the thread is back all the same."""
    one, two = isolation.netns(), isolation.netns()
    with nothing_left(), pytest.raises(IsolationError, match=r"was to leave netns .* somewhere else"), inside(one):
        assert libc.setns(two.fileno(), 0) == 0


def test_used_on_two_threads_at_once(isolation):
    """One combination, two threads inside at the same time, out in either order: each comes back by itself."""
    combined = inside(isolation.netns())
    here = os.readlink("/proc/thread-self/ns/net")
    entered, may_leave, errors, places = threading.Barrier(2), threading.Event(), [], []

    def first():
        with combined:
            entered.wait(10)
        places.append(os.readlink("/proc/thread-self/ns/net"))

    def second():
        with combined:
            entered.wait(10)
            may_leave.wait(10)
        places.append(os.readlink("/proc/thread-self/ns/net"))

    def report(work):
        try:
            work()
        except Exception as error:  # noqa: BLE001 - told to the test
            errors.append(error)

    # `first` goes in first, and out while `second` is still in.
    threads = [threading.Thread(target=report, args=(work,)) for work in (first, second)]
    threads[0].start()
    eventually(lambda: entered.n_waiting == 1)
    threads[1].start()
    threads[0].join()
    may_leave.set()
    threads[1].join()
    assert errors == []
    assert places == [here, here]


def test_closed_in_between(isolation, nothing_left):
    """A combination of what is gone says which."""
    netns = isolation.netns()
    combined = inside(netns, isolation.uts_namespace())
    netns.close()
    with nothing_left():
        for use in (lambda: combined.run(["true"]), lambda: combined.call(print), combined.__enter__):
            with pytest.raises(ClosedError, match="netns"):
                use()
        with pytest.raises(ClosedError, match="netns"):
            inside(netns)


def test_a_namespace_that_dies_while_this_thread_is_in_it_stays_alive(netns):
    """Closing what one is inside of: the thread still comes back."""
    space = NetNamespace()
    before = os.readlink("/proc/thread-self/ns/net")
    with inside(netns), inside(space):
        pass
    space.close()
    assert os.readlink("/proc/thread-self/ns/net") == before
