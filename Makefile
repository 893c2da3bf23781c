# Targets are what CI runs. FUNNELCAST_BROKER=host:port makes demo, test and bench use a running Kafka.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
JARS := $(if $(FUNNELCAST_BROKER),,.kafka/libs/pom.xml)

BENCH ?= ingest scoring latency recovery memory history

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types bench

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-6s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.worker $(JARS) ## what the worker and the demonstration need: .venv and Kafka's jars

demo: setup ## real clicks through Kafka, the worker and the model; KEEP=1 leaves them running
	@$(RUN) deploy/demo/demo.py $(if $(KEEP),--keep)

test: $(VENV)/.all $(VENV)/.checkov $(JARS) ## run the tests
	@$(RUN) -m pytest

lint: $(VENV)/.all ## check style, format and import directions
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(VENV)/bin/lint-imports

types: $(VENV)/.all ## check types
	@$(RUN) -m mypy

bench: $(VENV)/.all $(VENV)/.quix $(JARS) ## measure everything beside what people use today; QUICK=1 is a smoke test
	@for part in $(BENCH); do $(RUN) -m tests.bench.$$part $(if $(QUICK),--quick) >/dev/null || exit 1; done
	@$(RUN) -m tests.bench.page

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "setup: found $$($(PYTHON) --version 2>&1), expected Python 3.11 or later; name one with make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.worker: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(RUN) -m pip install --quiet -c constraints.txt -e '.[worker]'
	@touch $@

$(VENV)/.all: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(RUN) -m pip install --quiet -c constraints.txt -e '.[worker,tracing,train,export,test,bench]'
	@touch $@ $(VENV)/.worker

# Checkov's pins contradict torch's, so it has an environment of its own.
$(VENV)/.checkov: | $(VENV)/bin/python
	$(RUN) -m venv $(VENV)/checkov
	$(VENV)/checkov/bin/pip install --quiet checkov==3.3.30
	@touch $@

# Quix Streams' pins contradict pydantic's, so it has one too.
$(VENV)/.quix: | $(VENV)/bin/python
	$(RUN) -m venv $(VENV)/quix
	$(VENV)/quix/bin/pip install --quiet quixstreams==3.28.1 msgspec==0.22.0
	@touch $@

.kafka/libs/pom.xml: deploy/kafka/pom.xml | $(VENV)/.worker
	$(RUN) deploy/kafka/local_kafka.py --fetch
	@touch $@
