# Everything that a developer runs. `make` alone lists the targets.

# The interpreter that makes the environment; 3.11 or newer.
PYTHON ?= python3
# Where the environment lies: `make test PYTHON=python3.13 VENV=.venv-3.13` leaves the usual one alone.
VENV ?= .venv
# More words for pytest, `make test ARGS="-x -k cache"`, and for the benchmark.
ARGS ?=
# Whatever builds images on this machine.
ENGINE ?= $(firstword $(shell command -v docker podman))
# `make lock UPGRADE=--upgrade` takes the newest releases; without it only what pyproject.toml asks for changes.
UPGRADE ?=
# The index of the wheels of torch and torchvision for CPUs alone, for the image's target cpu.
TORCH_INDEX ?=
# The images that `make docker-test` builds and tries.
TARGETS ?= cpu cuda

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
export PIP_DISABLE_PIP_VERSION_CHECK := 1

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
INSTALLED := $(VENV)/installed
UV := build/uv/bin/uv
COMPILE = $(UV) pip compile pyproject.toml --universal --no-python-downloads --generate-hashes --no-annotate --quiet \
  --custom-compile-command "make lock"
# What the images hold: kdtool's extras without its tools, in the versions that requirements.lock has for their Python.
IMAGE := --extra digits --extra plots --extra tensorboard --extra timm --python-version 3.12 --constraint requirements.lock
PLACE := build/wheel-test

.PHONY: help setup quickstart test lint format types check wheel-test coverage bench crash-test docker-test lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## make .venv from the lock (once, and again when the lock or pyproject.toml changes)

$(INSTALLED): pyproject.toml requirements.lock kdtool/__init__.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"kdtool needs Python 3.11 or newer; $(PYTHON) is {sys.version.split()[0]}: make setup PYTHON=python3.12")'
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing what requirements.lock names into $(VENV): 5 GB with the CUDA libraries, some minutes the first time"
	@$(PIP) install --quiet --require-hashes --requirement requirements.lock
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

quickstart: setup ## teach, extract, distil and analyse on handwritten digits, in minutes on a laptop
	@$(BIN)/kdtool quickstart --folder quickstart

test: setup ## run all tests; ARGS="-x -k cache" for some of them
	@$(BIN)/pytest --numprocesses auto --maxprocesses 8 --dist worksteal $(ARGS)

lint: setup ## style of the code (ruff)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: setup ## bring the code into that style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# mypy does not follow the mapping of cli/ and cache/ into the package, so it reads a tree of links.
types: setup ## types (mypy, strict)
	@rm -rf build/linked && mkdir -p build/linked/kdtool
	@ln -s "$(CURDIR)"/kdtool/* "$(CURDIR)"/cli "$(CURDIR)"/cache build/linked/kdtool/
	@$(BIN)/mypy

check: lint types test ## lint, types and test

# The dependencies come from the environment by a path file, which leaves its editable kdtool unseen.
wheel-test: setup ## build the wheel, install it in a clean environment, run the tests against it
	@rm -rf build/lib $(PLACE) && mkdir -p $(PLACE)/empty
	@$(PIP) wheel --quiet --no-deps --no-build-isolation --wheel-dir $(PLACE) .
	@$(BIN)/python -m venv $(PLACE)/venv
	@$(PLACE)/venv/bin/python -m pip install --quiet --no-deps $(PLACE)/kdtool-*.whl
	@ask='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	$(BIN)/python -c "$$ask" > "$$($(PLACE)/venv/bin/python -c "$$ask")/locked.pth"
	@cd $(PLACE)/empty && ../venv/bin/python -P -c 'import kdtool, kdtool.cli, kdtool.cache; assert "wheel-test" in kdtool.__file__, kdtool.__file__'
	@cd $(PLACE)/empty && ../venv/bin/python -P -m pytest --config-file "$(CURDIR)/pyproject.toml" --rootdir "$(CURDIR)" $(ARGS) "$(CURDIR)/tests"

coverage: setup ## which lines and branches the tests reach
	@$(BIN)/coverage run -m pytest $(ARGS)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

bench: setup ## measure speed and memory on this machine, a quiet one; ARGS="kernels start" for some parts
	@$(BIN)/python benchmarks/speed.py $(ARGS)

crash-test: setup ## all trials of docs/reliability.md (an hour or two); ARGS="-k killed" for some of them
	@$(BIN)/pytest tests/reliability --long --figures docs/results/reliability.json $(ARGS)
	@$(BIN)/python tests/support/reliability_table.py

docker-test: ## build the images and try them, without network, on a read-only root; TARGETS=cpu for one of them
	@test -n "$(ENGINE)" || { echo "neither docker nor podman is on the PATH; name one: make docker-test ENGINE=/path/to/it" >&2; exit 1; }
	@for target in $(TARGETS); do \
	  $(ENGINE) build --target "$$target" --tag "kdtool:$$target" $(if $(TORCH_INDEX),--build-arg TORCH_INDEX="$(TORCH_INDEX)") \
	    --build-arg REVISION="$$(git rev-parse HEAD)" --build-arg VERSION="$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' kdtool/__init__.py)" .; \
	  tests/support/image.sh "$(ENGINE)" "kdtool:$$target"; \
	done

lock: $(UV) ## renew the locks from pyproject.toml; UPGRADE=--upgrade for the newest releases, TORCH_INDEX for CPUs alone
	@$(COMPILE) --extra dev --python-version 3.11 $(UPGRADE) --output-file requirements.lock
	@$(COMPILE) $(IMAGE) --output-file requirements-cuda.lock
	@$(COMPILE) $(IMAGE) --output-file requirements-cpu.lock $(if $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)" \
	  --index-strategy unsafe-best-match)
	@git diff --stat -- 'requirements*.lock'

$(UV):
	@$(PYTHON) -m venv --clear build/uv
	@build/uv/bin/python -m pip install --quiet uv==0.13.8

clean: ## remove what was built, tested and cached; .venv stays
	@rm -rf build dist quickstart *.egg-info .coverage .hypothesis .*_cache
	@find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
