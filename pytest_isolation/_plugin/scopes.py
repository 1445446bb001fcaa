"""Whose a command is: what a test starts ends with that test, whatever the scope of the object it was started on."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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


class PackageBuilders:
    """`package_isolation`: for each package a builder of its own, closed when the last of its tests is done.

    pytest itself would keep a package-scoped fixture of a plugin until the session ends.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._builders: dict[Path, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if _package not in self._builders:
            self._builders[_package] = self._make()
        return getattr(self._builders[_package], name)

    def leave(self, next_package: Path | None) -> None:
        """Close the builders of packages that the next test is not in, the innermost first."""
        for package in sorted(self._builders, key=lambda path: len(path.parts), reverse=True):
            if next_package is None or not next_package.is_relative_to(package):
                self._builders.pop(package).close()


#: The package of the running test; the session's root where it is in none.
_package: Path = Path()
#: The builders that `package_isolation` has handed out.
package_builders: list[PackageBuilders] = []


def package_of(item: pytest.Item) -> Path:
    """The directory of the innermost package that a test is in."""
    packages = (node.path for node in item.iter_parents() if isinstance(node, pytest.Package))
    return next(packages, item.session.path)


def enter_package(item: pytest.Item) -> None:
    """Before the fixtures of a test are set up."""
    global _package  # noqa: PLW0603 - pytest runs one test at a time
    _package = package_of(item)


def leave_packages(next_item: pytest.Item | None) -> None:
    """After a test's teardown: close what was built for packages that are done."""
    for builders in package_builders:
        builders.leave(None if next_item is None else package_of(next_item))


def end(scope: object) -> None:
    """End the commands that belong to `scope`."""
    module: Any = sys.modules.get(_PROCESSES)
    if module is not None:
        module.end_scope(scope)
