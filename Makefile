# `make demo` and `make test` work on a bare clone: they make .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint check bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/demo.stamp
	$(BIN)/hfrt demo demo --force

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p hyperfusion_rt

check: test lint

# The tables and charts under benchmarks/.
bench: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/engines.py

# Compiled sources are installed, so a change in them (or in what is required) installs again.
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(wildcard kernels/cpu/*)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: $(BIN)/python $(SOURCES)
	$(INSTALL) -e '.[cpu,train,bench]'
	touch $@

$(VENV)/dev.stamp: $(BIN)/python $(SOURCES)
	$(INSTALL) -e '.[dev]'
	touch $@ $(VENV)/demo.stamp

clean:
	rm -rf $(VENV) build demo
