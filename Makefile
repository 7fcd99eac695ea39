# make demo    train and evaluate a small QKFormer on scikit-learn's digits, on the CPU
# make check   lint and the tests that are not slow: for every edit
# make test    lint and the whole test suite
# make test-oldest    the suite with the lowest versions that pyproject.toml allows, in .venv-oldest
# make docs    the manual, in build/docs; a warning is an error
# make dist    wheel and source distribution, in dist
# All create .venv on first use; PYTHON=/path/to/python3.x chooses the interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
CONSTRAINTS := constraints.txt
DEMO := runs/demo_digits

.PHONY: demo check test test-oldest suite docs lint format dist clean

demo: $(INSTALLED)
	$(BIN)/python cifar10/train.py --config configs/demo_digits.yml --output $(DEMO) --resume auto
	$(BIN)/python cifar10/test.py --config configs/demo_digits.yml \
		--checkpoint $(DEMO)/last.pth --output $(DEMO)

# Two processes of one thread each use two cores better than one process of two.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

check: lint
	$(PYTEST) -m "not slow"

test: lint suite

test-oldest:
	$(MAKE) suite VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt

suite: $(INSTALLED)
	$(PYTEST)

docs: $(INSTALLED)
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs build/docs

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

dist: $(INSTALLED)
	rm -rf dist
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) .venv-oldest build dist *.egg-info .pytest_cache .ruff_cache

$(INSTALLED): setup.py pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "qkformer needs Python >= 3.11; say make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[demo,test,dev]'
	@touch $@
