# Everything from a bare clone: each target makes .venv, installs what it needs, and runs.
# Another Python: make test PYTHON=python3.12

.DEFAULT_GOAL := help

# The first Python that is new enough and can make virtual environments.
PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13; do \
	$$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; \
	done)

BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt
# Two processes of one thread: the tests' models are so small that more threads only get in each other's way. A file's
# tests stay together, as they share what is made for them.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile
INSTALLED := .venv/.installed
INSTALLED_ALL := .venv/.installed-all

.PHONY: help demo test test-all check bench cards install install-all clean

help: ## What there is to make.
	@sed -n 's/^\([a-z-]*\):.*## /make \1 \t/p' $(MAKEFILE_LIST) | expand -t 16

demo: $(INSTALLED) ## Prune and heal the embedded model, push it to a loopback Hub, load it from there.
	@$(BIN)/python -m tests.demo --output demo-output

test: $(INSTALLED) ## The tests, without the slow ones.
	@$(PYTEST)

test-all: $(INSTALLED_ALL) ## Every test that needs no GPU; installs every extra.
	@$(PYTEST) -m "not gpu"

check: $(INSTALLED) ## Lint, format, types.
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

bench: $(INSTALLED) ## The figures that the README and the closing notes quote; BENCH="NAME ... --OPTION ..." for others.
	@$(BIN)/python -m tests.benchmarks $(BENCH)

cards: $(INSTALLED) ## The rendered cards in model_cards/, with new measurements.
	@$(BIN)/python -m tests.cards

install: $(INSTALLED) ## Only make .venv.

install-all: $(INSTALLED_ALL)

# torch goes first and alone: whatever comes after finds it in place and asks for no other build.
$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { \
		echo "No Python of 3.11 or later that can make virtual environments (with venv and ensurepip) was found." >&2; \
		echo "Install one (Debian: apt install python3.11-venv), or name it: make PYTHON=/path/to/python3.11" >&2; \
		exit 1; }
	@echo "Making .venv with $(PYTHON); the first time takes minutes."
	@$(PYTHON) -m venv .venv
	@$(PIP_INSTALL) torch
	@$(PIP_INSTALL) --editable '.[heal,eval,space,dev]'
	@touch $@

$(INSTALLED_ALL): $(INSTALLED)
	@echo "Adding every extra to .venv."
	@$(PIP_INSTALL) --editable '.[all,browser,dev]'
	@touch $@

clean: ## Delete .venv and everything that was made.
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis demo-output* demo-hub*
