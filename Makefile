# The commands of this project. From a bare checkout, with python3 and a C++ compiler:
#
#   make demo    train a small language model with AdaMod and Adam, compare, draw a figure
#   make test    everything that needs no GPU: lint, format, types, tests
#   make bench   time AdaMod and every peer that is installed; record and figures go to OUT
#   make paper   test the claims of the paper; SCALE=gpu: larger, on a GPU
#   make bench-check   compare the records in bench/results with the targets
#   make asan    the tests again, with a CPU extension built with ASan and UBSan
#   make gpu     offline: build with the installed torch, triton and nvcc, run the GPU tests, the
#                benchmark and the trials, write records and figures to OUT; needs no `make env`
#   make browser   install Chromium for the tests of the report, if it is missing
#   make env     the development environment, in .venv; the other targets make it when needed
#   make lint    make format    make types    make clean

PYTHON ?= python3
VENV ?= .venv
OUT ?= bench/results
# Of `make paper`: cpu or gpu.
SCALE ?= cpu
# What `make asan` runs: a file or folder of tests, and any option of pytest.
ASAN_TESTS ?= tests

PY := $(VENV)/bin/python
# Every install uses pinned versions: nothing newer, and no second torch. .ci/show prints a line
# every few seconds while a command runs that is silent for long.
PIP_INSTALL := .ci/show $(PY) -m pip install --disable-pip-version-check -c .ci/constraints.txt
CXX_FILES := $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu')
SOURCES := pyproject.toml setup.py .ci/constraints.txt $(shell find csrc -type f)
ENV := $(VENV)/.installed
DEMO_ENV := $(VENV)/.installed-demo
BENCH_ENV := $(VENV)/.installed-bench

.PHONY: env demo bench paper bench-check test lint format types pytest asan gpu browser clean

env: $(ENV)

# Without build isolation, so that ninja recompiles only what changed. With the CUDA engine wherever
# nvcc is: the tests read its machine code.
$(ENV): export ADAMOD_CUDA ?= $(if $(shell command -v nvcc),1,0)
$(ENV): $(SOURCES)
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) setuptools pybind11 ninja
	$(PIP_INSTALL) --no-build-isolation --editable '.[dev,integrations]'
	touch $@ $(DEMO_ENV)

# What the demo needs and no more; the development environment has that too.
$(DEMO_ENV): $(SOURCES)
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) setuptools pybind11 ninja
	$(PIP_INSTALL) --no-build-isolation --editable '.[demo]'
	touch $@

demo: $(if $(wildcard $(ENV)),$(ENV),$(DEMO_ENV))
	$(PY) -m adamod_fused demo

$(BENCH_ENV): $(ENV)
	$(PIP_INSTALL) --no-build-isolation --editable '.[bench]'
	touch $@

bench: $(BENCH_ENV)
	$(PY) -m bench --out $(OUT)

paper: $(ENV)
	$(PY) -m bench.paper --scale $(SCALE) --out $(OUT)

bench-check: $(ENV)
	$(PY) -m bench check

test: lint types pytest

lint: $(ENV)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror $(CXX_FILES)

format: $(ENV)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(VENV)/bin/clang-format -i $(CXX_FILES)

types: $(ENV)
	$(PY) -m mypy

pytest: $(ENV)
	$(PY) -m pytest -m 'not gpu'

# A second build beside the editable one, which PYTHONPATH puts before it; PYTHONSAFEPATH keeps
# this folder off sys.path, where the package without that build would come first.
# Preloaded: the sanitizer, since python is built without it, and libstdc++, whose throw the
# sanitizer looks up when it starts. Leaks are not reported: CPython and torch hold memory at exit.
# --capture=sys: a report goes to file descriptor 2 just before the process ends.
ASAN := build/asan
asan: export ADAMOD_CUDA := 0
asan: $(ENV)
	rm -rf $(ASAN)/site
	CXXFLAGS="-O1 -g -UNDEBUG -fno-omit-frame-pointer -fsanitize=address,undefined \
	  -fno-sanitize-recover=all" $(PY) setup.py -q build --build-base $(ASAN) --build-lib $(ASAN)/site
	PYTHONPATH=$(CURDIR)/$(ASAN)/site PYTHONSAFEPATH=1 \
	  LD_PRELOAD="$$($${CXX:-c++} -print-file-name=libasan.so) \
	    $$($${CXX:-c++} -print-file-name=libstdc++.so.6)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	  $(PY) -m pytest --capture=sys -m 'not gpu and not build and not integration' $(ASAN_TESTS)

browser:
	.ci/browser

gpu:
	$(PYTHON) .ci/gpu.py --out $(OUT)

clean:
	rm -rf build dist *.egg-info adamod_fused/*.so $(VENV)
