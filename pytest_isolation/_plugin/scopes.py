"""Whose a command is: what a test starts ends with that test, whatever the scope of the object it was started on."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_PROCESSES = "pytest_isolation.objects._process"


@contextmanager
def owner(scope: object | None) -> Iterator[None]:
    """For the block: commands that are started belong to `scope`; None: to the object they are started on."""
    global _current  # noqa: PLW0603 - pytest runs one test at a time
    before, _current = _current, scope
    try:
        yield
    finally:
        _current = before


_current: object | None = None


def current() -> object | None:
    """The scope of the moment."""
    return _current


def end(scope: object) -> None:
    """End the commands that belong to `scope`."""
    module: Any = sys.modules.get(_PROCESSES)
    if module is not None:
        module.end_scope(scope)
