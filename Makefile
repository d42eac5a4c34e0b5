# Kvorum. `make help` lists the targets. Everything here works in a fresh clone; the first call makes .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DATA ?= ./data
SHELL := /bin/bash
.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | awk -F'\t' '{printf "  make %-14s %s\n", $$1, $$2}'

# --- Setting up ---------------------------------------------------------------------------------------------------
.PHONY: setup
setup: $(VENV)/.installed ## Make .venv with the locked dependencies (done by every target that needs it)

$(VENV)/.installed: requirements-dev.lock pyproject.toml
	@bash deploy/setup-venv "$(PYTHON)" "$(VENV)"
	@touch $@

# --- Running ------------------------------------------------------------------------------------------------------
.PHONY: run run1 run2 run3
run: setup ## Start a three-node cluster on loopback, with its data under ./data
	@exec $(BIN)/kvorum local --data-dir $(DATA)

PEERS := n1=127.0.0.1:9001,n2=127.0.0.1:9002,n3=127.0.0.1:9003
run1 run2 run3: run%: setup ## Start one of three nodes in this terminal (client port 8001, 8002, 8003)
	@exec $(BIN)/kvorum serve --name n$* --peers $(PEERS) --listen-client 127.0.0.1:800$* --listen-peer 127.0.0.1:900$* \
	  --data-dir $(DATA)/n$* --metrics-log-interval 30

# --- Testing ------------------------------------------------------------------------------------------------------
.PHONY: test check fix
test: setup ## Run the tests (the quick suite; about five minutes)
	@$(BIN)/python -m pytest -n 2 -m "not slow and not e2e" tests

check: setup ## Lint, types, layers, formatting; changes nothing
	@$(BIN)/ruff format --check service client tests bench
	@$(BIN)/ruff check service client tests bench
	@$(BIN)/mypy
	@$(BIN)/lint-imports

fix: setup ## Format and fix what can be fixed
	@$(BIN)/ruff format service client tests bench
	@$(BIN)/ruff check --fix service client tests bench

.PHONY: lock
lock: setup ## Renew the lock files from pyproject.toml
	@$(BIN)/pip install -q pip-tools
	@$(BIN)/pip-compile -q --generate-hashes --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-header --strip-extras --allow-unsafe --extra fast -o requirements.lock pyproject.toml
	@$(BIN)/pip-compile -q --generate-hashes --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-header --strip-extras --allow-unsafe --extra fast --extra otlp --extra dev --build-deps-for editable -o requirements-dev.lock pyproject.toml
	@$(BIN)/pip-compile -q --generate-hashes --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-header --strip-extras --allow-unsafe --only-build-deps --build-deps-for wheel -o requirements-build.lock pyproject.toml

# --- Measuring ----------------------------------------------------------------------------------------------------
.PHONY: bench profile
bench: setup ## Measure Kvorum and etcd (ETCD=path, or on the PATH) in one run; options: BENCH="--rounds 1 --seconds 2"
	@$(BIN)/python -m bench $(BENCH)

profile: setup ## Sample the leader under load with py-spy; options: PROFILE="--op get --clients 64"
	@$(BIN)/python -m bench.profiler $(PROFILE)

# --- Observability ------------------------------------------------------------------------------------------------
.PHONY: metrics-doc
metrics-doc: setup ## Write docs/metrics.md and docs/alerts.md anew from the instruments and the rules
	@$(BIN)/python -m kvorum.telemetry.reference > docs/metrics.md
	@$(BIN)/python deploy/observe/alerts_doc.py > docs/alerts.md

.PHONY: dashboard
dashboard: setup ## Write the Grafana dashboard anew from deploy/observe/dashboard.py
	@$(BIN)/python deploy/observe/dashboard.py > deploy/helm/dashboards/kvorum.json
