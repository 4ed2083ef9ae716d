# quickstart: from a fresh clone to a verified engine.   test: everything CI checks.
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: quickstart test lint slow clean

quickstart: .venv/installed
	$(BIN)/compress run examples/quickstart.toml

test: .venv/installed-dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

slow: .venv/installed-dev
	$(BIN)/python -m pytest -q -m slow

.venv/created:
	$(PYTHON) -m venv .venv
	touch $@

.venv/installed: .venv/created pyproject.toml
	$(BIN)/pip install -q -e ".[cpu]"
	touch $@

.venv/installed-dev: .venv/created pyproject.toml
	$(BIN)/pip install -q -e ".[cpu,dev]"
	touch $@ .venv/installed

clean:
	rm -rf .venv runs
