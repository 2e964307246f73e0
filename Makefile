.DEFAULT_GOAL := help
SHELL := /bin/bash
BIN := .venv/bin
C_SOURCES := $(shell git ls-files '*.c' '*.h' 2>/dev/null)
SHELL_SOURCES := packaging/setup.sh .ci/run tests/support/host.sh

.PHONY: help setup demo test test-unit test-kernel test-cluster lint format bench wheel clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: ## install Debian and Python packages, build everything (needs root where packages are missing)
	@packaging/setup.sh

demo: setup ## run a three-node cluster with an application and prove what it is for (needs root)
	@$(BIN)/kernelet preflight
	@$(BIN)/kernelet demo

test: setup ## run all tests (kernel and cluster tests need root)
	@$(BIN)/kernelet preflight || true
	$(BIN)/pytest tests

test-unit: setup ## run the tests that need no root
	$(BIN)/pytest tests/unit

test-kernel: setup ## run the tests in network namespaces of their own
	$(BIN)/pytest tests/kernel

test-cluster: setup ## run the tests of whole clusters
	$(BIN)/pytest tests/cluster

lint: setup ## check style, types, import contracts, C and shell sources
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=build/tree $(BIN)/mypy $(addprefix build/tree/kernelet/,core dataplane ext agents)
	PYTHONPATH=build/tree $(BIN)/lint-imports
	$(if $(C_SOURCES),clang-format --dry-run -Werror $(C_SOURCES))
	shellcheck $(SHELL_SOURCES)

format: ## rewrite sources in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(if $(C_SOURCES),clang-format -i $(C_SOURCES))

bench: setup ## run the benchmarks (needs root)
	@for name in start proxy scale; do $(BIN)/kernelet bench $$name || exit; done

wheel: setup ## build a wheel into dist/
	$(BIN)/python -m pip wheel -q --no-deps --no-build-isolation -w dist .

clean: ## remove everything that was built
	rm -rf build dist .venv *.egg-info
	find core dataplane ext agents proto \( -name '*.so' -o -name '*_pb2*' -o -name '*.bpf.o' -o -name __pycache__ \) -prune -exec rm -rf {} +
	rm -f ext/nft/*.c ext/netns/_netns.c
