"""What can go wrong, as one small family: catch `IsolationError` for all of it."""

from __future__ import annotations

import errno as _errno
import os
import re
import subprocess
from typing import Any


class IsolationError(Exception):
    """Base of every error that this package raises on its own account."""


class KernelError(IsolationError, OSError):
    """The kernel refused a call.

    Attributes:
        errno: the error number, as in every `OSError`.
        call: the call as strace(1) prints it, `unshare(CLONE_NEWNET)`.
        message: the kernel's own words where it has any (fs context log, extended netlink acknowledgement).
        hint: what usually causes this.
    """

    def __init__(self, errno: int, call: str, message: str | None = None, hint: str | None = None) -> None:
        name = _errno.errorcode.get(errno, f"errno {errno}")
        text = f"{call} = -1 {name} ({os.strerror(errno)})"
        if message:
            text += f"; the kernel says: {message}"
        if hint:
            text += f". {hint}"
        super().__init__(errno, text)
        self.call = call
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return str(self.strerror)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.errno, self.call, self.message, self.hint)


class Unsupported(IsolationError):  # noqa: N818 - the name users type; it states a fact about the machine
    """This kernel, or this user, cannot do what was asked. Under pytest it skips, with `--isolation-strict` it fails.

    Attributes:
        what: what was asked for.
        why: what stands in the way.
        remedy: what to change so that it works.
        since: the first kernel version that can, where it is a matter of version.
    """

    def __init__(self, what: str, why: str, remedy: str, since: str | None = None) -> None:
        needs = f" (Linux {since} and later)" if since else ""
        super().__init__(f"{what}{needs}: {why}. Remedy: {remedy}.")
        self.what = what
        self.why = why
        self.remedy = remedy
        self.since = since

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.what, self.why, self.remedy, self.since)


class UnknownKnobError(IsolationError, KeyError):
    """A cgroup has no interface file of that name; the message names the nearest, and all there are."""

    def __str__(self) -> str:
        return Exception.__str__(self)  # not quoted, as KeyError's would be


class TooBusyError(IsolationError):
    """The machine was too busy to measure something: there is no verdict, neither for nor against."""


class LeakError(IsolationError):
    """Something outlived its object's teardown and could not be removed."""


class ClosedError(IsolationError):
    """The object was used after it was closed, after its namespace died, or in a forked copy of its process."""


class ChildError(IsolationError, subprocess.CalledProcessError):
    """A command failed, was killed, or ended when it should not have; shows what it printed."""

    def __init__(
        self,
        returncode: int,
        cmd: object,
        output: str | bytes | None = None,
        stderr: str | bytes | None = None,
        note: str | None = None,
    ) -> None:
        subprocess.CalledProcessError.__init__(self, returncode, cmd, output, stderr)  # type: ignore[arg-type]
        self.args: tuple[Any, ...] = (returncode, cmd, output, stderr, note)
        self.note = note

    def __str__(self) -> str:
        text = subprocess.CalledProcessError.__str__(self)
        if self.returncode == 0:
            text = f"Command {self.cmd!r} exited with status 0."
        if self.note:
            text += f"\n{self.note}"
        for name, stream in (("stdout", self.output), ("stderr", self.stderr)):
            if stream:
                shown = stream if isinstance(stream, str) else stream.decode(errors="backslashreplace")
                text += f"\n--- {name}\n{shown.rstrip()}"
        return text


class RuleError(IsolationError):
    """A firewall refused a command, a rule, or a whole ruleset: a typo, an unknown chain, a name that is taken.

    Attributes:
        program: who refused, `iptables-nft-restore` or `nft`.
        command: what it was given.
        message: its own words, and its pointer where it shows one.
    """

    def __init__(self, program: str, command: str, message: str) -> None:
        lines = command.rstrip("\n").splitlines()
        # nft shows the line itself, above its pointer.
        one = "" if command.strip() in message else f": {command.strip()}"
        shown = one if len(lines) == 1 else f" a ruleset of {len(lines)} lines"
        text = f"{program} refused{shown}\n{message.rstrip()}"
        number = re.search(r"\bline:? (\d+)", message)
        if number and len(lines) > 1:  # iptables-restore names the line, and does not show it
            at = int(number[1])
            near = enumerate(lines[max(0, at - 3) : at], max(1, at - 2))
            text += "".join(f"\n{'>' if line == at else ' '}{line:4} {words}" for line, words in near)
        super().__init__(text)
        self.program = program
        self.command = command
        self.message = message

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.program, self.command, self.message)
