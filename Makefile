# Two commands for a newcomer: `make demo` and `make test`. Each sets up what it needs, once.
#
#   PYTHON   interpreter to build the virtual environment with (3.11 or 3.12)
#   DEVICE   cpu | cuda | auto: which vLLM to install; auto looks for a GPU

PYTHON ?= python3
DEVICE ?= auto
VENV   ?= .venv
ARGS   ?=
BIN    := $(VENV)/bin
FLAVOUR := $(if $(filter auto,$(DEVICE)),$(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu),$(DEVICE))
STAMP  := $(VENV)/.installed-$(FLAVOUR)
SITE   := build/site-env
SHELL  := /bin/bash
FAST   := -m "not slow and not engine and not ray and not long"
SLOW   := -m "(slow or engine or ray) and not long"
ALONE  := -m "ray and not long"
PAIRED := -m "(slow or engine) and not ray and not long"

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format fast slow long mutations chaos compare bench-system bench-staleness bench-scale wheel gpu-check seeds bench-entropy bench-branching bench-verifier bench-weights bench-learner bench-families docs site clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 18

setup: $(STAMP)  ## virtual environment with pinned dependencies

$(STAMP): pyproject.toml requirements/cpu.lock requirements/cuda.lock requirements/dev.lock requirements/build.lock scripts/setup.sh
	@PYTHON=$(PYTHON) VENV=$(VENV) FLAVOUR=$(FLAVOUR) bash scripts/setup.sh
	@touch $@

demo: $(STAMP)  ## train the embedded toy model with the whole system (a few minutes on 2 cores)
	@$(BIN)/python -m fr3e_async.main config=configs/toy.yaml $(ARGS)

test: $(STAMP)  ## all tests: fast ones, then real engines, learner groups and end-to-end runs
	@$(BIN)/python -m pytest -n auto $(FAST)
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(PAIRED)
	@$(BIN)/python -m pytest $(ALONE) --durations=15

check: $(STAMP)  ## what every commit passes: format, lint, types, fast tests
	@$(BIN)/ruff format --check fr3e_async tests benchmarks scripts cluster
	@$(BIN)/ruff check fr3e_async tests benchmarks scripts cluster
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -n auto $(FAST) $(ARGS)

format: $(STAMP)  ## rewrite files in the house format
	@$(BIN)/ruff format fr3e_async tests benchmarks scripts cluster
	@$(BIN)/ruff check --fix fr3e_async tests benchmarks scripts cluster

fast: $(STAMP)  ## fast tests only
	@$(BIN)/python -m pytest -n auto $(FAST) $(ARGS)

slow: $(STAMP)  ## the tests that `check` leaves out
	@$(BIN)/python -m pytest $(SLOW) $(ARGS)

long: $(STAMP)  ## what `test` leaves out: deep searches for faults of the control plane, real engines on nodes that go, a Slurm job (some 20 minutes)
	@$(BIN)/python -m pytest -m long --durations=15 $(ARGS)

mutations: $(STAMP)  ## 200 mutants drawn by seed, each met by the tests that run its lines; ARGS=--list only names them
	@$(BIN)/python scripts/mutate.py $(ARGS)

chaos: $(STAMP)  ## the toy under 32 random kills of its processes, against an undisturbed run (some 15 minutes)
	@$(BIN)/python benchmarks/chaos.py $(ARGS)

bench-system: $(STAMP)  ## the system against the bare engine, asynchronous against synchronous, the control plane's capacity
	@$(BIN)/python benchmarks/system.py $(ARGS)

bench-staleness: $(STAMP)  ## accuracy by staleness bound and correction, on three seeds (some 30 minutes)
	@$(BIN)/python benchmarks/staleness.py $(ARGS)

bench-scale: $(STAMP)  ## start-up, broadcast and driver memory by the number of actors; what gives way at 1,000 and 10,000 engines
	@$(BIN)/python benchmarks/scale.py $(ARGS)

compare: $(STAMP)  ## FR3E against its relatives and other anchor rules, two tasks, five seeds (hours; resumes where it was interrupted): docs/results.md
	@$(BIN)/python benchmarks/compare.py $(ARGS)

wheel: $(STAMP)  ## build the wheel into dist/
	@$(BIN)/python -m build --wheel --no-isolation

gpu-check: $(STAMP)  ## the checks that need an NVIDIA GPU
	@$(BIN)/python -m pytest -m gpu -rs $(ARGS)

seeds: $(STAMP)  ## the demo on three seeds, one after another: the table of docs/LOG.md
	@$(BIN)/python benchmarks/toy_seeds.py $(ARGS)

bench-entropy: $(STAMP)  ## exact entropy in the engine against plain log-probs
	@$(BIN)/python benchmarks/entropy.py $(ARGS)

bench-branching: $(STAMP)  ## prefix reuse and time of a branching group against independent rollouts
	@$(BIN)/python benchmarks/branching.py $(ARGS)

bench-verifier: $(STAMP)  ## pairs per second of the verifier pool against bare math-verify
	@$(BIN)/python benchmarks/verifier.py $(ARGS)

bench-weights: $(STAMP)  ## hand-over of weights from a learner to engines against a plain copy
	@$(BIN)/python benchmarks/weights.py $(ARGS)

bench-learner: $(STAMP)  ## a learner's pass over trees against padded rows, flat rows and the bare model
	@$(BIN)/python benchmarks/learner.py $(ARGS)

bench-families: $(STAMP)  ## which model families train right: the table of docs/models.md
	@$(BIN)/python benchmarks/families.py $(ARGS)

site: $(SITE)/.installed  ## the book of docs/ and the API reference as web pages, in site/ (links are checked)
	@$(SITE)/bin/python -m mkdocs build # not --quiet: then warnings are not counted as failures
	@echo "site/index.html"

$(SITE)/.installed: requirements/docs.lock
	@$(PYTHON) -m venv $(SITE)
	@$(SITE)/bin/python -m pip --disable-pip-version-check --quiet install --no-deps --require-hashes --only-binary=:all: -r requirements/docs.lock
	@touch $@

docs: $(STAMP)  ## refresh the generated tables of docs/
	@$(BIN)/python -m fr3e_async.help docs/configuration.md
	@$(BIN)/python scripts/dashboard.py

clean:  ## remove the virtual environment and build products
	rm -rf $(VENV) build dist site *.egg-info
