# Everything that one does with this project. `make` lists it. PYTHON=python3.12 chooses another interpreter (3.11 or newer).

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Three on two cores: a test waits for a third of its time, for kernels, containers and pages.
SIDE_BY_SIDE := -n 3 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help demo lab test retest test-matrix check docs bench mutants soak system-deps engine clean
# A question may hold dollars: take it as it was typed, and expand nothing in it.
override Q := $(value Q)
export Q

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.installed  ## answer a question about Python's own sources, no key needed; make demo Q="Which file defines Fraction?"
	@$(BIN)/python scripts/demo.py $${Q:+"$$Q"}

lab: $(VENV)/.dev  ## JupyterLab, opened on the quickstart
	$(BIN)/jupyter lab notebooks/quickstart.ipynb

test: $(VENV)/.dev  ## all tests; as root on Debian it installs the system parts and starts a Docker engine first
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  $(MAKE) --no-print-directory system-deps && \
	  { $(MAKE) --no-print-directory engine || echo "no engine could be had: the tests that need one fail" >&2; }; fi
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not matrix" $(PYTEST)

retest: $(VENV)/.dev  ## the tests that failed in the last `make test`, alone; not where more than three did
	$(BIN)/python -m scripts.retest

test-matrix: $(VENV)/.dev  ## the long tests: conformance on a local Modal control plane, every outage, live views on three versions of ipykernel
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m matrix $(PYTEST)

check: $(VENV)/.dev  ## ruff and mypy --strict
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/.dev  ## write docs/options.md anew from the options' own help
	$(BIN)/python -m scripts.options

bench: $(VENV)/.dev  ## ours, the reference implementation and the floor, side by side in one run; ENV=modal: in sandboxes
ifeq ($(ENV),modal)
	$(BIN)/python benchmarks/modal_run.py $(BENCH)
else
	$(BIN)/python benchmarks/run.py $(BENCH)
	$(BIN)/python benchmarks/data.py --large
	$(BIN)/python benchmarks/container.py
	$(BIN)/python benchmarks/live.py
endif

mutants: $(VENV)/.dev  ## break one promise at a time in a copy of the tree: its test must fail
	$(BIN)/python scripts/mutants.py

system-deps:  ## what only root can install (Debian): Chromium for the browser tests, a Docker engine, a second Python
	@PYTHON=$(PYTHON) scripts/system-deps

engine: $(BIN)/python  ## start a Docker engine where none answers (root), and have a base image in it
	@scripts/docker-engine
	@PYTHON=$(BIN)/python scripts/base-image

clean:  ## remove what the other targets made
	rm -rf $(VENV) .bench-venv .mypy_cache .ruff_cache .pytest_cache build dist

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is %d.%d: make PYTHON=python3.12 ..." % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/.installed
