#!/usr/bin/env bash
# Writes requirements.lock: the exact version of everything that developing the project takes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

"${PYTHON:-python3}" -m venv "$scratch/venv"
"$scratch/venv/bin/python" -m pip install --quiet --disable-pip-version-check ".[dev]"
{
    echo "# The exact version of everything that running, testing and checking pytest-isolation takes."
    echo "# Written by \`make lock\`: a fresh virtual environment, pip install '.[dev]', pip freeze."
    echo "# All of it: pip install -r requirements.lock. The Makefile uses it as pip's constraints file."
    "$scratch/venv/bin/python" -m pip freeze --exclude pytest-isolation
} >"$scratch/requirements.lock"
mv "$scratch/requirements.lock" requirements.lock
echo "lock: $(grep -c == requirements.lock) packages in requirements.lock"
