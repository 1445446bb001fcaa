"""What a process can live in: the verbs, and `inside(...)`, which combines any number of them.

Entering is planned once, in the order the kernel wants, and done by whoever can: a command is born on the spawner
thread, which has entered; a callable runs on the calling thread, which enters and returns (`call`, `with inside`), or
in a forked child (`call_in_child`). User and time namespaces cannot be entered by a process with threads: their
commands are forked, and enter between fork and exec.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import inspect
import os
import pickle
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, Self, TypeVar

from pytest_isolation._kernel import procfs, syscalls, uapi
from pytest_isolation._state import fds
from pytest_isolation._state.keeper import become_root_inside
from pytest_isolation._state.spawner import spawner
from pytest_isolation.errors import ChildError, ClosedError, IsolationError, KernelError
from pytest_isolation.objects import _child
from pytest_isolation.objects._object import asking_for
from pytest_isolation.objects._process import Argument, Process, Ready, check_argv, collect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

P = ParamSpec("P")
T = TypeVar("T")

#: Kinds that a thread of pytest enters and leaves again.
IN_PLACE = ("cgroup", "ipc", "net", "mnt", "uts")
#: Kinds that only a process with one thread can enter.
_SINGLE_THREADED = ("user", "time")


class Ids(NamedTuple):
    """What to be inside a user namespace."""

    uid: int
    gid: int
    setgroups: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing to enter.

    Attributes:
        name: its name under /proc/PID/ns, or `root`.
        fd: the namespace, or the new root directory.
        title: for messages.
        implied: comes along with another (a pid namespace's mounts), and yields to one that was asked for.
        path: of a root: where its directory is found again after entering a mount namespace.
        ids: of a user namespace: what to become.
        view: of a network namespace: makes, on a thread or process inside, the mounts that show it (its /sys).
        pid: of a pid namespace: its first process.
    """

    name: str
    fd: int
    title: str
    implied: bool = False
    path: str | None = None
    ids: Ids | None = None
    view: Callable[[Plan], int | None] | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Entries in the order in which they are entered."""

    outside: tuple[Entry, ...]
    user: Entry | None
    owned: tuple[Entry, ...]
    root: Entry | None

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All of them, in order."""
        found = (*self.outside, self.user, *self.owned, self.root)
        return tuple(entry for entry in found if entry is not None)

    def find(self, name: str) -> Entry | None:
        """The entry of that name."""
        return next((entry for entry in self.entries if entry.name == name), None)

    @property
    def needs_fork(self) -> bool:
        """Can only a process with one thread enter it?"""
        return any(entry.name in _SINGLE_THREADED for entry in self.entries)


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
        elif not entry.implied and not _same(entry.fd, other.fd):
            message = f"two of a kind: {other.title} and {entry.title}; a process lives in one at a time"
            raise ValueError(message)
    user, root = chosen.pop("user", None), chosen.pop("root", None)
    outside: list[Entry] = []
    owned: list[Entry] = []
    for entry in chosen.values():
        fits = check_owner and (user is not None or len(entries) > 1) and _owner_fits(entry, user)
        (owned if fits else outside).append(entry)
    return Plan(tuple(outside), user, tuple(owned), root)


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


def _find_again(plan: Plan, cwd: Cwd) -> None:
    """In a forked child that has entered: the working directory, as the mounts in there show it."""
    if plan.find("mnt") is None and plan.root is None and not _wants_view(plan):
        return  # the same mounts: it is what it was
    try:
        os.chdir(cwd.path)
    except OSError:
        if cwd.given:
            raise
        os.chdir("/")  # not there, or closed to the user in there; nobody asked for it


def _spawn(plan: Plan, start: Callable[..., None], cwd: Cwd) -> None:
    """Start a command inside: `start(**options)` is subprocess.Popen with all that the caller gave it."""
    # The resident thread has a umask and an affinity of its own; a command gets those of the thread that asks.
    umask = os.umask(0o077)
    os.umask(umask)
    affinity = os.sched_getaffinity(0)

    def job(spawn: Callable[[], None]) -> None:
        if os.sched_getaffinity(0) != affinity:
            os.sched_setaffinity(0, affinity)
        spawn()

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
    with thread.entered(namespaces):
        if plan.root is None:
            start()
            return
        _enter_root(plan.root, plan)
        try:
            start()
        finally:
            thread.restore(["root"])


def _spawn_forked(plan: Plan, start: Callable[..., None], cwd: Cwd, job: Callable[[Callable[[], None]], None]) -> None:
    """Fork, enter in the child, exec: for namespaces that only a process with one thread can enter."""
    thread = spawner()
    pid = plan.find("pid")

    def enter_between_fork_and_exec(*, relayed: bool) -> None:
        try:
            enter_here(plan, skip=() if relayed else ("pid",))
            _find_again(plan, cwd)
            if relayed:
                _child.go_on_in_relayed_child()
        except BaseException as error:
            os.write(write_end, pickle.dumps(error))
            raise

    def spawn() -> None:
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
            thread.run(job, spawn)
    except subprocess.SubprocessError:  # says no more than that there was an exception
        raise pickle.loads(os.read(read_end, 1 << 16)) from None
    finally:
        os.close(read_end)
        os.close(write_end)


@contextlib.contextmanager
def _null_opened_here(options: dict[str, Any]) -> Iterator[None]:
    """Subprocess opens DEVNULL while it spawns, which is inside: there may be no /dev/null."""
    wanted = [name for name in ("stdin", "stdout", "stderr") if options.get(name) == subprocess.DEVNULL]
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC) if wanted else -1
    options.update(dict.fromkeys(wanted, null))
    try:
        yield
    finally:
        if null >= 0:
            os.close(null)


_OPTIONS = frozenset(inspect.signature(subprocess.Popen).parameters) - {"args", "preexec_fn"}
_OUR_OPTIONS = frozenset({"extra_env", "stop", "grace", "may_exit", "logged"})


def _refuse_options(options: Mapping[str, Any]) -> None:
    if options.get("preexec_fn") is not None:
        message = "preexec_fn is not possible here: commands are spawned with vfork by another thread"
        raise TypeError(message)
    unknown = sorted(set(options) - _OPTIONS - _OUR_OPTIONS)
    if unknown:
        message = f"unknown argument {unknown[0]!r}: allowed are those documented, and those of subprocess.Popen"
        raise TypeError(message)


class Place:
    """Base of what a process can live in: `run`, `popen`, `call`, `call_in_child`."""

    def _entries(self) -> tuple[Entry, ...]:
        """What to enter; raises ClosedError when it is gone."""
        raise NotImplementedError

    def _plan(self) -> Plan:
        return make_plan(self._entries())

    def _started(self, process: Process) -> None:
        """A command was started in it."""

    def _start(self, argv: Sequence[Argument] | str, options: dict[str, Any]) -> Process:
        __tracebackhide__ = True
        _refuse_options(options)
        words = check_argv(argv, shell=bool(options.get("shell")))
        plan = self._plan()
        given = options.pop("cwd", None)
        here = os.fspath(given) if given is not None else os.getcwd() if plan.root is None else "/"
        cwd = Cwd(here, given is not None)
        if plan.find("pid") is not None:
            options.setdefault("start_new_session", True)  # `kill 0` in there must not reach pytest's group
        if options.get("logged"):
            options.setdefault("stdin", subprocess.DEVNULL)
        try:
            with asking_for(self), _null_opened_here(options):
                process = Process(words, lambda start: _spawn(plan, start, cwd), **options)
        except FileNotFoundError:
            self._explain_missing(words)
            raise
        except OSError as error:
            self._explain_failure(error)
            raise
        self._started(process)
        return process

    def _explain_missing(self, words: list[str | bytes] | str) -> None:
        """Say more about a program that was not found, where more is known."""

    def _explain_failure(self, error: OSError) -> None:
        """Say more about a spawn that failed, where more is known."""

    def run(
        self,
        argv: Sequence[Argument] | str,
        *,
        input: str | bytes | None = None,  # noqa: A002 - subprocess.run's name
        capture_output: bool = True,
        check: bool = True,
        text: bool = True,
        timeout: float | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        **options: Any,
    ) -> subprocess.CompletedProcess[Any]:
        """Run a command inside and wait for it: `subprocess.run` with text, capture_output and check on.

        It returns when the command exits, whoever still holds its output pipes.

        Args:
            argv: the program and its arguments: str, bytes, Path, int or ipaddress; one string with shell=True only.
            input: what it reads from stdin; otherwise stdin is as pytest's own.
            capture_output: collect stdout and stderr.
            check: a status other than 0 is a ChildError.
            text: decode what it printed.
            timeout: seconds after which its whole tree is ended.
            encoding: of its input and output, UTF-8 by default.
            errors: error handler of that encoding.
            options: further arguments of subprocess.Popen; `extra_env={...}` adds to the environment.

        Raises:
            ChildError: it failed; shows what it printed.
            FileNotFoundError: there is no such program inside.
            subprocess.TimeoutExpired: it took longer; its tree has been ended.
            TypeError: argv is a bare string.
        """
        __tracebackhide__ = True
        if capture_output:
            options.setdefault("stdout", subprocess.PIPE)
            options.setdefault("stderr", subprocess.PIPE)
        data: bytes | None = None
        if input is not None:
            options["stdin"] = subprocess.PIPE
            data = input.encode(encoding or "utf-8") if isinstance(input, str) else input
        process = self._start(argv, options)
        try:
            raw = collect(process, data, timeout)
        except BaseException:
            process.end(grace=0.0)
            raise
        process.leave_descriptors()
        out: list[Any] = list(raw)
        if text:
            handler = errors or ("strict" if encoding else "surrogateescape")
            out = [
                None if data is None else data.decode(encoding or "utf-8", handler).replace("\r\n", "\n")
                for data in raw
            ]
        if check and process.returncode:
            raise ChildError(process.returncode, process.args, *out)
        return subprocess.CompletedProcess(process.args, process.returncode, *out)

    def popen(
        self,
        argv: Sequence[Argument] | str,
        *,
        ready: Ready = None,
        timeout: float = 10.0,
        stop: int = 15,
        grace: float = 2.0,
        may_exit: bool = False,
        **options: Any,
    ) -> Process:
        """Start a command inside; `with` ends its whole tree.

        Args:
            argv: as for `run`.
            ready: return when it is: `"port:80"`, `"port:53/udp"`, `"line:REGEX"` in its output, `"path:/run/x"`
                as it sees it, or a callable that returns something true.
            timeout: seconds to become ready.
            stop: the signal that asks it to end.
            grace: seconds between that and SIGKILL to what is left of its tree.
            may_exit: it may end before its `with` block does; otherwise that is a ChildError.
            options: further arguments of subprocess.Popen. Output goes to `.log` unless stdout or stderr is given.

        Raises:
            ChildError: it exited before it was ready.
            TimeoutError: it was not ready in time; the message shows its log.
        """
        __tracebackhide__ = True
        _check_ready(ready)
        options.update(stop=stop, grace=grace, may_exit=may_exit, logged=True)
        process = self._start(argv, options)
        try:
            process.wait_ready(ready, timeout)
        except BaseException:
            process.end()
            raise
        return process

    def call(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a callable inside, on this thread, and come back: net, uts, ipc, mount and cgroup namespaces.

        Raises:
            TypeError: for a kind that pytest itself never enters; use `call_in_child`.
        """
        __tracebackhide__ = True
        with Visit(self._plan()):
            return fn(*args, **kwargs)

    def call_in_child(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a callable inside, in a forked child, for every kind; its result or its exception comes back.

        An assertion, `pytest.skip` and `pytest.fail` come back as what they are. The result must be picklable.

        Raises:
            ChildError: the child was killed, or exited by itself.
        """
        __tracebackhide__ = True
        plan = self._plan()
        return _child.call_in_child(lambda second_fork: _enter_child(plan, second_fork), fn, *args, **kwargs)


def _enter_child(plan: Plan, second_fork: Callable[[], None]) -> None:
    cwd = Cwd(os.getcwd() if plan.root is None else "/", given=False)
    with asking_for("a call in a forked child"):
        enter_here(plan)
    if plan.find("pid") is not None:
        second_fork()  # a pid namespace is entered by the next child
    _find_again(plan, cwd)


def _check_ready(given: Ready) -> None:
    ready = given
    if ready is None or callable(ready):
        return
    if not isinstance(ready, str):
        ready = ""
    kind, colon, value = ready.partition(":")
    number, _, protocol = value.partition("/")
    fits = colon and value and kind in {"port", "line", "path"}
    if fits and kind == "port":
        fits = number.isdecimal() and 0 < int(number) < 1 << 16 and protocol in {"", "tcp", "udp"}
    if not fits:
        message = (
            f'ready={given!r}: allowed are "port:80", "port:53/udp", "line:REGEX", "path:/some/path", or a callable'
        )
        raise ValueError(message)


class Visit:
    """The calling thread inside for a block; it leaves what it entered, and checks that it does."""

    def __init__(self, plan: Plan) -> None:
        refused = [entry for entry in plan.entries if entry.name not in IN_PLACE]
        if refused:
            kinds = ", ".join(entry.title for entry in refused)
            message = f"pytest itself never enters {kinds}: use run, popen, or call_in_child"
            raise TypeError(message)
        # Mounts that only serve children are not for this thread.
        self._entries = [entry for entry in plan.entries if not entry.implied]
        self._back: list[tuple[str, int]] = []
        self._cwd = -1

    def __enter__(self) -> None:
        with asking_for("entering a namespace"):
            self._enter()

    def _enter(self) -> None:
        try:
            for entry in self._entries:
                if entry.name == "mnt":
                    self._own_filesystem()
                here = os.open(f"/proc/thread-self/ns/{entry.name}", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    syscalls.setns(entry.fd, uapi.NAMESPACE_FLAGS[entry.name])
                except BaseException:
                    os.close(here)
                    raise
                self._back.append((entry.name, here))
            if self._cwd >= 0:
                with contextlib.suppress(OSError):  # the directory may not exist in there; then it is "/"
                    os.chdir(os.readlink(f"/proc/self/fd/{self._cwd}"))
        except BaseException:
            self._leave()
            raise

    def _own_filesystem(self) -> None:
        """setns(2) into a mount namespace wants root and working directory not shared with another thread."""
        self._cwd = os.open(".", os.O_PATH | os.O_CLOEXEC)
        syscalls.unshare(uapi.CLONE_FS)

    def __exit__(self, *_: object) -> None:
        moved = [
            entry.title
            for entry in self._entries
            if not os.path.samestat(os.stat(f"/proc/thread-self/ns/{entry.name}"), os.fstat(entry.fd))
        ]
        self._leave()
        if moved:
            message = f"the thread was to leave {', '.join(moved)}, and was somewhere else: the block entered something"
            raise IsolationError(message)

    def _leave(self) -> None:
        while self._back:
            name, fd = self._back.pop()
            try:
                syscalls.setns(fd, uapi.NAMESPACE_FLAGS[name])
            finally:
                os.close(fd)
        if self._cwd >= 0:
            os.fchdir(self._cwd)
            os.close(self._cwd)
            self._cwd = -1


class Inside(Place):
    """Several places at once, made by `inside`: the same verbs, and `with` for the calling thread."""

    def __init__(self, places: tuple[Place, ...]) -> None:
        self._places = places
        self._mine = threading.local()  # each thread leaves what it entered itself
        self._plan()

    def _entries(self) -> tuple[Entry, ...]:
        return tuple(entry for place in self._places for entry in place._entries())

    def _started(self, process: Process) -> None:
        for place in self._places:
            place._started(process)

    def _explain_missing(self, words: list[str | bytes] | str) -> None:
        for place in self._places:
            place._explain_missing(words)

    def _explain_failure(self, error: OSError) -> None:
        for place in self._places:
            place._explain_failure(error)

    def __enter__(self) -> Self:
        events = sys.modules.get("asyncio.events")
        if events is not None and events._get_running_loop() is not None:
            message = (
                "this thread runs an event loop: a task that runs during an `await` would be inside too. "
                "Use run, popen, call or call_in_child, or sockets made with netns.socket()"
            )
            raise RuntimeError(message)
        visit = Visit(self._plan())
        visit.__enter__()
        self._mine.visits = [*getattr(self._mine, "visits", ()), visit]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        visits: list[Visit] = getattr(self._mine, "visits", [])
        if not visits:
            message = f"this thread never entered {self}: the thread that did is still inside, and has to leave itself"
            raise IsolationError(message)
        visits.pop().__exit__()

    def __repr__(self) -> str:
        return f"inside({', '.join(map(str, self._places))})"


def inside(*places: Place) -> Inside:
    """Combine namespaces and a root: the verbs run in all of them, `with` puts the calling thread inside.

    The order of the arguments does not matter. `with` takes net, uts, ipc, mount and cgroup namespaces; pid, time and
    user namespaces and roots are for `run`, `popen` and `call_in_child`.

    Raises:
        TypeError: an argument is nothing that a process can live in, or `with` was used with a kind it does not take.
        ValueError: two of a kind, or a namespace owned by a user namespace that does not fit.
        RuntimeError: `with` on a thread that runs an event loop.
        ClosedError: one of them is closed.
    """
    if not places:
        message = "inside() takes at least one namespace, end of a link, or root"
        raise TypeError(message)
    for place in places:
        if not isinstance(place, Place):
            message = f"inside() takes what a process can live in, not {place!r}"
            raise TypeError(message)
    return Inside(places)


__all__ = ["ClosedError", "Entry", "Ids", "Inside", "Place", "Plan", "inside"]
