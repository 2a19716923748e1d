# `make demo` and `make test` also create the virtual environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM := false
# keep compiled bytecode: the tests start many processes
export PYTHONDONTWRITEBYTECODE :=

# scripts that `make soak` runs besides the tests marked soak; each writes its row to docs/results/reliability.json
SOAK := $(wildcard $(addprefix tests/soak/,attacks.py interval_coverage.py kills.py decoders.py fuzz.py long.py ray_files.py truths.py mutants.py lines.py))

.PHONY: install lock demo docs test tests quick coverage soak check fix clean best-sprsound box-model

install: $(VENV)/.installed

# torch is installed first and by pip, which takes the CPU build if an index offers it, without gigabytes of CUDA;
# everything else comes from uv.lock with checked hashes
$(VENV)/.installed: pyproject.toml uv.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq uv
	$(BIN)/python -m pip install -qq torch==2.13.0
	$(BIN)/uv export --quiet --frozen --extra dev --no-emit-project --prune torch --output-file $(VENV)/locked.txt
	$(BIN)/uv pip install --quiet --no-deps --require-hashes --requirement $(VENV)/locked.txt --python $(BIN)/python
	$(BIN)/uv pip install --quiet --no-deps --editable . --python $(BIN)/python
	$(BIN)/uv pip check --quiet --python $(BIN)/python
	@touch $@

lock:
	$(BIN)/uv lock --upgrade

demo: install
	$(BIN)/laennec train recipes/demo/add_cnn.yaml --overwrite
	$(BIN)/laennec evaluate runs/demo
	$(BIN)/laennec export runs/demo --format full
	$(BIN)/laennec predict runs/demo/export-full runs/demo-corpus --out runs/demo/predictions
	@echo
	@echo "report:         runs/demo/evaluation-test/report.html"
	@echo "exported model: runs/demo/export-full"
	@echo "predictions:    runs/demo/predictions"

# build the site; dead links are errors
docs: install
	$(BIN)/python -m docs.generate
	$(BIN)/python -m docs.render
	$(BIN)/mkdocs build --strict --quiet

# run the checks (mypy uses one core) and the tests at the same time
test: install
	@$(MAKE) --no-print-directory -j 2 check tests

# one worker more than cores, because some tests wait; all tests of a file run in one worker and share fixtures
WORKERS ?= $(shell expr $$(nproc 2>/dev/null || echo 2) + 1)
tests: install
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# A few minutes of tests of every subpackage, for other versions of Python and dependencies than those of uv.lock. The
# environment at BIN is used as it is.
QUICK := $(addprefix tests/,test_api.py test_house.py test_files.py test_locks.py test_rendering.py test_extension.py \
	test_modeling.py test_first_edition.py attacks audio/test_features.py audio/test_recording.py cli/test_env.py \
	corpora/test_waveforms.py corpora/test_folder.py corpora/test_hub.py encoders/test_trainable.py \
	evaluation/test_evaluate_metric.py evaluation/test_geometry.py evaluation/test_metrics.py evaluation/test_report.py \
	hub/test_adapters.py hub/test_onnx.py hub/test_push.py inference/test_app.py inference/test_backends.py \
	inference/test_ray.py losses study/test_search.py training/recipe training/test_run.py training/test_samplers.py \
	docs)
quick:
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 1 $(QUICK)

# measure which lines of the package the tests run, including the processes they start
coverage: install
	HF_HUB_OFFLINE=1 $(BIN)/python tests/soak/lines.py

# takes hours
soak: install
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m soak
	for script in $(SOAK); do HF_HUB_OFFLINE=1 $(BIN)/python $$script --out docs/results/reliability.json || exit 1; done

check: install
	$(BIN)/ruff check src tests benchmarks docs examples
	$(BIN)/ruff format --check src tests benchmarks docs examples
	$(BIN)/mypy

fix: install
	$(BIN)/ruff check --fix src tests benchmarks docs examples
	$(BIN)/ruff format src tests benchmarks docs examples

clean:
	rm -rf $(VENV) runs build dist *.egg-info

# The SPRSound model of recipes/sprsound/best_mobilenet.yaml: one training for each seed, two at a time, exported as an
# ensemble that predicts their mean; resumes if it was stopped. SEEDS=0 exports one training: a third of the time and size.
# FOLDS="0 1 2 3 4" trains on folds of the patients instead, and fits the thresholds on out-of-fold predictions for all
# patients.
DATA ?= data/sprsound
WEIGHTS ?= weights/mn04_as_mAP_432.pt
FOLDS ?=
BEST ?= runs/best-sprsound
SEEDS ?= 0 1 2
MEMBERS := $(if $(FOLDS),$(FOLDS:%=$(BEST)-folds/%),$(SEEDS:%=$(BEST)-seeds/%))
ENSEMBLE := $(BEST)$(if $(FOLDS),-of-folds)
BEST_RUN := $(if $(word 2,$(MEMBERS)),$(ENSEMBLE),$(MEMBERS))

best-sprsound: install
	@$(MAKE) --no-print-directory -j 2 $(BEST_RUN)/run.json
	$(BIN)/laennec export $(BEST_RUN) --format full --out $(BEST_RUN)/export-full
	@echo
	@echo "exported model: $(BEST_RUN)/export-full"
	@echo "to score it:    laennec evaluate $(BEST_RUN)/export-full --corpus sprsound --data-dir $(DATA) --split test_intra --out scored --submission answers"

TRAIN_BEST = $(BIN)/laennec train recipes/sprsound/best_mobilenet.yaml --seed $* \
	--corpus.data_dir $(DATA) --encoder.weights $(WEIGHTS) --output_dir $(@D)

$(BEST)-seeds/%/run.json:
	$(TRAIN_BEST)

$(BEST)-folds/%/run.json:
	$(TRAIN_BEST) --corpus.validation_fold $*

$(ENSEMBLE)/run.json: | $(MEMBERS:%=%/run.json)
	$(BIN)/laennec ensemble $(MEMBERS) --out $(ENSEMBLE)

# The model in the package: the ensemble of best-sprsound distilled into one encoder, with thresholds for windows and
# recordings, scored on SPRSound's intra split and on adults (all available recordings of ICBHI)
ICBHI ?= data/icbhi2017_subset
BOX := runs/box-model
box-model: best-sprsound
	@$(MAKE) --no-print-directory $(BOX)/run.json
	$(BIN)/laennec evaluate $(BOX) --split test_intra --data-dir $(DATA) --spans windows
	$(BIN)/laennec evaluate $(BOX) --corpus icbhi2017 --data-dir $(ICBHI) --protocol none --split all --allow-missing \
		--spans windows --out $(BOX)/evaluation-icbhi2017-all
	$(BIN)/laennec card $(BOX) --answers model_cards/answers.yaml
	$(BIN)/laennec export $(BOX) --format full-onnx --base-name mn04_as_mAP_432.pt --out src/laennec/default_model
	$(BIN)/python tests/test_default_model.py $(BOX)

$(BOX)/run.json:
	$(BIN)/laennec train recipes/sprsound/distilled_mobilenet.yaml --loss.teacher $(BEST_RUN) \
		--corpus.data_dir $(DATA) --encoder.weights $(WEIGHTS) --output_dir $(@D)
