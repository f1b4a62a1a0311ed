# The two commands: `make run` trains a first model and serves it, `make test` checks everything.

PYTHON ?= python3
PORT ?= 8000
STORE = $(or $(JFB_MODEL_STORE),model_store)
BIN = .venv/bin

.PHONY: run test lint types unit

run: .venv/installed
	@ls -d $(STORE)/*/[0-9]* >/dev/null 2>&1 || $(BIN)/python -m training train digits
	@$(BIN)/python -m app --port $(PORT)

test: lint types unit

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed-test
	$(BIN)/mypy

unit: .venv/installed-test
	$(BIN)/pytest --numprocesses 2 --dist loadfile

# torch by exact version, so that nothing else decides which build it is. One call each, because pip reads the index anew in
# every call; without compiling, because most of what is installed is never imported.
PIP_INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt torch==2.13.0

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP_INSTALL) --editable .
	@touch $@

.venv/installed-test: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP_INSTALL) --editable '.[test]'
	@touch .venv/installed $@
