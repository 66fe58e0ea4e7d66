# Two commands: `make serve` and `make test`. Everything lives in .venv; a second run reinstalls nothing.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
TORCH  ?= torch==2.13.0
HOST   ?= 127.0.0.1
PORT   ?= 8000
MODEL  ?=
ARGS   ?=
PIP    := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help install serve test lint types unit fmt bench soak clean

help:
	@echo "make serve    start the server on $(HOST):$(PORT) (MODEL=, PORT=, ARGS= pass through)"
	@echo "make test     lint, types, import rules and tests"
	@echo "make install  what both call first: a .venv with the kveik command in it"
	@echo "make bench    measure; JSON to bench/results (python bench/table.py: docs/BENCHMARKS.md)"
	@echo "make soak     the long suites"
	@echo "make fmt      format the code"

install: $(VENV)/.installed

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kveik needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(PIP) install --quiet --editable .
	@touch $@

# torch first and pinned: a loose range would fetch the CUDA build where a CPU one is at hand
$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) install --quiet $(TORCH)
	$(PIP) install --quiet --editable '.[test,train]'
	@touch $@

serve: install
	$(BIN)/kveik serve $(MODEL) --host $(HOST) --port $(PORT) $(ARGS)

test: lint types unit

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-test
	$(BIN)/mypy

unit: $(VENV)/.installed-test
	$(BIN)/pytest $(ARGS)

fmt: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-test
	$(BIN)/python bench/run_all.py $(ARGS)

soak: $(VENV)/.installed-test
	KVEIK_SOAK=1 $(BIN)/pytest -m soak --timeout 7200 $(ARGS)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
