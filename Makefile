# The commands of this project. From a bare checkout, with python3 and a C++ compiler:
#
#   make demo    train a small language model with AdaMod, compare, draw
#   make test    everything that needs no GPU: lint, format, types, tests
#   make bench   time AdaMod beside every peer that is to be had; record and figures go to OUT
#   make paper   put the claims of the paper to the test; SCALE=gpu: larger, on a GPU
#   make bench-check   hold the records in bench/results to the targets
#   make asan    the tests again, against a CPU extension built with ASan and UBSan
#   make gpu     offline: build with the torch, triton and nvcc at hand, run the GPU tests, the
#                benchmark and the trials, leave records and figures in OUT; needs no `make env`
#   make browser   install Chromium for the tests of the report, where there is none
#   make env     the environment alone, in .venv; the others make it when they need it
#   make lint    make format    make types    make clean

PYTHON ?= python3
VENV ?= .venv
OUT ?= bench/results
# Of `make paper`: cpu or gpu.
SCALE ?= cpu
# What `make asan` runs: a file or folder of tests, and any option of pytest.
ASAN_TESTS ?= tests

PY := $(VENV)/bin/python
# Every install is held to known versions: nothing newer comes in, and no second torch.
PIP_INSTALL := $(PY) -m pip install --disable-pip-version-check --quiet -c .ci/constraints.txt
CXX_FILES := $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu')
ENV := $(VENV)/.installed

BENCH_ENV := $(VENV)/.installed-bench

.PHONY: env demo bench paper bench-check test lint format types pytest asan gpu browser clean

env: $(ENV)

# Without build isolation, so that ninja recompiles only what changed.
$(ENV): pyproject.toml setup.py .ci/constraints.txt $(shell find csrc -type f)
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) setuptools pybind11 ninja
	$(PIP_INSTALL) --no-build-isolation --editable '.[dev,integrations]'
	touch $@

demo: $(ENV)
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
