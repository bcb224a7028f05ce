.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := benchmarks cmcl service workers tests examples deploy
# Two processes: one runs the tests that need Ray, which take about half of the time.
# It prints the seconds of each folder and of the slowest tests.
PYTEST ?= $(BIN)/python -m pytest --numprocesses 2 --dist loadscope --no-loadscope-reorder --durations=40 --durations-min=2

.PHONY: help setup demo test test-fast check format bench bench-serving images docs docs-site pictures storyboard up lock clean

help:  ## show this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  \1\t\2/p' $(MAKEFILE_LIST)

setup: $(STAMP)  ## install everything into .venv, or into VENV=folder (quick when nothing changed)

# With the time of day: on a busy machine a phase takes minutes.
PHASE = @echo "$$(date +%H:%M:%S)  set-up:"
# uv names each large package when its download begins and ends; the list of what was installed is left out.
NAMED = 2>&1 | grep --line-buffered -v "^ [+~-] "
# Some thirty processes of a stack import Ray at once. All else is compiled when it is first imported.
RAY = $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/ray
$(STAMP): requirements.lock pyproject.toml
	$(PHASE) Python and uv in $(VENV)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade uv
	$(PHASE) "packages (8 GB; the first time they are downloaded)"
	@bash -o pipefail -c '$(BIN)/uv pip sync --python $(BIN)/python --require-hashes requirements.lock $(NAMED)'
	@$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps --editable .
	$(PHASE) bytecode of Ray
	@$(BIN)/python -m compileall -q -j 0 $(RAY)
	$(PHASE) done
	@touch $(STAMP)

demo: setup  ## run the whole system on a small real stream and print what it learned and kept
	$(BIN)/cmcl demo

up: setup  ## run the whole system on this machine until Ctrl-C
	$(BIN)/cmcl up

test: setup  ## run all tests
	$(PYTEST)

# What depends on the Python version: warnings (errors in the test suite), typing, the standard library. Modules meet
# these, and not one case of a test more than another. Without Ray, and without other people's packages.
FAST := tests/unit tests/database tests/api tests/chart/monitoring
test-fast: setup  ## run some tests of each module, for another Python: make test-fast PYTHON=python3.13 VENV=.cmcl/python3.13
	$(PYTEST) -m 'not ray' --of-each-file 3 $(FAST)

check: setup  ## format, lint, types, import contracts, spelling
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

format: setup  ## format the code and apply automatic fixes
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

bench: setup  ## run the benchmarks on the example stream, results in .cmcl/benchmarks
	$(BIN)/python -m benchmarks.stream examples/stream --name example --seeds 3

INFINITY := .cmcl/bench-infinity
bench-serving: setup  ## measure serving: compared with bare FastAPI and Infinity, during swaps
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(INFINITY)
	$(BIN)/uv pip sync --python $(INFINITY)/bin/python --quiet --require-hashes benchmarks/infinity.lock
	$(BIN)/python -m benchmarks.serving
	$(BIN)/python -m benchmarks.serving_swaps

images: setup  ## build both images with buildah and test them as their user (needs root)
	$(BIN)/python -m deploy.images

docs: setup  ## generate the settings table, both OpenAPI documents, the chart's README and the synchronous client
	$(BIN)/python -m tests.architecture.generated

DOCS_SITE := .cmcl/docs-site
docs-site: setup  ## build the documentation as a site that works offline, in .cmcl/site; a broken link is an error
	test -x $(DOCS_SITE)/bin/python || $(BIN)/uv venv --quiet --python $(BIN)/python $(DOCS_SITE)
	$(BIN)/uv pip sync --python $(DOCS_SITE)/bin/python --quiet --require-hashes docs/requirements.lock
	NO_MKDOCS_2_WARNING=1 $(DOCS_SITE)/bin/mkdocs build --quiet --strict

pictures: setup  ## take the documentation's pictures of the page, MLflow and the site, with Chromium
	$(BIN)/python -m tests.browser.pictures

storyboard: setup  ## run the demo, and take pictures of the page while it runs, with Chromium
	$(BIN)/python -m tests.browser.storyboard

# All locks come from one resolution, in a separate folder: uv.lock contains index URLs and is not committed.
LOCK := cd $(CURDIR)/.cmcl/lock && $(CURDIR)/$(BIN)/uv export --quiet --no-header --no-emit-project --format requirements.txt
WORKER := --no-dev --extra workers --extra encoders --extra tracing
# torch from the package index is built for CUDA and fails to import without most CUDA packages; these are not needed.
GPU_ONLY := triton cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cuda-cccl nvidia-cusolver nvidia-nvjitlink nvidia-nvtx
TOOLS := $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --python-version 3.11
CLIENT := anyio httpx httpx-sse pydantic pyyaml rich typer
# What the examples for other tools need, MLflow's server beside its small package, and the client's own.
TOOL_PACKAGES := alembic aiohttp flask flask-cors 'mlflow-skinny>=3' openlineage-python pandas sqlalchemy tensorboardX wandb mcp $(CLIENT)
lock: setup  ## regenerate all locks (hashes, no URLs)
	rm -rf .cmcl/lock && mkdir -p .cmcl/lock && cp pyproject.toml README.md LICENSE .cmcl/lock
	$(LOCK) --all-extras --all-groups --output-file $(CURDIR)/requirements.lock >/dev/null
	$(LOCK) --no-dev --extra service --extra tracing --output-file $(CURDIR)/deploy/requirements/service.lock >/dev/null
	$(LOCK) $(WORKER) --output-file $(CURDIR)/deploy/requirements/worker.lock >/dev/null
	$(LOCK) $(WORKER) $(GPU_ONLY:%=--no-emit-package %) --output-file $(CURDIR)/deploy/requirements/worker-cpu.lock >/dev/null
	echo 'hatchling>=1.27' | $(TOOLS) --output-file deploy/requirements/build.lock -
	printf '%s\n' $(TOOL_PACKAGES) | $(TOOLS) --output-file tests/tools/requirements.lock -
	printf '%s\n' 'dagster>=1.10' 'prefect>=3.4' $(CLIENT) | $(TOOLS) --output-file tests/recipes/requirements.lock -
	echo 'mkdocs-material>=9.6' | $(TOOLS) --output-file docs/requirements.lock -
	$(TOOLS) --output-file tests/clients/requirements.lock tests/clients/requirements.in
	echo 'cyclonedx-bom>=7' | $(TOOLS) --output-file deploy/requirements/sbom.lock -

clean:  ## remove build results and all local state
	rm -rf .venv .cmcl .pytest_cache .mypy_cache .ruff_cache .hypothesis
