# Two commands do everything, the virtual environment included: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM := false

.PHONY: install demo test check fix bench readme clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@# torch alone and pinned first: a looser pin may bring gigabytes of libraries for a GPU that is not there
	$(BIN)/python -m pip install --quiet $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: install
	@$(BIN)/python -m laennec train recipes/demo/add_cnn.yaml --overwrite
	@$(BIN)/python -m laennec evaluate runs/demo
	@$(BIN)/python -m laennec export runs/demo --format full
	@$(BIN)/python -m laennec predict runs/demo/export-full runs/demo/recordings --out runs/demo/predictions
	@$(BIN)/python recipes/demo/where.py 2>/dev/null || true

test: install check
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

check: install
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests
	$(BIN)/mypy

fix: install
	$(BIN)/ruff check --fix src tests
	$(BIN)/ruff format src tests

clean:
	rm -rf $(VENV) runs build dist *.egg-info
