# `make demo` and `make test` do all their own set-up: each makes and fills
# .venv if it is not there.
PYTHON ?= python3
VENV := .venv
# Quiet TensorFlow's start-up messages; errors still show.
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: demo test test-all lint benchmarks docs clean

demo: $(VENV)/ready
	$(VENV)/bin/python -m binaries.localize --dataset=digits \
	  --run_dir=runs/demo

# One process more than the two cores that are counted on: some tests wait.
test: $(VENV)/ready
	$(VENV)/bin/python -m pytest -n 3 --dist=worksteal

# With the long tests, and ten thousand inputs for each kind of file.
test-all: $(VENV)/ready
	REWRITE_GRAPHS=1 FUZZ_INPUTS=10000 \
	  $(VENV)/bin/python -m pytest -n 3 --dist=worksteal -m ""
	$(VENV)/bin/python -m tests.faults --tries=50

lint: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

benchmarks: $(VENV)/ready
	$(VENV)/bin/python -m benchmarks

# The site, in build/site. Strict: no dead link, no public name without a page.
docs: $(VENV)/ready
	$(VENV)/bin/pip install --quiet --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build

$(VENV)/ready: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --upgrade pip
	$(VENV)/bin/pip install --quiet --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) *.egg-info
