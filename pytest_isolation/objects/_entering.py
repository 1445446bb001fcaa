"""Entering: planned once, in the order the kernel wants, and done by whoever can.

A command is born on the spawner thread, which has entered. User and time namespaces cannot be entered by a process
with threads, and cgroups that limit memory or processes would count pytest: such commands are forked, and enter between
fork and exec.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import pickle
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_isolation._kernel import cgroupfs, procfs, syscalls, uapi
from pytest_isolation._state import fds
from pytest_isolation._state.keeper import become_root_inside
from pytest_isolation._state.spawner import spawner
from pytest_isolation.errors import IsolationError, KernelError
from pytest_isolation.objects import _child

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

#: Kinds that only a process with one thread can enter.
_SINGLE_THREADED = ("user", "time")


class Ids(NamedTuple):
    """What to be inside a user namespace."""

    uid: int
    gid: int
    setgroups: bool


@dataclass(frozen=True, slots=True)
class Group:
    """A cgroup to be born in.

    Attributes:
        tasks: (`tasks` file of the v1 cgroup that pytest is in, the one to write 0 to) of each hierarchy; of v2 the
            `cgroup.procs` files.
        by_thread: may a thread of pytest be in it for the moment of a spawn? Not where memory or processes are limited.
        check: called in the child that has joined; raises when the kernel would have no room for it.
    """

    tasks: tuple[tuple[str, str], ...]
    by_thread: bool
    check: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing to enter.

    Attributes:
        name: its name under /proc/PID/ns, or `root`, or `control group`.
        fd: the namespace, or the new root directory; -1 of a cgroup.
        title: for messages.
        implied: comes along with another (a pid namespace's mounts), and yields to one that was asked for.
        path: of a root: where its directory is found again after entering a mount namespace.
        ids: of a user namespace: what to become.
        view: of a network namespace: makes, on a thread or process inside, the mounts that show it (its /sys).
        group: of a cgroup: how to join it.
    """

    name: str
    fd: int
    title: str
    implied: bool = False
    path: str | None = None
    ids: Ids | None = None
    view: Callable[[Plan], int | None] | None = None
    group: Group | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Entries in the order in which they are entered."""

    outside: tuple[Entry, ...]
    user: Entry | None
    owned: tuple[Entry, ...]
    root: Entry | None
    group: Entry | None = None

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All of them, in order."""
        found = (self.group, *self.outside, self.user, *self.owned, self.root)
        return tuple(entry for entry in found if entry is not None)

    def find(self, name: str) -> Entry | None:
        """The entry of that name."""
        return next((entry for entry in self.entries if entry.name == name), None)

    @property
    def needs_fork(self) -> bool:
        """Can only a process with one thread, not one of pytest's, enter it?"""
        group = None if self.group is None else self.group.group
        return any(entry.name in _SINGLE_THREADED for entry in self.entries) or not (group is None or group.by_thread)


def _is_same(entry: Entry, other: Entry) -> bool:
    if entry.group is not None and other.group is not None:
        return entry.group.tasks == other.group.tasks
    return _same(entry.fd, other.fd)


def _same(fd: int, other: int) -> bool:
    return os.path.samestat(os.fstat(fd), os.fstat(other))


def _owner_fits(entry: Entry, user: Entry | None) -> bool:
    """Is the namespace owned by `user`? False: by pytest's own user namespace or one above it. ioctl_ns(2)

    Raises:
        ValueError: by another one.
    """
    try:
        owner: int = fcntl.ioctl(entry.fd, uapi.NS_GET_USERNS)
    except OSError:
        return False  # EPERM: it is above our own
    try:
        if user is not None and _same(owner, user.fd):
            return True
        if _same(owner, spawner().origin["user"]):
            return False
    finally:
        os.close(owner)
    wanted = f"it does not fit {user.title}" if user else "it is not among the arguments"
    message = f"{entry.title} is owned by a user namespace of its own, and {wanted}: pass the one it was built with"
    raise ValueError(message)


def make_plan(entries: Sequence[Entry], *, check_owner: bool = True) -> Plan:
    """Order the entries and refuse what does not go together.

    Raises:
        ValueError: two of a kind, or a namespace whose owner does not fit.
    """
    chosen: dict[str, Entry] = {}
    for entry in entries:
        other = chosen.get(entry.name)
        if other is None or other.implied:
            chosen[entry.name] = entry
        elif not entry.implied and not _is_same(entry, other):
            message = f"two of a kind: {other.title} and {entry.title}; a process lives in one at a time"
            raise ValueError(message)
    group, user, root = (chosen.pop(name, None) for name in ("control group", "user", "root"))
    outside: list[Entry] = []
    owned: list[Entry] = []
    for entry in chosen.values():
        fits = check_owner and (user is not None or len(entries) > 1) and _owner_fits(entry, user)
        (owned if fits else outside).append(entry)
    return Plan(tuple(outside), user, tuple(owned), root, group)


# -- entering


def _enter_root(root: Entry, plan: Plan) -> None:
    if root.path is None or plan.find("mnt") is None:
        os.fchdir(root.fd)
    else:  # the directory as this mount namespace shows it
        os.chdir(root.path)
        if not os.path.samestat(os.stat("."), os.fstat(root.fd)):
            message = f"{root.title} is hidden by another mount in the mount namespace it is to be entered from"
            raise IsolationError(message)
    syscalls.chroot_here()


def enter_here(plan: Plan, *, skip: tuple[str, ...] = ()) -> None:
    """Enter everything, for good: in a forked child, which has one thread."""
    myself = os.open("/proc/thread-self", os.O_PATH | os.O_CLOEXEC)
    sysfs = -1
    for entry in plan.entries:
        if entry.name in skip:
            continue
        if entry.group is not None:
            _join(entry.group)
            continue
        if entry.name == "root":
            _enter_root(entry, plan)
            continue
        syscalls.setns(entry.fd, uapi.NAMESPACE_FLAGS[entry.name])
        if entry.ids is not None:
            become_root_inside(*entry.ids)
        if entry.name == "net" and _wants_view(plan):
            # Now: in a user namespace that does not own this one it would be refused; in the one that does, it takes
            # mounts of its own as well.
            if entry in plan.owned:
                syscalls.unshare(uapi.CLONE_NEWNS)
            sysfs = new_sysfs()
    if sysfs >= 0:
        mount_sysfs(sysfs, myself)
        os.close(sysfs)
    os.close(myself)


def _join(group: Group) -> None:
    """Be in the cgroup, for good: a forked child, which the kernel takes as it is."""
    for _, tasks in group.tasks:
        cgroupfs.write(tasks, "0")
    group.check()


def _wants_view(plan: Plan) -> bool:
    """Is a /sys wanted that shows the plan's network namespace? Not where something else says what is mounted."""
    net, mnt = plan.find("net"), plan.find("mnt")
    return net is not None and net.view is not None and plan.root is None and (mnt is None or mnt.implied)


def _view_of(plan: Plan) -> int | None:
    """On the spawner thread: the mount namespace with that /sys, or None."""
    net = plan.find("net")
    if not _wants_view(plan) or net is None or net.view is None:
        return None
    return net.view(plan)


def new_sysfs() -> int:
    """On a thread or process in a network namespace: a sysfs that shows it, mounted nowhere yet."""
    return syscalls.fs_mount(
        "sysfs", attributes=uapi.MOUNT_ATTR_NOSUID | uapi.MOUNT_ATTR_NODEV | uapi.MOUNT_ATTR_NOEXEC
    )


def mount_sysfs(sysfs: int, myself: int) -> None:
    """Give the calling thread or process mounts of its own, with `sysfs` at /sys.

    What is mounted below /sys (cgroups, tracing) stays where it is. `myself` is the caller's /proc/thread-self, opened
    before it entered anything: the /proc of a pid namespace does not show the caller.
    """
    with open(os.open("mountinfo", os.O_RDONLY | os.O_CLOEXEC, dir_fd=myself), encoding="utf-8") as file:
        below = [mount.target for mount in procfs.parse_mountinfo(file.read()) if mount.target.startswith("/sys/")]
    syscalls.unshare(uapi.CLONE_NEWNS)
    syscalls.mount(None, "/", None, uapi.MS_REC | uapi.MS_SLAVE)
    tops = [path for path in below if not any(path.startswith(other + "/") for other in below)]
    trees = []
    try:
        for path in dict.fromkeys(tops):
            tree = syscalls.open_tree(path, uapi.OPEN_TREE_CLONE | uapi.AT_RECURSIVE)
            trees.append((path, tree))
        syscalls.move_mount(sysfs, "/sys")
        for path, tree in trees:
            if os.path.isdir(path):
                syscalls.move_mount(tree, path)
    finally:
        for _, tree in trees:
            os.close(tree)


class Cwd(NamedTuple):
    """A working directory: where, and whether somebody asked for it."""

    path: str
    given: bool


def find_again(plan: Plan, cwd: Cwd) -> None:
    """In a forked child that has entered: the working directory, as the mounts in there show it."""
    if plan.find("mnt") is None and plan.root is None and not _wants_view(plan):
        return  # the same mounts: it is what it was
    try:
        os.chdir(cwd.path)
    except OSError:
        if cwd.given:
            raise
        os.chdir("/")  # not there, or closed to the user in there; nobody asked for it


def spawn(plan: Plan, start: Callable[..., None], cwd: Cwd) -> None:
    """Start a command inside: `start(**options)` is subprocess.Popen with all that the caller gave it."""
    # The resident thread has a umask and an affinity of its own; a command gets those of the thread that asks.
    umask = os.umask(0o077)
    os.umask(umask)
    affinity = os.sched_getaffinity(0)

    def job(start_it: Callable[[], None]) -> None:
        if os.sched_getaffinity(0) != affinity:
            os.sched_setaffinity(0, affinity)
        start_it()

    if plan.needs_fork:
        _spawn_forked(plan, functools.partial(start, cwd=None if plan.root else cwd.path, umask=umask), cwd, job)
    else:
        spawner().run(job, lambda: _spawn_inside(plan, lambda: start(cwd=cwd.path, umask=umask)))


def _spawn_inside(plan: Plan, start: Callable[[], None]) -> None:
    """On the spawner thread: enter, start, come back."""
    thread = spawner()
    namespaces = [(entry.name, entry.fd) for entry in (*plan.outside, *plan.owned)]
    view = _view_of(plan)
    if view is not None:
        namespaces = [pair for pair in namespaces if pair[0] != "mnt"] + [("mnt", view)]
    group = None if plan.group is None else plan.group.group
    with thread.joined(() if group is None else group.tasks), thread.entered(namespaces):
        if plan.root is None:
            start()
            return
        _enter_root(plan.root, plan)
        try:
            start()
        finally:
            thread.restore(["root"])


def _spawn_forked(plan: Plan, start: Callable[..., None], cwd: Cwd, job: Callable[[Callable[[], None]], None]) -> None:
    """Fork, enter in the child, exec: for what only a process with one thread can enter."""
    thread = spawner()
    pid = plan.find("pid")

    def enter_between_fork_and_exec(*, relayed: bool) -> None:
        try:
            enter_here(plan, skip=() if relayed else ("pid",))
            find_again(plan, cwd)
            if relayed:
                _child.go_on_in_relayed_child()
        except BaseException as error:
            os.write(write_end, pickle.dumps(error))
            raise

    def fork() -> None:
        with fds.kept_in_child():
            try:
                # A pid namespace is for the next child: the thread enters, and the command is our own child.
                with thread.entered([("pid", pid.fd)] if pid else []):
                    start(preexec_fn=functools.partial(enter_between_fork_and_exec, relayed=False))
            except KernelError as error:
                if pid is None or error.errno != errno.EPERM or not error.call.startswith(f"setns({pid.fd},"):
                    raise
                # Only somebody in its user namespace may enter: the child does, and the command is a child of that.
                start(preexec_fn=functools.partial(enter_between_fork_and_exec, relayed=True))

    read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        with _child.quiet_fork():
            thread.run(job, fork)
    except subprocess.SubprocessError:  # says no more than that there was an exception
        raise pickle.loads(os.read(read_end, 1 << 16)) from None
    finally:
        os.close(read_end)
        os.close(write_end)


@contextlib.contextmanager
def null_opened_here(options: dict[str, Any]) -> Iterator[None]:
    """Subprocess opens DEVNULL while it spawns, which is inside: there may be no /dev/null."""
    wanted = [name for name in ("stdin", "stdout", "stderr") if options.get(name) == subprocess.DEVNULL]
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC) if wanted else -1
    options.update(dict.fromkeys(wanted, null))
    try:
        yield
    finally:
        if null >= 0:
            os.close(null)
