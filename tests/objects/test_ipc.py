"""ipc namespaces, by the word of ipcs(1), /proc/sysvipc and a mount of mqueue."""

import ctypes
import os
import re
import subprocess
from pathlib import Path

import pytest

from pytest_isolation import IpcNamespace

libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(autouse=True)
def outside_stays():
    """The machine's own lists are unchanged."""
    read = lambda: {name: Path(f"/proc/sysvipc/{name}").read_text() for name in ("shm", "sem", "msg")}  # noqa: E731
    before = read()
    yield
    assert read() == before


def make(space, *options):
    """ipcmk(1) inside; the id of what it made."""
    return int(re.search(r"\d+", space.run(["ipcmk", *options]).stdout)[0])


def ids(space, option):
    """The ids that ipcs(1) lists inside."""
    return [int(line.split()[1]) for line in space.run(["ipcs", option]).stdout.splitlines() if line.startswith("0x")]


def test_it_starts_empty(ipc_namespace):
    """Whatever there is outside."""
    assert (ipc_namespace.segments(), ipc_namespace.semaphores(), ipc_namespace.queues()) == ((), (), ())
    assert ipc_namespace.posix_queues() == ()


def test_segments(isolation):
    """Each namespace sees its own only."""
    one, two = isolation.ipc_namespace(), isolation.ipc_namespace()
    first, second = make(one, "-M", "100", "-p", "0640"), make(two, "-M", "4096")
    assert (ids(one, "-m"), ids(two, "-m")) == ([first], [second])
    (segment,) = one.segments()
    assert (segment.shmid, segment.size, segment.mode, segment.nattch, segment.uid) == (
        first,
        100,
        0o640,
        0,
        os.geteuid(),
    )
    assert segment.key != 0
    assert [segment.size for segment in two.segments()] == [4096]


def test_semaphores_and_queues(ipc_namespace):
    """Typed, as ipcs lists them."""
    semaphores, queue = make(ipc_namespace, "-S", "3"), make(ipc_namespace, "-Q")
    assert (ids(ipc_namespace, "-s"), ids(ipc_namespace, "-q")) == ([semaphores], [queue])
    (found,) = ipc_namespace.semaphores()
    assert (found.semid, found.nsems, found.mode, found.uid) == (semaphores, 3, 0o644, os.geteuid())
    (found,) = ipc_namespace.queues()
    assert (found.msqid, found.qnum, found.cbytes) == (queue, 0, 0)


def test_a_message_is_counted(ipc_namespace):
    """Bytes and messages in a queue."""

    def send():
        queue = libc.msgget(0x1234, 0o1600)
        message = ctypes.create_string_buffer(ctypes.sizeof(ctypes.c_long) + 5)
        ctypes.c_long.from_buffer(message).value = 1
        assert libc.msgsnd(queue, message, 5, 0) == 0, os.strerror(ctypes.get_errno())

    ipc_namespace.call(send)
    (found,) = ipc_namespace.queues()
    assert (found.key, found.qnum, found.cbytes, found.mode) == (0x1234, 1, 5, 0o600)


def open_queue(name):
    """mq_open(3), O_CREAT | O_RDWR."""
    return libc.mq_open(name.encode(), os.O_CREAT | os.O_RDWR, 0o600, None)


def test_posix_queues(isolation, nothing_left):
    """Names exist inside only; listing them makes no mount that anybody sees."""
    one, two = isolation.ipc_namespace(), isolation.ipc_namespace()
    mounts = Path("/proc/self/mountinfo").read_text()

    def make_two():
        for name in ("/b", "/a"):
            queue = open_queue(name)
            assert queue >= 0, os.strerror(ctypes.get_errno())
            libc.mq_close(queue)

    with nothing_left():
        one.call(make_two)
        assert one.posix_queues() == ("/a", "/b")
        assert two.posix_queues() == ()
        assert two.call(libc.mq_open, b"/a", os.O_RDWR) == -1
    assert Path("/proc/self/mountinfo").read_text() == mounts
    shown = one.run("d=$(mktemp -d) && mount -t mqueue none $d && ls $d; umount $d; rmdir $d", shell=True).stdout
    assert shown.split() == ["a", "b"]


def test_the_outer_one(nothing_left, warm):
    """Pytest's own: what is made there is the machine's, and closing takes nothing away."""
    with nothing_left(), IpcNamespace(outer=True) as outer:
        assert outer.ns_id[1] == os.stat("/proc/self/ns/ipc").st_ino
        listed = subprocess.check_output(["ipcs", "-m"], text=True)
        number = make(outer, "-M", "100")
        try:
            assert number in {segment.shmid for segment in outer.segments()}
            assert f" {number} " in subprocess.check_output(["ipcs", "-m"], text=True)
        finally:
            subprocess.run(["ipcrm", "-m", str(number)], check=True)
        assert subprocess.check_output(["ipcs", "-m"], text=True) == listed


def test_one_that_a_user_namespace_owns(isolation):
    """All four lists."""
    space = isolation.ipc_namespace(user=isolation.user_namespace())
    make(space, "-M", "100")
    assert len(space.segments()) == 1
    assert (space.semaphores(), space.queues()) == ((), ())
    space.call_in_child(open_queue, "/mine")
    assert space.posix_queues() == ("/mine",)


def test_nothing_is_left(nothing_left):
    """The kernel removes what was in it."""
    with nothing_left(), IpcNamespace() as space:
        make(space, "-M", "100")
