# make train    sets up .venv and runs the main job: sequence reversal
# make test     sets up .venv and runs the tests, in two processes
# make check    lint, format and types
# make test-slow  the long checks as well
# make test-common TRANSFORMERS_SRC=FOLDER  transformers' own tests of models, from its source tree
# make coverage   the tests, and which lines they leave out (what they start as own processes is not counted)

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: train test test-slow test-common coverage check format clean

train: $(READY)
	$(BIN)/accelerate launch scripts/train.py configs/reversal.yaml

test: $(READY)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-slow: $(READY)
	$(BIN)/python -m pytest -m "not common"

test-common: $(READY)
	RUN_SLOW=1 $(BIN)/python -m pytest -m common tests/common

coverage: $(READY)
	$(BIN)/python -m pytest --cov --cov-report=term

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info < (3, 14), "Python 3.11 to 3.13 is needed, not " + sys.version'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,export,inspect,serve]'
	touch $(READY)

clean:
	rm -rf .venv build *.egg-info
