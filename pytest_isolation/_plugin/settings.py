"""Options: one text for each, shared by command line, environment and ini; a bad value names its source."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def _boolean(text: str) -> bool:
    if text.lower() in (*_TRUE, *_FALSE):
        return text.lower() in _TRUE
    message = f"allowed are {', '.join((*_TRUE, *_FALSE))}"
    raise ValueError(message)


def _log_lines(text: str) -> int:
    if text.isdecimal():
        return int(text)
    message = "allowed is a number of lines, 0 or more"
    raise ValueError(message)


@dataclass(frozen=True)
class _Option:
    name: str
    help: str
    parse: Callable[[str], object]
    default: str
    flag: bool = False

    @property
    def switch(self) -> str:
        return f"--isolation-{self.name.replace('_', '-')}"

    @property
    def ini(self) -> str:
        return f"isolation_{self.name}"

    @property
    def variable(self) -> str:
        return f"PYTEST_ISOLATION_{self.name.upper()}"


_OPTIONS = (
    _Option(
        "strict",
        "what this kernel or user cannot do fails the test instead of skipping it",
        _boolean,
        "false",
        flag=True,
    ),
    _Option(
        "log_lines", "lines of each command's log that are shown with a failed test (default 50)", _log_lines, "50"
    ),
)


@dataclass(frozen=True)
class Settings:
    """The values of one session.

    Attributes:
        strict: fail instead of skip.
        log_lines: lines of a command's log shown with a failure.
    """

    strict: bool
    log_lines: int


def add_options(parser: pytest.Parser) -> None:
    """Declare them on the command line and in the ini file."""
    group = parser.getgroup("isolation", "real kernel isolation objects")
    for option in _OPTIONS:
        text = f"{option.help}; also {option.variable} and ini {option.ini}"
        if option.flag:
            group.addoption(option.switch, action="store_const", const="true", default=None, dest=option.ini, help=text)
        else:
            group.addoption(option.switch, default=None, dest=option.ini, metavar="N", help=text)
        parser.addini(option.ini, text, type="string", default=None)


def read(config: pytest.Config) -> Settings:
    """Command line, then environment, then ini, then default.

    Raises:
        pytest.UsageError: a value is not allowed; names the value, where it came from, and what is.
    """
    values = {}
    for option in _OPTIONS:
        sources = (
            (option.switch, config.getoption(option.ini)),
            (f"environment variable {option.variable}", os.environ.get(option.variable)),
            (f"ini option {option.ini}", config.getini(option.ini) or None),
            ("default", option.default),
        )
        source, text = next((source, text) for source, text in sources if text is not None)
        try:
            values[option.name] = option.parse(text)
        except ValueError as error:
            message = f"{source}={text!r}: {error}"
            raise pytest.UsageError(message) from None
    return Settings(**values)  # type: ignore[arg-type]
