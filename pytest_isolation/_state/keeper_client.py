"""Pytest's end of the link to the keeper (see `keeper`): started when first needed, asked one thing at a time."""

from __future__ import annotations

import _thread
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from pytest_isolation._state import fds, ledger, passing
from pytest_isolation._state.run import run
from pytest_isolation._state.spawner import spawner
from pytest_isolation.errors import IsolationError, KernelError

_START = "import sys; sys.path.insert(0, sys.argv.pop(1)); from pytest_isolation._state.keeper import main; main()"
_TIMEOUT_S = 30.0
#: First processes of pid namespaces that wait to be asked: one is being made while another is used.
_IN_ADVANCE = 2


class KeeperClient:
    """One keeper, as pytest sees it."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._busy = _thread.allocate_lock()
        #: Does the keeper live in the run's mounts?
        self.in_mounts = False
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        orders, their_orders = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fds.hold(ours.fileno())
        fds.hold(orders.fileno())
        self._orders = orders
        #: How many first processes of pid namespaces are ordered and not taken.
        self._ordered = 0
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 19)  # a whole environment in one message
        self._link = ours
        watched = [os.pidfd_open(os.getpid())]
        if os.environ.get("PYTEST_XDIST_WORKER"):
            watched.append(os.pidfd_open(os.getppid()))  # xdist's controller, on this machine
        passed = [theirs.fileno(), their_orders.fileno(), *watched]
        package_parent = str(Path(__file__).parents[2])
        # `sh` puts the keeper in the background and is gone a millisecond later: nobody's os.wait() will meet it.
        command = ["/bin/sh", "-c", '"$@" &', "sh", sys.executable, "-I", "-S", "-E", "-c", _START, package_parent]
        command += [
            str(theirs.fileno()),
            str(their_orders.fileno()),
            str(ledger.directory(run().id)),
            *map(str, watched),
        ]
        try:
            spawner().run(
                subprocess.run,
                command,
                pass_fds=passed,
                start_new_session=True,
                check=True,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        finally:
            theirs.close()
            their_orders.close()
            for fd in watched:
                os.close(fd)

    def ask(self, request: dict[str, Any], send: list[int] | None = None) -> tuple[dict[str, Any], list[int]]:
        """Send one request and wait for its answer and descriptors.

        Raises:
            KernelError: a call failed over there.
            IsolationError: the keeper is gone, or does not answer.
        """
        with self._busy:
            try:
                passing.send(self._link, request, send)
                poll = select.poll()
                poll.register(self._link, select.POLLIN)
                if not poll.poll(_TIMEOUT_S * 1000):
                    message = f"the keeper did not answer {request['op']!r} within {_TIMEOUT_S} s"
                    raise IsolationError(message)
                answer, made = passing.receive(self._link)
            except OSError as error:
                answer, made = None, []
                reason = str(error)
            else:
                reason = "end of file"
        if answer is None:
            _drop(self)
            message = (
                f"the keeper is gone ({reason}), and with it every pid namespace it made; the next one starts anew"
            )
            raise IsolationError(message)
        if "error" in answer:
            raise KernelError(*answer["error"])
        if "bug" in answer:
            message = f"the keeper failed at {request['op']!r}:\n{answer['bug']}"
            raise IsolationError(message)
        return answer, made

    def goodbye(self) -> None:
        """Let the keeper go, and wait until it has gone."""
        if self.pid != os.getpid():
            return
        try:
            answer, _ = self.ask({"op": "hello"})
            pidfd = os.pidfd_open(answer["pid"])
        except (IsolationError, OSError):
            pass
        else:
            passing.send(self._link, {"op": "goodbye"})
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            poll.poll(_TIMEOUT_S * 1000)
            os.close(pidfd)
        self.let_go()

    def let_go(self) -> None:
        """Close this end."""
        fds.release(self._link.detach())
        fds.release(self._orders.detach())

    def forget(self) -> None:
        """After a fork: the descriptors are closed already."""
        self._link.detach()
        self._orders.detach()

    # -- pid namespaces

    def init(self) -> tuple[dict[str, Any], list[int]]:
        """A pid namespace with a /proc and an init of its own: answers as `ask({"op": "init"})` does.

        The process was made while nobody waited, where it was ordered before: then it is asked directly, which saves
        two switches to the keeper.
        """
        request = {"op": "init", "proc": True, "argv": None}
        try:
            with self._busy:
                made = self._take(request)
            return made or self.ask(request)
        except BaseException:
            self.order()
            raise

    def order(self) -> None:
        """Have the first processes of the next pid namespaces made."""
        with self._busy, contextlib.suppress(OSError):
            while self._ordered < _IN_ADVANCE:
                passing.send(self._orders, "init")
                self._ordered += 1

    def _take(self, request: dict[str, Any]) -> tuple[dict[str, Any], list[int]] | None:
        while self._ordered:
            if not _readable(self._orders):
                return None
            self._ordered -= 1
            answer, made = passing.receive(self._orders)
            if answer is None:
                return None
            pid, outside = answer
            if pid is None:
                continue
            pidfd, link = made
            with socket.socket(fileno=link) as to_init:
                report = "old" if bool(outside) != self.in_mounts else self._request(to_init, request)
            with contextlib.ExitStack() as undo:
                undo.callback(self._discard, pidfd)
                if report == "ready":
                    made = [pidfd]
                    for name in ("pid", "mnt"):
                        made.append(os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC))
                        undo.callback(os.close, made[-1])
                    undo.pop_all()
                    return {"pid": pid}, made
            if isinstance(report, list):
                raise KernelError(*report)
        return None

    def _request(self, to_init: socket.socket, request: dict[str, Any]) -> Any:
        try:
            passing.send(to_init, request)
            return passing.receive(to_init)[0] if _readable(to_init) else None
        except OSError:  # it was killed meanwhile
            return None

    def _discard(self, pidfd: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)


def _readable(link: socket.socket) -> bool:
    poll = select.poll()
    poll.register(link, select.POLLIN)
    return bool(poll.poll(_TIMEOUT_S * 1000))


_client: KeeperClient | None = None
_starting = _thread.allocate_lock()


def keeper() -> KeeperClient:
    """The keeper of this process, started if it is not there; it may not have answered yet."""
    global _client  # noqa: PLW0603 - one per process
    with _starting:
        if _client is None:
            _client = KeeperClient()
        return _client


def start_run() -> None:
    """Before the first process: this process joins the run's cgroup, which the keeper has been told to end."""
    ours = run()
    if not ours.joined:
        ours.choose_cgroup()
        keeper().ask({"op": "watch_cgroup", "path": str(ours.cgroup) if ours.cgroup else None})
        ours.join()


def _drop(client: KeeperClient) -> None:
    global _client  # noqa: PLW0603
    if _client is client:
        _client = None
        client.let_go()


def finish() -> None:
    """End this process's keeper."""
    global _client
    ending, _client = _client, None
    if ending is not None:
        ending.goodbye()


def _after_fork_in_child() -> None:
    global _client, _starting  # noqa: PLW0603
    if _client is not None:
        _client.forget()
    _client = None
    _starting = _thread.allocate_lock()


os.register_at_fork(after_in_child=_after_fork_in_child)
