# Two commands on a fresh machine with Python 3.11 or newer, pip, venv and make:
#
#   make demo    convert SmolLM2-135M to half its cache, train it briefly, measure it
#   make test    run the tests
#
# Both make .venv first; a second call skips what is done.  CONTRIBUTING.md has the commands for work on caramba.  To choose a build of torch, see "Install" in README.md:
#
#   make demo TORCH_INDEX=<address of PyTorch's package index for CPU or CUDA>

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WEIGHTS := .demo
DISTRIBUTIONS := . $(patsubst %/pyproject.toml,%,$(sort $(wildcard caramba/pyproject.toml caramba_document/pyproject.toml caramba_terminal/pyproject.toml caramba_plugins_*/pyproject.toml plugins/*/pyproject.toml)))
EDITABLE := $(foreach folder,$(DISTRIBUTIONS),-e $(folder))
SOURCES := caramba_core $(wildcard caramba/src caramba_document/src caramba_terminal/src caramba_plugins_*/src plugins/*/src)
JOBS ?= 2

.PHONY: demo test test-core check docs version release weights install clean

install: $(VENV)/.installed

$(VENV)/.installed: constraints.txt requirements-dev.txt $(addsuffix /pyproject.toml,$(DISTRIBUTIONS))
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	    $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	    --requirement requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	    --no-build-isolation $(EDITABLE)
	touch $@

weights: $(VENV)/.installed
	$(BIN)/python demo/weights.py $(WEIGHTS)

demo: weights
	$(BIN)/caramba run demo/manifest.yml --resume

test: weights
	CARAMBA_WEIGHTS=$(WEIGHTS) $(BIN)/python -m pytest --numprocesses $(JOBS)

# What the core does, without what other distributions bring: under a minute on two idle cores.
test-core: $(VENV)/.installed
	$(BIN)/python -m pytest --numprocesses $(JOBS) -m "not slow and not presets" \
	    tests/graph tests/manifest tests/nn tests/plan tests/run

check: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(SOURCES)
	$(BIN)/lint-imports --no-logo --no-cache
	$(MAKE) --no-print-directory docs

docs: $(VENV)/.installed   # the site, in site/; a link or an anchor that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

version:   # make version V=0.2.0
	$(BIN)/python scripts/version.py $(V)

release: $(VENV)/.installed   # builds every distribution into dist/ and checks what was built; publishes nothing
	rm -rf dist
	$(BIN)/python scripts/release.py dist

clean:
	rm -rf $(VENV) $(WEIGHTS) runs site
