# Every target does its own set-up, once: a virtual environment, torch, and this repository installed into it.
# Try: make serve | make test | make help

PYTHON ?= python3
VENV ?= .venv

# The newest torch that the tests were run with bounds the range. On Linux PyPI's torch brings several GB of CUDA libraries,
# so PyTorch's own index of CPU builds is asked as well, whose version numbers (2.13.0+cpu) go before PyPI's. For a GPU:
#   make serve TORCH_INDEX=        another build: make serve TORCH=~/Downloads/torch-2.13.0-cp312-cp312-linux_x86_64.whl
TORCH ?= torch>=2.9,<2.14
ifeq ($(shell uname -s),Linux)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
endif

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
ROOMS := btr kernels storage train

.DEFAULT_GOAL := help
.PHONY: serve test test-all test-oldest check types format bench docs clean help

serve: $(VENV)/installed corpus.btr  ## answer questions from the sample corpus, in the browser and over HTTP
	$(BIN)/python -m btr.serve

test: $(VENV)/installed-test  ## run the whole test suite
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --durations=10

test-all: $(VENV)/installed-dev  ## run it with what some tests skip without: plots, accelerate, Ray, a browser, clients
	$(PIP) install -q -e ".[test,dev,all-tests]"
	NO_SKIPS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -rs --durations=10

test-oldest: $(VENV)-oldest/installed  ## run the suite with the oldest versions that setup.py admits, but for torch
	$(VENV)-oldest/bin/python -m pytest -q -n 2 --dist loadfile

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

docs: $(VENV)/installed-docs  ## build the documentation into site/; a dead link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

corpus.btr: | $(VENV)/installed
	$(BIN)/python -m btr.precompute corpus

clean:  ## remove what was built, and the sample store; rm -rf .venv starts the environment afresh
	rm -rf build dist site btr_reader.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis corpus.btr corpus.btr.building
	find $(ROOMS) tests -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' Makefile | expand -t 10

$(VENV)/installed: setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "btr needs Python 3.11 or newer, this is " \
	  + sys.version.split()[0] + "; choose another with: make PYTHON=python3.12")'
	@echo "Setting up $(VENV), once: torch and what btr needs, some 400 MB to fetch"
	$(PYTHON) -m venv $(VENV)
	$(PIP) install "$(TORCH)" $(addprefix --extra-index-url ,$(TORCH_INDEX))
	$(PIP) install -e .
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(PIP) install -q -e ".[test]"
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed-test
	$(PIP) install -q -e ".[test,dev]"
	@touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(PIP) install -q -e ".[docs]"
	@touch $@

$(VENV)-oldest/installed: setup.py tests/oldest.txt
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install "$(TORCH)" $(addprefix --extra-index-url ,$(TORCH_INDEX)) -c tests/oldest.txt -e ".[test]"
	@touch $@
