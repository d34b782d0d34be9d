# `make` alone lists what can be made. The order of things in a book:
#
#   .venv -> _build/executed/*.ipynb -> _build/checked -> _build/built (the site in _build/html)
#
# Beside it, out of the package's imports: _build/house/*.svg, which the site has in it.
#
# Each arrow is a file rule, so a second run does only what is out of date.

PYTHON ?= python3

# Chapters and tests find what another one has compiled. A folder of their own, which goes with the
# rest of _build.
export LMMBOOK_CACHE ?= $(CURDIR)/_build/cache

# One thread of linear algebra each: chapters and tests run side by side, and OpenBLAS's threads
# wait for each other in loops that take the core from the others (`exact.fit` 4 times slower).
export OPENBLAS_NUM_THREADS ?= 1

# Where the programs from PyPI are that `make bench` compares with (requirements-bench.txt).
RIVALS_PYTHON ?= $(VENV_PYTHON)

# So many chapters at a time, and files of tests. Pages say so beside their times.
ifndef JOBS
JOBS := $(or $(shell $(PYTHON) tools/jobs.py),1)
endif
BEGAN := $(shell date +%s)
PARALLEL = $(MAKE) --no-print-directory -j$(JOBS)
PYTEST = $(VENV_PYTHON) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --durations=10

# What a command takes on two cores, said before it begins; and what it took.
define announce
@echo 'From an empty clone, `make $@` takes about $(1) minutes on two cores; what is up to date is not done again.'
@test -e $(INSTALLED) || echo 'First it downloads 0.9 GB of packages, which are 3.2 GB in .venv.'
@echo 'At a time here: $(JOBS) (JOBS=1 behind it for one).'
endef
TOOK = @t=$$(($$(date +%s) - $(BEGAN))); echo "make $@ took $$((t / 60)) min $$((t % 60)) s."

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

VENV_PYTHON := .venv/bin/python
INSTALLED := .venv/.installed

# From the list of sources, never from what lies in _build/executed: an old file there is no chapter.
CHAPTERS := $(sort $(wildcard chapters/*.ipynb))
EXECUTED := $(patsubst chapters/%.ipynb,_build/executed/%.ipynb,$(CHAPTERS))

# All that a chapter's outputs depend on, besides the chapter itself: the package with its data.
PACKAGE := $(shell find lmmbook -type f -not -name '*.pyc' 2>/dev/null)
HOUSE := _build/house/lmmbook.svg _build/house/lmmbook.engine.svg
SITE_SOURCES := $(wildcard *.md references.bib _config.yml _toc.yml) \
	$(shell find _ext _static _vendor -type f -not -name '*.pyc' 2>/dev/null)

.PHONY: help setup book course test test-full test-colab bench bench-scale bench-gpu lint wheel \
	url clean distclean

help: ## list the targets
	@echo 'make TARGET, where TARGET is one of'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo 'PYTHON=python3.12 in front of it chooses the Python that .venv is made with.'

setup: $(INSTALLED) ## create .venv with the pinned packages and lmmbook itself

book: ## execute and check the chapters, build the book, say where to open it
	$(call announce,15 to 25)
	@$(PARALLEL) _build/built
	@echo
	@echo 'The book is built. Open _build/html/index.html'
	@echo '    file://$(CURDIR)/_build/html/index.html'
	$(TOOK)

course: $(INSTALLED) ## write the chapters without their solutions, for students, to _build/course
	$(VENV_PYTHON) tools/course_notebooks.py

test: ## check everything but the slow tests, statistical or in a browser
	$(call announce,45)
	@$(PARALLEL) lint _build/built
	$(PYTEST) -m 'not slow'
	$(TOOK)

test-full: ## check everything, slow tests too
	$(call announce,60 to 75)
	@$(PARALLEL) lint _build/built
	$(PYTEST) -m ''
	$(TOOK)

test-colab: wheel ## run every chapter as two Colab runtimes would (RUNTIME=2026.07 for one)
	$(VENV_PYTHON) tools/colab.py $(addprefix --runtime ,$(RUNTIME))

bench: $(INSTALLED) ## time the fit beside the tutorial and other tools; the book draws the result
	$(VENV_PYTHON) bench/run.py --out bench/results.json
	cp bench/results.json lmmbook/datasets/bench.json
	@# One at a time here, so each has all cores, as it would without us.
	env -u OPENBLAS_NUM_THREADS $(VENV_PYTHON) bench/rivals.py --python $(RIVALS_PYTHON) --out bench/rivals.json
	cp bench/rivals.json lmmbook/datasets/rivals.json

bench-scale: $(INSTALLED) ## time millions of ratings on this CPU (over an hour, 13 GB); chapter 8 draws the result
	$(VENV_PYTHON) bench/scale.py --full --out lmmbook/datasets/scale.json

bench-gpu: $(INSTALLED) ## the same on a GPU, which nobody has done yet; chapter 8 draws it if it is there
	$(VENV_PYTHON) bench/scale.py --gpu --full --out lmmbook/datasets/scale_gpu.json

lint: $(INSTALLED) ## check style, types, and which room imports which
	$(VENV_PYTHON) -m ruff check --output-format concise .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy lmmbook
	.venv/bin/lint-imports --no-cache --no-logo

wheel: $(INSTALLED) ## make dist/lmmbook-*.whl, the package in one file, to upload to Colab
	@rm -rf build dist
	$(VENV_PYTHON) -m pip wheel -qq --disable-pip-version-check \
	    --no-deps --no-build-isolation --wheel-dir dist .
	@rm -rf build
	@ls dist/*.whl

url: $(INSTALLED) ## write the repository's address everywhere: make url URL=https://github.com/...
	@test -n '$(URL)' || { echo 'Say which: make url URL=https://github.com/SOMEONE/lmmbook'; exit 2; }
	$(VENV_PYTHON) tools/set_url.py '$(URL)'

clean: ## remove what was built (.venv stays)
	rm -rf _build build dist
	@echo 'Removed what was built. The environment in .venv stays; `make distclean` removes it too.'

distclean: clean ## remove what was built, and .venv
	rm -rf .venv

# The stamp goes first and comes back last. So a .venv without a stamp is one whose installation
# was broken off, and is made anew.
$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	    echo 'This needs Python 3.11, 3.12 or 3.13, but $(PYTHON) is'; $(PYTHON) --version; \
	    echo 'Choose another one: make PYTHON=python3.12 ...'; exit 1; }
	@if [ ! -e $@ ]; then \
	    echo 'Creating .venv and installing the pinned packages (a few minutes, once)'; \
	    $(PYTHON) -m venv --clear .venv || { \
	        echo 'If Python says that ensurepip is missing: apt install python3-venv'; exit 1; }; \
	fi
	@rm -f $@
	@# Wheels alone: to build a package would fetch what it is built with, whatever that is.
	@$(VENV_PYTHON) -m pip install -qq --disable-pip-version-check \
	    --require-hashes --only-binary :all: -r requirements.txt
	@$(VENV_PYTHON) -m pip install -qq --disable-pip-version-check \
	    --no-deps --no-build-isolation --editable .
	@touch $@

# The environment is an order-only prerequisite: making it anew with the same pins changes nothing.
_build/executed/%.ipynb: chapters/%.ipynb $(PACKAGE) requirements.txt tools/execute.py | $(INSTALLED)
	@$(VENV_PYTHON) tools/execute.py --at-once $(JOBS) $<

_build/checked: $(EXECUTED) tests/pages/test_chapters.py $(wildcard tests/conftest.py) | $(INSTALLED)
	@rm -f $@
	$(VENV_PYTHON) -m pytest --quiet tests/pages/test_chapters.py
	@touch $@

_build/house/%.svg: tools/house.py pyproject.toml $(PACKAGE) | $(INSTALLED)
	@mkdir -p $(@D)
	@$(VENV_PYTHON) tools/house.py $* > $@

# Always from nothing: Sphinx gives a page's warnings only when it reads that page, so a second,
# incremental build would pass over what stopped the first.
_build/built: _build/checked $(EXECUTED) $(HOUSE) $(SITE_SOURCES) | $(INSTALLED)
	@rm -rf $@ _build/html _build/.doctrees _build/jupyter_execute
	.venv/bin/jupyter-book build --quiet -W -n --keep-going . > /dev/null
	@test -f _build/html/index.html
	@touch $@
