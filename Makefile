# Every target sets up .venv by itself when it is missing or older than what it is made from.

# The oldest Python first: what works there works on the later ones. `make PYTHON=/path/to/python` takes another.
PYTHONS := python3.11 python3.12 python3.13 python3.14 python3 python
USABLE  := import sys, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON  ?= $(shell for name in $(PYTHONS); do "$$name" -c '$(USABLE)' 2>/dev/null && echo "$$name" && break; done)
VENV    := .venv
BIN     := $(VENV)/bin
READY   := $(VENV)/.ready
DOCS    := $(VENV)/.docs
CODE    := src tests benchmarks docs
# One process per core, one thread each (tests/conftest.py).
PYTEST  := $(BIN)/python -m pytest --numprocesses auto --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint types check format docs bench clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(READY) ## create .venv with leanconv and everything its tests need

# The C library of the kernels is built by the installation, and again when its sources have changed.
$(READY): pyproject.toml hatch_build.py $(wildcard src/leanconv/kernels/native/*)
	@found="$(PYTHON)"; "$$found" -c '$(USABLE)' 2>/dev/null || { echo "leanconv needs Python 3.11 or later with its" \
	  "venv module, and $${found:-none of $(PYTHONS)} is one: install it, or make PYTHON=/path/to/python" >&2; exit 1; }; \
	"$$found" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: $(READY) ## the main job on embedded real digits: rewrite, measure, train, pick, export
	$(BIN)/leanconv demo --out runs/demo

test: $(READY) ## the tests, as continuous integration runs them
	$(PYTEST)

test-slow: $(READY) ## the heavy checks as well
	$(PYTEST) -m "slow or not slow" --timeout 3600

lint: $(READY) ## format and lint, nothing changed
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)

types: $(READY) ## types
	$(BIN)/mypy

check: lint types test ## format, lint, types and tests

format: $(READY) ## rewrite the sources in the house format
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

$(DOCS): $(READY)
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@

docs: $(DOCS) ## the documentation as a site in build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

bench: $(READY) ## measure speed on this machine
	$(BIN)/leanconv bench resnet20 o_resnet20 d_resnet20 --batch 1 --out runs/bench.json

clean: ## remove the environment and everything that was built or run
	rm -rf $(VENV) build dist runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
