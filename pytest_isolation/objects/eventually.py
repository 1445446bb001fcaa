"""The only waiting that tests need where the kernel sends no word."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def eventually(fn: Callable[[], T], timeout: float = 5.0) -> T:
    """Call `fn` until it returns something true, or - where it asserts - until it stops raising AssertionError.

    Args:
        fn: returns a value, or asserts; a function that asserts and returns None has succeeded when it returns.
        timeout: seconds; `fn` is called at least once, and once more after the time is up.

    Returns:
        What `fn` returned in the end.

    Raises:
        AssertionError: the last one of `fn`, or one that shows what `fn` last returned.
    """
    deadline, pause = time.monotonic() + timeout, 0.0005
    while True:
        last_try = time.monotonic() >= deadline
        try:
            value = fn()
        except AssertionError as error:
            if last_try:
                error.add_note(f"eventually() tried for {timeout} s")
                raise
        else:
            if value or value is None:
                return value
            if last_try:
                name = getattr(fn, "__qualname__", repr(fn))
                message = f"{name} was not true within {timeout} s; it last returned {value!r}"
                raise AssertionError(message)
        time.sleep(pause)
        pause = min(pause * 1.5, 0.02)
