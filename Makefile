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
test: setup ## Run the tests (the quick suite; about twenty minutes on two cores)
	@$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not e2e" tests

check: setup ## Lint, types, layers, formatting; changes nothing
	@$(BIN)/ruff format --check service client tests bench
	@$(BIN)/ruff check service client tests bench
	@$(BIN)/mypy
	@$(BIN)/mypy tests bench
	@$(BIN)/lint-imports

fix: setup ## Format and fix what can be fixed
	@$(BIN)/ruff format service client tests bench
	@$(BIN)/ruff check --fix service client tests bench

.PHONY: fuzz-api
EXAMPLES ?= 200
fuzz-api: setup ## Send requests made from /openapi.json to a live node, and check the answers: EXAMPLES=200 of each operation
	@KVORUM_FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest -q --timeout 3600 tests/acceptance/test_openapi.py

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

.PHONY: ab calls
ab: setup ## Compare the speed with that of another version: BASE=commit [HEAD=commit]; options: AB="--rounds 5 --ops put"
	$(if $(BASE),,$(error make ab needs BASE=commit))
	@$(BIN)/python -m bench.ab --base $(BASE) $(if $(HEAD),--head $(HEAD)) $(AB)

calls: setup ## Count the Python calls of one put and one get on the leader; [BASE=commit] [HEAD=commit] to compare
	@$(BIN)/python -m bench.calls $(if $(BASE),--base $(BASE)) $(if $(HEAD),--head $(HEAD)) $(CALLS)

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

# --- Kubernetes ---------------------------------------------------------------------------------------------------
KIND_CLUSTER ?= kvorum-e2e
KIND_NODE_IMAGE ?=
KUBE_CONTEXT ?= kind-$(KIND_CLUSTER)
NAMESPACE ?= kvorum-e2e
RELEASE ?= kv
IMAGE ?= kvorum
TAG ?= $(shell deploy/image-tag)
VERSION := $(shell sed -n 's/^version = "\(.*\)"$$/\1/p' pyproject.toml | head -1)
BASE_IMAGE ?= python:3.11-slim
DOCKER_BUILD_FLAGS ?=
KEEP ?=
E2E_REPORT ?= e2e-report
E2E ?=
KIND = KIND_CLUSTER='$(KIND_CLUSTER)' KIND_NODE_IMAGE='$(KIND_NODE_IMAGE)' KUBE_CONTEXT='$(KUBE_CONTEXT)' \
  NAMESPACE='$(NAMESPACE)' RELEASE='$(RELEASE)' IMAGE='$(IMAGE)' TAG='$(TAG)' VERSION='$(VERSION)' KEEP='$(KEEP)' \
  E2E_REPORT='$(E2E_REPORT)' BIN='$(BIN)' deploy/kind/run

.PHONY: image
image: ## Build the image IMAGE:TAG (TAG follows from the files' content), also tagged with the version
	@BASE_IMAGE='$(BASE_IMAGE)' DOCKER_BUILD_FLAGS='$(DOCKER_BUILD_FLAGS)' $(KIND) image

.PHONY: kind-up kind-load kind-down
kind-up: ## Create the kind cluster KIND_CLUSTER if it is not there
	@$(KIND) up

kind-load: kind-up image ## Load the image into the kind cluster
	@$(KIND) load

.PHONY: kind-fit
kind-fit:
	@$(KIND) fit

kind-down: ## Delete the kind cluster
	@$(KIND) down

.PHONY: helm-test e2e e2e-smoke
helm-test: setup ## Lint the chart and check what it renders (needs helm)
	@$(BIN)/python -m pytest -q tests/helm

e2e: kind-fit setup image ## Every scenario on a kind cluster, made if it is missing; options: E2E="-k leader" KEEP=1
	@$(KIND) e2e $(E2E)

e2e-smoke: kind-fit setup image ## The scenarios that CI runs
	@$(KIND) e2e -m "e2e and smoke" $(E2E)

.PHONY: observe picture
observe: setup ## Check metrics, dashboard and alerts with a real Prometheus on a real cluster whose leaders are killed
	@bash deploy/observe/prepare
	@KVORUM_OBSERVE_OUT=build/observe $(BIN)/python -m pytest -q tests/telemetry

picture: build/observe/venv/.matplotlib ## Draw docs/img/dashboard.png from the data of the last make observe
	@build/observe/venv/bin/python deploy/observe/picture.py build/observe/panels.json docs/img/dashboard.png

build/observe/venv/.matplotlib:
	@$(PYTHON) -m venv build/observe/venv && build/observe/venv/bin/pip install -q matplotlib && touch $@

# --- Simulation ---------------------------------------------------------------------------------------------------
.PHONY: sim
SEEDS ?= 500
FIRST ?= 0
JOBS ?= 2
sim: setup ## Simulate clusters under faults: SEED=n prints one run (SHRINK=1 a smaller one), SEEDS=N [JOBS=2] runs many
	@PYTHONPATH=tests $(BIN)/python -m sim $(if $(SEED),--seed $(SEED) $(if $(SHRINK),--shrink),--seeds $(SEEDS) --first $(FIRST) --jobs $(JOBS))

.PHONY: mutants
MUTANTS ?=
mutants: setup ## Put known bugs back, one at a time, and see which test and which seed notices: ONLY=B27, MODULE=storage, MUTANTS="--seeds 0"
	@PYTHONPATH=tests $(BIN)/python -m mutants --jobs $(JOBS) $(if $(ONLY),--only '$(ONLY)') $(if $(MODULE),--module $(MODULE)) $(MUTANTS)

.PHONY: transcripts
transcripts: setup ## Write the golden conversations of tests/raft/transcripts anew; then read the diff
	@PYTHONPATH=tests $(BIN)/python -m raft.stories

# --- Chaos --------------------------------------------------------------------------------------------------------
.PHONY: chaos
MINUTES ?= 3
chaos: setup ## Real processes under faults and load, histories checked: MINUTES=3 [SEED=n] [SIZE=3|5]; writes chaos.json
	@PYTHONPATH=tests $(BIN)/python -m chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(if $(SIZE),--size $(SIZE))
