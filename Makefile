# SPDX-License-Identifier: Apache-2.0
# Everything a fresh machine needs: git, make and Python >= 3.11. `make demo`, `make test`.
#   make test PYTHON=/path/to/python3.12     another interpreter
#   make demo VENV=/tmp/venv                 another place for the virtual environment

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
PIP_OPTIONS ?=
DEMO_OUTPUT ?= demo-output
# The demo head has slices of 2.3 mm; 1 mm in every direction is what is asked for.
DEMO_OPTIONS ?= --output-resolution 1
# Two at a time, a file in one process: tests of a file share what they set up. Longest files first.
PYTEST_OPTIONS ?= -n 2 --dist loadfile --no-loadscope-reorder

# How many made-up inputs of each kind, and how many killed runs, the long tests take.
EXAMPLES ?= 20000
KILLS ?= 100
LONG_TESTS = tests/test_fuzz.py tests/test_faults.py tests/test_end_to_end.py tests/test_slurm.py \
  tests/test_brain_mask.py

# How the container image is built.
BUILD ?= docker build
VARIANT ?= cuda

BIN := $(abspath $(VENV))/bin
INSTALLED := $(VENV)/.installed

# Packages in the user's home must not leak into the environment.
export PYTHONNOUSERSITE := 1
# Tests start the app dozens of times; without bytecode every process compiles the package again.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help install demo test test-long lint docs wheel image clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

install: $(INSTALLED)  ## build the virtual environment (again only when its recipe changed)

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "This Python cannot make a virtual environment (Debian: apt install python3-venv)"; exit 2; }
	$(BIN)/python -m pip install $(PIP_OPTIONS) -c constraints.txt -e '.[test,train,lint,docs]'
	@touch $@

demo: $(INSTALLED)  ## super-resolve the head that ships with the package
	$(BIN)/bids_moediff bids_moediff/data/demo $(DEMO_OUTPUT) participant $(DEMO_OPTIONS)
	$(BIN)/bids_moediff bids_moediff/data/demo $(DEMO_OUTPUT) group
	@echo
	@echo "Look at:"
	@find $(DEMO_OUTPUT) -name '*_desc-sr_T1w.nii.gz' | sed 's/^/  image   /'
	@find $(DEMO_OUTPUT) -maxdepth 1 -name 'sub-*.html' | sed 's/^/  report  /'
	@find $(DEMO_OUTPUT) -maxdepth 1 -name 'group*.html' | sed 's/^/  group   /'

test: $(INSTALLED)  ## the whole test suite, style and types included
	PATH="$(BIN):$$PATH" $(BIN)/python -m pytest $(PYTEST_OPTIONS)

test-long: $(INSTALLED)  ## long forms: made-up input, 100 killed runs, more participants (hours)
	BIDS_MOEDIFF_TEST_EXAMPLES=$(EXAMPLES) BIDS_MOEDIFF_TEST_KILLS=$(KILLS) \
	  BIDS_MOEDIFF_TEST_LONG=1 PATH="$(BIN):$$PATH" $(BIN)/python -m pytest $(LONG_TESTS)

lint: $(INSTALLED)  ## style, types and import direction only
	$(BIN)/ruff check bids_moediff research tests tools
	$(BIN)/ruff format --check bids_moediff research tests tools
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(INSTALLED)  ## build the documentation into site/
	$(BIN)/mkdocs build --strict

wheel: $(INSTALLED)  ## build a wheel into dist/
	$(BIN)/python -m pip wheel --no-deps --no-build-isolation -w dist .

image:  ## build the container image; VARIANT=cpu without CUDA, BUILD='buildah bud' without Docker
	$(BUILD) --build-arg VARIANT=$(VARIANT) \
	  --build-arg REVISION=$$(git rev-parse HEAD 2> /dev/null || echo unknown) \
	  --build-arg CREATED=$$(date -u +%Y-%m-%dT%H:%M:%SZ) -t bids_moediff .

clean:  ## remove what the other targets made
	rm -rf $(VENV) build dist site *.egg-info $(DEMO_OUTPUT)
