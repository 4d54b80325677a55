# Two commands do everything: `make` and `make test`. `make help` lists the others.

PORT ?= 5000
UV := uv==0.13.9
READY := .venv/ready-$(shell (pwd; cat requirements.lock) | cksum | tr ' ' -)

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export DVC_NO_ANALYTICS := true
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1

.DEFAULT_GOAL := repro
.PHONY: repro test test-fast check ui demo photo gate sweep bench lock clean help setup

# DVC refuses a folder without git, as a ZIP file from GitHub makes one, unless it is told that there is none.
repro: setup  ## run what changed, from MNIST to the photographs (the default)
	@LC_ALL=C git rev-parse 2>&1 | grep -q "not a git repository (or any" && dvc config --local core.no_scm true && \
		echo "note: no git here; after \`git init\`: dvc config --local --unset core.no_scm" >&2 || true
	@dvc repro
	@python -m pipeline.report
	@python -m pipeline.summary

test: setup  ## the whole test suite
	@python -m pytest

test-fast: setup  ## the tests of a minute
	@python -m pytest -q -m "not slow"

check: setup  ## lint, format and types
	@ruff check .
	@ruff format --check .
	@mypy

ui: setup  ## compare the runs in MLflow (PORT=5000)
	@python -m pipeline.ui --port $(PORT)

demo: PORT = 8000
demo: setup  ## draw a digit, or drop a photograph, and see it read (PORT=8000)
	@python -m pipeline.demo --port $(PORT)

photo: setup  ## read a picture, or a folder of them (FILE=five.jpg)
	@test -n "$(FILE)" || { echo "error: FILE: expected a picture; make photo FILE=five.jpg" >&2; exit 2; }
	@python -m pipeline.predict_photo "$(FILE)"

gate: setup  ## decide by statistics whether this change may be merged
	@python -m pipeline.gate

sweep: setup  ## try every combination of params.yaml's `sweep`
	@python -m pipeline.sweep

bench: setup  ## measure what README.md says of speed and memory
	@python -m benchmarks

lock: setup  ## resolve pyproject.toml anew into requirements.lock
	@uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header --group dev \
		--output-file requirements.lock pyproject.toml

clean:  ## remove all that `make` can make again; mlruns/, the record of your runs, stays
	@rm -rf data/raw data/prepared models .checkpoints .dvc/cache .dvc/tmp
	@rm -rf .pytest_cache .hypothesis .ruff_cache .mypy_cache
	@find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

setup: $(READY)

# Keyed by the lock's content and by this folder, which the scripts of a .venv have written into them.
$(READY):
	@grep -qsF "$(CURDIR)/.venv/bin/python" .venv/bin/pip && .venv/bin/python -c "" 2>/dev/null || $(MAKE) -s .venv
	@echo "Setting up .venv from requirements.lock: once, about a minute and what the downloads take"
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check $(UV)
	@.venv/bin/uv pip sync --python .venv/bin/python --require-hashes --compile-bytecode requirements.lock
	@rm -f .venv/ready-* && touch $@

.PHONY: .venv
.venv:
	@PATH="$${PATH#*/.venv/bin:}"; \
	for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
		"$$python" -c "import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))" 2>/dev/null || continue; \
		exec "$$python" -m venv --clear .venv; \
	done; \
	echo "error: python: expected 3.11 to 3.13, found $$($(or $(PYTHON),python3) --version 2>&1);" \
		"make PYTHON=/path/to/python3.12" >&2; \
	exit 2
