# Every target sets itself up from python3 and make alone; a second call finds its stamps and starts at once.
#   make setup | azurite | demo | shop | test | lint | format | bench | soak | build | lock | clean
#   ARGS goes on to the tool:  make test ARGS="tests/unit -x"    make bench ARGS="--rows 1000000"

PYTHON ?= python3
UV_VERSION := 0.13.9
UV := .tools/bin/uv
BIN := .venv/bin
ARGS ?=

.PHONY: setup azurite demo shop test lint format bench soak build lock clean
.DEFAULT_GOAL := setup

setup: .venv/.ready

# uv lives in a folder of its own, so that nothing is needed on the machine but Python.
.tools/.uv-$(UV_VERSION):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}. Name another one: make PYTHON=python3.12")'
	$(PYTHON) -m venv --clear .tools
	.tools/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@touch $@

# Exactly what the lock says, by hash; then Sereno itself, editable, by the build backend that the lock brought.
.venv/.ready: .tools/.uv-$(UV_VERSION) requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(UV) venv --quiet --python .tools/bin/python .venv
	$(UV) pip sync --quiet --python $(BIN)/python --require-hashes --compile-bytecode requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

# Azure's emulator, for the tests: as npm's lock has it, by hash. Without it they are skipped, or fail with CI=1.
azurite: .azurite/node_modules/.package-lock.json

.azurite/node_modules/.package-lock.json: tests/azurite/package.json tests/azurite/package-lock.json
	@mkdir -p .azurite
	@cp $^ .azurite
	npm ci --prefix .azurite --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

demo: setup
	$(BIN)/python -m examples.credit_scoring.demo $(ARGS)
	$(BIN)/python -m examples.recommender.demo

# The recommender's shop, to browse in: prints its address, and goes on until Ctrl-C.
shop: setup
	$(BIN)/python -m examples.recommender.demo --keep $(ARGS)

# Whole, it is three at once, each a third of the time, as tests that start processes wait for them half of it. Those processes
# are some thousand: where Python may write no bytecode, each would compile Sereno anew, a fifth of what it costs.
FIRST := tests/acceptance/test_[a-f]*.py tests/parity
SECOND := tests/acceptance/test_[g-z]*.py tests/unit
THIRD := tests/acceptance/cluster tests/acceptance/cloud tests/contract

test: setup
	@$(BIN)/python -m compileall -q src
ifeq ($(strip $(ARGS)),)
	@said=$$(mktemp -d); \
	$(BIN)/python -m pytest -p no:cacheprovider $(SECOND) > $$said/second 2>&1 & second=$$!; \
	$(BIN)/python -m pytest -p no:cacheprovider $(THIRD) > $$said/third 2>&1 & third=$$!; \
	trap 'kill $$second $$third; exit 130' INT TERM; \
	$(BIN)/python -m pytest $(FIRST); failed=$$?; \
	wait $$second || failed=1; wait $$third || failed=1; \
	cat $$said/second $$said/third; rm -rf $$said; exit $$failed
else
	$(BIN)/python -m pytest $(ARGS)
endif

# The long campaigns, which `make test` leaves out.
soak: setup
	$(BIN)/python -m pytest -m soak --timeout 0 $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python -m benchmarks $(ARGS)

# The wheel, in dist/.
build: setup
	rm -rf dist
	$(UV) build --wheel --no-build-isolation --python $(BIN)/python --out-dir dist .

# After a change of dependencies in pyproject.toml. ARGS=--upgrade takes newer versions.
lock: .tools/.uv-$(UV_VERSION)
	$(UV) lock $(ARGS)
	{ echo '# Every package of .venv, by hash. Made by `make lock`; edit pyproject.toml instead.'; \
	  $(UV) export --quiet --locked --no-header --no-emit-project --all-extras --format requirements-txt; } > requirements.lock.new
	mv requirements.lock.new requirements.lock

clean:
	rm -rf .venv .tools dist build
