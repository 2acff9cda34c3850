# Everything runs in .venv, which any target makes when it is missing or out of date.

PYTHON ?= python3
BIN := .venv/bin
PROTO_BIN := .venv-proto/bin
PROTOC = PATH="$(CURDIR)/$(PROTO_BIN):$$PATH" $(PROTO_BIN)/python -m grpc_tools.protoc --proto_path=.

# What every lock is compiled with: one file for Python 3.11 and later, hashes, no addresses. The locks are parts
# of one resolution with every extra, so that each extra can be added to a locked environment.
UPGRADE ?=
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --custom-compile-command "make lock" $(UPGRADE)

# TensorFlow Federated and tensorflow-privacy are published for Python 3.11 on x86-64 Linux only: they have an
# environment of their own, compiled for that platform, with some of their pins replaced. See docs/interop.md.
COMPILE_INTEROP := $(BIN)/uv pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_31 \
	--overrides requirements/interop-overrides.in --excludes requirements/interop-excludes.in --generate-hashes \
	--no-emit-index-url --custom-compile-command "make lock" $(UPGRADE)
INTEROP_BIN := .venv-interop/bin
IS_311 := -c 'import platform, sys; sys.exit(sys.version_info[:2] != (3, 11) or platform.machine() != "x86_64")'
INTEROP_PYTHON ?= $(shell for p in $(PYTHON) python3.11; do $$p $(IS_311) 2>/dev/null && echo $$p && break; done)

# Without the soak, which takes half an hour: python -m benchmarks.soak
BENCHMARKS := $(filter-out soak,$(notdir $(basename $(wildcard benchmarks/[!_]*.py))))

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow interop test-interop lint bench lock proto clean

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/.installed ## Run the demo: a federation from its first round to a served model
	$(BIN)/quorate demo

test: .venv/.frameworks ## Run the tests, without the slow ones
	$(BIN)/python -m pytest -n 2

test-slow: .venv/.frameworks ## Run the slow tests
	$(BIN)/python -m pytest -n 2 -m "slow and not interop and not drives_interop" || test $$? -eq 5  # 5: there are none

interop: .venv-interop/.installed ## Make the environment of TensorFlow Federated and tensorflow-privacy

# What they leave running is ended by tests/interop/conftest.py; without Python 3.11 there is nothing to run.
test-interop: .venv/.installed ## Run the tests that need that environment
ifeq ($(INTEROP_PYTHON),)
	@echo "skipped: TensorFlow Federated needs Python 3.11 on x86-64, and neither '$(PYTHON)' nor python3.11 is that"
else
	@$(MAKE) --no-print-directory .venv-interop/.installed
	$(INTEROP_BIN)/python -m pytest -p no:cacheprovider -m interop tests/interop </dev/null
	$(BIN)/python -m pytest -m drives_interop tests/interop </dev/null
endif

lint: .venv/.frameworks ## Check style, formatting, types and the import order
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: .venv/.installed ## Run the benchmarks; results go to benchmarks/results/
	@mkdir -p benchmarks/results
	@set -e; for name in $(BENCHMARKS); do \
		echo "== $$name"; \
		$(BIN)/python -m benchmarks.$$name --json benchmarks/results/$$name.json; \
	done

lock: .venv/.installed ## Compile requirements/*.txt anew (UPGRADE=--upgrade: to the newest versions)
	@cp requirements/dev.txt .venv/all-extras.txt
	$(COMPILE) pyproject.toml --extra all --extra dev -o .venv/all-extras.txt
	$(COMPILE) pyproject.toml -c .venv/all-extras.txt -o requirements/base.txt
	$(COMPILE) pyproject.toml -c .venv/all-extras.txt \
		--extra server --extra simulation --extra onnx --extra dev -o requirements/dev.txt
	$(COMPILE) pyproject.toml -c .venv/all-extras.txt \
		--extra server --extra simulation --extra onnx --extra dev --extra data --extra tracking --extra flower \
		--extra keras --extra jax --extra ray --extra postgres requirements/torch-needs.in \
		-o requirements/frameworks.txt
	$(COMPILE) requirements/proto.in -o requirements/proto.txt
	$(COMPILE_INTEROP) pyproject.toml --extra server requirements/interop.in -o requirements/interop.txt

proto: .venv-proto/.installed ## Generate quorate/wire/*_pb2* from the .proto files
	$(PROTOC) --python_out=. --mypy_out=. quorate/wire/*.proto
	@services=$$(grep -l '^service ' quorate/wire/*.proto) || exit 0; \
		set -x; $(PROTOC) --grpc_python_out=. --mypy_grpc_out=. $$services

clean: ## Remove the environments, caches and builds
	rm -rf .venv .venv-proto .venv-interop .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# $(call make-environment,FOLDER): make it anew, unless it is there and whole. A stamp marks a finished one; what has
# none was left half-made.
define make-environment
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Quorate needs Python 3.11 or newer, and '$(PYTHON)' is not;" \
			"name another one: make PYTHON=python3.12 ..." >&2; \
		exit 1; }
	@test -f $(1)/.installed && $(1)/bin/python -c '' || $(PYTHON) -m venv --clear $(1)
	@rm -f $(1)/.installed
endef

.venv/.installed: requirements/dev.txt pyproject.toml
	$(call make-environment,.venv)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

# What the adapters and the interoperation are for, on top: the demo needs none of it. PyTorch's builds differ from
# platform to platform under one version, so it is pinned without a hash, and without what only a GPU needs.
.venv/.frameworks: .venv/.installed requirements/frameworks.txt
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements/frameworks.txt
	$(BIN)/python -m pip install --quiet --no-deps torch==2.13.0
	@touch $@

# The compiler has an environment of its own: code it generates runs on its own major version of protobuf
# and the next one, so it must be the oldest version we support, while .venv has the newest.
.venv-proto/.installed: requirements/proto.txt
	$(call make-environment,.venv-proto)
	$(PROTO_BIN)/python -m pip install --quiet --require-hashes -r requirements/proto.txt
	@touch $@

# The list is whole, and holds versions that some of its packages say they do not want: nothing is resolved again.
.venv-interop/.installed: requirements/interop.txt pyproject.toml
	@test -n "$(INTEROP_PYTHON)" || { \
		echo "TensorFlow Federated needs Python 3.11 on x86-64, and neither '$(PYTHON)' nor python3.11 is that;" \
			"name another one: make interop INTEROP_PYTHON=/path/to/python3.11" >&2; \
		exit 1; }
	@test -f .venv-interop/.installed && $(INTEROP_BIN)/python -c '' || $(INTEROP_PYTHON) -m venv --clear .venv-interop
	@rm -f $@
	$(INTEROP_BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements/interop.txt
	$(INTEROP_BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@
