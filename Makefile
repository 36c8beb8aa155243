# Every target sets up what it needs by itself: a virtual environment in .venv from requirements.lock.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TORCH := $(VENV)/.torch
INSTALL := $(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --require-hashes -r
# Not on PyPI, and so not in requirements-torch.lock: Linux, x86-64, Python 3.11.
TORCH_CPU := torch==2.13.0+cpu --hash=sha256:6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b
LOCK := $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header
COMPOSE ?= docker compose
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help setup demo serve env up test chaos audit pictures reference lint format lock bench bench-accuracy bench-model bench-scheduler bench-sequences clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(READY)  ## Create .venv with the locked dependencies and the project

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else "nightsift needs Python 3.11, 3.12 or 3.13; name one with: make PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the locked dependencies into $(VENV) (about 3.6 GB; once)"
	@awk '/^[a-zA-Z0-9]/ {keep = /^uv==/} keep' requirements.lock > $(VENV)/uv.lock
	@$(INSTALL) $(VENV)/uv.lock
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip sync -q --compile-bytecode --require-hashes requirements.lock
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install -q --no-deps --no-build-isolation -e .
	@touch $(READY)

demo: $(READY)  ## Simulate, train, run three nights and a backfill in Airflow; print what was found
	@$(BIN)/nightsift demo

serve: $(READY)  ## Open Airflow and MLflow on 127.0.0.1; Ctrl-C stops both
	@$(BIN)/nightsift serve

# Torch is for the tests of its backend only. Its CPU build is taken where pip can find one (uv looks at indexes only);
# else PyPI's, which on Linux wants 3 GB of CUDA packages: they come only if it cannot be imported without them.
$(TORCH): requirements-torch.lock $(READY)
	@echo "Installing Torch for the tests into $(VENV) (once)"
	@echo '$(TORCH_CPU)' > $(VENV)/torch.lock
	@$(INSTALL) $(VENV)/torch.lock 2> /dev/null || echo "pip finds no CPU build of Torch here; taking PyPI's"
	@awk '/^[a-zA-Z0-9]/ {keep = !/^(cuda|nvidia|triton)/} keep' requirements-torch.lock > $(VENV)/torch.lock
	@$(INSTALL) $(VENV)/torch.lock
	@$(BIN)/python -c 'import torch' 2> /dev/null || $(INSTALL) requirements-torch.lock
	@touch $(TORCH)

env:  ## Make .env with random secrets for docker-compose.yml; what is there stays
	@$(PYTHON) docker/make_env.py .env

up:  ## Build the image and start the services of docker-compose.yml (COMPOSE=podman-compose for Podman)
	@NIGHTSIFT_REVISION=$$(git describe --always --dirty=+ --abbrev=12) $(COMPOSE) build
	@$(COMPOSE) up --detach

test: $(READY) $(TORCH)  ## Run all tests
	@$(BIN)/python -m pytest -n 2 --dist loadfile

# The tests that break nights on purpose, in their long version, and the load; what they count is the page of promises.
# The year, which takes longest, begins first.
CHAOS := tests/pipeline/test_year.py tests/pipeline/test_determinism.py tests/benchmarks/test_parse.py tests/faults tests/fuzz \
	tests/production tests/security
chaos: $(READY)  ## Break nights on purpose, thousands of times, and write docs/guarantees.md (two hours; needs PostgreSQL, Redis and root)
	@rm -rf var/chaos && mkdir -p var/chaos
	@NIGHTSIFT_CHAOS=1 NIGHTSIFT_FIGURES=$(CURDIR)/var/chaos \
		$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -o timeout=14400 $(CHAOS)
	@NIGHTSIFT_FIGURES=$(CURDIR)/var/chaos $(BIN)/python -m benchmarks.load --json var/load.json
	@$(BIN)/python -m tests.guarantees var/chaos

audit: $(READY)  ## Look up known vulnerabilities of the locked packages (needs pypi.org)
	@$(BIN)/python -m tests.security.audit

pictures: $(READY)  ## Take the pictures of docs/pictures anew (needs chromium)
	@NIGHTSIFT_PICTURES=docs/pictures $(BIN)/python -m pytest tests/browser

reference: $(READY)  ## Write docs/configuration.md and docs/dataset.schema.json from the model of the YAML
	@$(BIN)/python -m pipeline.reference

lint: $(READY)  ## Check style (ruff) and types (mypy)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: $(READY)  ## Format the code
	@$(BIN)/ruff check --fix-only -q . ; $(BIN)/ruff format -q .

lock: $(READY)  ## Resolve all locks anew from pyproject.toml
	@$(LOCK) --extra dev --extra celery --extra kubernetes --extra server pyproject.toml -o requirements.lock
	@echo 'tensorflow[and-cuda]' | $(LOCK) --constraint requirements.lock - -o requirements-gpu.lock
	@sed -i 's|-c $(CURDIR)/|-c |' requirements-gpu.lock
	@$(LOCK) --group torch --constraint requirements.lock -o requirements-torch.lock

bench: $(READY)  ## Run every benchmark but bench-scheduler and write its figures to var/bench
	@mkdir -p var/bench
	@for name in $(filter-out scheduler,$(basename $(notdir $(wildcard benchmarks/[a-z]*.py)))); do \
		echo "== $$name"; $(BIN)/python -m benchmarks.$$name --json var/bench/$$name.json; done

bench-accuracy: $(READY)  ## Measure accuracy on real labelled data beside one-line baselines (an hour and a half)
	@mkdir -p var/bench
	@$(BIN)/python -m benchmarks.accuracy --json var/bench/accuracy.json

bench-model: $(READY)  ## Measure the masked layer beside stock Keras (40 minutes)
	@mkdir -p var/bench
	@$(BIN)/python -m benchmarks.model --json var/bench/model.json

bench-scheduler: $(READY)  ## Measure what a night of many shards costs Airflow (20 minutes; needs PostgreSQL)
	@mkdir -p var/bench
	@$(BIN)/python -m benchmarks.scheduler --json var/bench/scheduler.json

bench-sequences: $(READY)  ## Measure the building of tensors beside pandas, NumPy and Keras (10 minutes)
	@mkdir -p var/bench
	@$(BIN)/python -m benchmarks.sequences --json var/bench/sequences.json

clean:  ## Remove the virtual environment, caches and everything under var
	@rm -rf $(VENV) var build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
