# Every target sets up .venv by itself when it is missing or older than pyproject.toml.

PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# One process per core, one thread each (tests/conftest.py).
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow check format bench clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(READY) ## create .venv with leanconv and everything its tests need

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: $(READY) ## the main job on embedded real digits: rewrite, measure, train, pick, export
	$(BIN)/leanconv demo --out runs/demo

test: $(READY) ## the tests, as continuous integration runs them
	$(PYTEST)

test-slow: $(READY) ## the heavy checks as well
	$(PYTEST) -m "slow or not slow" --timeout 3600

check: $(READY) ## format, lint, types and tests
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy
	$(PYTEST)

format: $(READY) ## rewrite the sources in the house format
	$(BIN)/ruff format src tests benchmarks
	$(BIN)/ruff check --fix src tests benchmarks

bench: $(READY) ## measure speed on this machine
	$(BIN)/leanconv bench resnet20 o_resnet20 d_resnet20 --batch 1 --out runs/bench.json

clean: ## remove the environment and everything that was built or run
	rm -rf $(VENV) build dist runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
