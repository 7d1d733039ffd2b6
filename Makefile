# `make demo` and `make test` set everything up automatically; `make setup` does only that.
# Variables: TASK=transfer_cube|insertion, QUICK=1, SEED=0, PYTHON=python3

PYTHON ?= python3
TASK ?= transfer_cube
SEED ?= 0
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo proof test test-quick test-long test-lowest test-gpu lint typecheck bench docs clean

setup: $(READY)

# Updated when the requirements change. The marker is written last, so a failed setup is repeated.
$(READY): pyproject.toml packages/bimact-client/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "bimact needs Python 3.10 or newer; set PYTHON=/path/to/python3"; exit 1; }
	@echo "Setting up .venv: some minutes, and several GB for PyTorch with CUDA"
	@$(PYTHON) -m venv .venv
	@# PyTorch 2.11 and later use CUDA 13, which needs NVIDIA driver 580 or newer.
	@driver=$$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2> /dev/null | head -n 1 | cut -d . -f 1); \
		if [ "$${driver:-580}" -lt 580 ] 2> /dev/null; then \
			$(BIN)/python -m pip install --quiet --disable-pip-version-check 'torch>=2.8,<2.11' torchvision; \
		fi
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[export,serve,sim,sweep,rerun,docs,dev]' \
		--editable packages/bimact-client
	@$(BIN)/python scripts/setup_opengl.py
	@touch $@

demo: $(READY)
	@$(BIN)/bimact demo --task $(TASK) --seed $(SEED) $(if $(QUICK),--quick)

# Hours: trains the recipes with five seeds each, and writes docs/results.md. It prints its cost first, and resumes.
proof: $(READY)
	@$(BIN)/bimact proof --page docs/results.md $(if $(QUICK),--quick --page runs/proof-quick/results.md)

test: lint typecheck
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

# For the inner loop: no slow tests, one case of each.
test-quick: lint
	BIMACT_TESTS=quick $(BIN)/python -m pytest -q -m "not slow and not gl" -n logical --maxprocesses 8 --dist loadfile

# Campaigns: thousands of damaged files, kills at each step of writing, a hundred demonstrations.
test-long: lint typecheck
	BIMACT_TESTS=long $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

# The quick tests with the lowest versions of all direct dependencies, in an environment of their own; needs uv.
test-lowest:
	uv venv --clear --python 3.11 build/lowest
	uv pip install --python build/lowest --resolution lowest-direct --torch-backend cpu \
		--editable '.[export,serve,sim,sweep,rerun,dev]' --editable packages/bimact-client
	build/lowest/bin/python -m pytest -q -m "not slow" -n logical --maxprocesses 8 --dist loadfile

# What only a CUDA GPU can show: under 8 minutes.
test-gpu: $(READY)
	$(BIN)/python -m pytest -m gpu -q tests/gpu

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(READY)
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python benchmarks/run.py

# The documentation site, with search, without a network. Pictures: docs/make_images.py.
docs: $(READY)
	$(BIN)/python -m sphinx -q -W --keep-going -j auto -c docs -d build/doctrees . build/site
	@echo "Open build/site/index.html"

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
