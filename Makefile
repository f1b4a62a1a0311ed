# `make run` trains a first model and serves it. `make check` is for every change, `make test` for every push.

PYTHON ?= python3
PORT ?= 8000
# The build of torch that a first `make` installs: cpu, or a version of CUDA, such as cu130. Unless set, pip's index decides.
TORCH_BACKEND ?=
STORE = $(or $(JFB_MODEL_STORE),model_store)
BIN = .venv/bin
PYTEST = $(BIN)/pytest --numprocesses 2

# Python keeps what it has compiled, whatever the environment says: otherwise each of the hundred processes that a run of the
# tests starts compiles all that it imports again, for half of its time.
export PYTHONDONTWRITEBYTECODE =

# Types are checked while the tests run.
MAKEFLAGS += --jobs=2

.PHONY: run mazes check test test-long lint types quick-tests tests

run: .venv/installed
	@ls -d $(STORE)/*/[0-9]* >/dev/null 2>&1 || $(BIN)/python -m training train digits
	@ls -d $(STORE)/mazes/[0-9]* >/dev/null 2>&1 || \
	    echo '"make mazes" in another terminal trains a second model in one to two minutes, on which iterations matter; this server finds it.'
	@$(BIN)/python -m app --port $(PORT) --poll-seconds 2

# A second model, which a server that `make run` started finds by itself.
mazes: .venv/installed
	@$(BIN)/python -m training train mazes

# Lint, types, and the tests that start no server and train nothing: at most a minute on two cores.
check: lint types quick-tests

# Everything except the minute-long tests: at most seven minutes on two cores.
test: lint types tests

quick-tests: .venv/installed-test
	$(PYTEST) --dist worksteal -m "not slow and not long"

tests: .venv/installed-test
	$(PYTEST) --dist loadgroup --no-loadscope-reorder -m "not long"

test-long: .venv/installed-test
	$(PYTEST) --dist loadgroup --no-loadscope-reorder -m long

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed-test
	$(BIN)/mypy

# torch has an exact version here, so that nothing else decides which build is installed. One pip call each, because pip reads
# the index again in every call; without compiling, because most modules are never imported. In the mode `compat` Python finds
# the packages through sys.path: otherwise `import jfb`, in the folder above a clone named jfb, finds that folder first.
TORCH = torch==2.13.0
PIP_INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt \
    --config-settings editable_mode=compat $(TORCH)

# uv knows the index of each build. Where uv or that index cannot be reached, pip installs what its own index has.
UV_INSTALL = { $(BIN)/pip install --quiet --retries 0 --timeout 5 uv && UV_HTTP_RETRIES=0 \
    $(BIN)/uv pip install --python $(BIN)/python --constraint constraints.txt --torch-backend $(TORCH_BACKEND) $(TORCH); } \
    >/dev/null 2>&1 || echo "TORCH_BACKEND=$(TORCH_BACKEND): uv could not install this build of torch; pip installs its default."

.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(if $(TORCH_BACKEND),@$(UV_INSTALL))

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP_INSTALL) --editable '.[serve,train]'
	@touch $@

.venv/installed-test: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP_INSTALL) --editable '.[test]'
	@touch .venv/installed $@
