# Everything a fresh machine needs: python3 (3.11 or newer), make and git; the rest is installed into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
comma := ,
INSTALLED := $(VENV)/.installed

# One more than cores: those that run flows wait for their servers half of the time.
PROCESSES ?= 3
# Files whose tests share a server or a cluster run in one process, the longest groups first: tests/distribution.py.
# Compiled tests, and the library as it is checked, are kept: each process would spend ten seconds on compiling them anew.
PYTEST = PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadscope --no-loadscope-reorder

.PHONY: help demo test test-fast coverage faults rehearsal real-models lint types setup constraints clean

help:
	@echo "make demo         set up, then transfer experts between the embedded models (bico demo)"
	@echo "make test         set up, then run the test suite (in PROCESSES=3 processes)"
	@echo "make test-fast    set up, then test the library alone: bico, without pipeline, store and zoo-making"
	@echo "make coverage     set up, then run the test suite and say which lines it never reaches"
	@echo "make faults       set up, then inject hundreds of faults, two at once, and write benchmarks/results/faults.md"
	@echo "make rehearsal    set up, then start all servers on loopback, deploy, run, check and photograph (15 minutes)"
	@echo "make real-models  set up, then fetch three real text encoders and compare them with their references (0.6 GB)"
	@echo "make lint         set up, then check style and layers"
	@echo "make types        set up, then check types (mypy)"
	@echo "make setup        install into $(VENV), if pyproject.toml or constraints.txt changed"
	@echo "make constraints  resolve the dependencies anew and write constraints.txt"
	@echo "make clean        remove $(VENV) and caches; results (out/, .bico/) stay"

demo: setup
	@$(BIN)/bico demo

test: setup
	@$(PYTEST)

# The library alone never waits for a server, so a process per core is enough.
test-fast: PROCESSES = 2
test-fast: setup
	@$(PYTEST) tests/library bico

coverage: setup
	@# Two fifths more time than `make test`. What tests start in processes of their own is not seen.
	@$(PYTEST) $(addprefix --cov=,bico storage tasks flows zoo_build) --cov-report=term-missing:skip-covered

faults: setup
	@$(BIN)/python -m tests.faults.session --out benchmarks/results/faults.md

rehearsal: setup
	@$(BIN)/python -m tests.rehearsal --log docs/rehearsal.log --pictures docs/images

real-models: setup
	@$(BIN)/python -m benchmarks.real.models --out out/real-models

types: setup
	@$(BIN)/mypy

lint: setup
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/lint-imports

setup: $(INSTALLED)

# One line per step; what pip says goes to a file, of which the end is shown if a step fails.
LOG := $(VENV)/setup.log
define logged
{ $(1); } >> $(LOG) 2>&1 || { echo "error: $(2) failed; the last lines of $(LOG):" >&2; tail -n 15 $(LOG) >&2; exit 1; }
endef

$(INSTALLED): pyproject.toml constraints.txt
	@$(MAKE) --no-print-directory $(BIN)/python
	@: > $(LOG)
	@echo "Installing into $(VENV): some minutes and about 6 GB, most of it PyTorch; the log is $(LOG)"
	@$(call logged,$(BIN)/python -m pip install --progress-bar off --no-compile --constraint constraints.txt --editable '.[pipeline$(comma)dev]',installing)
	@echo "Compiling bytecode, which halves the start of every command"
	@# Left to itself, Python would not keep it where PYTHONDONTWRITEBYTECODE is set. Some packages ship files for other
	@# versions of Python, which do not compile here and need not.
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib bico storage tasks flows zoo_build >> $(LOG) 2>&1 || true
	@touch $@

# An interrupted set-up can leave an environment without pip, so that is what is asked for.
.PHONY: $(BIN)/python
$(BIN)/python:
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || { $(check_python) && \
		echo "Creating the environment $(VENV) with $$($(PYTHON) --version)" && $(PYTHON) -m venv --clear $(VENV); }

define check_python
if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then \
	echo "error: Python 3.11 or newer is needed, but \`$(PYTHON)\` is $$($(PYTHON) --version 2>&1 || true): name another, as in \`make setup PYTHON=python3.12\`." >&2; exit 1; \
elif ! $(PYTHON) -c 'import ensurepip, venv' 2> /dev/null; then \
	echo "error: \`$(PYTHON) -m venv\` does not work: install Python's venv module (Debian, Ubuntu: \`apt-get install python3-venv\`)." >&2; exit 1; \
fi
endef

# Resolved as if nothing were installed, so that tools which happen to lie in .venv stay out.
constraints: $(BIN)/python
	@$(BIN)/python -m pip install --quiet --dry-run --ignore-installed --report $(VENV)/resolved.json '.[pipeline,dev,zoo]'
	@$(BIN)/python -c 'import json; \
	found = [item["metadata"] for item in json.load(open("$(VENV)/resolved.json"))["install"]]; \
	print("# Exact versions for reproducible installs; made by `make constraints`."); \
	print(*sorted(("{name}=={version}".format(**p) for p in found if p["name"] != "bico"), key=str.lower), sep="\n")' > $(VENV)/constraints.txt
	@mv $(VENV)/constraints.txt constraints.txt

clean:
	rm -rf $(VENV) *.egg-info .pytest_cache .hypothesis .ruff_cache .import_linter_cache .mypy_cache
	find bico storage tasks flows zoo_build tests -name __pycache__ -type d -prune -exec rm -rf {} +
