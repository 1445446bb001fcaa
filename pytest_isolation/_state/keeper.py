"""The keeper: a small process beside each pytest process; standard library only, one thread, a session of its own.

It makes what needs a clean single-threaded process - the first process of a pid namespace, user and time namespaces,
anything inside a user namespace - and it watches pytest by pidfd: when that dies without saying goodbye, the keeper
ends the run's cgroup and removes what the ledger lists. See `keeper_client` for the other end.

Protocol, over one SOCK_SEQPACKET socket: a request is JSON `{"op": ...}` with descriptors; the answer is JSON with
descriptors, `{"error": [errno, call, message, hint]}` when a call failed. Never two requests at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import traceback
from typing import Any, NoReturn

from pytest_isolation._kernel import syscalls, uapi
from pytest_isolation.errors import KernelError

_CLONE_PARENT = 0x8000


def become_root_inside(uid: int, gid: int, setgroups: bool) -> None:  # noqa: FBT001 - one triple, `Ids`
    """After entering a user namespace: take its ids on; without it the process stays the overflow user 65534."""
    if setgroups:
        os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def set_title(title: str) -> None:
    """Show `title` in ps(1), written over our own argv; a last byte other than NUL tells the kernel so."""
    with open("/proc/self/stat", "rb") as file:
        start, end = map(int, file.read().rpartition(b")")[2].split()[45:47])  # arg_start, arg_end: proc_pid_stat(5)
    text = title.encode()[: end - start - 2] + b"\0"
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        memory.seek(start)
        memory.write(text.ljust(end - start, b"."))


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
                    data, fds, _, _ = socket.recv_fds(self.link, 1 << 19, 16, socket.MSG_CMSG_CLOEXEC)
                    listening = bool(data)  # closed without a goodbye: the pidfd will tell
                    if data and not self.answer(json.loads(data), fds):
                        return

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
            answer = {"error": [error.errno, error.call, error.message, error.hint]}
        except Exception:  # noqa: BLE001 - whatever it is, pytest has to hear of it
            answer = {"bug": traceback.format_exc()}
        finally:
            for fd in fds:
                os.close(fd)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            socket.send_fds(self.link, [json.dumps(answer).encode()], made)
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

        return {}, self.in_maker(make, lambda pid: [])

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
                report = [error.errno, error.call, error.message, error.hint]
            except OSError as error:
                report = [error.errno, f"{make.__qualname__}: {error.filename or ''}", error.strerror, None]
            except BaseException:  # noqa: BLE001 - told to the parent
                report = [0, traceback.format_exc(), None, None]
            socket.send_fds(theirs, [json.dumps(report).encode()], made)
            theirs.recv(1)
            os._exit(0)
        theirs.close()
        try:
            with ours:
                data, opened, _, _ = socket.recv_fds(ours, 1 << 16, 4, socket.MSG_CMSG_CLOEXEC)
                if not data:
                    raise KernelError(3, f"fork() = {pid}", "the child died while making namespaces")
                report = json.loads(data)
                if report:
                    raise KernelError(*report)
                return [*configure(pid), *opened]
        finally:
            os.waitpid(pid, 0)

    def do_init(self, request: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        """Make a pid namespace: clone its first process, in a mount namespace with a /proc of its own.

        Descriptors: the user namespace, where `user` stands; then, for a given program (`argv`), its stdin, stdout
        and stderr.
        """
        rest = list(fds)
        user_fd = rest.pop(0) if request.get("user") else -1
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        flags = uapi.CLONE_NEWPID | uapi.CLONE_NEWNS
        if user_fd >= 0:
            pid = self.clone_in_user(user_fd, request["user"], flags | _CLONE_PARENT)
        else:
            pid = syscalls.clone(flags)
        if pid == 0:
            self.be_init(request, rest, write_end)
        os.close(write_end)
        with open(read_end, "rb") as pipe:
            report = pipe.read()
        if report != b"ready":
            os.waitpid(pid, 0)
            error = report.removeprefix(b"ready")
            raise KernelError(*(json.loads(error) if error else [3, "clone(CLONE_NEWPID)", "it died at once", None]))
        pidfd = os.pidfd_open(pid)
        self.inits[pidfd] = pid
        made = [os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in ("pid", "mnt")]
        return {"pid": pid}, [pidfd, *made]

    def clone_in_user(self, user_fd: int, into: list[Any], flags: int) -> int:
        """clone(2) out of a child that has entered the user namespace; CLONE_PARENT makes the result our child."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        maker = os.fork()
        if maker == 0:
            try:
                syscalls.setns(user_fd, uapi.CLONE_NEWUSER)
                become_root_inside(*into)
                pid = syscalls.clone(flags)
            except KernelError as error:
                theirs.send(json.dumps([error.errno, error.call, error.message, error.hint]).encode())
                os._exit(0)
            if pid == 0:
                return 0
            theirs.send(str(pid).encode())
            os._exit(0)
        theirs.close()
        with ours:
            answer = json.loads(ours.recv(1 << 16) or b'[3, "clone()", null, null]')
        os.waitpid(maker, 0)
        if isinstance(answer, list):
            raise KernelError(*answer)
        return int(answer)

    def be_init(self, request: dict[str, Any], stdio: list[int], report: int) -> NoReturn:
        """In the new pid namespace, as its first process: mount /proc, then reap, or become the given program."""
        try:
            os.setsid()
            syscalls.mount(None, "/", None, uapi.MS_REC | uapi.MS_SLAVE)
            if request["proc"]:
                syscalls.mount("proc", "/proc", "proc", uapi.MS_NOSUID | uapi.MS_NODEV | uapi.MS_NOEXEC)
            syscalls.prctl(uapi.PR_SET_PDEATHSIG, signal.SIGKILL)
            watch = select.poll()
            watch.register(self.myself, select.POLLIN)
            if watch.poll(0):
                os._exit(1)  # the keeper died before PDEATHSIG was set
            for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
                with contextlib.suppress(OSError, ValueError):
                    signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            argv = request.get("argv")
            if argv is None:
                self.reap_forever(report)
            for number, fd in enumerate(stdio):
                os.dup2(fd, number)
            os.chdir(request["cwd"])
            self.exec(argv, request["env"], report)
        except KernelError as error:
            os.write(report, json.dumps([error.errno, error.call, error.message, error.hint]).encode())
        except OSError as error:
            os.write(report, json.dumps([error.errno, f"chdir({request.get('cwd')!r})", None, None]).encode())
        os._exit(127)

    def exec(self, argv: list[str], env: dict[str, str], report: int) -> None:
        """Become `argv`; the pipe `report` closes with that, and "ready" was written before."""
        if "/" in argv[0]:
            candidates = [argv[0]]
        else:
            candidates = [os.path.join(folder, argv[0]) for folder in os.get_exec_path(env)]
        program = next((path for path in candidates if os.access(path, os.X_OK) and not os.path.isdir(path)), None)
        if program is None:
            raise KernelError(2, f"execve({argv[0]!r})", "no such program in the given PATH")
        os.write(report, b"ready")
        try:
            os.execve(program, argv, env)
        except OSError as error:
            raise KernelError(error.errno or 0, f"execve({program!r}, {argv!r})") from None

    def reap_forever(self, report: int) -> NoReturn:
        """The default first process: SIGCHLD ignored makes the kernel reap what it adopts."""
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        syscalls.prctl(uapi.PR_SET_NAME, b"init")
        set_title("init")
        null = os.open("/dev/null", os.O_RDWR)
        for number in range(3):
            os.dup2(null, number)
        os.write(report, b"ready")
        os.closerange(3, os.sysconf("SC_OPEN_MAX") if os.sysconf("SC_OPEN_MAX") < 1 << 20 else 1 << 16)
        while True:
            signal.pause()

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
        from pytest_isolation._state import ledger, run

        if self.cgroup is not None and os.path.isdir(self.cgroup):
            with contextlib.suppress(OSError, TimeoutError):
                run.end_cgroup(run.Path(self.cgroup))
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
    set_title(f"pytest-isolation keeper of {sys.argv[2]}")
    Keeper(link, watched, sys.argv[2]).serve()
