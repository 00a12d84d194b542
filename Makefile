# The README's two commands. Each makes its own virtual environment, so that a machine with Python 3.11+ needs nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
TESTS ?= tests

.PHONY: compare test lint examples clean

compare: $(VENV)/.installed
	$(BIN)/estimax compare eight_schools

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist loadfile $(TESTS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	# The repository root is the package: a link gives mypy its name.
	mkdir -p $(VENV)/types && ln -sfn "$(CURDIR)" $(VENV)/types/estimax
	MYPYPATH=$(VENV)/types $(BIN)/mypy -p estimax.estimators -p estimax.inference -p estimax.models

examples: $(VENV)/.installed-test
	for script in examples/*.py; do echo "== $$script"; $(BIN)/python $$script --quick || exit 1; done

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e ".[models]"
	touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e ".[test]"
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
