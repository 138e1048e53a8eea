# `make help` lists the targets. Everything is installed into .venv by the targets
# that need it, at the versions pinned in requirements/.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKDIR ?= runs/demo
# Real data for the tests that use it; they skip without.
DATA := $(wildcard ../shared/data)
export TIGER_DATA ?= $(if $(DATA),$(abspath $(DATA)))
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=17179869184
export TF_CPP_MIN_LOG_LEVEL ?= 3
# Where it is set, each of the many processes that tests start compiles the package anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-short test-slow test-text test-beam faults licences check docs format pictures bench scale reproduce requirements clean

help:  ## Show this list.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

demo: $(BIN)/.demo  ## Run the whole pipeline on a generated shop (minutes on 2 cores).
	$(BIN)/python run.py --workdir=$(WORKDIR)

test: $(BIN)/.test  ## Run the fast tests.
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

# Another Python: make test-short VENV=.venv3.13 PYTHON=python3.13
SHORT := tests/test_imports.py tests/test_run.py tests/semantic_ids tests/decoding/search \
  tests/stages/test_prepare_data_stage.py tests/stages/test_quantizer_stages.py \
  tests/training/test_loop.py tests/recommending/test_versions.py
test-short: $(BIN)/.test  ## Run some tests of every kind (another Python's: VENV=.venv3.13 PYTHON=python3.13).
	$(BIN)/python -m pytest -q -n 2 --dist worksteal $(SHORT)

test-slow: $(BIN)/.test  ## Run the tests that take minutes each.
	$(BIN)/python -m pytest -q -m slow

test-text: $(BIN)/.text  ## Run the tests that need torch and transformers.
	$(BIN)/python -m pytest -q tests/embedding tests/models

test-beam: $(BIN)/.test  ## Run all tests of the pipelines on Apache Beam.
	$(BIN)/python -m pytest -q -m "slow or not slow" tests/beam

faults: $(BIN)/.test  ## Run the campaigns of faults, or go on with them (hours).
	PYTHONPATH=.:tests $(BIN)/python -m faults $(FAULTS)

licences: $(BIN)/.test  ## List the licences of what is pinned in docs/licences.md.
	PYTHONPATH=.:tests $(BIN)/python -m faults.supply

check: $(BIN)/.test docs  ## Lint, type-check, hold the import contract, and build the site.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(BIN)/.test  ## Build the documentation site into build/site, offline; warnings are errors.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

pictures: $(BIN)/.test  ## Take the README's pictures from the demo's report and page, in headless Chromium.
	$(BIN)/python run.py --stage=export --workdir=$(WORKDIR)
	PYTHONPATH=.:tests $(BIN)/python docs/site/pictures.py $(WORKDIR)

format: $(BIN)/.test  ## Format the code.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(BIN)/.test  ## Measure; one JSON row per measurement (needs TIGER_DATA).
	$(BIN)/python -m benchmarks

scale: $(BIN)/.test  ## Measure how each stage grows, and write docs/scale.md (an hour).
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.scale --document=docs/scale.md

reproduce: $(BIN)/.demo  ## Every row, table and picture of docs/results.md and experiments.md (see REPRODUCE=--dry_run).
	$(BIN)/python -m benchmarks.paper $(REPRODUCE)

COMPILE = uv pip compile -q --generate-hashes --no-emit-index-url --no-annotate \
  --custom-compile-command "make requirements" --python-version 3.11

requirements:  ## Resolve requirements/*.in again (needs uv, and UV_FIND_LINKS with torch's CPU build).
	$(COMPILE) --universal requirements/test.in -o requirements/test.txt
	for name in build core demo; do \
	  $(COMPILE) --universal -c requirements/test.txt requirements/$$name.in -o requirements/$$name.txt; \
	done
	$(COMPILE) --no-emit-find-links --no-emit-package torch -c requirements/test.txt \
	  requirements/text.in -o requirements/text.txt

clean:  ## Remove the environment and the demo's work directory.
	rm -rf $(VENV) runs/demo

# A marker file for each set of requirements: installed once, and again on change.
$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tiger_jax needs Python 3.11 or newer; try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(BIN)/.demo: requirements/build.txt requirements/demo.txt setup.cfg | $(BIN)/python
	$(BIN)/python -m pip install -q --require-hashes -r requirements/build.txt
	$(BIN)/python -m pip install -q --require-hashes --no-build-isolation -r requirements/demo.txt
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	touch $@

$(BIN)/.test: requirements/test.txt $(BIN)/.demo
	$(BIN)/python -m pip install -q --require-hashes --no-build-isolation -r requirements/test.txt
	touch $@

$(BIN)/.text: requirements/torch.txt requirements/text.txt $(BIN)/.test
	$(BIN)/python -m pip install -q --require-hashes -r requirements/torch.txt -r requirements/text.txt
	touch $@
