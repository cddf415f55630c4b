# `make` alone lists the targets. Those that need .venv set it up first; a second call finds it done.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# SIMD=0 keeps Pillow where pillow-simd could be built. Later calls keep to the choice.
ifndef SIMD
SIMD := $(or $(shell cat $(VENV)/.simd 2>/dev/null),1)
endif
# Passed on to pytest: make test ARGS="-k packing -x"
ARGS ?=
# One test process per core, each with one thread: threads of two processes would wait for each other. ARGS="-n 0" uses one process.
WORKERS := -n auto --maxprocesses 8 --dist worksteal
test test-all: export OMP_NUM_THREADS ?= 1

# Keyed on what is installed, not on dates: a fresh clone and an old one agree. The folder counts because the
# editable install holds its path.
SETUP_KEY := $(shell { cat pyproject.toml constraints.txt scripts/use_pillow_simd.py; echo "$(CURDIR) $(SIMD)"; } | cksum | cut -d' ' -f1)
STAMP := $(VENV)/.setup-$(SETUP_KEY)
UNFINISHED := $(VENV)/.setup-unfinished

.PHONY: help setup test test-all test-frameworks test-webp lint typecheck format links docs demo bench gpu soak simd clean distclean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## make .venv and install the project, its tools and pillow-simd (SIMD=0: leave Pillow)
	@:

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "patchnpack needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) -V 2>/dev/null || echo not there). Name another: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.11" >&2; exit 1; }
# An installer that was killed leaves packages that look whole and are not, so an unfinished .venv starts again.
	@if [ -e $(UNFINISHED) ]; then echo "The last set-up did not finish: making $(VENV) again"; $(PYTHON) -m venv --clear $(VENV); \
	  elif ! $(PY) -m pip --version >/dev/null 2>&1; then $(PYTHON) -m venv --clear $(VENV); fi
	@rm -f $(VENV)/.setup-*; touch $(UNFINISHED)
	@echo "Installing into $(VENV); the first time takes minutes"
	@$(PY) -m pip install --quiet --upgrade pip
	@$(PY) -m pip install --constraint constraints.txt --editable '.[report]' --group dev --group docs \
	  | awk '/^(Collecting|Processing)/ { print "  " $$2; fflush() }'
	@$(PY) scripts/use_pillow_simd.py $(if $(filter 0,$(SIMD)),--restore)
	@echo $(SIMD) > $(VENV)/.simd; rm $(UNFINISHED); touch $@

simd: setup ## try pillow-simd again, after its headers have been installed
	@echo 1 > $(VENV)/.simd; $(PY) scripts/use_pillow_simd.py --rebuild

test: lint typecheck ## check format, lint and types, then run the tests
	$(PY) -m pytest $(WORKERS) $(ARGS)
	$(if $(ARGS),,@$(PY) -c 'from PIL import features as f; exit(not f.check("webp"))' || $(MAKE) --no-print-directory test-webp)

test-all: test test-frameworks ## the same, then the tests of frameworks, which this installs, and those marked `extra`
	$(PY) -m pytest -m extra $(WORKERS)

test-frameworks: setup
	@$(PY) -c 'import accelerate, lightning, ray, transformers' 2>/dev/null || $(PY) -m pip install --quiet --constraint constraints.txt --group frameworks
	$(PY) -m pytest tests/packer/batch/test_export_models.py tests/examples/test_frameworks.py tests/test_documentation.py tests/patchnpack/test_engines.py tests/examples/test_prepack_on_ray.py

# pillow-simd built without libwebp leaves its WebP tests out; Pillow, in a folder of its own, runs them.
test-webp: setup
	@[ -d $(VENV)/pillow ] || $(PY) -m pip install --quiet --no-deps --target $(VENV)/pillow 'pillow>=12.1,<14'
	PYTHONPATH=$(VENV)/pillow $(PY) -m pytest $(addprefix tests/loaders/imaging/test_,decode.py header.py damaged.py exif.py pages.py)

lint: setup links ## check format, lint and which room may import which
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	@cd .links && "$(CURDIR)/$(VENV)/bin/lint-imports" ../pyproject.toml --no-logo --cache-dir ../.import_linter_cache

format: setup ## rewrite the files to the house's format
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

# The folder mirrors what site-packages holds after an install, for tools that cannot follow an editable one.
links:
	@rm -rf .links && mkdir -p .links/patchnpack
	@ln -s $(addprefix ../../,$(filter-out %/__pycache__,$(wildcard patchnpack/*)) packer loaders models trainer) .links/patchnpack/

typecheck: setup links ## check types, with the package laid out as it is installed
	$(PY) -m mypy .links/patchnpack conftest.py tests scripts $(wildcard examples/*.py benchmarks/*.py)

docs: setup links ## build the site into build/site; a warning is an error
	@rm -rf build/site; NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet
	@echo "build/site/index.html"

demo: setup ## draw a small data set, pack it, train on it in minutes (where cores are busy: OMP_NUM_THREADS=1), and leave the results in demo/
	$(PY) examples/demo.py

bench: setup ## run every benchmark
	@for script in benchmarks/*.py; do echo "== $$script"; $(PY) "$$script" || exit 1; done

gpu: setup ## on a machine with a GPU: the tests that use it, then a table of training speeds
	$(PY) benchmarks/gpu.py --tests

# pytest exits with 5 where no test is marked.
soak: setup ## run the tests that take minutes
	$(PY) -m pytest -m soak $(ARGS) || [ $$? -eq 5 ]

clean: ## remove what building, testing and checking leave behind
	rm -rf build dist *.egg-info .links .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -print0 | xargs -0 rm -rf

distclean: clean ## the same, and .venv
	rm -rf $(VENV)
