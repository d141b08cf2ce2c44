# Everything here makes .venv and installs what it needs by itself. Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint format clean

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
# A stamp is written when its installation has succeeded, and only then.
VENV := .venv/.stamp-venv
CORE := .venv/.stamp-core
DEV := .venv/.stamp-dev

help:
	@echo "make demo       a picture and a page of grounded answers, from the bundled model, offline"
	@echo "make test       ruff, pyright, and the tests with coverage"
	@echo "make test-slow  the tests that need longer (up to 30 minutes)"
	@echo "make lint       ruff and pyright alone"
	@echo "make format     let ruff put the code in order"
	@echo "make clean      remove .venv, caches and build outputs; runs/, data/ and outputs/ stay"

demo: $(CORE)
	@echo "==> mglmm demo: the bundled model answers on scenes it has never seen"
	@$(BIN)/mglmm demo

lint: $(DEV)
	@echo "==> ruff: lint and format"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "==> pyright: types"
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright

test: lint
	@echo "==> pytest: all but the slow tests, with coverage"
	@$(BIN)/pytest --cov -m "not slow"

test-slow: $(DEV)
	@echo "==> pytest: the slow tests"
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} $(BIN)/pytest -m slow

format: $(DEV)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	@echo "==> removing .venv, caches and build outputs"
	@rm -rf .venv dist build .pytest_cache .ruff_cache .hypothesis .coverage .coverage.* htmlcov
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mglmm needs Python 3.11 or newer and this is %d.%d; name another one: make PYTHON=python3.12" % sys.version_info[:2])'
	@echo "==> making .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv
	@touch $@

$(CORE): pyproject.toml constraints.txt | $(VENV)
	@rm -f $@
	@echo "==> installing mglmm into .venv (once; a minute or two)"
	@$(PIP) -e .
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(VENV)
	@rm -f $@ $(CORE)
	@echo "==> installing mglmm with its test and development tools into .venv (once; a minute or two)"
	@$(PIP) -e ".[dev]"
	@touch $@ $(CORE)
