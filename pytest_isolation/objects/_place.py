"""What a process can live in: the verbs, and `inside(...)`, which combines any number of them.

A command is born on the spawner thread, which has entered; a callable runs on the calling thread, which enters and
returns (`call`, `with inside`), or in a forked child (`call_in_child`). How entering is done is in `_entering`.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

from pytest_isolation._kernel import syscalls, uapi
from pytest_isolation.errors import ChildError, IsolationError
from pytest_isolation.objects import _child
from pytest_isolation.objects._entering import (
    Cwd,
    Entry,
    Plan,
    enter_here,
    find_again,
    make_plan,
    null_opened_here,
    spawn,
)
from pytest_isolation.objects._object import asking_for
from pytest_isolation.objects._process import Argument, Process, Ready, check_argv, collect

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

P = ParamSpec("P")
T = TypeVar("T")

#: Kinds that a thread of pytest enters and leaves again.
IN_PLACE = ("cgroup", "ipc", "net", "mnt", "uts")
_OPTIONS = frozenset(inspect.signature(subprocess.Popen).parameters) - {"args", "preexec_fn"}
_OUR_OPTIONS = frozenset({"extra_env", "stop", "grace", "may_exit", "logged", "born"})


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
            with asking_for(self), null_opened_here(options):
                process = Process(words, lambda start: spawn(plan, start, cwd), **options)
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
        # Filled as soon as there is one, so that an interrupt at any moment knows what to end.
        born: list[Process] = []
        try:
            process = self._start(argv, options | {"born": born})
            raw = collect(process, data, timeout)
        except BaseException:
            for one in born:
                one.end(grace=0.0)
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
        born: list[Process] = []
        try:
            process = self._start(argv, options | {"born": born})
            process.wait_ready(ready, timeout)
        except BaseException:
            for one in born:
                one.end()
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
    find_again(plan, cwd)


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
