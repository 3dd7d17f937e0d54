# Every target sets up what it needs. The work itself is done by `python -m pipeline`.

PYTHON ?= python3
VENV := .venv
RUN_PIPELINE := $(VENV)/bin/python -m pipeline

# Without DATA, the embedded sample with its own settings; with DATA, no settings are assumed.
ifdef DATA
CONFIG ?=
else
DATA := data/sample
CONFIG ?= data/sample.toml
NEEDS_SAMPLE := data/sample
endif

base_name = $(shell basename -- '$(subst ','\'',$(1))')
STORE ?= stores/$(call base_name,$(DATA))
RUN ?= runs/$(call base_name,$(STORE))

# Values reach the shell through the environment, so that spaces and quotes survive; under names
# of their own, so that a nested make sees no DATA that nobody gave.
export ARG_DATA = $(DATA)
export ARG_CONFIG = $(CONFIG)
export ARG_STORE = $(STORE)
export ARG_RUN = $(RUN)
export ARG_WEIGHTS = $(WEIGHTS)
CONFIG_FLAG = $(if $(CONFIG),--config "$$ARG_CONFIG")

# Bytecode is kept, whatever the environment says: without, every process compiles all it imports.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help demo extract train-head report compare finetune test test-fast check faults format bench clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: ## The whole way on the embedded sample: extract, train heads, leaderboard, report
	@$(MAKE) --no-print-directory extract
	@$(MAKE) --no-print-directory train-head
	@$(MAKE) --no-print-directory report

extract: $(VENV)/installed $(NEEDS_SAMPLE) ## Stage 1: DATA STORE WEIGHTS IMAGE_SIZE ENGINE CONFIG
	@$(RUN_PIPELINE) extract $(CONFIG_FLAG) --store "$$ARG_STORE" \
		$(if $(WEIGHTS),--weights "$$ARG_WEIGHTS") $(if $(IMAGE_SIZE),--image-size $(IMAGE_SIZE)) \
		$(if $(ENGINE),--engine $(ENGINE)) -- "$$ARG_DATA"

# A store that nobody named is made first; one that was named has to be there.
train-head: $(VENV)/installed ## Stage 2: STORE RUN HEADS
	@test -e "$$ARG_STORE/store.json" || test "$$ARG_STORE" != "stores/$$(basename -- "$$ARG_DATA")" \
		|| $(MAKE) --no-print-directory extract
	@$(RUN_PIPELINE) train-head $(CONFIG_FLAG) --store "$$ARG_STORE" --run "$$ARG_RUN" \
		$(foreach head,$(HEADS),--head $(head))

report: $(VENV)/installed ## A page that shows what RUN found: RUN/report.html
	@$(RUN_PIPELINE) report -- "$$ARG_RUN"

RUNS ?= runs/*
compare: $(VENV)/installed ## Leaderboard of RUNS (all in runs/) on their common test images
	@$(RUN_PIPELINE) compare $(RUNS)

finetune: $(VENV)/installed ## Stage 3: RUN (a run of train-head)
	@$(RUN_PIPELINE) finetune -- "$$ARG_RUN"

# Files go to two processes; in each, tests run one after the other, and arithmetic in one thread:
# two threads in each of two processes would spin while they wait for the others.
THREADS ?= 1
WORKERS ?= 2
PYTEST = OMP_NUM_THREADS=$(THREADS) OPENBLAS_NUM_THREADS=$(THREADS) $(VENV)/bin/python -m pytest \
	-n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=15

test: $(VENV)/installed-dev ## The whole test suite
	@$(PYTEST)

test-fast: $(VENV)/installed-dev ## The quick tests, which need no TensorFlow
	@$(PYTEST) -m "not slow"

check: $(VENV)/installed-dev ## Format, lint, types, import layers, tests: what CI runs
	@$(VENV)/bin/ruff format --check
	@$(VENV)/bin/ruff check
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports
	@$(MAKE) --no-print-directory test

faults: $(VENV)/installed-dev ## Kills, full disks and damage at every write, with a table: hours
	@PIPELINE_FAULTS=$${PIPELINE_FAULTS:-all} PIPELINE_FAULTS_TABLE=/dev/stdout $(VENV)/bin/python -m pytest tests/faults -s -q

format: $(VENV)/installed-dev ## Format the code and repair what the linter can
	@$(VENV)/bin/ruff check --fix
	@$(VENV)/bin/ruff format

bench: $(VENV)/installed-dev ## Benchmarks; each prints one JSON object
	@test -e stores/sample/store.json || $(MAKE) --no-print-directory extract
	@PATH="$$PWD/$(VENV)/bin:$$PATH"; for name in decode head_defaults end_to_end rerun memory \
		read_features tutorial_head linear_sweep logreg_path ridge_path train_head_command stream \
		finetune finetune_memory finetune_outcomes predict threads on_ray; do $(VENV)/bin/python benchmarks/$$name.py || exit 1; done

clean: ## Remove the environment and caches; stores and runs stay
	@rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

data/sample: $(VENV)/installed
	@$(RUN_PIPELINE) sample $@

# The fastest engine of a processor; on a GPU Keras is faster.
EXTRAS ?= $(if $(wildcard /dev/nvidiactl),[report],[openvino,report])

# uv installs in a quarter of the time that pip takes, where it is at hand and can. Either way what is
# imported of TensorFlow and the others, a part of them, is compiled then.
UV ?= $(shell command -v uv 2> /dev/null)
PIP_INSTALL = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile
UV_INSTALL = "$(UV)" pip install --quiet --python $(VENV)/bin/python
define install
@$(if $(UV),$(UV_INSTALL) --editable $(1) \
	|| { echo "uv could not install; trying pip"; $(PIP_INSTALL) --editable $(1); },\
	$(PIP_INSTALL) --editable $(1))
endef

$(VENV)/bin/python:
	@echo "Making $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	@echo "Installing pipeline into $(VENV) (TensorFlow is large: this takes a minute or two)"
	$(call install,".$(EXTRAS)")
	@touch $@

$(VENV)/installed-dev: pyproject.toml | $(VENV)/bin/python
	@echo "Installing pipeline and the development tools into $(VENV) (a minute or two)"
	$(call install,".[dev]")
	@touch $(VENV)/installed $@
