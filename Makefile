# Everything a person types. CI (.ci/run) calls the same targets.
# Needs nothing but make and Python 3.11 or newer; the rest is installed into .venv.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help up test lint generate sim zoo fuzz faults bench bench-locks e2e-compose e2e-kube e2e-kube-full clean

help:
	@echo "make up            start a cluster on this machine: 3 lock, 3 queue, 2 cache nodes"
	@echo "                   (other counts: make up ARGS='--lock 5 --data-dir .dss-5')"
	@echo "make test          all tests but the long simulation and the ones for Docker or Kubernetes"
	@echo "make lint          ruff, mypy, layers, generated files up to date"
	@echo "make generate      write the generated files (compose, .env.example, Prometheus)"
	@echo "make sim           many simulated seeds       make bench   speed, beside etcd"
	@echo "make bench-locks   the locks beside etcd and PySyncObj, and whether they reach their goals"
	@echo "make zoo           find every planted bug anew (the simulator's own test)"
	@echo "make fuzz          20,000 requests from the nodes' own OpenAPI documents"
	@echo "make faults        the longer faults of real nodes (a short choice is in make test)"
	@echo "make e2e-compose   the Docker Compose stack, for real"
	@echo "make e2e-kube      the operator and its clusters on the Kubernetes of your KUBECONFIG"
	@echo "make e2e-kube-full the same, with the operator killed at every one of its API calls"
	@echo "make clean         remove the cluster's data (.dss) and caches"

# exec: Ctrl-C and SIGTERM reach dss up itself; it takes the terminal's foreground while it runs,
# so that make does not report an interrupt of its own.
up: $(VENV)/.installed
	@exec $(BIN)/dss up $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not sim and not fuzz and not faults and not compose and not kube" $(ARGS)

# FUZZ_CASES (20000) and FUZZ_SEED (1) may be set in the environment.
fuzz: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m fuzz -s tests/fuzz $(ARGS)

faults: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m faults -s tests/processes $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m dss.topology.generate --check

generate: $(VENV)/.installed
	$(BIN)/python -m dss.topology.generate

sim: $(VENV)/.installed-dev
	$(BIN)/python -m dss.testing --seeds 200 --seconds 60 --jobs 2 $(ARGS)
	$(BIN)/python -m pytest -m sim tests

zoo: $(VENV)/.installed-dev
	$(BIN)/python -m dss.testing.zoo $(ARGS)

bench: $(VENV)/.installed-dev
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(BIN)/python -m bench $(ARGS)

# The locks alone, beside etcd and PySyncObj; about six minutes (ARGS=--quick: one).
bench-locks: $(VENV)/.installed-dev
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(BIN)/python -m bench.locks $(ARGS)

e2e-compose: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m compose -s tests/compose $(ARGS)

# KUBECONFIG and the E2E_* variables: docs/testing.md.
e2e-kube: $(VENV)/.installed-dev $(VENV)/.installed-kube
	$(BIN)/python -m pytest -m kube -s tests/kube $(ARGS)

e2e-kube-full: export E2E_FULL := 1
e2e-kube-full: e2e-kube

clean:
	@pid=$$(cat .dss/up.lock 2>/dev/null); \
	if [ -n "$$pid" ] && kill -0 "$$pid" 2>/dev/null; then \
	  echo "a dss up (pid $$pid) runs on .dss: stop it first" >&2; exit 1; fi
	rm -rf .dss build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find nodes operator tests bench loadtest -name __pycache__ -type d -prune -exec rm -rf {} +

# --- installation -------------------------------------------------------------------------------

# The first Python that is new enough. Says what to do when there is none, or none with venv.
define FIND_PYTHON
py=; for candidate in $(PYTHON) python3.13 python3.12 python3.11; do \
  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
  then py=$$candidate; break; fi; \
done; \
if [ -z "$$py" ]; then \
  found=$$($(PYTHON) --version 2>/dev/null || echo none); \
  echo "DSS needs Python 3.11 or newer; found: $$found. Install one, then: make up PYTHON=/path/to/python3" >&2; \
  exit 1; fi; \
if ! "$$py" -c 'import ensurepip, venv' 2>/dev/null; then \
  echo "$$py cannot make virtual environments (no ensurepip). On Debian and Ubuntu: sudo apt install python3-venv" >&2; \
  exit 1; fi
endef

PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check

$(BIN)/python:
	@$(FIND_PYTHON); "$$py" -m venv $(VENV)

$(VENV)/.installed: pyproject.toml requirements.txt | $(BIN)/python
	@began=$$(date +%s); echo "installing into $(VENV) …"; \
	$(PIP_INSTALL) -r requirements.txt && touch $@ && \
	echo "✔ installed in $(VENV) ($$(($$(date +%s) - began)) s)"

$(VENV)/.installed-dev: pyproject.toml requirements.txt | $(BIN)/python
	@began=$$(date +%s); echo "installing into $(VENV), with the tools for tests …"; \
	$(PIP_INSTALL) -e '.[dev]' && touch $@ $(VENV)/.installed && \
	echo "✔ installed in $(VENV) ($$(($$(date +%s) - began)) s)"

$(VENV)/.installed-kube: pyproject.toml | $(BIN)/python
	@command -v kubectl >/dev/null || $(PIP_INSTALL) -e '.[kube]'
	@touch $@
