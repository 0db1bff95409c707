# Every target does its own set-up, once: a virtual environment, torch, and this repository installed into it.
# Try: make serve | make test | make help

PYTHON ?= python3
VENV ?= .venv

# The newest torch that the tests were run with bounds the range. On Linux a plain `torch` may bring several GB of CUDA
# libraries to a machine without a GPU; on a machine with one, or for another build, say which, e.g.
#   make test TORCH=torch        make test TORCH=~/Downloads/torch-2.13.0-cp312-cp312-linux_x86_64.whl
TORCH ?= torch>=2.9,<2.14

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
ROOMS := btr kernels storage train

.DEFAULT_GOAL := help
.PHONY: serve test test-all check types format bench clean help

serve: $(VENV)/installed corpus.btr  ## answer questions from the sample corpus, in the browser and over HTTP
	$(BIN)/python -m btr.serve

test: $(VENV)/installed  ## run the whole test suite
	$(BIN)/python -m pytest -q --durations=10

test-all: $(VENV)/installed-dev  ## run it with what some tests skip without: plots, accelerate, Ray, a browser, clients
	$(PIP) install -q -e ".[test,dev,all-tests]"
	NO_SKIPS=1 $(BIN)/python -m pytest -q -rs --durations=10

check: $(VENV)/installed-dev types  ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy knows no package_dir, so the rooms are linked under their import names first. (Run from there: mypy looks in the
# working directory before anything else, and would take the btr at the root of the repository, which has no kernels.)
types: $(VENV)/installed-dev  ## types alone
	@rm -rf build/types && mkdir -p build/types/btr
	@cd build/types/btr && ln -s ../../../btr/* $(addprefix ../../../,$(filter-out btr,$(ROOMS))) .
	bin="$$(cd $(BIN) && pwd)" && cd build/types && "$$bin/mypy" --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache

format: $(VENV)/installed-dev  ## rewrite the code as `make check` wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/installed corpus.btr  ## measure speed and size on this machine
	$(BIN)/python -m btr.bench

corpus.btr: | $(VENV)/installed
	$(BIN)/python -m btr.precompute corpus

clean:  ## remove what was built, and the sample store; rm -rf .venv starts the environment afresh
	rm -rf build dist btr.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis corpus.btr corpus.btr.building
	find $(ROOMS) tests -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' Makefile | expand -t 10

$(VENV)/installed: setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "btr needs Python 3.11 or newer, this is " \
	  + sys.version.split()[0] + "; choose another with: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q "$(TORCH)"
	$(PIP) install -q -e ".[test]"
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) install -q -e ".[test,dev]"
	@touch $@
