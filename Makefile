# Two commands do everything: `make` and `make test`. `make help` lists the others.

PORT ?= 5000
UV := uv==0.13.9
HASH := \#
# What the remotes of DVC and the URIs of MLflow need besides (pyproject.toml), and what an earlier set-up found.
EXTRAS := $(sort $(shell { cat .dvc/config .dvc/config.local; env | grep ^MLFLOW_; } 2>/dev/null \
	| sed -nE 's/.*(s3|gs|azure|ssh|postgresql)(\+[a-z0-9]+)?:\/\/.*/\1/p'; cat .venv/extras 2>/dev/null))
READY := .venv/ready-$(shell (pwd; echo $(EXTRAS); cat requirements*.lock) | cksum | tr ' ' -)
INSTALL := $(if $(EXTRAS),install --exact --constraints requirements-extras.lock $(EXTRAS:%=--extra %) --group dev \
	--requirements pyproject.toml,sync requirements.lock)
# The index of pip, with its certificate and proxy, and none of its other settings: `user` or `target` install elsewhere.
PIP_OPTIONS := .venv/bin/python -m pip config list | sed -n "s/\\\\n/ /g; s/^[^.]*\.\([a-z-]*\)='\(.*\)'$$/\1 \2/p" | awk \
	'/^(index-url|extra-index-url|find-links|trusted-host|cert|proxy) / && !seen[$$1]++ \
	{ for (i = 2; i <= NF; i++) print "--" $$1, $$i } /^no-index (true|1|yes|on)/ { print "--no-index" }'

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export DVC_NO_ANALYTICS := true
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1
# A cluster's modules set the first two, and its packages would take the place of the locked ones; with the others no
# module of this folder is found, docstrings are gone, or a warning of DVC's packages ends it.
unexport PYTHONPATH PYTHONHOME PYTHONSAFEPATH PYTHONOPTIMIZE PYTHONWARNINGS

.DEFAULT_GOAL := repro
.PHONY: repro test test-fast check ui demo photo learn gate sweep bench lock clean help setup

# DVC refuses a folder without git, as a ZIP file from GitHub makes one, unless it is told that there is none.
repro: setup  ## run what changed, from MNIST to the photographs (the default)
	@LC_ALL=C git rev-parse 2>&1 | grep -q "not a git repository (or any" && dvc config --local core.no_scm true && \
		echo "note: no git here; after \`git init\`: dvc config --local --unset core.no_scm" >&2 || true
	@dvc repro
	@python -m pipeline.report
	@python -m pipeline.summary

test: setup  ## the whole test suite
	@python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

test-fast: setup  ## the tests that start nothing large: about two minutes
	@python -m pytest -q -n 2 -m "not slow"

check: setup  ## lint, format and types
	@ruff check .
	@ruff format --check .
	@mypy

ui: setup  ## compare the runs in MLflow (PORT=5000)
	@python -m pipeline.ui --port $(PORT)

demo: PORT = 8000
demo: HOST = 127.0.0.1
demo: setup  ## draw a digit, or drop a photograph, and see it read (PORT=8000, HOST=0.0.0.0 for a phone)
	@python -m pipeline.demo --port $(PORT) --host "$(HOST)"

photo: setup  ## read a picture, or a folder of them (FILE=five.jpg)
	@test -n "$(FILE)" || { echo "error: FILE: expected a picture; make photo FILE=five.jpg" >&2; exit 2; }
	@python -m pipeline.predict_photo "$(FILE)"

learn: setup  ## learn from your corrections, and judge what came of it (SHARE=0.05)
	@python -m pipeline.learn $(if $(SHARE),--share "$(SHARE)")

gate: setup  ## decide by statistics whether this change may be merged
	@python -m pipeline.gate

sweep: setup  ## try every combination of params.yaml's `sweep`
	@python -m pipeline.sweep

bench: setup  ## measure what README.md says of speed and memory
	@python -m benchmarks

COMPILE := uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header --group dev
lock: setup  ## resolve pyproject.toml anew into requirements.lock, and with all extras into requirements-extras.lock
	@$(COMPILE) --all-extras --output-file requirements-extras.lock pyproject.toml
	@$(COMPILE) --constraints requirements-extras.lock --output-file requirements.lock pyproject.toml

clean:  ## remove what is not in git and `make` makes again; mlruns/, the record of your runs, stays
	@rm -rf data/raw data/prepared data/prepared-corrections models/digits.keras .checkpoints .dvc/cache .dvc/tmp
	@rm -rf .pytest_cache .hypothesis .ruff_cache .mypy_cache
	@find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
	@find . -path ./.venv -prune -o -name '.*.part' -type f -exec rm -f {} +

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

setup: $(READY)  ## set up .venv; every other command does so first (EXTRAS="s3 postgresql")

# Keyed by the locks' content and by this folder, which the scripts of a .venv have written into them. A set-up that was
# killed leaves packages half-written, which no later one would notice: it is made anew.
$(READY):
	@LC_ALL=C; export LC_ALL; case $$(pwd) in *[%$(HASH)]* | *[!\ -~]*) \
		echo "error: $$(pwd): expected a folder without %, $(HASH) and letters beyond ASCII in its path;" \
			"MLflow and DVC fail there, so move the project" >&2; exit 2;; esac
	@test ! -e .venv/incomplete && grep -qsF "$(CURDIR)/.venv/bin/python" .venv/bin/pip \
		&& .venv/bin/python -c "" 2>/dev/null || $(MAKE) -s .venv
	@echo "Setting up .venv from requirements.lock$(if $(EXTRAS), with $(EXTRAS)):" \
		"once, about a minute and what the downloads take"
	@touch .venv/incomplete
	@options=$$($(PIP_OPTIONS)); \
	PIP_CONFIG_FILE=/dev/null .venv/bin/python -m pip --isolated install --quiet --disable-pip-version-check $$options $(UV)
	@options=$$($(PIP_OPTIONS)); set -- $$options; \
	while [ $$# -gt 0 ]; do case $$1 in \
		--cert) export SSL_CERT_FILE="$${SSL_CERT_FILE:-$$2}"; shift 2;; \
		--proxy) export ALL_PROXY="$${ALL_PROXY:-$$2}"; shift 2;; \
		--trusted-host) index="$$index --allow-insecure-host $$2"; shift 2;; \
		*) index="$$index $$1"; shift;; \
	esac; done; \
	cache=$$(.venv/bin/uv cache dir); mkdir -p "$$cache" 2>/dev/null && test -w "$$cache" || export UV_NO_CACHE=1; \
	.venv/bin/uv pip $(INSTALL) --python .venv/bin/python --require-hashes --compile-bytecode \
		--index-strategy unsafe-best-match $$index
	@echo $(EXTRAS) > .venv/extras
	@rm -f .venv/incomplete .venv/ready-* && touch $@

.PHONY: .venv
.venv:
	@PATH="$${PATH#*/.venv/bin:}"; \
	for python in $(if $(PYTHON),"$(PYTHON)",python3 python3.13 python3.12 python3.11); do \
		"$$python" -c "import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))" 2>/dev/null || continue; \
		"$$python" -c "import ensurepip, venv" 2>/dev/null || { bare=$$python; continue; }; \
		exec "$$python" -m venv --clear .venv; \
	done; \
	[ -z "$$bare" ] || { echo "error: $$bare: expected the modules venv and ensurepip;" \
		"on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }; \
	echo "error: python: expected 3.11 to 3.13, found $$("$(or $(PYTHON),python3)" --version 2>&1);" \
		"make PYTHON=/path/to/python3.12" >&2; \
	exit 2
