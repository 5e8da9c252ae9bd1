# Two commands matter: `make demo` and `make test`. Both make .venv when it is not there.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-fast test-faults lint format constraints clean

demo: $(STAMP)  ## the whole pipeline on the generated demo set
	$(BIN)/dpmpp run --config demo

test: $(STAMP)  ## all tests
	$(BIN)/python -m pytest

test-fast: $(STAMP)  ## unit tests only: no Ray, no MLflow
	$(BIN)/python -m pytest tests/unit

test-faults: $(STAMP)  ## what takes minutes: processes killed, nodes lost, storage away, disk full; every backbone exported
	$(BIN)/python -m pytest tests/faults tests/integration/test_cli.py tests/unit/test_export.py -m '' --fault-table tests/bench/results/faults.md

lint: $(STAMP)  ## style, types, and which package may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; name one with PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

constraints: $(STAMP)  ## write down the versions of this environment
	$(BIN)/python -m pip freeze --exclude-editable > constraints.txt

clean:
	rm -rf $(VENV) runs
