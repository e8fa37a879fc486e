# make demo: align the toy model · make check: ruff, pyright and the fast tests · make test: all tests except test-faults
# (kill -9, full disks), test-hosts (ten kills on four hosts) and test-docker
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION := 1
export RAY_USAGE_STATS_ENABLED := 0
export TOKENIZERS_PARALLELISM := false

# Two tests at the same time, assigned one by one: a single federation leaves a core idle while it starts and ends.
PAIR := -n 2 --maxschedchunk 1

.PHONY: demo test test-faults test-hosts test-docker gpu gpu-wheels lint check newest fix fab clean

demo: $(STAMP)
	$(BIN)/accord demo

test: $(STAMP)
	$(BIN)/python -m pytest $(PAIR)

test-faults: $(STAMP)
	$(BIN)/python -m pytest -m faults -n 4 --maxschedchunk 1 tests/federation tests/faults  # they mostly wait, so four at a time; the longest first

test-hosts: $(STAMP)
	$(BIN)/python -m pytest -m hosts -s tests/federation/test_host_faults.py

test-docker: $(STAMP)
	$(BIN)/python -m pytest -m docker tests/docker

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

check: lint
	$(BIN)/python -m pytest -m "not slow and not faults and not hosts and not docker" -n 2

# Whether Accord runs on the newest releases, beyond the ranges of pyproject.toml: what breaks is printed.
NEWEST := flwr[simulation] torch transformers peft trl

newest:
	test -x .venv-newest/bin/python || $(PYTHON) -m venv .venv-newest
	.venv-newest/bin/pip install --quiet --disable-pip-version-check -e '.[dev]'
	.venv-newest/bin/pip install --quiet --disable-pip-version-check --upgrade $(patsubst %,'%',$(NEWEST))
	.venv-newest/bin/pip list --disable-pip-version-check | grep -iE '^(flwr|torch|transformers|peft|trl) '
	.venv-newest/bin/python -m pytest -m "not slow and not faults and not hosts and not docker" -n 2

# `make gpu` needs a GPU, Python and torch. `make gpu-wheels` downloads its wheels, on a machine with a package index.
GPU_WHEELS := dist/gpu-wheels
GPU_PYTHON := 3.12

gpu:
	$(PYTHON) -m benchmarks.gpu $(if $(wildcard $(GPU_WHEELS)/*.whl),--wheels $(GPU_WHEELS))

gpu-wheels:
	rm -rf $(GPU_WHEELS)
	$(PYTHON) -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: -d $(GPU_WHEELS) \
	  --python-version $(GPU_PYTHON) --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
	  --platform manylinux2014_x86_64 -c constraints.txt -r benchmarks/gpu-wheels.txt
	du -sh $(GPU_WHEELS)

fix: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

fab: $(STAMP)
	mkdir -p dist
	cd dist && ../$(BIN)/flwr build --app .. && unzip -l *.fab

clean:
	rm -rf $(VENV) .venv-newest dist

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Accord needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the dependencies into $(VENV), once: a few minutes, about 2 GB"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
