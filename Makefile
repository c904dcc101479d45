# make demo   sets up .venv and trains the two-column network on digits
# make test   sets up .venv and runs the tests
# make lint   sets up .venv and checks the style

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install

.PHONY: setup demo test lint

setup: .venv/runtime.done

demo: setup
	$(BIN)/python -m alexnet_jax.main --config=configs/two_device.py \
	  --workdir=runs/demo --data_dir=data

test: .venv/test.done
	$(BIN)/python -m pytest

lint: .venv/lint.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/runtime.done: requirements.txt | .venv/bin/python
	$(PIP) -r requirements.txt
	@touch $@

.venv/test.done: requirements-test.txt .venv/runtime.done
	$(PIP) -r requirements-test.txt
	@touch $@

.venv/lint.done: requirements-lint.txt | .venv/bin/python
	$(PIP) -r requirements-lint.txt
	@touch $@
