# Two commands matter: `make demo` and `make test`. Both set up .venv themselves when it is missing or out of date.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint tools/constraints.txt

.DEFAULT_GOAL := help
.PHONY: help .venv demo demo-finetune test test-slow lint format clean
.DELETE_ON_ERROR:

help: ## show these targets
	@awk -F ':.*## ' '/^[.a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

# $(call stage,WHAT,COMMAND): one line with the seconds taken; the command's own output only if it fails
stage = printf '  %-44s' '$(1)'; start=$$(date +%s); \
	if output=$$($(2) 2>&1); then echo "$$(($$(date +%s) - start)) s"; else echo failed; echo "$$output"; exit 1; fi

.venv: .venv/ready ## set up the environment from the pinned versions

.venv/ready: pyproject.toml tools/constraints.txt tools/prebuild_ops.py
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(not (3, 11) <= v[:2] <= (3, 13) and \
		f"Python 3.11 to 3.13 is needed, $(PYTHON) is {v[0]}.{v[1]}: name another by make PYTHON=python3.11")'
	@echo 'setting up .venv (about 5 minutes on 2 cores, once)'
	@$(call stage,a Python environment,$(PYTHON) -m venv .venv)
	@$(call stage,pip,$(PIP) 'pip>=25.1')
	@$(call stage,PyTorch,$(PIP) torch)
	@$(call stage,cdt and its other dependencies,$(PIP) --editable . --group dev)
	@$(call stage,DeepSpeed communication for the CPU (C++),$(BIN)/python tools/prebuild_ops.py)
	@touch $@

demo: .venv/ready ## run the main job on scikit-learn's digits and show its result
	@$(BIN)/python tools/demo.py

demo-finetune: .venv/ready ## teach a model of the digits a new one, without forgetting the others
	@$(BIN)/python tools/demo_finetune.py

test: lint ## check style and types, run the tests but the slow ones
	$(BIN)/pytest -q -m 'not slow'

test-slow: .venv/ready ## run the tests that take minutes
	$(BIN)/pytest -q -m slow

lint: .venv/ready ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: .venv/ready ## put the code in shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove .venv, caches and build results; runs and data stay
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find cdt tools tests -type d -name __pycache__ -prune -exec rm -rf {} +
