# Every target does all the set-up that it needs; a second run installs nothing.
#   make demo      train and evaluate a small PIIP Mask R-CNN on bundled data
#   make test      run the tests            (PYTEST_ARGS="-k name" to choose, TEST_PROCESSES=1 for one at a time)
#   make slurm     install Slurm's packages; make test-slurm then runs the tests that start a Slurm, and only those
#   make lint      check style and format   (make format: put them right)
#   make env       only the set-up: a virtual environment, the tested versions, Detectron2, this project
# PYTHON is the interpreter that the environment is made from, VENV its folder (an existing one is used as it is,
# and gets the versions of constraints.txt). pip keeps its own settings: index, cache, proxies.

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
TEST_PROCESSES ?= 2

BIN := $(VENV)/bin
STAMP := $(VENV)/.piip-is-installed
DEMO_CONFIG := configs/quickstart/mask_rcnn_piip_digits.py

.PHONY: env demo test test-slurm slurm lint format clean

demo: $(STAMP)
	$(BIN)/python tools/lazyconfig_train_net.py --config-file $(DEMO_CONFIG)

test: $(STAMP)
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadgroup $(PYTEST_ARGS)

test-slurm: $(STAMP) slurm
	$(BIN)/python -m pytest -m slurm tests/slurm $(PYTEST_ARGS)

# System packages, so it takes root or sudo; without them `make test` skips what needs them.
slurm:
	@tests/slurm/install.sh

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

env: $(STAMP)

# The stamp is written last, so an interrupted set-up is taken up again by the next run.
$(STAMP): constraints.txt setup.cfg pyproject.toml tools/install_detectron2.py
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "error: $(PYTHON) is missing or older than Python 3.10; name a newer one: make PYTHON=python3.12" >&2; \
	    exit 1; }; \
	  echo "$(PYTHON) -m venv $(VENV)"; $(PYTHON) -m venv "$(VENV)"; }
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "error: the environment $(VENV) has a Python older than 3.10; remove it or choose another with VENV=" >&2; \
	  exit 1; }
	$(BIN)/python -m pip install -c constraints.txt setuptools wheel
	$(BIN)/python -m pip install -c constraints.txt --no-build-isolation -e ".[demo,dev,export,slurm]"
	PIP_CONSTRAINT=constraints.txt $(BIN)/python tools/install_detectron2.py
	$(BIN)/python -m piip.env
	@touch $@

clean:
	rm -rf build dist wheels projects/*.egg-info .pytest_cache .ruff_cache
	find projects configs tools tests -name __pycache__ -type d -prune -exec rm -rf {} +
