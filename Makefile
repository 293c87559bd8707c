# The only requirements are Python 3.11 or newer and make. `make help` lists the commands.

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
STATE ?= .fovea
PORT ?= 8080

# Otherwise every process, including pytest's workers, would compile the project's modules again.
unexport PYTHONDONTWRITEBYTECODE

# To use another interpreter: make run PYTHON=python3.12
PYTHON ?= $(shell for name in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)

# pip's configuration determines the package indexes. To add one, such as that of torch without CUDA:
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

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## create the virtual environment with the pinned dependencies

run: $(STAMP) ## run the whole pipeline on this machine, from pictures to a verified endpoint
	@$(BIN)/fovea run --state "$(STATE)" $(ARGS)

test: lint unit ## run lint and all tests

lint: $(STAMP) ## check style, types, import layers and wording
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/prose.py

# One worker more than a small machine's cores: tests wait for servers and a cluster.
unit: $(STAMP) ## run the tests without lint
	$(BIN)/python -m pytest -n 3 --dist worksteal

prove: $(STAMP) ## run the slow tests, and the property tests on new examples
	HYPOTHESIS_PROFILE=drawn-anew $(BIN)/python -m pytest -m "prove or hypothesis"

benchmark: $(STAMP) ## compare the model's speed and memory with a plain twin, on the CPU
	$(BIN)/python -m benchmarks.model compare

benchmark-gpu: $(STAMP) ## measure the published size in bfloat16 on a GPU: speed, memory, utilisation
	$(BIN)/python -m benchmarks.model throughput --device cuda --size published --dtype bfloat16
	$(BIN)/python -m benchmarks.train --device cuda --size published --dtype bfloat16 --pictures 8 --steps 10 \
		--crops 1 --crops 4 --crops 16
	$(BIN)/python -m benchmarks.model compare --device cuda --size published --dtype bfloat16
	$(BIN)/python -m benchmarks.serving compare --device cuda --size published --dtype bfloat16

serve: $(STAMP) ## start the service of the last run, on port 8080 (PORT=…)
	@$(BIN)/fovea serve --state "$(STATE)" --port $(PORT)

doctor: $(STAMP) ## check the environment and say how to fix what is missing
	@$(BIN)/fovea doctor --state "$(STATE)"

compile: $(STAMP) ## write pipelines/finetune.yaml, after a change to the graph or a component's interface
	$(BIN)/fovea compile --out pipelines/finetune.yaml

settings: $(STAMP) ## write docs/settings.md, after a change to a setting
	$(BIN)/python -P -m pipelines.publish > .settings.part && mv .settings.part docs/settings.md

openapi: $(STAMP) ## write docs/openapi.json, after a change to the server's schemas or routes
	$(BIN)/python -P -m serving.publish > .openapi.part && mv .openapi.part docs/openapi.json

sample-model: $(STAMP) ## train the shipped sample model again from its recipe
	$(BIN)/python -P -m sample.training sample/weights

image: ## build the container image with docker, podman or buildah; TARGET=cpu omits CUDA
	@[ -n "$(BUILDER)" ] || { \
		echo "error: install docker, podman or buildah, and make sure that it runs" >&2; exit 1; }
	$(BUILDER) build --target $(TARGET) --tag $(IMAGE):$(TARGET) \
		--build-arg VERSION="$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' fovea/__init__.py)" \
		--build-arg REVISION="$$(git rev-parse HEAD 2>/dev/null || echo unknown)" $(IMAGE_FLAGS) .

constraints: $(STAMP) ## write constraints.txt from the installed packages and build tools
	$(BIN)/python -m pip install -q -c constraints.txt hatchling editables
	{ echo "# The versions that are installed and tested together; make constraints writes this file."; \
		$(BIN)/python -m pip freeze --all --exclude-editable | sed 's/+[a-z0-9.]*$$//'; \
	} > .constraints.part && mv .constraints.part constraints.txt

clean: ## remove the virtual environment and caches, but no models, data or experiments
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(STATE)/*' -prune -exec rm -rf {} +
	rm -rf "$(STATE)/tmp"

$(STAMP): pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then \
		echo "error: Python 3.11 or newer is required; install it, or set its path: make PYTHON=/path/to/python3" >&2; \
		exit 1; fi
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: $(PYTHON) is not Python 3.11 or newer; set another path: make PYTHON=/path/to/python3" >&2; \
		exit 1; }
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "error: cannot create a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; \
		exit 1; }
	@echo "Installing the pinned dependencies into $(VENV): about 2 GB, some minutes the first time …"
	@# The pip that comes with Python may be old, and take a minute longer to resolve.
	@$(PIP_INSTALL) --upgrade pip
	@# kserve 0.21 declares Python below 3.14, but the tests here pass with it on 3.14.
	@if $(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 14))'; then \
		export PIP_IGNORE_REQUIRES_PYTHON=1; fi; \
	$(PIP_INSTALL) --no-compile -e '.[platform,dev]'
	@# pip compiles on one core. Like pip, ignore files that cannot be compiled, such as a library's broken example.
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib >/dev/null 2>&1 || true
	@printf '#!/bin/sh\nexec "$$(dirname "$$0")/python" -P -m cli.main "$$@"\n' > $(BIN)/fovea
	@chmod +x $(BIN)/fovea
	@touch $(STAMP)
	@echo "Installed. The command is $(BIN)/fovea"
