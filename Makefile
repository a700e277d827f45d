# The five things people do here. Everything runs in .venv, which the first target makes (once; a few minutes, mostly torch).
PYTHON ?= python3
BIN := .venv/bin

# Tests on the real benchmark files run when these lie beside the checkout; elsewhere they are skipped, with the reason.
ifneq ($(wildcard ../shared/data/README.md),)
quick test test-all test-oldest: export ANTLM_BENCH_DATA ?= $(abspath ../shared/data)
endif
# Likewise what the original code of others answered on tiny checkpoints.
ifneq ($(wildcard ../shared/cases/README.md),)
quick test test-all: export ANTLM_BENCH_CASES ?= $(abspath ../shared/cases)
endif

# As antlm-bench does for itself: on a shared machine threads that spin long make everything wait. Every core has a process.
quick test test-all: export GOMP_SPINCOUNT ?= 20000
quick test test-all: export OMP_NUM_THREADS ?= 1

.PHONY: help demo sweep-demo pictures docs quick test test-all test-oldest check fmt sweep bench bench-gpu fuzz

help:
	@echo "make demo    train three recipes on the embedded grammar, score them, print the table (a few minutes, offline)"
	@echo "make sweep-demo  a sweep: three recipes x three seeds, every milestone scored, the last finetuned, one HTML page (some minutes, offline)"
	@echo "make pictures  draw the pictures of README and docs from the demo's runs (needs Chromium)"
	@echo "make docs    build the site into build/site; its links are checked (needs a package registry once)"
	@echo "make quick   the tests that take a moment only (about a minute)"
	@echo "make test    ruff, mypy --strict, pytest: what CI runs"
	@echo "make test-all  the same with the slow tests: environments with other versions (needs a package registry)"
	@echo "make test-oldest  the tests of opening, scoring and training with transformers 5.0"
	@echo "make check   the static half of it"
	@echo "make fmt     let ruff rewrite the code"
	@echo "make sweep   every architecture of transformers, tiny: our scores against a plain loop (half an hour)"
	@echo "make fuzz    10,000 damaged inputs: each must end with a documented exit code, in bounded time and memory"
	@echo "make bench   speed against minicons, lm-eval and the transformers Trainer on this machine"
	@echo "make bench-gpu  the same on a CUDA card, in at most 8 minutes; the tables go to .bench/gpu.md"

# The stamp is touched last, so that an install that was cut short is done again.
.venv/installed: pyproject.toml constraints.txt
	@echo "installing into .venv ..."
	@$(PYTHON) -c 'import sys; sys.exit("the pinned versions need Python 3.11 or newer: make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq -c constraints.txt torch
	@$(BIN)/python -m pip install -qq -c constraints.txt -e ".[dev]"
	@touch $@

DEMO := babyllama ltg-bert antlm-babyllama

.demo/%/main/config.json: models/%.toml tasks/nano.toml | .venv/installed
	@rm -rf .demo/$*
	@HF_HUB_OFFLINE=1 $(BIN)/antlm-bench train $* --scale nano --corpus nano --out .demo/$*

demo: .venv/installed $(DEMO:%=.demo/%/main/config.json)
	@HF_HUB_OFFLINE=1 $(BIN)/antlm-bench score --model '.demo/*/main' --suite nano --method all --out .demo/runs

sweep-demo: .venv/installed
	@$(BIN)/python examples/sweep-demo/write_sentences.py .sweep-demo
	@HF_HUB_OFFLINE=1 $(BIN)/antlm-bench run examples/sweep-demo/sweep.toml
	@echo "the report: .sweep-demo/sweep/report.html"

pictures: demo
	@$(BIN)/python docs/images/draw.py .demo/runs

.venv/docs-installed: .venv/installed
	@$(BIN)/python -m pip install -qq -c constraints.txt -e ".[docs]"
	@touch $@

docs: .venv/docs-installed
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "the site: build/site/index.html; with search: $(BIN)/python -m http.server --directory build/site"

check: .venv/installed
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

quick: .venv/installed
	@$(BIN)/python -m pytest --numprocesses auto --dist worksteal -m "not slow and not long"

test: check
	@$(BIN)/python -m pytest --numprocesses auto --dist worksteal -m "not slow"

test-all: check
	@$(BIN)/python -m pytest --numprocesses auto --dist worksteal

# The oldest transformers of our range. Its own modules use what newer torch calls deprecated: only that is let pass.
.venv-oldest/installed: pyproject.toml constraints-oldest.txt
	@test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	@.venv-oldest/bin/python -m pip install -qq -c constraints-oldest.txt torch
	@.venv-oldest/bin/python -m pip install -qq -c constraints-oldest.txt -e ".[dev]"
	@touch $@

test-oldest: .venv-oldest/installed
	@.venv-oldest/bin/python -m pytest -m "not slow" -W ignore::DeprecationWarning tests/checkpoints/test_checkpoints.py \
	  tests/checkpoints/test_conversion.py tests/checkpoints/test_published_layouts.py tests/checkpoints/test_hybrids.py tests/architectures tests/scoring \
	  tests/finetuning tests/training tests/lm_eval_bridge

fmt: .venv/installed
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

sweep: .venv/installed
	@PYTHONPATH=tests HF_HUB_OFFLINE=1 $(BIN)/python tests/sweep/architecture_sweep.py

fuzz: .venv/installed
	@ANTLM_BENCH_FUZZ=10000 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --numprocesses auto tests/test_hostile_inputs.py

bench: .venv/installed
	@failed=0; for one in score harness train finetune; do $(BIN)/python benchmarks/$$one.py || failed=1; done; exit $$failed

bench-gpu: .venv/installed
	@$(BIN)/python benchmarks/gpu.py
