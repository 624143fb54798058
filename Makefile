# make demo: the main job. make test: the tests. Each does all the set-up it needs, once.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# The first of these that is a Python 3.11 to 3.13; or say it: make demo PYTHON=/path/to/python
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& echo $$p && break; done)
ARGS ?=
# Every core takes the files of tests in turn.
ALL_CORES := -n logical --dist loadfile

# A release of torch for test-lowest and test-newest, in place of the lowest or the newest one.
TORCH ?=

.PHONY: demo test test-compiled test-slow test-bench test-notebooks test-lowest test-newest \
	notebooks docs bench lint coverage mutation audit format build clean help

help:
	@echo 'make demo         run the main job: density estimation and a guide (ARGS="--steps 200")'
	@echo 'make test         run the tests (ARGS="-k inverse")'
	@echo 'make test-compiled  run the tests of torch.compile'
	@echo 'make test-slow    run every test, the slow ones as well'
	@echo 'make test-bench   run the tests of the benchmarks, with the packages beside which they stand'
	@echo 'make test-notebooks  run the notebooks, reduced, and the tests of the recipe for sbi'
	@echo 'make test-lowest  run the tests with the lowest versions promised (TORCH=2.13.0 for that torch)'
	@echo 'make test-newest  run the tests with the newest versions (TORCH=2.14.1 for that torch)'
	@echo 'make notebooks    run the notebooks in full and keep their outputs'
	@echo 'make docs         build the documentation into site/'
	@echo 'make bench        run the benchmarks and write benchmarks/results/ (ARGS="--fast" to try)'
	@echo 'make lint         check style, format, types, import layers, calls and prose'
	@echo 'make coverage     run the tests and list the branches that they leave out'
	@echo 'make mutation     put faults into norms, logdet and inverse, and list those no test finds (hours)'
	@echo 'make audit        ask for known vulnerabilities of the versions in constraints.txt'
	@echo 'make format       mend style and format where a tool can'
	@echo 'make build        build the wheel and the sdist into dist/'
	@echo 'make clean        remove what make made'

demo: $(VENV)/.demo
	$(BIN)/python -m pyro_iresnet.demo $(ARGS)

test: $(VENV)/.test
	$(BIN)/python -m pytest $(ALL_CORES) -m 'not slow and not compiled' --ignore tests/benchmarks $(ARGS)

test-compiled: $(VENV)/.test
	$(BIN)/python -m pytest $(ALL_CORES) -m 'compiled and not slow' tests $(ARGS)

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest $(ALL_CORES) $(ARGS)

test-bench: $(VENV)/.test $(VENV)/.bench
	$(BIN)/python -m pytest tests/benchmarks $(ARGS)

test-notebooks: $(VENV)/.notebooks
	NOTEBOOK_FAST=1 $(BIN)/python -m pytest --nbmake --nbmake-timeout=600 notebooks $(ARGS)
	$(BIN)/python -m pytest -m 'not slow' tests/sbi

# Environments of their own, made afresh each time: versions are the point.
test-lowest: $(BIN)/python
	rm -rf $(VENV)-lowest && $(BIN)/python -m venv $(VENV)-lowest
	sed '$(TORCH:%=s/^torch==.*/torch==%/)' constraints-lowest.txt > $(VENV)-lowest/constraints.txt
	$(VENV)-lowest/bin/python -m pip install --quiet --disable-pip-version-check \
		-c $(VENV)-lowest/constraints.txt -e '.[test]'
	$(VENV)-lowest/bin/python -m pytest $(ALL_CORES) -m 'not slow' $(ARGS)

test-newest: $(BIN)/python
	rm -rf $(VENV)-newest && $(BIN)/python -m venv $(VENV)-newest
	echo '$(TORCH:%=torch==%)' > $(VENV)-newest/constraints.txt
	$(VENV)-newest/bin/python -m pip install --quiet --disable-pip-version-check \
		-c $(VENV)-newest/constraints.txt -e '.[test]'
	$(VENV)-newest/bin/python -m pytest $(ALL_CORES) -m 'not slow' $(ARGS)

notebooks: $(VENV)/.notebooks
	$(BIN)/python -m nbconvert --to notebook --execute --inplace \
		--ExecutePreprocessor.record_timing=False notebooks/*.ipynb

docs: $(VENV)/.docs
	PATH=$(CURDIR)/$(BIN):$$PATH NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: $(VENV)/.bench
	for name in training_step image_step scaling logdet_error crossover inverse norms svi tables streaming \
			guide_step neutra time_to_quality toy_densities claims soak; do \
		$(BIN)/python -W ignore -m benchmarks.run.$$name --write $(ARGS) || exit 1; \
	done

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore tools/calls.py
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore tools/prose.py

coverage: $(VENV)/.dev
	$(BIN)/python -m coverage run -m pytest -m 'not slow' --ignore tests/blocks/test_compile.py $(ARGS)
	$(BIN)/python -m coverage report

# ARGS='pyro_iresnet.norms.gram*' takes one file.
mutation: $(VENV)/.mutation
	OMP_NUM_THREADS=1 $(BIN)/python -m mutmut run $(ARGS)
	$(BIN)/python -m mutmut results

audit: $(VENV)/.audit
	$(BIN)/python tools/audit.py $(ARGS)

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

build: $(VENV)/.dev
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

clean:
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-newest dist site demo-output

$(BIN)/python:
	@test -n '$(PYTHON)' || { echo 'No Python 3.11 to 3.13 found. Install one, or say: make PYTHON=/path/to/python' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# One stamp for each extra: it is installed again only when what it depends on changes.
$(VENV)/.%: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'Installing pyro-iresnet[$*] into $(VENV), once; torch takes a while.'
	$(PIP) -e '.[$*]'
	@touch $@
