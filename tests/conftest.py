"""The suite's last checks: the machine is as it was, and nothing was skipped that this kernel can do.

Both are made by the process that was started, not by an xdist worker, and after everything has ended.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from secrets import token_hex

import pytest

pytest_plugins = ["pytester"]

#: In the environment of everything this suite starts.
MARK = "ISOLATION_SUITE"
#: Reasons (regular expressions) of skips that are as they should be, by what this user and kernel are.
EXPECTED_SKIPS = ["^isolation: union_fs: this kernel has no AUFS"]
EXPECTED_SKIPS += [] if os.geteuid() == 0 else ["^isolation: ", "needs root"]
#: Time for the kernel to take away what goes in the background, and for other runs on this machine to move on.
PATIENCE_S = 10.0

_unexpected_skips: list[str] = []


class Machine:
    """What is on this machine and outlives processes, each thing as one line of text."""

    @staticmethod
    def look() -> set[str]:
        """Links, mounts, v2 cgroups, firewall, published names, and files where this package and IPC put theirs."""
        found = {f"link {name}" for name in os.listdir("/sys/class/net")}
        if shutil.which("nft"):
            listed = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=False)
            found |= {f"rule {line.strip()}" for line in listed.stdout.splitlines() if line.strip()}
        for name in ("ip_tables_names", "ip6_tables_names"):
            with contextlib.suppress(OSError):
                found |= {f"rule {name} {table}" for table in Path("/proc/net", name).read_text().split()}
        trees = ["/run", "/dev/shm"]
        for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
            fields, _, rest = line.partition(" - ")
            target = fields.split()[4]
            found.add(f"mount {target} of {' '.join(rest.split()[:2])}")
            if rest.startswith("cgroup2 "):
                found |= {f"cgroup {folder}" for folder, _, _ in os.walk(target)}
            elif rest.startswith("cgroup "):  # where others have theirs, which come and go
                found |= {f"cgroup {folder}" for folder, _, _ in os.walk(target) if "pytest-isolation-" in folder}
        for tree in trees:
            for folder, folders, files in os.walk(tree):
                found |= {f"file {folder}/{name}" for name in (*folders, *files)}
        found |= {f"file {path}" for path in Path("/tmp").glob("pytest-isolation*")}
        return found

    @staticmethod
    def processes(mark: str) -> dict[int, str]:
        """Everything alive with `mark` in its environment, by pid; this process left out."""
        found = {}
        for entry in os.scandir("/proc"):
            if entry.name.isdecimal() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if mark.encode() in Path(entry.path, "environ").read_bytes().split(b"\0"):
                        command = Path(entry.path, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                        found[int(entry.name)] = command
        return found

    @staticmethod
    def children() -> dict[int, str]:
        """Children of this process, zombies included."""
        found = {}
        for task in Path("/proc/self/task").iterdir():
            for pid in (task / "children").read_text().split():
                with contextlib.suppress(OSError):
                    found[int(pid)] = Path(f"/proc/{pid}/stat").read_text()[:100]
        return found

    @staticmethod
    def others(mark: str) -> str:
        """Text that names what belongs to other runs at work on this machine: their ids, and their ledgers."""
        words = []
        for entry in os.scandir("/proc"):
            if not entry.name.isdecimal():
                continue
            with contextlib.suppress(OSError):
                command = Path(entry.path, "cmdline").read_bytes().decode(errors="replace")
                keeper = re.search(r"pytest-isolation keeper of (\S+?/([0-9a-f]{32}))", command)
                if keeper and mark.encode() not in Path(entry.path, "environ").read_bytes().split(b"\0"):
                    words.append(keeper[2])
                    words += [path.read_text() for path in Path(keeper[1]).glob("*")]
        return "\n".join(words)

    @classmethod
    def look_at_own(cls, mark: str) -> set[str]:
        """Like `look`, without what belongs to another run that is at work now."""
        others = cls.others(mark)
        things = cls.look()
        others += "\n" + cls.others(mark)  # runs begin and end meanwhile
        ids = [line for line in others.splitlines() if re.fullmatch("[0-9a-f]{32}", line)]
        shared = {"file /run/pytest-isolation", "file /run/netns"} if ids else set()
        return {
            thing
            for thing in things - shared
            if not any(run_id in thing for run_id in ids) and json.dumps(thing.split(" ")[1]) not in others
        }

    @classmethod
    def additions(cls, before: set[str], mark: str) -> list[str]:
        """What is there and was not before, and neither goes away in time nor belongs to another run."""
        return cls.changes(before, mark, gone=False)

    @classmethod
    def changes(cls, before: set[str], mark: str, *, gone: bool = True) -> list[str]:
        """The same, and what has gone."""
        deadline = time.monotonic() + PATIENCE_S
        lasting: set[str] | None = None
        while True:
            now = cls.look_at_own(mark)
            different = {f"new: {thing}" for thing in now - before}
            different |= {f"gone: {thing}" for thing in before - now if gone}
            different |= {f"process {pid}: {command}" for pid, command in cls.processes(mark).items()}
            lasting = different if lasting is None else lasting & different
            if not lasting or time.monotonic() > deadline:
                return sorted(lasting)
            time.sleep(0.1)


@pytest.fixture
def machine():
    """What is on the machine, see `Machine`."""
    return Machine


@pytest.hookimpl(wrapper=True)
def pytest_cmdline_main(config):
    """Around everything, the end of the plugin's own run included: is the machine as it was?"""
    if hasattr(config, "workerinput") or config.option.help or config.option.version:
        return (yield)
    os.environ[MARK] = token_hex(16)
    mark = f"{MARK}={os.environ[MARK]}"
    before, children = Machine.look_at_own(mark), Machine.children()
    status = yield
    findings = Machine.changes(before, mark)
    findings += [f"child {pid}: {stat}" for pid, stat in Machine.children().items() if pid not in children]
    if findings:
        print("\nERROR: the suite did not leave the machine as it found it:", *findings, sep="\n  ", file=sys.stderr)
    if _unexpected_skips:
        print(
            "\nERROR: skipped, and not on the list of EXPECTED_SKIPS:", *_unexpected_skips, sep="\n  ", file=sys.stderr
        )
    return pytest.ExitCode.TESTS_FAILED if (findings or _unexpected_skips) and not status else status


def _note_skip(report):
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else ""
        if not any(re.search(expected, reason) for expected in EXPECTED_SKIPS):
            _unexpected_skips.append(f"{report.nodeid}: {reason}")


def pytest_runtest_logreport(report):
    _note_skip(report)


def pytest_collectreport(report):
    _note_skip(report)
