"""`make bench`: this project, what others do the same jobs with, and the floor under all of them, in one run.

Every contender is a process of its own that waits for work: floor.c, and workers.py once for each of the others. This
driver asks them in turn, one sample at a time and in an order shuffled anew in every round, so that a busy machine is
busy for all of them. In each turn the job is done twice and the second counts: the first brings the contender's own
code back into the caches, which the others have filled meanwhile and which a test suite has to itself. Contenders whose
teardown is long (named namespaces, links deleted one by one) take part in every fourth round, and the kernel is given
the time to finish it before anybody else's turn. Numbers are medians.

Nothing is left on the machine: the programs that need named namespaces have a /run of their own, in a mount namespace
that goes with them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
WARM_UP_ROUNDS = 5
PEERS_TAKE_PART_EVERY = 4
DRAINED_HALVES = 2
SAMPLE_TIMEOUT_S = 60.0
FAILURES_UNTIL_DROPPED = 3
QUICK = {"rounds": 30, "cycles": 100, "first_packet": 100}
FULL = {"rounds": 200, "cycles": 1000, "first_packet": 2000}

FLOOR, PROJECT, PYROUTE2, MININET, PROGRAMS = "C floor", "pytest-isolation", "pyroute2", "mininet", "ip, unshare"
BARE, NSENTER, IP_NETNS_EXEC = "subprocess.run", "nsenter", "ip netns exec"

OWN_RUN = 'mount -t tmpfs tmpfs /run && exec "$@"'
PRIVATE_RUN = ("unshare", "--mount", "--propagation=private", "sh", "-c", OWN_RUN, "sh")
PRIVATE_ALL = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
WORKER = str(HERE / "workers.py")
COMMANDS: dict[str, tuple[str, ...]] = {
    FLOOR: (),  # compiled first
    PROJECT: (sys.executable, WORKER, "project"),
    BARE: (sys.executable, WORKER, "bare"),
    PYROUTE2: (*PRIVATE_RUN, sys.executable, WORKER, "pyroute2"),
    MININET: (*PRIVATE_ALL, "/usr/bin/python3", WORKER, "mininet"),
    PROGRAMS: (*PRIVATE_RUN, sys.executable, WORKER, "programs"),
}
SHARED_WORKER = {NSENTER: PROGRAMS, IP_NETNS_EXEC: PROGRAMS}
PROMPT = {FLOOR, PROJECT, BARE, NSENTER, IP_NETNS_EXEC}  # in every round


@dataclass(frozen=True)
class Job:
    """One line of the result: what is done, by whom, and what it may cost.

    Attributes:
        budget: times the baseline's cost or, with `budget_ms`, milliseconds.
        cells: the name of the job with each contender.
        namespaces: does it leave network namespaces to the kernel to take down?
    """

    name: str
    title: str
    cells: dict[str, str]
    budget: float | None = None
    budget_ms: float | None = None
    baseline: str = FLOOR
    namespaces: bool = False


def by_everybody(name: str, *labels: str) -> dict[str, str]:
    return dict.fromkeys((FLOOR, PROJECT, *labels), name)


JOBS = (
    Job("netns", "netns, lo up", by_everybody("netns", PYROUTE2, MININET, PROGRAMS), 1.5, namespaces=True),
    Job("veth4", "veth_pair, IPv4, echo", by_everybody("veth4", PYROUTE2, MININET, PROGRAMS), 1.5, namespaces=True),
    Job("veth6", "veth_pair, IPv6, echo", by_everybody("veth6", PYROUTE2, PROGRAMS), 1.5, namespaces=True),
    Job("veth46", "veth_pair, the fixture's, echoes", by_everybody("veth46"), 1.5, namespaces=True),
    Job("pidns_init", "pid_namespace", by_everybody("pidns_init"), 2.0),
    Job("pidns_proc", "pid_namespace and `true` in it", by_everybody("pidns_proc", PROGRAMS), 2.0),
    Job("uts", "uts_namespace", by_everybody("uts", PROGRAMS), budget_ms=0.3),
    Job("ipc", "ipc_namespace", by_everybody("ipc", PROGRAMS), budget_ms=0.3),
    Job("mount", "mount_namespace", by_everybody("mount", PROGRAMS), budget_ms=0.3),
    Job("cgroup", "cgroup_namespace", by_everybody("cgroup", PROGRAMS)),
    Job("cgroup_cpu", "cgroup_cpu, a command born in it, quiet machine", by_everybody("cgroup_cpu"), 2.0),
    Job("cgroup_attach", "cgroup_cpu, a process moved in, quiet machine", by_everybody("cgroup_attach"), 2.0),
    Job("user", "user_namespace", by_everybody("user", PROGRAMS)),
    Job("overlay", "overlay_fs, one lower layer", by_everybody("overlay"), 2.0),
    Job(
        "firewall",
        "ten rules by libnftables; `nft -f`",
        by_everybody("firewall") | {PROGRAMS: "firewall_nft"},
        1.5,
        namespaces=True,
    ),
    Job(
        "firewall_restore",
        "the same by iptables-restore",
        {FLOOR: "firewall", PROJECT: "firewall_iptables", PROGRAMS: "firewall_restore"},
        namespaces=True,
    ),
    Job(
        "firewall_ten_times",
        "the same by `iptables` x 10",
        {FLOOR: "firewall", PROGRAMS: "firewall_ten_times"},
        namespaces=True,
    ),
)
INSIDE = (
    Job(
        "run",
        '`run(["true"])` in a netns, output captured',
        {
            **by_everybody("run", BARE, PYROUTE2, MININET),
            NSENTER: "run_nsenter",
            IP_NETNS_EXEC: "run_ip",
        },
        1.2,
        baseline=BARE,
    ),
    Job("call", "`call(function)` in a netns, in place", by_everybody("call", PYROUTE2)),
)
HOW = {  # what a contender of `run` and `call` really does
    ("run", FLOOR): "vfork, exec, wait; no namespace, no pipes",
    ("run", BARE): "no namespace",
    ("run", PROJECT): "`netns.run`",
    ("run", NSENTER): "`subprocess.run` of it",
    ("run", IP_NETNS_EXEC): "`subprocess.run` of it",
    ("run", PYROUTE2): "`NSPopen`",
    ("run", MININET): "`host.cmd`, by its shell",
    ("call", FLOOR): "setns and back",
    ("call", PROJECT): "`netns.call`",
    ("call", PYROUTE2): "`pushns`, `popns`",
}


class WorkerError(Exception):
    """A contender is missing, said "error", or died."""


def v1_cgroups() -> dict[str, str]:
    """For the floor: the v1 cgroups, of the controllers cpu and cpuacct, that this process is in; if there are any."""
    own = [line.split(":") for line in Path("/proc/self/cgroup").read_text().splitlines()]
    found = {}
    for name in "cpu", "cpuacct":
        path = next((path for _, names, path in own if name in names.split(",")), None)
        for line in Path("/proc/self/mounts").read_text().splitlines():
            _, target, fstype, options, *_ = line.split()
            if fstype == "cgroup" and name in options.split(",") and path is not None:
                found[f"BENCH_CGROUP_{name.upper()}"] = f"{target}{path}".rstrip("/")
    if len(set(found.values())) == 1:
        found.pop("BENCH_CGROUP_CPUACCT", None)
    return found


class Worker:
    """A contender's process."""

    def __init__(self, argv: tuple[str, ...]) -> None:
        self.version = "-"
        self.jobs: list[str] = []
        self.gone: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        env = os.environ | {"LC_ALL": "C", "PYTHONDONTWRITEBYTECODE": "1"} | v1_cgroups()
        pipe = subprocess.PIPE
        try:
            # Ctrl-C is for the driver: the contender, in a session of its own, ends when its stdin does.
            self._process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, bufsize=0, env=env, start_new_session=True)
            state, _, rest = self._answer(SAMPLE_TIMEOUT_S).partition(" ")
        except OSError as error:
            self.gone = f"not installed: {error}"
        except WorkerError:
            pass  # `gone` says it
        else:
            if state == "ready":
                self.version, *self.jobs = rest.split()
            else:
                self.gone = rest

    def _answer(self, timeout: float) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            self._process.kill()
            self.gone = f"no answer within {timeout:.0f} s"
            raise WorkerError(self.gone)
        line = self._process.stdout.readline().decode().strip()
        if not line:
            self.gone = f"it ended: exit status {self._process.wait()}"
            raise WorkerError(self.gone)
        return line

    def ask(self, request: str, timeout: float = SAMPLE_TIMEOUT_S, times: int = 1) -> tuple[float, float]:
        """Setup and teardown, in microseconds; of the last one, when it is to be done several times."""
        if self.gone or self._process is None:
            raise WorkerError(self.gone)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died; its last words are still in its stdout
            self._process.stdin.write(f"{request}\n".encode() * times)
        answers = [self._answer(timeout).split(" ", 1) for _ in range(times)]
        for words in answers:
            if words[0] != "ok":
                raise WorkerError(words[-1])
        setup, teardown = words[1].split()
        return float(setup), float(teardown)

    def dismiss(self) -> None:
        if self._process and self._process.stdin:
            self._process.stdin.close()

    def wait(self, deadline: float) -> None:
        """Until it has ended by itself or, at the deadline, by force."""
        if self._process is None:
            return
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def compile_floor(directory: str) -> str:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        sys.exit("bench: no C compiler. On Debian: apt-get install gcc libc6-dev")
    floor = os.path.join(directory, "floor")
    try:
        subprocess.run([compiler, "-O2", "-Wall", "-o", floor, str(HERE / "floor.c"), "-ldl"], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"bench: the floor does not compile. On Debian: apt-get install gcc libc6-dev\n{error}")
    return floor


def start_workers(workers: dict[str, Worker], labels: set[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="pytest-isolation-bench-") as directory:
        commands = COMMANDS | {FLOOR: (compile_floor(directory),)}
        for label, argv in commands.items():
            if label in labels:
                workers[label] = Worker(argv)


def dismiss(workers: dict[str, Worker]) -> None:
    for worker in workers.values():
        worker.dismiss()
    deadline = time.monotonic() + 5
    for worker in workers.values():
        worker.wait(deadline)


def tell(text: str, *, end: str = "\n") -> None:
    print(text, end=end, file=sys.stderr, flush=True)


class Progress:
    """A line on stderr that counts; where stderr is no terminal, only what is begun is said."""

    def __init__(self, title: str, total: int) -> None:
        self._title, self._total, self._live = title, total, sys.stderr.isatty()
        if not self._live:
            tell(f"{title}: {total}")
        self.at(0)

    def at(self, done: int) -> None:
        if self._live:
            tell(f"\r\x1b[K{self._title}: {done} of {self._total}", end="\n" if done >= self._total else "")


@dataclass
class Cell:
    """What one contender took for one job."""

    setups_us: list[float] = field(default_factory=list)
    teardowns_us: list[float] = field(default_factory=list)
    failures: int = 0
    reason: str | None = None  # of the last failure

    @property
    def dropped(self) -> bool:
        return self.failures >= FAILURES_UNTIL_DROPPED

    def add(self, setup_us: float, teardown_us: float) -> None:
        self.setups_us.append(setup_us)
        self.teardowns_us.append(teardown_us)

    def fail(self, reason: str | None) -> None:
        self.failures += 1
        self.reason = reason

    @property
    def setup_ms(self) -> float:
        return statistics.median(self.setups_us) / 1e3

    @property
    def teardown_ms(self) -> float:
        return statistics.median(self.teardowns_us) / 1e3

    @property
    def together_ms(self) -> float:
        return statistics.median(map(sum, zip(self.setups_us, self.teardowns_us, strict=True))) / 1e3


class Bench:
    """One run: the contenders' processes, and what they answered."""

    def __init__(self, workers: dict[str, Worker]) -> None:
        self.workers = workers
        self.cells: dict[str, dict[str, Cell]] = {}
        self.drained: dict[str, dict[str, dict[str, float]]] = {}
        self.first_packet: dict[str, dict[str, int]] = {}
        self.notes: list[str] = []
        self._order = random.Random(0)

    def worker_of(self, label: str) -> Worker:
        return self.workers[SHARED_WORKER.get(label, label)]

    def takers(self, job: Job) -> list[str]:
        return [label for label, name in job.cells.items() if name in self.worker_of(label).jobs]

    def drain(self) -> float:
        """Wait until the kernel has taken down what was dropped; how long that took, in microseconds."""
        return self.workers[FLOOR].ask("drain")[0]

    def sample(self, job: Job, rounds: int) -> None:
        cells = {label: Cell() for label in self.takers(job)}
        progress = Progress(job.name, rounds)
        for number in range(-WARM_UP_ROUNDS, rounds):
            turn = [label for label in cells if label in PROMPT or number < 0 or number % PEERS_TAKE_PART_EVERY == 0]
            self._order.shuffle(turn)
            for label in turn:
                if not cells[label].dropped:
                    self._sample_once(job, label, cells[label], warming_up=number < 0)
            progress.at(max(0, number + 1))
        if job.namespaces:
            self.drain()
        for label, cell in cells.items():
            if cell.failures:
                self.notes.append(f"{job.name}, {label}: failed {cell.failures} times, at last with: {cell.reason}")
        self.cells[job.name] = {label: cell for label, cell in cells.items() if cell.setups_us and not cell.dropped}

    def _sample_once(self, job: Job, label: str, cell: Cell, *, warming_up: bool) -> None:
        try:
            setup_us, teardown_us = self.worker_of(label).ask(job.cells[label], times=2)
        except WorkerError as error:
            cell.fail(str(error))
        else:
            if not warming_up:
                cell.add(setup_us, teardown_us)
        if job.namespaces and label not in PROMPT:
            self.drain()

    def sample_drained(self, job: Job, cycles: int) -> None:
        """The cost of a cycle including what the kernel does of it later, less what an idle drain takes."""
        labels = self.takers(job)
        counts = {label: cycles if label in PROMPT else min(cycles, max(20, cycles // 10)) for label in labels}
        spent = {label: {"submitted_us": 0.0, "drained_us": 0.0, "cycles": 0} for label in labels}
        progress = Progress(f"{job.name}, drained", sum(counts.values()))
        self.drain()
        idle_us = statistics.median(self.drain() for _ in range(5))
        done = 0
        for half in range(DRAINED_HALVES):
            for label in labels if half == 0 else labels[::-1]:
                count = (counts[label] + half) // DRAINED_HALVES
                if not count or self.worker_of(label).gone:
                    continue
                try:
                    begun = time.perf_counter()
                    submitted = self.worker_of(label).ask(f"cycles {count} {job.cells[label]}", 60.0 + count)
                    self.drain()
                except WorkerError as error:
                    self.notes.append(f"{job.name}, drained, {label}: {error}")
                    self.drain()
                    continue
                spent[label]["submitted_us"] += sum(submitted)
                spent[label]["drained_us"] += (time.perf_counter() - begun) * 1e6 - idle_us
                spent[label]["cycles"] += count
                done += count
                progress.at(done)
        self.drained[job.name] = {label: one for label, one in spent.items() if one["cycles"]}

    def count_first_packets(self, pairs: int, chunk: int = 50) -> None:
        if self.workers[PROJECT].gone:
            return
        for version in "4", "6":
            progress = Progress(f"first packet over IPv{version}", pairs)
            tried = lost = 0
            while tried < pairs:
                count = min(chunk, pairs - tried)
                try:
                    lost += int(self.workers[PROJECT].ask(f"cycles {count} first_packet{version}")[0])
                except WorkerError as error:
                    self.notes.append(f"first packet, IPv{version}: {error}")
                    break
                tried += count
                progress.at(tried)
            if tried:
                self.first_packet[f"IPv{version}"] = {"pairs": tried, "lost": lost}
            self.drain()


# ---- the tables


def ms(value: float) -> str:
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def times(ratio: float) -> str:
    return f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.0f}x"


def table(heads: list[str], rows: list[list[str]]) -> str:
    widths = [max(3, *(len(row[i]) for row in [heads, *rows])) for i in range(len(heads))]
    lines = [heads, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines)


def apart(cell: Cell) -> str:
    """Both together and, where there are two, each of them."""
    together = ms(cell.together_ms)
    return f"{together} ({ms(cell.setup_ms)} + {ms(cell.teardown_ms)})" if any(cell.teardowns_us) else together


def verdict(job: Job, cells: dict[str, Cell]) -> tuple[str, str]:
    """The budget, and whether it was kept."""
    budget = f"{job.budget}x" if job.budget else f"{job.budget_ms} ms" if job.budget_ms else ""
    if not budget or PROJECT not in cells or (job.budget and job.baseline not in cells):
        return budget, ""
    together = cells[PROJECT].together_ms
    kept = together <= (job.budget * cells[job.baseline].together_ms if job.budget else job.budget_ms or 0)
    return budget, "ok" if kept else "**over**"


class Report:
    """What is printed in the end, as markdown."""

    def __init__(self, bench: Bench, arguments: argparse.Namespace) -> None:
        self._bench, self._arguments = bench, arguments

    def _absent(self, job: Job, label: str) -> str:
        if label not in job.cells:
            return "-"
        return "failed" if not self._bench.worker_of(label).gone else "not installed" if label != PROJECT else "absent"

    def made_and_removed(self) -> str:
        peers = [PYROUTE2, MININET, PROGRAMS]
        rows = []
        for job in JOBS:
            if (cells := self._bench.cells.get(job.name)) is None:
                continue
            floor = cells.get(FLOOR)

            def ratio(label: str, cells: dict[str, Cell] = cells, floor: Cell | None = floor) -> str:
                return times(cells[label].together_ms / floor.together_ms) if floor and label in cells else ""

            def shown(label: str, job: Job = job, cells: dict[str, Cell] = cells) -> str:
                return apart(cells[label]) if label in cells else self._absent(job, label)

            rows.append(
                [job.title, shown(FLOOR), shown(PROJECT), ratio(PROJECT), *verdict(job, cells)]
                + [f"{shown(label)} {ratio(label)}".strip() for label in peers]
            )
        heads = ["ms: together (setup + teardown)", FLOOR, PROJECT, "to floor", "budget", "", *peers]
        return table(heads, rows) if rows else ""

    def inside(self) -> list[str]:
        tables = []
        for job in INSIDE:
            if (cells := self._bench.cells.get(job.name)) is None:
                continue
            baseline, rows = cells.get(job.baseline), []
            for label in sorted(job.cells, key=lambda one: cells[one].together_ms if one in cells else 1e9):
                how = HOW.get((job.name, label), "")
                if label not in cells:
                    rows.append([f"{label}: {how}", self._absent(job, label), "", "", ""])
                    continue
                ratio = times(cells[label].together_ms / baseline.together_ms) if baseline else ""
                budget = verdict(job, cells) if label == PROJECT else ("", "")
                rows.append([f"{label}: {how}", ms(cells[label].together_ms), ratio, *budget])
            tables.append(table([job.title, "ms", f"to {job.baseline}", "budget", ""], rows))
        return tables

    def drained(self) -> str:
        rows = []
        for name, spent in self._bench.drained.items():
            floor = spent.get(FLOOR)
            for label, one in spent.items():
                drained_ms = one["drained_us"] / one["cycles"] / 1e3
                ratio = times(drained_ms / (floor["drained_us"] / floor["cycles"] / 1e3)) if floor else ""
                submitted_ms = one["submitted_us"] / one["cycles"] / 1e3
                rows.append([name, label, f"{one['cycles']:.0f}", ms(submitted_ms), ms(drained_ms), ratio])
        heads = ["made and removed, again and again", "", "cycles", "ms a cycle", "drained, ms a cycle", "to floor"]
        return table(heads, rows) if rows else ""

    def first_packet(self) -> str:
        counts = self._bench.first_packet.items()
        rows = [[v, f"{n['pairs']}", f"{n['lost']}", "**lost**" if n["lost"] else "ok"] for v, n in counts]
        return table(["first packet of a fresh veth_pair", "pairs", "lost", ""], rows) if rows else ""

    def machine(self) -> str:
        versions = [f"Python-{platform.python_version()}"]
        versions += [w.version for label, w in self._bench.workers.items() if label not in {FLOOR, BARE} and not w.gone]
        return (
            f"Linux {platform.release()}, {os.cpu_count()} CPUs; {', '.join(versions)}. "
            f"Medians of {self._arguments.rounds} rounds; contenders other than floor and project in every "
            f"{PEERS_TAKE_PART_EVERY}th."
        )

    def notes(self) -> str:
        absent = [f"{label}: {worker.gone}" for label, worker in self._bench.workers.items() if worker.gone]
        return "\n".join(f"- {note}" for note in absent + self._bench.notes)

    def text(self) -> str:
        tables = [self.made_and_removed(), *self.inside(), self.drained(), self.first_packet()]
        parts = [self.machine(), *tables, self.notes()]
        return "\n\n".join(part for part in parts if part)

    def as_json(self) -> dict[str, Any]:
        jobs: dict[str, Any] = {}
        for job in (*JOBS, *INSIDE):
            if (cells := self._bench.cells.get(job.name)) is None:
                continue
            budget, kept = verdict(job, cells)
            jobs[job.name] = {
                "title": job.title,
                "budget": budget or None,
                "baseline": job.baseline,
                "kept": {"ok": True, "": None}.get(kept, False),
                "cells": {
                    label: {
                        "samples": len(cell.setups_us),
                        "setup_ms": cell.setup_ms,
                        "teardown_ms": cell.teardown_ms,
                        "together_ms": cell.together_ms,
                        "failures": cell.failures,
                    }
                    for label, cell in cells.items()
                },
            }
        return {
            "machine": self.machine(),
            "jobs": jobs,
            "drained": self._bench.drained,
            "first_packet": self._bench.first_packet,
            "notes": self.notes().splitlines(),
        }


def parse_arguments() -> argparse.Namespace:
    names = [job.name for job in (*JOBS, *INSIDE)]
    parser = argparse.ArgumentParser(description="Compare pytest-isolation with a C floor and with other ways.")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"samples of each job (default {FULL['rounds']})")
    parser.add_argument(
        "--cycles",
        type=int,
        metavar="N",
        help=f"netns and veth_pair, made and removed N times and drained (default {FULL['cycles']}; 0 for none)",
    )
    parser.add_argument(
        "--first-packet",
        type=int,
        metavar="N",
        help=f"lost first packets of N fresh pairs, IPv4 and IPv6 (default {FULL['first_packet']}; 0 for none)",
    )
    parser.add_argument("--only", action="append", choices=names, metavar="JOB", help=f"one of {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help=", ".join(f"{n} {key}" for key, n in QUICK.items()))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there as well")
    arguments = parser.parse_args()
    for key, number in (QUICK if arguments.quick else FULL).items():
        if getattr(arguments, key) is None:
            setattr(arguments, key, 0 if arguments.only and key == "first_packet" else number)
    if arguments.rounds < 1 or arguments.cycles < 0 or arguments.first_packet < 0:
        parser.error("--rounds must be 1 or more, --cycles and --first-packet 0 or more")
    return arguments


def run(arguments: argparse.Namespace) -> None:
    jobs = [job for job in (*JOBS, *INSIDE) if not arguments.only or job.name in arguments.only]
    labels = {SHARED_WORKER.get(label, label) for job in jobs for label in job.cells} | {PROJECT}
    workers: dict[str, Worker] = {}
    try:
        start_workers(workers, labels)
        if workers[FLOOR].gone:
            sys.exit(f"bench: the floor does not run: {workers[FLOOR].gone}")
        for label, worker in workers.items():
            if worker.gone:
                tell(f"\n*** {label} IS LEFT OUT: {worker.gone} ***\n")
        bench = Bench(workers)
        for job in jobs:
            bench.sample(job, arguments.rounds)
        for job in jobs:
            if job.name in {"netns", "veth4"} and arguments.cycles:
                bench.sample_drained(job, arguments.cycles)
        if arguments.first_packet:
            bench.count_first_packets(arguments.first_packet)
        report = Report(bench, arguments)
        print(report.text())
        if arguments.json:
            arguments.json.write_text(json.dumps(report.as_json(), indent=2) + "\n")
    finally:
        for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP:
            signal.signal(number, signal.SIG_IGN)
        dismiss(workers)


def main() -> None:
    arguments = parse_arguments()
    if os.geteuid() != 0:
        sys.exit("bench: needs root, as what it compares to does. Type: sudo make bench")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGHUP, interrupt)
    try:
        run(arguments)
    except WorkerError as error:
        sys.exit(f"bench: the floor failed: {error}")
    except KeyboardInterrupt:
        tell("\nbench: interrupted; everything is removed")
        sys.exit(130)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
