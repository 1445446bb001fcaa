"""The keeper: a small process beside each pytest process; standard library only, one thread, a session of its own.

It makes what needs a clean single-threaded process - the first process of a pid namespace, user and time namespaces,
anything inside a user namespace - and it watches pytest by pidfd: when that dies without saying goodbye, the keeper
ends the run's cgroup and removes what the ledger lists. See `keeper_client` for the other end.

Protocol, over one socket (see `passing`): a request is `{"op": ...}` with descriptors; so is the answer,
`{"error": [errno, call, message, hint]}` when a call failed. Never two requests at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import os
import select
import signal
import socket
import sys
import traceback
from typing import Any, NoReturn

from pytest_isolation._kernel import syscalls, uapi
from pytest_isolation._state import passing
from pytest_isolation.errors import KernelError

_CLONE_PARENT = 0x8000


def as_report(error: KernelError) -> list[Any]:
    """What `KernelError(*report)` makes it from again at the other end."""
    return [error.errno, error.call, error.message, error.hint]


def become_root_inside(uid: int, gid: int, setgroups: bool) -> None:  # noqa: FBT001 - one triple, `Ids`
    """After entering a user namespace: take its ids on; without it the process stays the overflow user 65534."""
    if setgroups:
        os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


class Title:
    """What ps(1) shows of this process and its copies: our own argv in memory, written over."""

    def __init__(self) -> None:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        self._start, end = int(fields[45]), int(fields[46])  # arg_start, arg_end: proc_pid_stat(5)
        self._size = end - self._start

    def set(self, title: str) -> None:
        """A last byte other than NUL tells the kernel that argv is a title now, which ends at its first NUL."""
        text = title.encode()[: self._size - 2] + b"\0"
        ctypes.memmove(self._start, text.ljust(self._size, b"."), self._size)


def write_map(pid: int, file: str, text: str) -> None:
    """Write /proc/PID/{uid_map,gid_map,setgroups,timens_offsets} in one write(2), as the kernel wants it."""
    path = f"/proc/{pid}/{file}"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as error:
        hints = {
            1: "The map names ids that are not the caller's own, which needs CAP_SETUID (CAP_SETGID) outside, "
            "or setgroups is not denied",
            22: "The map's ranges overlap, are empty, or reach past 4294967295",
            34: "The offset makes the clock negative, or larger than it can count",
        }
        raise KernelError(error.errno or 0, f"write({path!r}, {text!r})", None, hints.get(error.errno or 0)) from None


class Keeper:
    """Answers one pytest process, and outlives it."""

    def __init__(self, link: socket.socket, watched: list[int], ledger: str) -> None:
        self.link = link
        self.watched = watched
        self.ledger = ledger
        self.myself = os.pidfd_open(os.getpid())
        #: pidfd -> pid of each first process of a pid namespace that has not been reaped.
        self.inits: dict[int, int] = {}
        #: pid -> wait status of those that have.
        self.ended: dict[int, int] = {}
        self.cgroup: str | None = None
        #: The first process of the next pid namespace, made while nobody waits for it.
        self.spare: tuple[int, socket.socket] | None = None
        self.wants_spare = False
        #: The machine's mount namespace and root, once this process lives in the run's.
        self.outside: list[int] = []
        self.title = Title()
        self.title.set(f"pytest-isolation keeper of {ledger}")

    # -- the loop

    def serve(self) -> None:
        """Answer until pytest says goodbye, or dies."""
        listening = True
        while True:
            poll = select.poll()
            for fd in (*self.watched, *self.inits, *([self.link.fileno()] if listening else [])):
                poll.register(fd, select.POLLIN)
            for fd, _ in poll.poll():
                if fd in self.watched:
                    self.clean_up()
                    return
                if fd in self.inits:
                    self.reap(fd)
                elif fd == self.link.fileno():
                    request, fds = passing.receive(self.link)
                    listening = request is not None  # closed without a goodbye: the pidfd will tell
                    if listening and not self.answer(request, fds):
                        return
            if self.wants_spare:
                self.wants_spare = False
                with contextlib.suppress(KernelError):  # told when it is asked for
                    self.spare = self.spare or self.clone_init()

    def reap(self, pidfd: int) -> None:
        """Collect a first process that has exited."""
        pid = self.inits.pop(pidfd)
        os.close(pidfd)
        self.ended[pid] = os.waitpid(pid, 0)[1]

    def answer(self, request: dict[str, Any], fds: list[int]) -> bool:
        """Do one request and send what came of it; False for goodbye."""
        op = request["op"]
        made: list[int] = []
        try:
            if op == "goodbye":
                return False
            answer, made = getattr(self, "do_" + op)(request, fds)
        except KernelError as error:
            answer = {"error": as_report(error)}
        except Exception:  # noqa: BLE001 - whatever it is, pytest has to hear of it
            answer = {"bug": traceback.format_exc()}
        finally:
            for fd in fds:
                os.close(fd)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            passing.send(self.link, answer, made)
        for fd in made:
            if fd not in self.inits:
                os.close(fd)
        return True

    # -- the requests

    def do_hello(self, request: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        """The first request: proves that the keeper is there."""
        del request, fds
        return {"pid": os.getpid()}, []

    def do_watch_cgroup(self, request: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        """From now on, end this v2 cgroup when pytest dies."""
        del fds
        self.cgroup = request["path"]
        return {}, []

    def do_live_in_mounts(self, request: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        """Be in this mount namespace and root (descriptors 0 and 1), and with it what is made from now on."""
        del request
        before = [os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC), os.open("/", os.O_PATH | os.O_CLOEXEC)]
        self.move(*fds)
        if self.outside:
            for fd in before:
                os.close(fd)
        else:
            self.outside = before
        if self.spare is not None:  # it was born outside
            pid, link = self.spare
            self.spare, self.wants_spare = None, True
            link.close()
            os.waitpid(pid, 0)
        return {}, []

    def move(self, mnt: int, root: int) -> None:
        """Enter a mount namespace, with a root in it."""
        syscalls.setns(mnt, uapi.CLONE_NEWNS)
        os.fchdir(root)
        syscalls.chroot_here()

    def do_namespaces(self, request: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        """Make namespaces of `kinds`; in a user namespace (`user`: its ids; descriptor 0) where one is given."""
        flags = 0
        for name in request["kinds"]:
            flags |= uapi.NAMESPACE_FLAGS[name]
        into = request.get("user")

        def make() -> list[int]:
            if into:
                syscalls.setns(fds[0], uapi.CLONE_NEWUSER)
                become_root_inside(*into)
            syscalls.unshare(flags)
            if into and "mnt" in request["kinds"]:
                syscalls.mount(None, "/", None, uapi.MS_REC | uapi.MS_PRIVATE)
            netlink = (socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
            return [socket.socket(*netlink).detach()] if request.get("netlink") else []

        def configure(pid: int) -> list[int]:
            for file, text in request.get("files", []):
                write_map(pid, file, text)
            names = [name + "_for_children" if name in {"pid", "time"} else name for name in request["kinds"]]
            return [os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in names]

        return {}, self.in_maker(make, configure)

    def do_socket(self, request: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        """A socket in a network namespace (descriptor 1) of a user namespace (descriptor 0)."""

        def make() -> list[int]:
            syscalls.setns(fds[0], uapi.CLONE_NEWUSER)
            become_root_inside(*request["user"])
            syscalls.setns(fds[1], uapi.CLONE_NEWNET)
            return [socket.socket(*request["arguments"]).detach()]

        return {}, self.in_maker(make, lambda _: [])

    def in_maker(self, make: Any, configure: Any) -> list[int]:
        """Fork; `make()` in the child; then `configure(child)` here, while the child waits; the child is gone after.

        Returns the descriptors of `configure`, and behind them those that `make` opened in the child.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            report: list[Any] = []
            made: list[int] = []
            try:
                ours.close()
                made = make()
            except KernelError as error:
                report = as_report(error)
            except OSError as error:
                report = [error.errno, f"the call on {error.filename!r}" if error.filename else "socket()", None, None]
            except BaseException:  # noqa: BLE001 - told to the parent
                report = [0, traceback.format_exc(), None, None]
            passing.send(theirs, report, made)
            passing.receive(theirs)
            os._exit(0)
        theirs.close()
        try:
            with ours:
                report, opened = passing.receive(ours)
                if report is None:
                    raise KernelError(errno.ECHILD, f"waitpid({pid})", None, "The child died while making namespaces")
                if report:
                    raise KernelError(*report)
                return [*configure(pid), *opened]
        finally:
            os.waitpid(pid, 0)

    def do_init(self, request: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        """Make a pid namespace: its first process, in a mount namespace with a /proc of its own.

        Descriptors: the user namespace, where `user` stands; then, for a given program (`argv`), its stdin, stdout
        and stderr.
        """
        rest = list(fds)
        if request.get("user"):
            pid, link = self.clone_init(rest.pop(0), request["user"])
        else:
            pid, link = self.spare or self.clone_init()
            self.spare = None
        with link:
            passing.send(link, request, rest)
            report, _ = passing.receive(link)
            made = []
            if report == "ready":
                # Before a given program runs: it may be gone, and its namespaces with it, in no time.
                made = [os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in ("pid", "mnt")]
                made.insert(0, os.pidfd_open(pid))
                report = None
                if request.get("argv") is not None:
                    with contextlib.suppress(BrokenPipeError):  # killed meanwhile
                        passing.send(link, "go")
                    # The link closes when the program is executed, and brings the error when it cannot be.
                    report, _ = passing.receive(link)
            elif report is None:
                report = [errno.ESRCH, "clone(CLONE_NEWPID)", None, "The first process died at once"]
        if report:
            for fd in made:
                os.close(fd)
            os.waitpid(pid, 0)
            raise KernelError(*report)
        self.inits[made[0]] = pid
        self.wants_spare = not request.get("user")
        return {"pid": pid}, made

    def clone_init(self, user_fd: int = -1, ids: list[Any] | None = None) -> tuple[int, socket.socket]:
        """The first process of a new pid namespace, which waits for its request on the returned socket.

        In a user namespace it is cloned by a child that has entered that one; CLONE_PARENT makes it our own child.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if ids is None:
            pid = syscalls.clone(uapi.CLONE_NEWPID)
            if pid == 0:
                self.be_init(theirs)
        else:
            maker = os.fork()
            if maker == 0:
                try:
                    syscalls.setns(user_fd, uapi.CLONE_NEWUSER)
                    become_root_inside(*ids)
                    pid = syscalls.clone(uapi.CLONE_NEWPID | _CLONE_PARENT)
                except KernelError as error:
                    passing.send(theirs, as_report(error))
                    os._exit(0)
                if pid == 0:
                    self.be_init(theirs)
                passing.send(theirs, pid)
                os._exit(0)
            os.waitpid(maker, 0)
            answer, _ = passing.receive(ours)
            if isinstance(answer, list):
                raise KernelError(*answer)
            pid = answer
        theirs.close()
        return pid, ours

    def be_init(self, link: socket.socket) -> NoReturn:
        """In the new pid namespace, as its first process: wait for the request, mount /proc, reap or be a program."""
        try:
            syscalls.prctl(uapi.PR_SET_PDEATHSIG, signal.SIGKILL)
            watch = select.poll()
            watch.register(self.myself, select.POLLIN)
            if watch.poll(0):
                os._exit(1)  # the keeper died before PDEATHSIG was set
            os.setsid()
            self.title.set("init")
            syscalls.prctl(uapi.PR_SET_NAME, b"init")
            # Ignored, the kernel reaps what this process adopts.
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            os.closerange(3, link.fileno())
            os.closerange(link.fileno() + 1, 1 << 16)
            self.rehearse()
            request, stdio = passing.receive(link)
            if request is None:
                os._exit(0)
            # Only now: the mounts are to be those of the moment.
            syscalls.unshare(uapi.CLONE_NEWNS)
            syscalls.mount(None, "/", None, uapi.MS_REC | uapi.MS_SLAVE)
            if request["proc"]:
                syscalls.mount("proc", "/proc", "proc", uapi.MS_NOSUID | uapi.MS_NODEV | uapi.MS_NOEXEC)
            if request.get("argv") is not None:
                self.become(request, stdio, link)
            passing.send(link, "ready")
            link.close()
            while True:
                signal.pause()
        except KernelError as error:
            passing.send(link, as_report(error))
        os._exit(127)

    def become(self, request: dict[str, Any], stdio: list[int], link: socket.socket) -> None:
        """Execute the given program, with signals as a shell would give them."""
        for name in ("SIGCHLD", "SIGINT", "SIGQUIT", "SIGTERM", "SIGHUP", "SIGPIPE", "SIGXFSZ"):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
        for number, fd in enumerate(stdio):
            os.dup2(fd, number)
        argv, env = request["argv"], request["env"]
        names = [argv[0]] if "/" in argv[0] else [f"{folder}/{argv[0]}" for folder in os.get_exec_path(env)]
        program = next((path for path in names if os.access(path, os.X_OK) and not os.path.isdir(path)), argv[0])
        call = f"execve({program!r}, {argv!r})"
        try:
            os.chdir(request["cwd"])
            passing.send(link, "ready")
            passing.receive(link)
            os.execve(program, argv, env)
        except OSError as error:
            raise KernelError(error.errno or 0, call) from None

    def rehearse(self) -> None:
        """Use now what will be used between the request and its answer: a fork copies memory where it is touched."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        passing.send(ours, {"op": "init", "proc": True, "argv": None})
        passing.receive(theirs)
        ours.close()
        theirs.close()

    def do_status(self, request: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        """The wait status of a first process that has exited, or null."""
        del fds
        pid = request["pid"]
        if pid not in self.ended:
            for pidfd, known in list(self.inits.items()):
                poll = select.poll()
                poll.register(pidfd, select.POLLIN)
                if known == pid and poll.poll(0):
                    self.inits.pop(pidfd)
                    os.close(pidfd)
                    self.ended[pid] = os.waitpid(pid, 0)[1]
        return {"status": self.ended.get(pid)}, []

    # -- after pytest's death

    def clean_up(self) -> None:
        """Pytest is dead: end what it started, remove what it made."""
        from pathlib import Path

        from pytest_isolation._state import ledger, run

        # First: a frozen process does not die of being killed, and this thaws it.
        ledger.remove_all(self.ledger, "cgroup")
        if self.cgroup is not None and os.path.isdir(self.cgroup):
            with contextlib.suppress(OSError, TimeoutError):
                run.end_cgroup(Path(self.cgroup))
        else:  # no cgroup for this user: what carries the run's token is the run's
            run.end_by_token(os.path.basename(self.ledger))
        if self.outside:
            with contextlib.suppress(OSError):
                self.move(*self.outside)
        ledger.remove_all(self.ledger)


def main() -> None:
    """`python -c ... LINK-FD LEDGER WATCHED-PIDFD...`."""
    link = socket.socket(fileno=int(sys.argv[1]))
    watched = [int(word) for word in sys.argv[3:]]
    for fd in (link.fileno(), *watched):
        os.set_inheritable(fd, False)  # noqa: FBT003 - no first process of a pid namespace may inherit them
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    os.chdir("/")
    keeper = Keeper(link, watched, sys.argv[2])
    gc.disable()  # a collection in a forked copy would touch, and so copy, every page
    keeper.serve()
