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
	$(BIN)/pytest

# torch by exact version first, so that nothing else decides which build it is.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@

.venv/installed-test: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	@touch $@
