"""time namespaces, by the word of the clocks inside."""

import time
from pathlib import Path

import pytest

from pytest_isolation import KernelError, TimeNamespace

HOUR = 3600.0


def clocks():
    """Monotonic, boot-time and wall clock."""
    return time.clock_gettime(time.CLOCK_MONOTONIC), time.clock_gettime(time.CLOCK_BOOTTIME), time.time()


def test_clocks_with_an_offset(isolation):
    """Monotonic and boot time by what was asked; the wall clock is everybody's."""
    space = isolation.time_namespace(monotonic_s=10 * HOUR, boottime_s=20 * HOUR)
    before = clocks()
    monotonic, boottime, wall = space.call_in_child(clocks)
    assert 10 * HOUR <= monotonic - before[0] < 11 * HOUR
    assert 20 * HOUR <= boottime - before[1] < 21 * HOUR
    assert 0 <= wall - before[2] < HOUR
    assert clocks()[0] - before[0] < HOUR


def test_proc_uptime_follows(isolation):
    """A command sees it as well; pytest does not."""
    space = isolation.time_namespace(boottime_s=20 * HOUR)
    inside = float(space.run(["cat", "/proc/uptime"]).stdout.split()[0])
    assert 20 * HOUR <= inside - float(Path("/proc/uptime").read_text().split()[0]) + HOUR < 22 * HOUR
    offsets = space.run(["cat", "/proc/self/timens_offsets"]).stdout.split()
    assert offsets == ["monotonic", "0", "0", "boottime", str(int(20 * HOUR)), "0"]


@pytest.mark.parametrize(
    "seconds, expected", [(1.5, ["1", "500000000"]), (-0.25, ["-1", "750000000"]), (0, ["0", "0"])]
)
def test_parts_of_a_second(isolation, seconds, expected):
    """As the kernel counts: seconds down, nanoseconds up."""
    space = isolation.time_namespace(boottime_s=seconds)
    assert space.run(["cat", "/proc/self/timens_offsets"]).stdout.split()[-2:] == expected


@pytest.mark.parametrize(
    "options, error, fragment",
    [
        ({"monotonic_s": "one"}, ValueError, "monotonic_s='one': allowed is a finite number of seconds"),
        ({"boottime_s": None}, ValueError, "boottime_s=None"),
        ({"boottime_s": float("nan")}, ValueError, "boottime_s=nan"),
        ({"boottime_s": float("inf")}, ValueError, "boottime_s=inf"),
        ({"monotonic_s": -1e12}, (KernelError, ValueError), "ERANGE|monotonic_s"),
        ({"boottime_s": 1e30}, (KernelError, ValueError), "ERANGE|EINVAL|boottime_s"),
        ({"no_such_option": 1}, TypeError, "no_such_option"),
    ],
)
def test_offsets_that_cannot_be(isolation, nothing_left, options, error, fragment):
    """Refused by name or by the kernel; nothing is left."""
    with nothing_left(), pytest.raises(error, match=fragment):
        isolation.time_namespace(**options)


def test_one_that_a_user_namespace_owns(isolation):
    """Its root has other clocks."""
    space = isolation.time_namespace(boottime_s=HOUR, user=isolation.user_namespace())
    assert space.run(["cat", "/proc/self/timens_offsets"]).stdout.split()[-2:] == [str(int(HOUR)), "0"]
    assert space.run(["id", "-u"]).stdout == "0\n"


def test_nothing_is_left(nothing_left):
    """It ends with its last reference."""
    with nothing_left(), TimeNamespace(boottime_s=1) as space:
        space.run(["true"])
