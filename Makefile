# Two commands for a fresh machine:
#   make train   makes .venv, installs the package, trains on generated floor plans (about a minute)
#   make test    the same for the tests, with torch as the oracle
# Windows and Colab: the plain pip lines are in README.md.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
ARGS ?=

.PHONY: train test test-all verify lint lab benchmark clean

train: $(VENV)/.installed
	$(BIN)/python -m minisegnet.train $(ARGS)

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(ARGS)

test-all: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m "not gpu" $(ARGS)
	$(BIN)/python -m minisegnet.verify

verify: $(VENV)/.installed
	$(BIN)/python -m minisegnet.verify

lint: $(VENV)/.installed-test
	$(BIN)/python -m flake8 minisegnet tests benchmarks lessons
	$(BIN)/python -m isort --check-only --quiet minisegnet tests benchmarks lessons

lab: $(VENV)/.installed
	$(BIN)/python -m minisegnet.lab $(ARGS)

benchmark: $(VENV)/.installed-test
	$(BIN)/python benchmarks/step_cpu.py

$(VENV)/bin/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'MiniSegNet needs Python 3.11 or newer: make PYTHON=python3.11')"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python setup.cfg pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[test,torch]"
	touch $@

clean:
	rm -rf build dist *.egg-info
