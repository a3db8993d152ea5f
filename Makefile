# terrazzo: one environment in .venv, built on demand; a stamp file records each layer of it.
#   .venv/.stamp-run      the library      (make demo)
#   .venv/.stamp-test     + test extras    (make test, make test-slow)
#   .venv/.stamp-browser  + selenium       (make test-browser)
#   .venv/.stamp-docs     + sphinx         (make docs)
#   .venv/.stamp-dev      + linters        (make lint, make format)
# Every layer is made again when pyproject.toml or constraints.txt changes.

VENV := .venv
BIN := $(VENV)/bin
OUT ?= build/demo
DATA ?= ../shared/data
RECIPES ?= benchmarks/weights.yaml

# A Python that will do: really starts (a shim by that name may not), is 3.11 or newer, and can make environments.
IS_PYTHON := -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	if $$python $(IS_PYTHON) >/dev/null 2>&1; then echo $$python; break; fi; done)

# The pins hold for the build environment too, through pip's own variables (the second for pip >= 25.3).
PIP_INSTALL := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 \
	$(BIN)/python -m pip install --quiet
INPUTS := pyproject.toml constraints.txt src/terrazzo/_version.py

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo weights test test-slow test-browser fuzz docs lint format clean

help: ## list the targets
	@echo "make TARGET, one of"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

$(VENV)/.stamp-run: $(INPUTS)
	@python="$(PYTHON)"; \
	if [ -z "$$python" ] || ! $$python $(IS_PYTHON) >/dev/null 2>&1; then \
		echo "terrazzo needs Python 3.11 or newer with the venv module: install one, or name it, make PYTHON=python3.12 ..." >&2; \
		exit 1; \
	fi; \
	if ! $(BIN)/python $(IS_PYTHON) >/dev/null 2>&1; then \
		echo "making $(VENV) with $$($$python --version)"; \
		$$python -m venv --clear $(VENV); \
	fi
	@echo "installing terrazzo into $(VENV) (a few minutes the first time)"
	@$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.stamp-test: $(VENV)/.stamp-run
	@echo "installing the test extras"
	@$(PIP_INSTALL) -e '.[test]'
	@touch $@

$(VENV)/.stamp-browser: $(VENV)/.stamp-test
	@echo "installing selenium"
	@$(PIP_INSTALL) -e '.[browser]'
	@touch $@

$(VENV)/.stamp-docs: $(VENV)/.stamp-run
	@echo "installing sphinx"
	@$(PIP_INSTALL) -e '.[docs]'
	@touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp-run
	@echo "installing the linters"
	@$(PIP_INSTALL) -e '.[dev]'
	@touch $@

demo: $(VENV)/.stamp-run ## train on simulated slices -> embed a held-out one -> domains: a report (CPU, a few minutes)
	@$(BIN)/terrazzo demo --out $(OUT)
	@echo "the result is in $(OUT):"
	@ls $(OUT)
	@echo "open it in a browser: $(OUT)/report.html"

weights: $(VENV)/.stamp-test ## train the weights that ship, on DATA; MAX_STEPS=2 to try it (hours otherwise)
	$(BIN)/python benchmarks/ship.py --data $(DATA) --recipes $(RECIPES) --work build/weights \
		$(if $(ONLY),--only $(ONLY)) $(if $(MAX_STEPS),--max-steps $(MAX_STEPS) --into build/weights/shipped)

test: $(VENV)/.stamp-test ## the default tests
	$(BIN)/python -m pytest

test-slow: $(VENV)/.stamp-test ## the tests marked slow (having none is no failure)
	$(BIN)/python -m pytest -m slow || test $$? -eq 5

fuzz: $(VENV)/.stamp-test ## the property tests with other examples in each run, the long ones too
	HYPOTHESIS_PROFILE=random $(BIN)/python -m pytest -m "slow or not slow" tests/fuzz

test-browser: $(VENV)/.stamp-browser ## the report in Chromium (skipped where there is none); pictures in build/screenshots
	$(BIN)/python -m pytest -n 0 -rs -m "slow or not slow" tests/browser

docs: $(VENV)/.stamp-docs ## the documentation, its notebooks executed, warnings as errors: docs/_build/html
	$(BIN)/python -m sphinx -b html -n -W --keep-going -q -d docs/_build/doctrees docs docs/_build/html
	@echo "open it in a browser: docs/_build/html/index.html"

lint: $(VENV)/.stamp-dev ## ruff check, ruff format --check, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.stamp-dev ## mend what ruff can mend, and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment, the caches and build/
	rm -rf $(VENV) build dist docs/_build docs/_generated .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
