# Python 3.11 to 3.13, pip, make and git are all that is taken as given.
#   make PYTHON=python3.12 ...   another interpreter
#   make PIP_FLAGS="..." ...     further options for pip, such as a mirror or a package folder
#   make TRAIN_FLAGS="..." train further flags for the training run
#   make TEST_FLAGS="..." test   further flags for pytest, such as -k gae
#   make TEST_JOBS=4 test        test processes side by side

PYTHON ?= python3
PIP_FLAGS ?= $(if $(CI),--quiet)
TRAIN_FLAGS ?=
TEST_FLAGS ?=
TEST_JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
# Versions are always constrained: an unconstrained torch may bring gigabytes of another build.
PIP_INSTALL := $(BIN)/python -m pip --disable-pip-version-check install -c constraints.txt
# One torch thread a test: the processes share the cores, and results do not depend on their number.
PYTEST = OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_JOBS)

MADE := $(VENV)/.stamp-made
CORE := $(VENV)/.stamp-core
DEV := $(VENV)/.stamp-dev

unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help train setup setup-dev test test-all docs figures lint format types clean distclean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

train: $(CORE) ## set up, then train PPO on CartPole-v1 until 100 episodes average 475
	$(BIN)/upslope train CartPole-v1 --stop-return 475 --total-timesteps 200000 $(TRAIN_FLAGS)

test: lint types ## set up, then lint, types and the quick tests
	$(PYTEST) $(TEST_FLAGS)

test-all: lint types ## the same with the long statistical, crash and fuzz suites
	$(PYTEST) -m "slow or not slow" $(TEST_FLAGS)

docs: $(DEV) ## the documentation as a site that needs no network, in site/index.html
	OMP_NUM_THREADS=1 NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "site/index.html"

figures: $(DEV) ## the figures of the theory pages, each by the command that its page names
	for script in docs/figures/[0-9]*.py; do \
	  echo "$$script"; OMP_NUM_THREADS=1 $(BIN)/python $$script || exit 1; done

lint: $(DEV) ## ruff: rules and formatting, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(DEV) ## ruff: repair what can be repaired
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(DEV) ## mypy, strict, on src
	$(BIN)/mypy

setup: $(CORE) ## the virtual environment with what training needs

setup-dev: $(DEV) ## the virtual environment with what development needs

clean: ## remove caches and build products; runs/ is never touched
	rm -rf build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis src/*.egg-info
	find src tests $(wildcard examples bench docs) -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## the same, and the virtual environment
	rm -rf $(VENV)

# A stamp is written last, so an interrupted set-up is taken up again by the next call.
$(MADE):
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "Python was not found as '$(PYTHON)': name it, as in make PYTHON=python3.12 train." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else \
	  "Upslope needs Python 3.11, 3.12 or 3.13, but $(PYTHON) is %d.%d: name another, as in make PYTHON=python3.12 train." % v)'
	"$(PYTHON)" -m venv $(VENV)
	@touch $@

# setuptools comes first and builds upslope itself, so that the build is constrained too.
$(CORE): $(MADE) pyproject.toml constraints.txt
	$(PIP_INSTALL) $(PIP_FLAGS) setuptools torch
	$(PIP_INSTALL) $(PIP_FLAGS) --no-build-isolation -e .
	@touch $@

$(DEV): $(CORE)
	$(PIP_INSTALL) $(PIP_FLAGS) --no-build-isolation -e '.[dev]'
	# Its settings files, which tests read; its own dependencies are not needed for that.
	$(PIP_INSTALL) $(PIP_FLAGS) --no-deps rl_zoo3
	@touch $@
