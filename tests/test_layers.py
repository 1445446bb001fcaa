"""The layers of the package: import-linter accepts them as they are, and catches whatever breaks them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]


def lint_imports(directory):
    """Check the contracts of `directory`'s pyproject.toml on the package that lies beside it."""
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", command, "--no-cache", "--no-logo"],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(directory), "NO_COLOR": "1", "COLUMNS": "200"},
        text=True,
        capture_output=True,
        check=False,
    )


@pytest.fixture
def copy(tmp_path):
    """A copy of the package and its contracts, to break."""
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    without_bytecode = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PROJECT / "pytest_isolation", tmp_path / "pytest_isolation", ignore=without_bytecode)
    return tmp_path


def test_the_package_keeps_its_contracts():
    result = lint_imports(PROJECT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2 kept, 0 broken" in result.stdout


@pytest.mark.parametrize(
    "file, line, broken",
    [
        ("objects/planted.py", "import pytest", "pytest_isolation.objects.planted -> pytest"),
        ("objects/planted.py", "from _pytest import config", "pytest_isolation.objects.planted -> _pytest"),
        ("_kernel/planted.py", "import pytest", "pytest_isolation._kernel.planted -> pytest"),
        ("errors.py", "import pytest", "pytest_isolation.errors -> pytest"),
        (
            "objects/planted.py",
            "from pytest_isolation import fixtures",
            "pytest_isolation.objects.planted -> pytest_isolation.fixtures",
        ),
        (
            "_state/planted.py",
            "def late():\n    import pytest_isolation.objects",
            "pytest_isolation._state.planted -> pytest_isolation.objects",
        ),
        (
            "_kernel/planted.py",
            "import pytest_isolation._state",
            "pytest_isolation._kernel.planted -> pytest_isolation._state",
        ),
        (
            "errors.py",
            "import pytest_isolation._kernel",
            "pytest_isolation.errors -> pytest_isolation._kernel",
        ),
        ("planted.py", "", "pytest_isolation.planted"),
    ],
    ids=[
        "objects import pytest",
        "objects import _pytest",
        "_kernel imports pytest",
        "errors imports pytest",
        "objects import fixtures",
        "_state imports objects inside a function",
        "_kernel imports _state",
        "errors imports _kernel",
        "a module without a layer",
    ],
)
def test_a_planted_violation_is_caught(copy, file, line, broken):
    with (copy / "pytest_isolation" / file).open("a") as planted:
        planted.write(f"\n{line}\n")

    result = lint_imports(copy)

    assert result.returncode == 1, result.stdout + result.stderr
    assert broken in result.stdout
    assert "BROKEN" in result.stdout or "Missing layer" in result.stdout


def test_the_untouched_copy_keeps_its_contracts(copy):
    """So what the test above sees is what it planted."""
    assert lint_imports(copy).returncode == 0
