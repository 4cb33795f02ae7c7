# Every target sets up .venv first if it is missing or out of date.
# Another interpreter: make PYTHON=python3.12 test
# Part of the tests:   make test ARGS="tests/test_import.py -m 'not slow'"

PYTHON ?= python3
WORKERS ?= 2
ARGS ?=
SEEDS ?= 0 1 2
PEER_PYTHON ?=

RUN := .venv/bin/python
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format bench bench-peers bench-table clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

install: $(INSTALLED) ## make .venv with all that the other targets need

demo: $(INSTALLED) ## lynx and hare: simulate, train, infer, check; writes results/
	@$(RUN) -m benchmarks.lynx_hare

# One thread per worker for BLAS: the workers fill the cores already.
test: lint ## lint, then all tests
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 \
	  $(RUN) -m pytest --numprocesses $(WORKERS) --dist worksteal \
	  --durations 80 $(ARGS)

lint: $(INSTALLED) ## style, formatting and types
	@$(RUN) -m ruff check --quiet .
	@$(RUN) -m ruff format --check --quiet .
	@$(RUN) -m mypy

format: $(INSTALLED) ## put the source into the form that lint asks for
	@$(RUN) -m ruff check --fix --quiet .
	@$(RUN) -m ruff format .

bench: $(INSTALLED) ## speed and accuracy; PEER_PYTHON=... adds sbi side by side
	@$(RUN) -m benchmarks.reference
	@$(RUN) -m benchmarks.check_tasks
	@$(RUN) -m benchmarks.speed --seeds $(SEEDS)
	@$(RUN) -m benchmarks.sbibm --budgets 10000 --seeds $(SEEDS)
	@$(RUN) -m benchmarks.sbibm_table
	@$(RUN) -m benchmarks.growth --seeds $(SEEDS)
	@$(RUN) -m benchmarks.samplers --seeds $(SEEDS)
	@$(RUN) -m benchmarks.executors
	@$(RUN) -m benchmarks.embeddings --seeds $(SEEDS)
	@$(RUN) -m benchmarks.embeddings --embedding default --seeds $(SEEDS)
	@$(RUN) -m benchmarks.likelihood_speed --seeds $(SEEDS) \
	  $(if $(PEER_PYTHON),--peer-python $(PEER_PYTHON))
ifneq ($(PEER_PYTHON),)
	@$(RUN) -m benchmarks.side_by_side --peer-python $(PEER_PYTHON) --seeds $(SEEDS)
else
	@echo "Left out: the comparison with sbi. It needs PEER_PYTHON=path/to/python,"
	@echo "an interpreter that has sbi installed."
endif

bench-peers: $(INSTALLED) ## the other packages beside ours, each installed apart
	@$(RUN) -m benchmarks.reference
	@$(RUN) -m benchmarks.peers --methods npe nle nre fmpe --seeds $(SEEDS)

bench-table: $(INSTALLED) ## render the table and the figure of accuracy
	@$(RUN) -m benchmarks.sbibm_table

clean: ## remove .venv, caches and build outputs
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find sbijax tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml $(wildcard constraints/*.txt)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or later is needed, e.g. make PYTHON=python3.12"; exit 1; }
	@test -x .venv/bin/pip || $(PYTHON) -m venv --clear .venv
	@echo "Installing into .venv; the first time this takes a minute or two."
	@$(RUN) -m pip install --quiet --disable-pip-version-check \
	  --editable '.[test,lint]' --constraint constraints/$$($(RUN) -c \
	  'import sys; print("py311" if sys.version_info < (3, 12) else "py312")').txt
	@touch $@
