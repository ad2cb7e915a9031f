# Every target makes .venv and installs what it needs, once (the stamp says so). `make` alone lists the targets.
PYTHON ?= python3
VENV ?= .venv
PY = $(VENV)/bin/python
STAMP = $(VENV)/.installed
WORKERS ?= 2
comma = ,
export OMP_NUM_THREADS ?= 1

.PHONY: help demo brand test lint backbones bench bench-step bench-align bench-data bench-sample bench-start bench-scale bench-gpu resume-proof reproduce-proof expected watermark-proof families-proof clean

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "mmtrain: $(PYTHON) is older than 3.11; set PYTHON=<a newer one>" >&2; exit 2; }
	@test -x $(PY) || { echo "mmtrain: making $(VENV)" && $(PYTHON) -m venv $(VENV); }
	@echo "mmtrain: installing torch, then the rest of constraints.txt (two minutes or so)"
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP) ## train an adapter on the shipped backbones, sample, evaluate, print the table
	@env -u OMP_NUM_THREADS bash recipes/demo.sh $(VENV)/bin/mmtrain

brand: $(STAMP) ## a brand's style from a folder, FOLDER=<yours> or the world's kit: train, export, evaluate, one page
	@env -u OMP_NUM_THREADS bash recipes/brand.sh $(VENV)/bin/mmtrain $(FOLDER)

test: lint ## lint, then every test
	@# Compiled files are kept: the many processes of the tests would each compile mmtrain again.
	@env -u PYTHONDONTWRITEBYTECODE $(PY) -m pytest -n $(WORKERS) --dist worksteal

lint: $(STAMP) ## ruff, mypy and the rule that imports go down only
	@$(VENV)/bin/ruff check --quiet .
	@$(VENV)/bin/ruff format --quiet --check . || { $(VENV)/bin/ruff format --diff --quiet .; exit 1; }
	@$(VENV)/bin/mypy --no-error-summary
	@$(VENV)/bin/lint-imports --no-cache > $(VENV)/lint-imports.txt 2>&1 || { cat $(VENV)/lint-imports.txt; exit 1; }

backbones: $(STAMP) ## train the shipped tiny backbones again (hours on one core; recipes/LOG.md)
	@bash recipes/backbones.sh $(VENV)/bin/mmtrain

bench: bench-start bench-step bench-sample bench-scale bench-data bench-align bench-gpu ## all of the following; tables, and JSON in runs/bench

bench-step: $(STAMP) ## a LoRA step: bare loop, mmtrain, and PEER=<train_text_to_image_lora.py> for diffusers' own script
	@$(PY) -m benchmarks.step

bench-align: $(STAMP) ## contrastive losses in tiles, cached towers, and OPEN_CLIP=<folder> for open_clip's own loop
	@$(PY) -m benchmarks.tiles
	@$(PY) -m benchmarks.align

bench-data: $(STAMP) ## samples per second beside webdataset, over the same samples in the same run
	@$(PY) -m benchmarks.data

bench-sample: $(STAMP) ## steps, prompts at once, few steps, decoding in chunks
	@$(PY) -m benchmarks.sample

bench-start: $(STAMP) ## seconds to help, to an import, to a training's first step
	@$(PY) -m benchmarks.start

bench-scale: $(STAMP) ## time and memory against batch, frames, resolution and ranks, with exponents
	@$(PY) -m benchmarks.scale

bench-gpu: $(STAMP) ## the GPU's script on tiny networks; `python -m benchmarks.gpu --device cuda` is the real one
	@$(PY) -m benchmarks.gpu --device cpu --tiny

resume-proof: $(STAMP) ## 25 kills a run, 300 damaged runs, 50 steps on two ranks, the pages of docs/ done command by command
	@RESUME_PROOF=full $(PY) -m pytest -s tests/resume/test_kill.py tests/launch tests/house/test_mutations.py tests/docs

reproduce-proof: $(STAMP) ## each recipe's first 50 steps again, from the manifest alone, and its expected numbers
	@REPRODUCE_PROOF=full $(PY) -m pytest -s tests/reproduce/test_recipes.py

expected: $(STAMP) ## measure the expected numbers of every recipe again, after a change that was meant to move them
	@$(PY) -m mmtrain reproduce $(subst $() ,$(comma),$(patsubst recipes/%.expected.json,%,$(wildcard recipes/*.expected.json))) --record --out $$(mktemp -d)

watermark-proof: $(STAMP) ## the watermark through eight attacks at 512 pixels, and 10,000 clean frames
	@WATERMARK_PROOF=full $(PY) -m pytest -s tests/laws/test_watermark.py

families-proof: $(STAMP) ## each family trained, exported and sampled from the command line
	@FAMILIES_PROOF=full $(PY) -m pytest -s tests/laws/test_families.py

clean: ## remove builds and caches; never runs, exports, samples or data
	@rm -rf build dist
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
