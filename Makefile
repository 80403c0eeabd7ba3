# make demo: set up, then the main job on built-in data.  make test: set up, then the tests.  make docs: the site.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Compiled when imported: most of the 20,000 modules never are.
INSTALL := $(BIN)/python -m pip install --quiet --no-compile -c constraints.txt
TORCH := $(VENV)/.torch
READY := $(VENV)/.ready
TOOLS := $(VENV)/.tools

.PHONY: demo test tools check docs bench clean

demo: $(READY)
	rm -rf demo
	$(BIN)/salmask demo --out demo

test: $(TOOLS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) docs

# The documentation as a site, site/index.html; warnings are errors.
docs: $(TOOLS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(TOOLS)
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

tools: $(TOOLS)

# torch comes first and pinned: an unpinned one may download another build with gigabytes beside it.
$(TORCH): constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(INSTALL) torch torchvision
	touch $(TORCH)

$(READY): $(TORCH) pyproject.toml
	$(INSTALL) -e '.[captum,imagenet,serve]'
	touch $(READY)

# What tests, checks, documentation and benchmarks need: the library, with what the demo needs, and their own.
$(TOOLS): $(TORCH) pyproject.toml requirements-peers.txt
	$(INSTALL) -e '.[dev,captum,imagenet,serve]'
	$(INSTALL) --no-deps -r requirements-peers.txt
	touch $(READY) $(TOOLS)

clean:
	rm -rf $(VENV) demo runs site
