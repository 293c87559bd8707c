# Everything is done with Python 3.11 or newer and make. `make help` lists what there is.

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
STATE ?= .fovea
PORT ?= 8080

# Otherwise every process, and every worker of pytest, would compile the project's modules again.
unexport PYTHONDONTWRITEBYTECODE

# Another interpreter: make run PYTHON=python3.12
PYTHON ?= $(shell for name in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)

# pip's own configuration says where packages come from. To add a place, such as that of torch without CUDA:
# make run PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_FLAGS ?=

PIP_INSTALL = PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
	$(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt

# Settings for a run: make run ARGS="--set num_train_epochs=2"
ARGS ?=

# The image: make image TARGET=cpu IMAGE=registry.example.com/fovea BUILDER=podman
IMAGE ?= fovea
TARGET ?= cuda
BUILDER ?= $(shell for name in docker podman buildah; do $$name info >/dev/null 2>&1 && echo $$name && break; done)
IMAGE_FLAGS ?=

.DEFAULT_GOAL := help
.PHONY: help install run test lint unit prove benchmark benchmark-gpu serve doctor compile settings openapi sample-model image constraints clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## the virtual environment with the pinned dependencies

run: $(STAMP) ## the whole pipeline on this machine, from pictures to an answering endpoint
	@$(BIN)/fovea run --state "$(STATE)" $(ARGS)

test: lint unit ## lint, types, import layers and tests

lint: $(STAMP) ## lint, types, import layers and wording
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/prose.py

# One worker more than a small machine's cores: tests wait for servers and a cluster.
unit: $(STAMP) ## the tests alone
	$(BIN)/python -m pytest -n 3 --dist worksteal

prove: $(STAMP) ## the slow proofs, and the properties on new examples
	HYPOTHESIS_PROFILE=drawn-anew $(BIN)/python -m pytest -m "prove or hypothesis"

benchmark: $(STAMP) ## the model's speed and memory against a plain twin, on the CPU
	$(BIN)/python -m benchmarks.model compare

benchmark-gpu: $(STAMP) ## the published size in bfloat16 on a GPU: speed, memory, utilisation
	$(BIN)/python -m benchmarks.model throughput --device cuda --size published --dtype bfloat16
	$(BIN)/python -m benchmarks.train --device cuda --size published --dtype bfloat16 --pictures 8 --steps 10 \
		--crops 1 --crops 4 --crops 16
	$(BIN)/python -m benchmarks.model compare --device cuda --size published --dtype bfloat16
	$(BIN)/python -m benchmarks.serving compare --device cuda --size published --dtype bfloat16

serve: $(STAMP) ## the service that the last run deployed, on port 8080 (PORT=…)
	@$(BIN)/fovea serve --state "$(STATE)" --port $(PORT)

doctor: $(STAMP) ## what is here, what is missing, what to do
	@$(BIN)/fovea doctor --state "$(STATE)"

compile: $(STAMP) ## pipelines/finetune.yaml, after the graph or a component's interface has changed
	$(BIN)/fovea compile --out pipelines/finetune.yaml

settings: $(STAMP) ## docs/settings.md, after a setting has changed
	$(BIN)/python -P -m pipelines.publish > .settings.part && mv .settings.part docs/settings.md

openapi: $(STAMP) ## docs/openapi.json, after the server's schemas or routes have changed
	$(BIN)/python -P -m serving.publish > .openapi.part && mv .openapi.part docs/openapi.json

sample-model: $(STAMP) ## the sample model that ships, trained again from its recipe
	$(BIN)/python -P -m sample.training sample/weights

image: ## the container image, with docker, podman or buildah; TARGET=cpu leaves CUDA out
	@[ -n "$(BUILDER)" ] || { \
		echo "error: install docker, podman or buildah, and see that it runs" >&2; exit 1; }
	$(BUILDER) build --target $(TARGET) --tag $(IMAGE):$(TARGET) \
		--build-arg VERSION="$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' fovea/__init__.py)" \
		--build-arg REVISION="$$(git rev-parse HEAD 2>/dev/null || echo unknown)" $(IMAGE_FLAGS) .

constraints: $(STAMP) ## constraints.txt from what is installed, and what builds the project
	$(BIN)/python -m pip install -q -c constraints.txt hatchling editables
	{ echo "# The versions that are installed and tested together; make constraints writes this file."; \
		$(BIN)/python -m pip freeze --all --exclude-editable | sed 's/+[a-z0-9.]*$$//'; \
	} > .constraints.part && mv .constraints.part constraints.txt

clean: ## remove the virtual environment and caches; never models, data or experiments
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(STATE)/*' -prune -exec rm -rf {} +
	rm -rf "$(STATE)/tmp"

$(STAMP): pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then \
		echo "error: Python 3.11 or newer is needed; install it, or name it: make PYTHON=/path/to/python3" >&2; \
		exit 1; fi
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: $(PYTHON) is not Python 3.11 or newer; name another: make PYTHON=/path/to/python3" >&2; \
		exit 1; }
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "error: no virtual environment can be made; on Debian and Ubuntu: apt install python3-venv" >&2; \
		exit 1; }
	@echo "Installing the pinned dependencies into $(VENV): about 2 GB, some minutes the first time …"
	@# Python's own pip may be old, and resolve for a minute longer.
	@$(PIP_INSTALL) --upgrade pip
	@# kserve 0.21 declares Python below 3.14; it runs on 3.14 nevertheless, as its tests here show.
	@if $(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 14))'; then \
		export PIP_IGNORE_REQUIRES_PYTHON=1; fi; \
	$(PIP_INSTALL) --no-compile -e '.[platform,dev]'
	@# pip compiles on one core. What cannot be compiled, such as a library's broken example, pip passes over too.
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib >/dev/null 2>&1 || true
	@printf '#!/bin/sh\nexec "$$(dirname "$$0")/python" -P -m cli.main "$$@"\n' > $(BIN)/fovea
	@chmod +x $(BIN)/fovea
	@touch $(STAMP)
	@echo "Installed. The command is $(BIN)/fovea"
