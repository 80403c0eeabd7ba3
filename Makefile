# make demo: set up, then the main job on built-in data.  make test: set up, then the tests.  make docs: the site.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TOOLS := $(VENV)/.tools

.PHONY: demo test check docs bench clean

demo: $(READY)
	rm -rf demo
	$(BIN)/salmask demo --out demo

test: $(TOOLS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

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

# torch comes first and pinned: an unpinned one may download another build with gigabytes beside it.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch torchvision
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[captum,imagenet,serve]'
	touch $(READY)

# What tests, checks, documentation and benchmarks need beside the library.
$(TOOLS): $(READY) requirements-peers.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,captum,imagenet]'
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-peers.txt
	touch $(TOOLS)

clean:
	rm -rf $(VENV) demo runs site
