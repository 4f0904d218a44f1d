# Every target does its own set-up: a virtual environment in $(VENV), filled by plain pip.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= conemos_demo
ATTACK ?= build/attack
GPU ?= build/gpu

BIN := $(VENV)/bin
PACKAGE := $(VENV)/.package-installed
TESTS := $(VENV)/.tests-installed
CODE := pyproject.toml nnunetv2_conemos/__init__.py
# Tests train tiny networks: more threads and processes than that only wait for each other.
WORKERS ?= 2
SMALL := PATH="$(abspath $(BIN)):$$PATH" OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE nnUNet_def_n_proc=2 nnUNet_n_proc_DA=1

.PHONY: help demo test slow attack gpu lint docs wheel clean
.DELETE_ON_ERROR:

help:
	@echo "make demo    the whole chain on generated data, about 13 minutes on two cores; results in $(DEMO)/"
	@echo "make test    format, lint, types, the site, and the tests"
	@echo "make slow    whole chains and more seeds, and make attack"
	@echo "make attack  fuzzed inputs, faults, two commands at once, cut files, resumed training, a soak; about an hour"
	@echo "make gpu     on a CUDA device, ten minutes: tests, speed, four trainings; results in $(GPU)/"
	@echo "make lint    format, lint, types and the links of the site only"
	@echo "make docs    the site in site/; a broken link is an error"
	@echo "make wheel   dist/*.whl"
	@echo "make clean   remove what was built; keeps $(VENV)/ and $(DEMO)/"
	@echo "Python is $(PYTHON) (PYTHON=...), the environment $(VENV) (VENV=...), tests run in $(WORKERS) processes (WORKERS=...)."

demo: $(PACKAGE)
	$(BIN)/conemos demo -o $(DEMO) --overwrite

test: lint
	$(SMALL) $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not slow and not gpu"

slow: $(TESTS)
	$(SMALL) $(BIN)/pytest -n $(WORKERS) --dist load -m "slow and not gpu"
	$(MAKE) attack

attack: $(TESTS)
	PYTHONPATH=tests:tests/helpers $(SMALL) $(BIN)/python -m attack all --workers $(WORKERS) -o $(ATTACK)

gpu: $(TESTS)
	PYTHONPATH=tests:tests/helpers $(BIN)/python -m gpu -o $(GPU)

lint: $(TESTS) docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(TESTS)
	@if [ -x $(BIN)/zensical ]; then $(BIN)/zensical build --strict --clean; \
	  else echo "make docs: no site, its generator needs Python 3.11 or newer"; fi

wheel: $(TESTS)
	$(BIN)/python -m build --wheel --no-isolation --outdir dist

clean:
	rm -rf build dist site .cache .pytest_cache .ruff_cache .hypothesis
	find nnunetv2_conemos trainers tests docs -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "Python 3.10 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV) || \
	  { $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install pip; }

$(PACKAGE): $(CODE) | $(BIN)/python
	$(BIN)/python -m pip install -e .
	touch $@

$(TESTS): $(CODE) | $(BIN)/python
	$(BIN)/python -m pip install -e ".[test]"
	touch $@ $(PACKAGE)
