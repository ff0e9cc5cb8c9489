# Everything from a bare machine: `make demo` and `make test` set themselves up.
PYTHON ?= python3
VENV   ?= .venv
# Pinned and first: left to the resolver, some indexes answer "torch" with gigabytes of CUDA libraries.
TORCH  ?= torch==2.13.0

BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP   := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help install demo docs pictures test lint clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## create the virtual environment (the others do it by themselves)

$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV), which takes a minute or two"
	@$(PIP) "$(TORCH)"
	@$(PIP) --editable ".[test,dev]"
	@touch $@

demo: $(STAMP) ## forecast, train and compare on a real model and real text
	$(BIN)/foretune demo -o runs/demo

docs: $(STAMP) ## run every block of the documentation on the demo's model and texts
	$(BIN)/python -m pytest tests/docs --real

pictures: demo ## draw the README's pictures from the demo's results
	$(BIN)/foretune train runs/demo/run.yaml -o runs/demo
	$(BIN)/foretune compare runs/demo
	$(BIN)/python benchmarks/pictures.py runs/demo

test: lint ## everything that must pass: lint, types, tests, coverage
	$(BIN)/python -m pytest --numprocesses=auto --cov=foretune --cov-report=term --cov-fail-under=85

lint: $(STAMP) ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean: ## delete what the tools leave behind (not the environment, not runs/)
	rm -rf .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
