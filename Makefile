# The project's commands; `make` alone lists them. Each does its own set-up (tools/setup.sh), once.
#   ARGS=...    more arguments for pytest or the benchmark:  make test ARGS="-n 2 -k veth"
#   PYTHON=...  the interpreter to make .venv with

PYTHON ?=
ARGS ?=
BIN ?= .venv/bin
SETUP ?= PYTHON="$(PYTHON)" tools/setup.sh

.PHONY: help examples test check bench docs coverage lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

examples: ## run the example suite: twelve chapters on how containers work
	@$(SETUP) test
	@$(BIN)/python -m pytest examples -v $(ARGS)

test: ## run the test suite
	@$(SETUP) test
	@$(BIN)/python -m pytest $(ARGS)

check: ## ruff, mypy, pyright, import-linter
	@$(SETUP) check
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	PATH="$(abspath $(BIN)):$$PATH" pyright
	PATH="$(abspath $(BIN)):$$PATH" pyright --verifytypes pytest_isolation --ignoreexternal
	$(BIN)/lint-imports --no-cache --no-logo

bench: ## compare with a C floor, mininet, pyroute2, ip and unshare
	@$(SETUP) test bench
	@$(BIN)/python bench/run.py $(ARGS)

docs: ## build the documentation into docs/_build, warnings as errors
	@$(SETUP) docs
	@$(BIN)/sphinx-build -q -W docs docs/_build

coverage: ## run the test suite and show which lines it never reached
	@$(SETUP) test
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest $(ARGS)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

lock: ## write requirements.lock anew, with the newest version of everything
	@PYTHON="$(PYTHON)" tools/lock.sh

clean: ## remove .venv and everything else that these commands made
	@rm -rf .venv .tox build dist .coverage .coverage.* .hypothesis .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
