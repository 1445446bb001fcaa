"""ipc namespaces: System V segments, semaphores and queues, and POSIX queues, of one's own. ipc_namespaces(7)"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from pytest_isolation._kernel import syscalls, uapi
from pytest_isolation.objects._namespace import Namespace

if TYPE_CHECKING:
    from pytest_isolation.objects.user import UserNamespace


@dataclass(frozen=True, slots=True)
class Segment:
    """A System V shared memory segment, as /proc/sysvipc/shm lists it. sysvipc(7)

    Attributes:
        key: what it was made with; 0 is IPC_PRIVATE.
        shmid: its id.
        mode: permission bits.
        size: bytes.
        nattch: how many times it is attached.
        cpid: pid of its maker, as the reader's pid namespace shows it.
        uid: its owner.
    """

    key: int
    shmid: int
    mode: int
    size: int
    nattch: int
    cpid: int
    uid: int


@dataclass(frozen=True, slots=True)
class SemaphoreSet:
    """A System V semaphore set, as /proc/sysvipc/sem lists it; `nsems` is how many semaphores it holds."""

    key: int
    semid: int
    mode: int
    nsems: int
    uid: int


@dataclass(frozen=True, slots=True)
class Queue:
    """A System V message queue, as /proc/sysvipc/msg lists it; `cbytes` bytes in `qnum` messages."""

    key: int
    msqid: int
    mode: int
    cbytes: int
    qnum: int
    uid: int


@final
class IpcNamespace(Namespace):
    """An ipc namespace: it starts empty, and what is made inside exists only inside.

    Makes one ipc namespace, which ends with its last reference; the kernel then removes everything in it. Needs
    CAP_SYS_ADMIN, or `user`.

    Args:
        user: the user namespace that owns it.
        outer: no new one: the ipc namespace that pytest itself lives in.
    """

    kind: ClassVar[str] = "ipc_namespace"
    namespace: ClassVar[str] = "ipc"
    _nsenter: ClassVar[str] = "ipc"

    def __init__(self, *, user: UserNamespace | None = None, outer: bool = False) -> None:
        make = self._take_outer if outer else lambda: self._make_namespace(user)
        self._create(make, on_spawner=user is None)

    def segments(self) -> tuple[Segment, ...]:
        """Its System V shared memory segments, as `ipcs -m` lists them."""
        rows = self._do_inside(lambda: _table("shm"))
        return tuple(
            Segment(row["key"], row["shmid"], row["perms"], row["size"], row["nattch"], row["cpid"], row["uid"])
            for row in rows
        )

    def semaphores(self) -> tuple[SemaphoreSet, ...]:
        """Its System V semaphore sets, as `ipcs -s` lists them."""
        rows = self._do_inside(lambda: _table("sem"))
        return tuple(SemaphoreSet(row["key"], row["semid"], row["perms"], row["nsems"], row["uid"]) for row in rows)

    def queues(self) -> tuple[Queue, ...]:
        """Its System V message queues, as `ipcs -q` lists them."""
        rows = self._do_inside(lambda: _table("msg"))
        return tuple(
            Queue(row["key"], row["msqid"], row["perms"], row["cbytes"], row["qnum"], row["uid"]) for row in rows
        )

    def posix_queues(self) -> tuple[str, ...]:
        """The names of its POSIX message queues, each with its leading slash. mq_overview(7)"""
        return self._do_inside(lambda: _posix_queues(own_mounts=self._user is not None))


def _table(name: str) -> list[dict[str, int]]:
    with open(f"/proc/sysvipc/{name}", encoding="ascii") as file:
        header, *lines = file.read().splitlines()
    columns = header.split()
    rows = [dict(zip(columns, line.split(), strict=True)) for line in lines]
    return [{key: int(value, 8 if key == "perms" else 10) for key, value in row.items()} for row in rows]


def _posix_queues(*, own_mounts: bool) -> tuple[str, ...]:
    if own_mounts:  # in a forked child, in a user namespace: mounting is for whoever owns the mount namespace
        syscalls.unshare(uapi.CLONE_NEWNS)
    # A mount of mqueue shows the ipc namespace it was made in: a detached one, of this one.
    mount = syscalls.fs_mount("mqueue")
    try:
        directory = os.open(".", os.O_RDONLY | os.O_CLOEXEC, dir_fd=mount)
        try:
            return tuple(sorted(f"/{name}" for name in os.listdir(directory)))
        finally:
            os.close(directory)
    finally:
        os.close(mount)
