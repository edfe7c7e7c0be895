# Two commands matter: `make demo` and `make test`. Both make .venv first, once for each change of pyproject.toml or of
# the lock file requirements/all.txt, and install only what is pinned there by version and hash.
# What is installed goes to stderr: the last line of `make demo ARGS=--json` on stdout is the demo's JSON object.

MAKEFLAGS += --no-print-directory
PYTHON ?= python3
ARGS ?=
KILLS ?= 200
SEED ?= 0
SECONDS ?= 600
MODULE ?= window
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/uv pip install --python $(BIN)/python --compile-bytecode
INSTALL_LOCKED := $(INSTALL) --require-hashes --constraints requirements/all.txt --requirements pyproject.toml
INSTALL_SELF := $(INSTALL) --no-deps --build-constraints requirements/build.txt --editable .
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header

.PHONY: help install demo test check chaos fuzz mutate coverage dashboards reference lock environment clean
.DEFAULT_GOAL := help

help: ## say what can be made
	@sed -n 's/^\([a-z]*\):[^#]*## /make \1\t/p' Makefile | expand -t 20
	@echo 'PYTHON=python3.12 chooses the interpreter of a new environment (3.11 or later)'

install: $(VENV)/local.stamp ## install stream_rec into .venv, with all that one machine needs

demo: $(VENV)/local.stamp ## run everything on this machine; make demo ARGS="--seconds 45 --json"
	@exec $(BIN)/stream-rec demo $(ARGS)

test: check ## check the code, then run the fast tests, then those that start Kafka
	@$(BIN)/pytest -m 'not e2e' -n 2 --dist loadfile
	@$(BIN)/pytest -m e2e -n 3 --dist loadfile --no-loadscope-reorder # they wait much; else files of few, long tests come last

check: $(VENV)/test.stamp ## format, lint, types and the walls between the rooms
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

chaos: $(VENV)/test.stamp ## kill, stop and restart everything: make chaos KILLS=20 SEED=1 ARGS="--keep chaos"
	@exec $(BIN)/python -m tests.chaos --kills $(KILLS) --seed $(SEED) $(ARGS)

fuzz: $(VENV)/test.stamp ## mutated records, files and model folders: make fuzz SECONDS=60 SEED=1 ARGS="--only folders"
	@exec $(BIN)/python -m tests.fuzz --seconds $(SECONDS) --seed $(SEED) $(ARGS)

mutate: $(VENV)/measure.stamp ## whether tests notice changes of a module: make mutate MODULE=keeper ARGS="--sample 50"
	@exec $(BIN)/python -m tests.mutation $(MODULE) $(ARGS)

coverage: $(VENV)/measure.stamp ## which lines and branches the fast tests reach
	@$(BIN)/pytest -m 'not e2e' -q -n 2 --dist loadfile --cov --cov-report=term-missing $(ARGS)

dashboards: $(VENV)/test.stamp ## write Grafana's dashboards anew from their code
	@$(BIN)/python -m monitoring.dashboards

reference: $(VENV)/test.stamp ## write docs/reference and docs/schemas anew from the code
	@$(BIN)/python -m docs.pages
	@$(BIN)/stream-rec schemas docs/schemas >/dev/null

lock: $(VENV)/local.stamp ## pin what is installed, and Kafka's jars, anew; make lock ARGS=--upgrade takes the newest
	@$(COMPILE) $(ARGS) pyproject.toml --extra test --group models --group measure --output-file requirements/all.txt
	@$(COMPILE) $(ARGS) --group pyproject.toml:build --constraints requirements/all.txt --output-file requirements/build.txt
	@$(BIN)/python -m stream_rec.local.java

environment: $(VENV)/test.stamp ## make the environment of the tests alone

clean: ## remove the environment and what the tools left
	rm -rf $(VENV) .hypothesis .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

$(VENV)/local.stamp: pyproject.toml requirements/all.txt | $(BIN)/uv
	@echo 'installing stream_rec (torch is large: 6 GB on disk)' >&2
	@$(INSTALL_LOCKED) --extra local >&2
	@$(INSTALL_SELF) >&2
	@touch $@

$(VENV)/test.stamp: pyproject.toml requirements/all.txt | $(BIN)/uv
	@echo 'installing stream_rec and its tests (torch is large: 6 GB on disk)' >&2
	@$(INSTALL_LOCKED) --extra test --group models >&2
	@$(INSTALL_SELF) >&2
	@touch $@ $(VENV)/local.stamp

$(VENV)/measure.stamp: $(VENV)/test.stamp
	@$(INSTALL_LOCKED) --extra test --group models --group measure >&2
	@touch $@

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'stream_rec needs Python 3.11 or later, and $(PYTHON) is none: name one with make PYTHON=...' >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements/build.txt >&2
