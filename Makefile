# The environment is .venv here, made by the first target that needs it; nothing has to be activated.
SHELL := /bin/bash
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONDONTWRITEBYTECODE := 1
READY := .venv/.ready

.PHONY: demo test check bench clean deps

demo: $(READY)  ## from drawn images to BLEU and a report, in minutes
	@grep -q '^  format: shapes' params.yaml || { \
	  echo 'params.yaml is set for a data set of yours; "freezeframe use shapes" goes back to the demonstration.'; exit 1; }
	dvc repro
	@echo "Open $(CURDIR)/results/report.html"

test: $(READY)  ## every test, on every core
	pytest -q

check: $(READY)  ## style and types
	ruff check .
	ruff format --check .
	mypy

bench: $(READY)  ## this machine's speed beside the plain way, written into docs/performance.md
	python -m bench.renew

deps: $(READY)  ## write the code each stage depends on into dvc.yaml
	python -m tests.import_graph

clean:  ## the environment and what tools leave; data, models, results and work in progress stay
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found; install Python 3.11 or newer."; exit 1; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet -c constraints.txt -e '.[dev,timm,openvino]'
	@touch $@
