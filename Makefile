# Everything from a fresh clone: each target makes .venv and installs what it needs, once.
#
#   make demo     train, evaluate, export, serve         make lint     ruff and mypy
#   make test     the tests                              make bench    every benchmark, whole
#
# TORCH is what pip is asked for before anything else, so that nothing later replaces it. A CUDA
# machine or another version: make demo TORCH=torch. To use the torch that the machine has:
# make demo TORCH= VENV_ARGS=--system-site-packages

PYTHON ?= python3
VENV ?= .venv
VENV_ARGS ?=
TORCH ?= torch==2.13.0
VLLM_VENV ?= .venv-vllm
BENCH ?=
PYTEST_ARGS ?= -n auto --dist loadfile --no-loadscope-reorder --max-worker-restart 0

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMPS := $(VENV)/.stamps

.PHONY: demo test lint bench clean
.DEFAULT_GOAL := demo

demo: $(STAMPS)/demo
	PATH="$(abspath $(BIN)):$$PATH" bash launch/demo.sh

test: $(STAMPS)/dev $(VLLM_VENV)/tried
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(STAMPS)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy

bench: $(STAMPS)/bench
	PATH="$(abspath $(BIN)):$$PATH" hecate bench all $(BENCH)

clean:
	rm -rf $(VENV) $(VLLM_VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache

$(STAMPS)/torch:
	$(PYTHON) -m venv $(VENV_ARGS) $(VENV)
	mkdir -p $(STAMPS)
	$(if $(strip $(TORCH)),$(PIP) install $(TORCH))
	touch $@

$(STAMPS)/demo: $(STAMPS)/torch pyproject.toml
	$(PIP) install --editable '.[demo]'
	touch $@

# DeepSpeed would compile its operators at installation; none of them is needed here.
$(STAMPS)/dev: $(STAMPS)/torch pyproject.toml
	DS_BUILD_OPS=0 $(PIP) install --editable '.[dev]'
	touch $@ $(STAMPS)/demo

$(STAMPS)/bench: $(STAMPS)/torch pyproject.toml
	DS_BUILD_OPS=0 $(PIP) install --editable '.[bench]'
	touch $@

# vLLM pins versions that are not ours, so the test that loads our exports in it has it apart. Where
# it cannot be installed the script says so and that test skips.
$(VLLM_VENV)/tried: tests/checkpoint/make_vllm_venv.sh
	PYTHON=$(PYTHON) bash $< $(VLLM_VENV)
	touch $@
