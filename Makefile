# Every target sets up what it needs by itself: a virtual environment in .venv from requirements.lock.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help setup demo serve test lint format lock bench clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(READY)  ## Create .venv with the locked dependencies and the project

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else "nightsift needs Python 3.11, 3.12 or 3.13; name one with: make PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the locked dependencies into $(VENV) (about 3.6 GB; once)"
	@awk '/^[a-zA-Z0-9]/ {keep = /^uv==/} keep' requirements.lock > $(VENV)/uv.lock
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --require-hashes -r $(VENV)/uv.lock
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip sync -q --compile-bytecode --require-hashes requirements.lock
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install -q --no-deps --no-build-isolation -e .
	@touch $(READY)

demo: $(READY)  ## Simulate, train, run three nights and a backfill in Airflow; print what was found
	@$(BIN)/nightsift demo

serve: $(READY)  ## Open Airflow and MLflow on 127.0.0.1; Ctrl-C stops both
	@$(BIN)/nightsift serve

test: $(READY)  ## Run all tests
	@$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(READY)  ## Check style (ruff) and types (mypy)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: $(READY)  ## Format the code
	@$(BIN)/ruff check --fix-only -q . ; $(BIN)/ruff format -q .

lock: $(READY)  ## Resolve requirements.lock anew from pyproject.toml
	@$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--extra dev --extra celery pyproject.toml -o requirements.lock

bench: $(READY)  ## Run every benchmark and write its figures to var/bench
	@mkdir -p var/bench
	@for name in $$(ls benchmarks | sed -n 's/^\([a-z][a-z_]*\)\.py$$/\1/p'); do \
		echo "== $$name"; $(BIN)/python -m benchmarks.$$name --json var/bench/$$name.json; done

clean:  ## Remove the virtual environment, caches and everything under var
	@rm -rf $(VENV) var build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
