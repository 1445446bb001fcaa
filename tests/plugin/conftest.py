"""Sessions in a session: pytester runs with this plugin and no other, which is four times as fast."""

import pytest


@pytest.fixture
def pytester(pytester, monkeypatch):
    """The `pytester` fixture with this plugin, and without autoload of whatever else is installed."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_PLUGINS", "pytest_isolation")
    return pytester
