# Two commands matter: `make demo` and `make test`. Both make .venv when it is not there.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The demo needs neither linters nor browsers: without the stamp of all, it installs less.
DEMO_STAMP := $(if $(wildcard $(STAMP)),$(STAMP),$(VENV)/.installed-train)
# make install CPU=1, make demo CPU=1: torch without CUDA, an eighth of its bytes.
WHEELS := $(if $(CPU),--extra-index-url https://download.pytorch.org/whl/cpu)

.DEFAULT_GOAL := help
.PHONY: help install demo test test-fast test-long test-slow bench-retrieval validate-infra image cluster-demo cluster-chaos lint docs format constraints clean

help:  ## these lines
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "%-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(DEMO_STAMP)  ## what the commands need, into .venv

demo: $(DEMO_STAMP)  ## the whole pipeline on the generated demo set
	$(BIN)/dpmpp demo

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
DOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
PAIR := -n 2 --dist loadfile --no-loadscope-reorder  # most tests wait for processes to start

test: $(STAMP)  ## what every change needs: minutes on two cores
	$(PYTEST) $(PAIR)

test-fast: $(STAMP)  ## unit tests only: no Ray, no MLflow
	$(PYTEST) tests/unit

test-long: $(STAMP)  ## longer pipelines, promotions, kills, a comparison; every backbone exported
	$(PYTEST) $(PAIR) -m long

test-slow: $(STAMP)  ## nodes lost, storage away, disk full, kills, searches, guides that train: over an hour
	$(PYTEST) -m slow --fault-table tests/bench/results/faults.md

bench-retrieval: $(STAMP)  ## ranking and search side by side with others; half an hour on 2 cores, or JOBS="figures ..."
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	$(BIN)/python -m pip install --quiet --no-deps --target .peers --upgrade torchreid==0.2.5
	$(BIN)/python -m tests.bench.retrieval $(JOBS)

validate-infra: $(STAMP)  ## manifests: schemas, rules, mistakes that must be found; seconds
	$(BIN)/dpmpp deploy validate
	$(BIN)/python -m pytest tests/infra
	$(BIN)/hadolint infra/docker/Dockerfile

VARIANT ?= cpu
VERSIONS := infra/k8s/base/versions.env
image:  ## with Docker; VARIANT=cuda for GPUs, REGISTRY=... to name where it goes
	. ./$(VERSIONS) && docker buildx build --sbom=true --file infra/docker/Dockerfile \
	    --build-arg PYTHON_VERSION=$$PYTHON_VERSION --build-arg VARIANT=$(VARIANT) \
	    --tag $(or $(REGISTRY),registry.example.com)/dpmpp-$(VARIANT):$$TAG .

cluster-demo: $(STAMP)  ## every job of the manifests on a Ray of five nodes here; 30 minutes at most
	infra/local/cluster.sh demo

cluster-chaos: $(STAMP)  ## nodes, head, MLflow and S3 lost under way
	infra/local/cluster.sh chaos

lint: $(STAMP)  ## style, types, which package may import which, and that the docs build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(DOCS) --quiet

docs: $(STAMP)  ## the documentation as a site, in site/
	$(DOCS)

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(STAMP): EXTRA := dev
$(VENV)/.installed-train: EXTRA := train
# Not compiled: Python compiles the modules that it loads, a tenth of all.
$(STAMP) $(VENV)/.installed-train: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; name one with PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt $(WHEELS) --editable '.[$(EXTRA)]'
	touch $@

constraints: $(STAMP)  ## write down the versions of this environment
	$(BIN)/python -m pip freeze --exclude-editable > constraints.txt

clean:
	rm -rf $(VENV) runs site
