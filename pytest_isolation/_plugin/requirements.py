"""What this kernel or user cannot do is skipped with reason and remedy; strict, it fails."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

_MARK = "isolation"


def check_markers(items: list[pytest.Item]) -> None:
    """Refuse markers that nobody would obey, before anything runs."""
    for item in items:
        _check_marker(item)


def _check_marker(item: pytest.Item) -> None:
    for mark in item.iter_markers(_MARK):
        unknown = sorted(set(mark.kwargs) - {"strict"})
        if mark.args or unknown:
            given = ", ".join([*map(repr, mark.args), *(f"{name}=" for name in unknown)])
            message = f"{item.nodeid}: marker isolation({given}): allowed is strict=True or strict=False"
            raise pytest.UsageError(message)
        if "strict" in mark.kwargs and not isinstance(mark.kwargs["strict"], bool):
            message = f"{item.nodeid}: marker isolation(strict={mark.kwargs['strict']!r}): allowed are True and False"
            raise pytest.UsageError(message)


def _is_strict(item: pytest.Item, default: bool) -> bool:  # noqa: FBT001 - one word of the settings
    mark = item.get_closest_marker(_MARK)
    return default if mark is None else bool(mark.kwargs.get("strict", default))


@contextmanager
def unsupported_skips(item: pytest.Item, *, strict: bool) -> Iterator[None]:
    """Around a phase of a test: turn `Unsupported` into a skip, or a failure."""
    try:
        yield
    except Exception as error:
        errors = sys.modules.get("pytest_isolation.errors")  # not loaded: it cannot be one of ours
        if errors is None or not isinstance(error, errors.Unsupported):
            raise
        if _is_strict(item, strict):
            pytest.fail(f"isolation (strict): {error}", pytrace=False)
        raise pytest.skip.Exception(f"isolation: {error}", _use_item_location=True) from None
