"""Chapter 5: ipc, shared memory that others do not share.

System V shared memory, semaphores and message queues, and POSIX message queues, live outside the file system: whoever
knows the key or the name finds them. An ipc namespace is a set of keys and names of its own; it starts empty, and with
its last process everything in it is gone.

The host is in this story too: one segment and one queue are made in pytest's own ipc namespace, and removed again.
"""

import ctypes
import os
import secrets

import pytest

from pytest_isolation import eventually


@pytest.fixture
def host(isolation):
    """The ipc namespace that pytest itself lives in."""
    return isolation.ipc_namespace(outer=True)


def make_segment(place):
    """`ipcmk -M 100` in there; what it made, as the kernel lists it."""
    shmid = int(place.run(["ipcmk", "-M", "100"]).stdout.split()[-1])
    (segment,) = [segment for segment in place.segments() if segment.shmid == shmid]
    return segment


@pytest.fixture
def host_segment(host):
    """A segment on the host, removed whatever the test does."""
    segment = make_segment(host)
    yield segment
    host.run(["ipcrm", "-m", segment.shmid])


def test_a_new_one_is_empty(ipc_namespace, host_segment):
    """What the host has, a new namespace has not."""
    assert ipc_namespace.segments() == ()
    assert ipc_namespace.semaphores() == ()
    assert ipc_namespace.queues() == ()
    assert ipc_namespace.posix_queues() == ()


def test_each_sees_its_own_segment_only(isolation, host, host_segment):
    """The same command in two namespaces and on the host makes three segments, and each place has one of them."""
    here, there = isolation.ipc_namespace(), isolation.ipc_namespace()
    in_here, in_there = make_segment(here), make_segment(there)
    assert in_here.size == in_there.size == host_segment.size == 100
    assert here.segments() == (in_here,)
    assert there.segments() == (in_there,)
    keys_on_host = [segment.key for segment in host.segments()]
    assert host_segment.key in keys_on_host
    assert in_here.key not in keys_on_host
    assert in_there.key not in keys_on_host


def test_ipcs_says_the_same(ipc_namespace, host_segment):
    """ipcs(1), run inside, lists the segment made inside and not the host's."""
    segment = make_segment(ipc_namespace)
    listed = ipc_namespace.run(["ipcs", "-m"]).stdout
    assert f"0x{segment.key & 0xFFFFFFFF:08x}" in listed
    assert f"0x{host_segment.key & 0xFFFFFFFF:08x}" not in listed


def test_the_list_of_the_host_is_unchanged(isolation, host):
    """Whatever is made inside, `ipcs` on the host says the same before and after."""

    def same_before_and_after():  # eventually: somebody else on this machine may be making segments, too
        before = host.run(["ipcs"]).stdout, host.posix_queues()
        namespace = isolation.ipc_namespace()
        make_segment(namespace)
        namespace.run(["ipcmk", "--queue", "--semaphore", "3"])
        namespace.call(make_queue, "/made-inside")
        return (host.run(["ipcs"]).stdout, host.posix_queues()) == before

    eventually(same_before_and_after)


def make_queue(name):
    """mq_open(3): make the POSIX message queue of that name, and close it; it stays until it is unlinked."""
    libc = ctypes.CDLL(None, use_errno=True)
    queue = libc.mq_open(name.encode(), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600, None)
    if queue < 0:
        raise OSError(ctypes.get_errno(), "mq_open", name)
    os.close(queue)


def unlink_queue(name):
    """mq_unlink(3)."""
    assert ctypes.CDLL(None).mq_unlink(name.encode()) == 0


def test_each_sees_its_own_posix_queue_only(isolation, host):
    """Queues are found by name, and a name means something else in each place: here the same one exists three times."""
    name = f"/happy-{secrets.token_hex(8)}"
    here, there = isolation.ipc_namespace(), isolation.ipc_namespace()
    here.call(make_queue, name)
    assert here.posix_queues() == (name,)
    assert there.posix_queues() == ()
    assert name not in host.posix_queues()
    there.call(make_queue, name)  # no FileExistsError: it is another one
    make_queue(name)
    try:
        assert name in host.posix_queues()
    finally:
        unlink_queue(name)
    assert name not in host.posix_queues()
    assert here.posix_queues() == there.posix_queues() == (name,)


def test_with_the_last_reference_it_is_gone(isolation):
    """Nobody has to remove what was made inside: it ends with its namespace, and a new one knows nothing of it."""
    first = isolation.ipc_namespace()
    make_segment(first)
    first.close()
    assert isolation.ipc_namespace().segments() == ()
