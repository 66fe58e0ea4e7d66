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
CSRC   := $(wildcard csrc/*.h csrc/*.cpp csrc/levels/*.h csrc/levels/*.cpp)
BUILD  := pyproject.toml CMakeLists.txt $(CSRC)

.PHONY: help install serve test lint types unit promtool fmt bench bench-peers soak sanitize clean

help:
	@echo "make serve    start the server on $(HOST):$(PORT) (MODEL=, PORT=, ARGS= pass through)"
	@echo "make test     lint, types, import rules and tests"
	@echo "make install  what both call first: a .venv with the kveik command in it, kernels compiled"
	@echo "make bench    measure; JSON to bench/results (python bench/table.py: docs/BENCHMARKS.md)"
	@echo "make bench-peers  kveik beside vLLM, OpenVINO, llama.cpp and transformers; see bench/peers"
	@echo "make soak     the long suites, and the kernels under sanitizers (make sanitize: these alone)"
	@echo "make promtool Prometheus' own checker for the tests, where Debian's packages are at hand"
	@echo "make fmt      format the code"

install: $(VENV)/.installed

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kveik needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

# What builds lives in .venv as well (cmake and ninja only where the system has none): a changed file
# of csrc is then all that is compiled again.
$(VENV)/.build-tools: pyproject.toml | $(BIN)/python
	$(PIP) install --quiet scikit-build-core
	$(PIP) install --quiet $$($(BIN)/python -m scikit_build_core.build requires --mode editable | tr -d '[]",')
	@touch $@

$(VENV)/.installed: $(BUILD) $(VENV)/.build-tools
	$(PIP) install --quiet --no-build-isolation --editable .
	@touch $@

# torch first and pinned: a loose range would fetch the CUDA build where a CPU one is at hand
$(VENV)/.installed-test: $(BUILD) $(VENV)/.build-tools
	$(PIP) install --quiet $(TORCH)
	$(PIP) install --quiet --no-build-isolation --editable '.[test,train]'
	@touch $(VENV)/.installed $@

serve: install
	$(BIN)/kveik serve $(MODEL) --host $(HOST) --port $(PORT) $(ARGS)

test: lint types unit

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CSRC)

types: $(VENV)/.installed-test
	$(BIN)/mypy

unit: $(VENV)/.installed-test
	-@$(MAKE) --no-print-directory promtool
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

# One program out of a package, without installing the package and the service in it. Where there is
# none to be had, the tests of the alerts that need it are skipped.
promtool: $(BIN)/promtool

$(BIN)/promtool: | $(BIN)/python
	@folder=$$(mktemp -d) && cd $$folder && apt-get download -q prometheus >/dev/null 2>&1 \
		&& dpkg-deb -x prometheus_*.deb . && cp usr/bin/promtool $(abspath $@); status=$$?; \
		rm -rf $$folder; test $$status = 0 || { echo "promtool: not to be had here"; exit 1; }

fmt: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CSRC)

bench: $(VENV)/.installed-test
	$(BIN)/python bench/run_all.py $(ARGS)

bench-peers: $(VENV)/.installed-test
	$(BIN)/python bench/peers/run.py $(ARGS)

soak: $(VENV)/.installed-test sanitize
	KVEIK_SOAK=1 $(BIN)/pytest -m soak --timeout 7200 $(ARGS)
	$(BIN)/python bench/run_all.py --only stream_long

# A second copy of the package, built with sanitizers, that the kernel tests find first. Their library
# has to be in the process before Python is, and their report must not be captured; what Python
# leaks is its own.
SANITIZED := build/sanitized
PRELOAD    = $(foreach library,libasan.so libstdc++.so,$(shell $(or $(CXX),c++) -print-file-name=$(library)))

sanitize: $(VENV)/.installed-test
	$(PIP) install --quiet --no-deps --no-build-isolation --upgrade --target $(SANITIZED) \
		-Cbuild-dir=build/sanitizers -Ccmake.build-type=RelWithDebInfo -Ccmake.define.KVEIK_SANITIZE=ON \
		-Ccmake.define.KVEIK_EMULATE_TILES=ON .
	@ls $(SANITIZED)/kveik/kernels/_native.*.so  # an install succeeds without
	LD_PRELOAD="$(PRELOAD)" ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=$(SANITIZED) \
		$(BIN)/pytest --capture=sys --timeout 1200 -k native tests/kernels

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist src/kveik/kernels/_native.*.so
