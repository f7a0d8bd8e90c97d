# `make demo` and `make test` set everything up by themselves; `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: help demo test test-all browser lint coverage security docs package format sprites train
.PHONY: second-world trunk evaluate clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 16

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed ## install, and explain the neurons of the embedded CLIP
	$(BIN)/secondlens demo

test: $(VENV)/.installed-dev browser lint docs ## install, and pass all checks and tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

test-all: $(VENV)/.installed-dev browser lint docs ## the same with what takes long, and many more random examples
	OMP_NUM_THREADS=1 TEST_TIMES=20 $(BIN)/pytest -n 2 -m 'long or not long'

browser: ## find the browser that the browser tests drive, or install it
	@for name in chromium chromium-browser google-chrome google-chrome-stable; do \
		command -v $$name > /dev/null && exit; \
	done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		apt-get update -qq && apt-get install -y -qq chromium > /dev/null; \
	else \
		echo 'The browser tests need Chromium: sudo apt-get install chromium, or get Chrome.'; exit 1; \
	fi

lint: $(VENV)/.installed-dev ## style, types, layers and declared dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/deptry src

coverage: $(VENV)/.installed-dev browser ## lines that the tests run, those of processes they start too
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --cov --cov-report=term-missing:skip-covered

security: $(VENV)/.installed-dev ## known faults of the installed dependencies; asks the network
	$(BIN)/pip install --quiet pip-audit
	$(BIN)/pip-audit --local

docs: $(VENV)/.installed-dev ## build the documentation; a warning is an error
	$(BIN)/python -m sphinx -q -W --keep-going -d docs/_build/doctrees docs docs/_build/html

package: $(VENV)/.installed-dev ## build sdist and wheel, and run the demo from the wheel
	$(BIN)/python -m build --no-isolation
	$(BIN)/pytest tests/test_package.py -m 'long or not long'

format: $(VENV)/.installed-dev ## rewrite the code in the common style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

sprites: $(VENV)/.installed ## cut the sprites of the embedded world out of their sources
	$(BIN)/pip install --quiet --editable '.[training]'
	npm install --prefix training --no-audit --no-fund
	$(BIN)/python training/sprites.py

second-world: $(VENV)/.installed ## cut the sprites and letters of the second world out of theirs
	$(BIN)/pip install --quiet --editable '.[training]'
	npm install --prefix training --no-audit --no-fund
	$(BIN)/python training/artwork.py
	$(BIN)/python training/alphabet.py

trunk: $(VENV)/.installed ## train the CLIP of the second world for two hours; again to go on
	OMP_NUM_THREADS=1 $(BIN)/python training/contrastive.py runs/trunk --pictures 4000000 --decay 0

TRAIN = $(BIN)/torchrun --nproc-per-node 2 training/train.py
TRUNK ?= 260000
TOTAL ?= 310000

train: $(VENV)/.installed ## train the embedded CLIP and its twin (hours; restartable)
	$(TRAIN) runs/trunk --twin --pictures $(TRUNK) --decay 0 --whole 0
	$(TRAIN) runs/demo --trunk runs/trunk/steady.pt --pictures $(TOTAL)
	$(TRAIN) runs/twin --trunk runs/trunk/steady.pt --pictures $(TOTAL) --twin
	$(BIN)/python training/export.py runs/demo src/secondlens/demo/data/demo.safetensors
	$(BIN)/python training/export.py runs/twin src/secondlens/demo/data/demo-twin.safetensors

evaluate: $(VENV)/.installed ## accuracies of the embedded models, as the model cards quote them
	$(BIN)/python training/evaluate.py

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis secondlens-demo
