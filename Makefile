# Two commands do all set-up: `make demo` (the main job) and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint format protos clean help

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 10

demo: $(VENV)/.demo  ## train, cut, serve and stream handwritten digits
	$(BIN)/narrows demo

test: $(VENV)/.dev  ## every test
	$(BIN)/python -m pytest

lint: $(VENV)/.dev  ## formatter, linter, types, import rules, generated code
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python scripts/typecheck.py
	$(BIN)/lint-imports
	$(BIN)/python scripts/protos.py --check

format: $(VENV)/.dev  ## let the formatter and the linter mend what they can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

protos: $(VENV)/.dev  ## generate protos/*_pb2* from protos/*.proto
	$(BIN)/python scripts/protos.py

clean:  ## remove what the commands above made
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt runtime/codec/_kernel.c
	@echo "installing what the demo needs into $(VENV) (a few minutes the first time)"
	$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt runtime/codec/_kernel.c
	@echo "installing what the tests need into $(VENV) (a few minutes the first time)"
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.demo
