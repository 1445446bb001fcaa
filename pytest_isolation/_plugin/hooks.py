"""The hooks. Nothing here loads a kernel object's module: unused, the plugin costs next to nothing."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

import pytest

from pytest_isolation._plugin import requirements, scopes, settings

if TYPE_CHECKING:
    from collections.abc import Generator

#: Fixtures whose mounts pytest itself sees. Builder methods that mount enter when they are called.
MOUNTING = frozenset({"overlay_fs"})
_SETTINGS = pytest.StashKey[settings.Settings]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    settings.add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Read the options, so that a bad value ends the session before anything is made."""
    config.addinivalue_line(
        "markers",
        "isolation(strict=True): what this kernel or user cannot do fails this test (False: skips it) "
        "whatever --isolation-strict says.",
    )
    config.stash[_SETTINGS] = settings.read(config)


def pytest_unconfigure() -> None:
    """End what the session started, and let the keeper go."""
    objects: Any = sys.modules.get("pytest_isolation.objects._object")
    if objects is not None:
        objects.finish()


def pytest_report_header(config: pytest.Config) -> str | None:
    """One line when something is not as usual."""
    return "isolation: strict" if config.stash[_SETTINGS].strict else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Check the markers."""
    requirements.check_markers(items)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Enter the run's mount namespace before any test starts a thread, when a fixture is asked for that mounts.

    Where that is not allowed, the fixture says so.
    """
    if session.config.option.collectonly or hasattr(session.config, "workercount"):
        return
    if any(not MOUNTING.isdisjoint(getattr(item, "fixturenames", ())) for item in session.items):
        from pytest_isolation._state import mounts
        from pytest_isolation.errors import KernelError

        with contextlib.suppress(KernelError):
            mounts.enter()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    """A fixture that this kernel cannot build skips its test."""
    scopes.enter_package(item)
    with requirements.unsupported_skips(item, strict=item.config.stash[_SETTINGS].strict):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, Any, Any]:
    """What a fixture of a test starts is the test's; what a wider one starts is not."""
    with scopes.owner(request.node if fixturedef.scope == "function" else None):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """What a test starts is its own."""
    strict = item.config.stash[_SETTINGS].strict
    with scopes.owner(item), requirements.unsupported_skips(item, strict=strict):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, Any, Any]:
    """After the test's own fixtures: end what it started on objects of a wider scope."""
    try:
        return (yield)
    finally:
        scopes.end(item)
        scopes.leave_packages(nextitem)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show with a failure what the test's commands printed."""
    report = yield
    processes: Any = sys.modules.get("pytest_isolation.objects._process")
    if report.failed and processes is not None:
        lines = item.config.stash[_SETTINGS].log_lines
        for title, log in processes.logs_of(item, lines):
            report.sections.append((title, log))
    return report
