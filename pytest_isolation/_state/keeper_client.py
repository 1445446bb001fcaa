"""Pytest's end of the link to the keeper (see `keeper`): started when first needed, asked one thing at a time."""

from __future__ import annotations

import _thread
import os
import select
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


class KeeperClient:
    """One keeper, as pytest sees it."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._busy = _thread.allocate_lock()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fds.hold(ours.fileno())
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 19)  # a whole environment in one message
        self._link = ours
        watched = [os.pidfd_open(os.getpid())]
        if os.environ.get("PYTEST_XDIST_WORKER"):
            watched.append(os.pidfd_open(os.getppid()))  # xdist's controller, on this machine
        passed = [theirs.fileno(), *watched]
        package_parent = str(Path(__file__).parents[2])
        # `sh` puts the keeper in the background and is gone a millisecond later: nobody's os.wait() will meet it.
        command = ["/bin/sh", "-c", '"$@" &', "sh", sys.executable, "-I", "-S", "-E", "-c", _START, package_parent]
        command += [str(theirs.fileno()), str(ledger.directory(run().id)), *map(str, watched)]
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
        fds.release(self._link.detach())


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
        fds.release(client._link.detach())


def finish() -> None:
    """End this process's keeper."""
    global _client
    ending, _client = _client, None
    if ending is not None:
        ending.goodbye()


def _after_fork_in_child() -> None:
    global _client, _starting  # noqa: PLW0603
    if _client is not None:
        _client._link.detach()
    _client = None
    _starting = _thread.allocate_lock()


os.register_at_fork(after_in_child=_after_fork_in_child)
