"""How CPU time divides between groups that all want the same CPU; measured, or honestly not."""

from __future__ import annotations

import os
import secrets
import select
import time
from typing import TYPE_CHECKING

from pytest_isolation.errors import IsolationError, KernelError, TooBusyError
from pytest_isolation.objects._place import Place

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_isolation.objects._process import Process

#: A shell that starts to spin when its stdin ends: all are started, pinned, and only then let go.
_SPIN = "read go; while :; do :; done"
#: How often within the window the clocks are read, and how long one look at which CPU is least busy takes.
_PARTS, _LOOK_S = 10, 0.05
#: Before the window: a process runs when it has had so much CPU time, within so many seconds; then so long to settle.
_RUNNING_NS, _START_TIMEOUT_S, _SETTLE_S = 1_000_000, 10.0, 0.1
#: No verdict when others had more than this part of the window, or of one's window where each group has its own CPU; or
#: when the halves of the window differ by more than this. (Undisturbed, halves of half a second differ by 0.02.)
_OTHERS_MAX, _OTHERS_MAX_APART, _HALVES_APART_MAX = 0.75, 0.15, 0.05


def cpu_shares(*groups: Place, seconds: float = 0.5, cpu: int | Sequence[int] | None = None) -> tuple[float, ...]:
    """Let one busy process in each group contend for one CPU, and say how its time was divided: fractions, in order.

    Shares and weights decide only among what is runnable on the same CPU: so all are pinned to one, the least busy of
    those that pytest may use. What counts is the CPU time that the kernel has on its books for each process, at the
    beginning and at the end of the window; all are running before it begins.

    Args:
        groups: two or more cgroups, or other places that a process can live in.
        seconds: the length of the window, 0.1 and more.
        cpu: the CPU to use; None: the least busy. A sequence gives each group's process a CPU of its own.

    Raises:
        TooBusyError: others had so much of that CPU, or the fractions changed so much within the window, that there is
            no verdict.
    """
    pinned = _check(groups, seconds, cpu)
    spinning: list[Process] = []
    gate = list(os.pipe2(os.O_CLOEXEC))
    try:
        for group in groups:
            process = group.popen(["/bin/sh", "-c", _SPIN], stdin=gate[0], grace=0.0)
            spinning.append(process)  # one by one: whatever fails later, these are ended
        for process, number in zip(spinning, pinned, strict=True):
            _pin(process, number)
        while gate:
            os.close(gate.pop())
        return _measure(spinning, pinned, seconds)
    finally:
        while gate:
            os.close(gate.pop())
        for process in spinning:
            process.end()


def _check(groups: Sequence[Place], seconds: float, cpu: int | Sequence[int] | None) -> list[int]:
    """Refuse what makes no sense; the CPU of each group."""
    if len(groups) < 2:
        message = f"cpu_shares() compares two groups or more, not {len(groups)}"
        raise TypeError(message)
    for group in groups:
        if not isinstance(group, Place):
            message = f"cpu_shares() takes cgroups, and other places that a process can live in, not {group!r}"
            raise TypeError(message)
    if not isinstance(seconds, (int, float)) or not seconds >= 0.1:
        message = f"seconds={seconds!r}: allowed are 0.1 and more"
        raise ValueError(message)
    allowed = sorted(os.sched_getaffinity(0))
    if cpu is None:
        return [_least_busy(allowed)] * len(groups)
    pinned = [cpu] * len(groups) if isinstance(cpu, int) else list(cpu)
    if len(pinned) != len(groups) or not set(pinned) <= set(allowed):
        message = f"cpu={cpu!r}: allowed is one CPU, or one for each group, of {', '.join(map(str, allowed))}"
        raise ValueError(message)
    return pinned


def _pin(process: Process, cpu: int) -> None:
    try:
        os.sched_setaffinity(process.pid, {cpu})
    except OSError as error:
        hint = "A cpuset of its group leaves it other CPUs: pass one of those as cpu="
        raise KernelError(error.errno or 0, f"sched_setaffinity({process.pid}, {{{cpu}}})", None, hint) from None


def _cpu_ns(process: Process) -> int:
    """CPU time that a process has had, up to this moment. clock_getcpuclockid(3)"""
    return time.clock_gettime_ns((~process.pid << 3) | 2)


def _measure(spinning: Sequence[Process], pinned: Sequence[int], seconds: float) -> tuple[float, ...]:
    watch = select.poll()
    for process in spinning:
        watch.register(process.pidfd, select.POLLIN)

    def let_run(duration: float) -> None:
        if watch.poll(duration * 1000):
            dead = next(process for process in spinning if process.poll() is not None)
            message = f"a busy process of cpu_shares() ended with {dead.returncode}: {dead.log or 'it printed nothing'}"
            raise IsolationError(message)

    begun = [_cpu_ns(process) for process in spinning]
    deadline = time.monotonic() + _START_TIMEOUT_S
    while any(_cpu_ns(one) - before < _RUNNING_NS for one, before in zip(spinning, begun, strict=True)):
        if time.monotonic() > deadline:
            message = f"too busy to tell: after {_START_TIMEOUT_S} s not every group had run for a millisecond"
            raise TooBusyError(message)
        let_run(0.001)
    # What the processes did elsewhere before they were pinned weighs on the groups' load for a while.
    let_run(_SETTLE_S)
    started, before = time.monotonic_ns(), _idle_s()
    looks = []
    for part in range(_PARTS + 1):
        looks.append([_cpu_ns(process) for process in spinning])
        if part < _PARTS:
            let_run(seconds / _PARTS)
    window_s, after = (time.monotonic_ns() - started) / 1e9, _idle_s()
    return judge(looks, pinned, window_s, {cpu: after[cpu] - before[cpu] for cpu in pinned})


def judge(
    looks: Sequence[Sequence[int]], pinned: Sequence[int], window_s: float, idle_s: Mapping[int, float]
) -> tuple[float, ...]:
    """The fractions, from each process's CPU time (nanoseconds) at moments evenly spread over the window.

    Raises:
        TooBusyError: they prove nothing.
    """
    got_s = [(last - first) / 1e9 for first, last in zip(looks[0], looks[-1], strict=True)]
    for cpu in sorted(set(pinned)):
        ours_s = sum(got for got, number in zip(got_s, pinned, strict=True) if number == cpu)
        others_s = window_s - ours_s - idle_s[cpu]
        # On one CPU others take from all groups alike; on several, from one of them.
        most = _OTHERS_MAX if len(set(pinned)) == 1 else _OTHERS_MAX_APART
        if others_s > window_s * most or ours_s <= 0:
            message = (
                f"too busy to tell: in {window_s:.2f} s of CPU {cpu} the groups had {ours_s:.2f} s, and others, or the "
                f"hypervisor, {max(0.0, others_s):.2f} s"
            )
            raise TooBusyError(message)
    middle = len(looks) // 2
    halves = [_fractions(looks[0], looks[middle]), _fractions(looks[middle], looks[-1])]
    if max(abs(one - other) for one, other in zip(*halves, strict=True)) > _HALVES_APART_MAX:
        shown = " and then ".join(":".join(f"{part:.2f}" for part in half) for half in halves)
        message = f"too busy to tell: in {window_s:.2f} s the time was divided {shown}, which is not steady enough"
        raise TooBusyError(message)
    return _fractions(looks[0], looks[-1])


def _fractions(before: Sequence[int], after: Sequence[int]) -> tuple[float, ...]:
    got = [last - first for first, last in zip(before, after, strict=True)]
    return tuple(one / max(1, sum(got)) for one in got)


def _idle_s() -> dict[int, float]:
    """Seconds that each CPU has been idle. proc_stat(5)"""
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    found = {}
    with open("/proc/stat", encoding="ascii") as file:
        for line in file:
            name, *fields = line.split()
            if name.startswith("cpu") and name != "cpu":
                found[int(name[3:])] = (int(fields[3]) + int(fields[4])) * tick_s
    return found


def _least_busy(allowed: Sequence[int]) -> int:
    if len(allowed) == 1:
        return allowed[0]
    before = _idle_s()
    time.sleep(_LOOK_S)  # this is a measurement: how busy is each in a while?
    after = _idle_s()
    # At random among equals: other test processes choose at the same moment.
    return max(allowed, key=lambda cpu: (after[cpu] - before[cpu], secrets.randbits(32)))
