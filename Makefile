# Each target works on a fresh machine by itself: it makes .venv first if need be.
PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python
READY  := $(VENV)/.ready
DEMO   := --gpus 1 --data phantom:128 --study demo --cluster debug --extractor smoke --run.epochs 2 --run.batch_size 8 --run.log_every_steps 2

MINUTES ?= 30
STAGES  ?= launch pack loader train curves ranks checkpoint scoring

.PHONY: help install demo test check bench fuzz clean
.DEFAULT_GOAL := help

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(READY)  ## make .venv with everything the toolkit and its tests need

$(READY): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --editable '.[test]'
	touch $@

demo: $(READY)  ## make phantom X-rays, train both variants, score them, write a report
	$(RUN) jobs/launch.py --variant both $(DEMO)

# Two processes, which get whole files (what a file's tests share is made once), the files with tests on a real
# SLURM cluster first; threads would be in each other's way.
test: $(READY)  ## run every test that can run here (SLURM's too where its programs are installed)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(READY)  ## lint, format and type checks
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# An environment of its own: a peer may want older versions of what the toolkit uses.
.venv-bench/.ready: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --editable '.[bench]'
	touch $@

bench: .venv-bench/.ready  ## measure every stage beside its peers and the machine's limit (see benchmarks/README.md)
	missed=0; for stage in $(STAGES); do echo "# $$stage"; \
	  .venv-bench/bin/python benchmarks/$$stage.py --plot benchmarks/plots/$$stage.svg || missed=1; done; exit $$missed

fuzz: $(READY)  ## play made-up inputs at every reader and command for MINUTES=30 (see benchmarks/README.md)
	$(RUN) benchmarks/fuzz.py --minutes $(MINUTES)

clean:  ## remove .venv and caches; runs and shards stay
	rm -rf $(VENV) .venv-bench *.egg-info .pytest_cache .mypy_cache .ruff_cache
