# Set-up and the main jobs. `make demo` and `make test` work on a fresh clone and need Python 3.11 or 3.12 only.
VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
BIN := $(VENV)/bin
# Remembers the folder and the pyproject.toml that the environment was installed for: several checkouts may share one.
STAMP := $(VENV)/.stamp-$(shell (pwd; cat pyproject.toml) | cksum | cut -d' ' -f1)
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet

.PHONY: help demo test test-all lint format dashboards clean \
  bench-language bench-real-data bench-rates bench-rescore bench-calibrate bench-pack bench-model \
  bench-trainer bench plan-docs test-gpu
help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "No python3 found: install Python 3.11 or 3.12, or set PYTHON=/path/to/python." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 13) else "Python 3.11 or 3.12 is needed, %s is %d.%d: set PYTHON=/path/to/python." % (sys.executable, *v))'
	@echo "Making the virtual environment $(VENV) ..."
	@$(PYTHON) -m venv $(VENV) || { echo "No virtual environment could be made: install the venv module (Debian: apt-get install python3-venv)." >&2; rm -rf $(VENV); exit 1; }

# One environment serves both; the tests' has all that the demo needs.
$(STAMP)-demo: EXTRAS := curate,clip,download,dashboard,train
$(STAMP)-test: EXTRAS := dev
$(STAMP)-demo $(STAMP)-test: $(VENV)/bin/python
	@echo "Installing (some minutes the first time; torch alone is several GB) ..."
	@rm -f $(filter-out $(STAMP)-%,$(wildcard $(VENV)/.stamp-*))
	@$(PIP_INSTALL) -e '.[$(EXTRAS)]'
	@# For one file in it, Qwen's vocabulary: none of what the package asks for is needed. Without it its tests skip.
	@case $@ in *-test) $(PIP_INSTALL) --no-deps 'dashscope>=2.0.2,<3' || true;; esac
	@touch $@ $(patsubst %-test,%-demo,$@)

demo: $(STAMP)-demo  ## builds the demo web, curates it, trains a small model in three stages, asks it
	@$(BIN)/python -m demo

test: $(STAMP)-test  ## the tests, without the slow ones
	@$(BIN)/python -m pytest

test-all: $(STAMP)-test  ## every test
	@$(BIN)/python -m pytest -m 'slow or not slow'

lint: $(STAMP)-test  ## ruff (format, check) and mypy
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(STAMP)-test  ## rewrites the files as `make lint` wants them
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

dashboards: $(STAMP)-test  ## dashboards/grafana/winnow.json from its source
	@$(BIN)/python -m dashboards

bench-language: $(STAMP)-test  ## the table of docs/language.md
	@$(BIN)/python -m benchmarks.language

bench-real-data: $(STAMP)-test  ## the funnels of docs/real-data.md
	@$(BIN)/python -m benchmarks.real_data

bench-rates: $(STAMP)-test  ## measures curation/rates.yaml, which `plan --pairs` reckons with
	@$(BIN)/python -m benchmarks.rates --write

bench-rescore: $(STAMP)-test demo  ## ledger rows a minute (docs/deciding-again.md)
	@$(BIN)/python -m benchmarks.rescore --rows 5e6

bench-calibrate: $(STAMP)-test  ## the table of docs/calibration.md
	@$(BIN)/python -m benchmarks.calibrate --rounds 200

bench-pack: $(STAMP)-test  ## the ratios of docs/packing.md
	@$(BIN)/python -m benchmarks.pack

bench-model: $(STAMP)-test  ## packs against padding, the ratios of docs/model.md
	@$(BIN)/python -m benchmarks.model

bench-trainer: $(STAMP)-test  ## the loader against webdataset and wids, the step against padding
	@$(BIN)/python -m benchmarks.trainer

bench: $(STAMP)-test  ## curation beside its peers, docs/benchmarks.md, over an hour
	@for name in caption_path job clip tars growth startup; do \
	  $(BIN)/python -m benchmarks.$$name --json benchmarks/results/$$name.json || exit 1; done
	@$(BIN)/python -m benchmarks.growth --parts growth --unit 5000 --json benchmarks/results/growth_units.json
	@$(BIN)/python -m benchmarks.page

plan-docs: $(STAMP)-test  ## docs/plan-qwen-vl.md, some minutes
	@$(BIN)/python -m trainer.plan qwen-vl --table > docs/plan-qwen-vl.md

test-gpu: $(STAMP)-test  ## what only a GPU can show
	@$(BIN)/python -m pytest tests/trainer/test_gpu.py -m 'slow or not slow'

clean:  ## removes what the commands made, but not the environment
	rm -rf runs data build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
