# SPDX-License-Identifier: Apache-2.0
# The house: every command a user or a developer types. `make help` lists them.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help check-tools setup demo test test-all notebooks lint format bench bench-accelerator bench-backends bench-frames \
	bench-place bench-compression resources calibrate clean

# The newest interpreter that every dependency has wheels for (pynq needs numpy<2, which ends at 3.12).
PYTHON ?= $(firstword $(foreach name,python3 python3.12 python3.11 python3.10,$(shell \
    $(name) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null && echo $(name))))
PIP_ARGS ?=
# Tests and simulators are spread over processes; threads inside each would only fight for the cores.
JOBS ?= 2
PYTEST := OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n $(JOBS) --dist worksteal

help:  ## this list
	@awk -F ':.*  ## ' '/^[a-z-]+:.*  ## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Name every missing tool at once, each with the Debian package that brings it.
check-tools:
	@missing=0; \
	need() { echo "missing: $$1; install it with: apt-get install $$2" >&2; missing=1; }; \
	command -v g++ >/dev/null || need g++ g++; \
	command -v perl >/dev/null || need perl perl; \
	if [ -z "$(PYTHON)" ]; then need "Python 3.10, 3.11 or 3.12" "python3 python3-venv"; \
	elif ! $(PYTHON) -c 'import venv, ensurepip' 2>/dev/null; then \
	    need "the venv module of $(PYTHON)" python3-venv; fi; \
	exit $$missing

setup: .venv/.stamp  ## make .venv with everything that the rest needs

.venv/.stamp: pyproject.toml constraints.txt | check-tools
	@echo "setting up .venv (some minutes the first time)"
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install -qq --disable-pip-version-check $(PIP_ARGS) \
	    -c constraints.txt -e '.[all]'
	@touch $@

demo: setup  ## train, cut, compile and run the demo on the simulated board
	@.venv/bin/shears demo --out build/demo

test: setup  ## the tests that take seconds
	@$(PYTEST) -m "not slow"

test-all: setup  ## every test
	@$(PYTEST)

notebooks: setup  ## run the notebooks on the simulated board; their data go with `shears package`
	@.venv/bin/python notebooks/execute.py

lint: setup  ## format, style, types and arrows
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports

format: setup  ## rewrite the code as lint wants it
	@.venv/bin/ruff check -q --fix-only .
	@.venv/bin/ruff format .

bench: bench-accelerator bench-backends bench-frames bench-place bench-compression  ## every benchmark

DATA ?=
bench-accelerator: setup  ## whole networks on the RTL, against their bounds; DATA=FOLDER of weights
	@.venv/bin/python -m benchmarks.accelerator $(if $(DATA),--data $(DATA))

bench-backends: setup  ## both back ends for the same networks, every bit compared; minutes
	@.venv/bin/python -m benchmarks.backends

bench-frames: setup  ## what it costs to cut and resize on the way in, on the RTL; a minute
	@.venv/bin/python -m benchmarks.frames

# Without DATA, only what needs no other data than the bundled frames.
bench-compression: setup  ## train, compress, compare; DATA=FOLDER of data; hours, goes on when stopped
	@.venv/bin/python -m benchmarks.compression $(if $(DATA),--data $(DATA))

bench-place: setup  ## place and route the open board (ECP5); ten minutes
	@.venv/bin/shears place --board ulx3s-85f --json benchmarks/results/place.json

resources: setup  ## synthesise pynq-z2's default and record what it takes; a quarter of an hour
	@.venv/bin/shears resources --board pynq-z2 --record benchmarks/results/resources.json

calibrate: setup  ## synthesise small configurations and fit the model of resources to them; an hour
	@.venv/bin/python -m benchmarks.calibrate

clean:  ## remove what was built; .venv stays
	@rm -rf build dist notebooks/data .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
