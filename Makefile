# Two commands do everything, the virtual environment included: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM := false
# what is compiled stays: the tests start processes by the dozen
export PYTHONDONTWRITEBYTECODE :=

# what `make soak` runs beside the tests that are marked soak; each puts its row into reliability.json
SOAK := $(wildcard $(addprefix tests/soak/,kills.py decoders.py fuzz.py long.py truths.py mutants.py lines.py))

.PHONY: install lock audit demo test tests coverage soak check fix bench readme clean best-sprsound

install: $(VENV)/.installed

PIP := $(BIN)/python -m pip install --quiet
# every file that is installed is one whose hash is in the lock file, what builds laennec included
$(VENV)/.installed: pyproject.toml requirements.lock requirements-cpu.lock requirements-gpu.lock
	$(PYTHON) -m venv $(VENV)
	$(PIP) --require-hashes --no-deps -r requirements.lock
	@# torch's build for the CPU where it is to be had, for the other one brings gigabytes
	$(PIP) --require-hashes --no-deps -r requirements-cpu.lock 2>/dev/null || \
	$(PIP) --require-hashes --no-deps -r requirements-gpu.lock
	$(PIP) --no-deps --no-build-isolation -e .
	$(BIN)/python -m pip check
	@touch $@

lock:
	$(PYTHON) tests/supply/lock.py

# known holes in what is installed; asks PyPI, so it says nothing where PyPI is not to be reached
audit: install
	$(PYTHON) -m venv .audit && .audit/bin/python -m pip install --quiet pip-audit
	.audit/bin/pip-audit --strict --require-hashes --disable-pip -r requirements.lock -r requirements-cpu.lock

demo: install
	$(BIN)/laennec train recipes/demo/add_cnn.yaml --overwrite
	$(BIN)/laennec evaluate runs/demo
	$(BIN)/laennec export runs/demo --format full
	$(BIN)/laennec predict runs/demo/export-full runs/demo-corpus --out runs/demo/predictions
	@echo
	@echo "report:         runs/demo/evaluation-test/report.html"
	@echo "exported model: runs/demo/export-full"
	@echo "predictions:    runs/demo/predictions"

# mypy keeps one core busy: the tests begin beside it
test: install
	@$(MAKE) --no-print-directory -j 2 check tests

# one more than there are cores, for tests that wait; a file's tests share what is made for them
WORKERS ?= $(shell expr $$(nproc 2>/dev/null || echo 2) + 1)
tests: install
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 4 --dist loadfile

# lines of the package that the tests run, in every process they start
coverage: install
	HF_HUB_OFFLINE=1 $(BIN)/python tests/soak/lines.py

# hours
soak: install
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m soak
	for script in $(SOAK); do HF_HUB_OFFLINE=1 $(BIN)/python $$script --out reliability.json || exit 1; done

check: install
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

fix: install
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/ruff format src tests benchmarks

clean:
	rm -rf $(VENV) runs build dist *.egg-info

# The SPRSound model of recipes/sprsound/best_mobilenet.yaml: a training for each seed, two at a time, exported as one
# model that answers their mean; goes on where it was stopped. SEEDS=0 exports one training: a third of the time and size.
DATA ?= data/sprsound
WEIGHTS ?= weights/mn04_as_mAP_432.pt
BEST ?= runs/best-sprsound
SEEDS ?= 0 1 2
MEMBERS := $(SEEDS:%=$(BEST)-seeds/%)
BEST_RUN := $(if $(word 2,$(SEEDS)),$(BEST),$(MEMBERS))

best-sprsound: install
	@$(MAKE) --no-print-directory -j 2 $(BEST_RUN)/run.json
	$(BIN)/laennec export $(BEST_RUN) --format full --out $(BEST_RUN)/export-full
	@echo
	@echo "exported model: $(BEST_RUN)/export-full"
	@echo "to score it:    laennec evaluate $(BEST_RUN)/export-full --corpus sprsound --data-dir $(DATA) --split test_intra --out scored --submission answers"

$(BEST)-seeds/%/run.json:
	$(BIN)/laennec train recipes/sprsound/best_mobilenet.yaml --seed $* \
		--corpus.data_dir $(DATA) --encoder.weights $(WEIGHTS) --output_dir $(@D)

$(BEST)/run.json: | $(MEMBERS:%=%/run.json)
	$(BIN)/laennec ensemble $(MEMBERS) --out $(BEST)
