# Everything starts here; `make help` lists it. Needs git, make and Python 3.11 or newer, and PyPI; no root.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
SOURCES := services mesh tests bench deploy hatch_build.py

.DEFAULT_GOAL := help
.PHONY: help setup demo up test test-system k8s images bench bench-deps check protos format lock breaking clean

help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## install everything into .venv (the others do it by themselves)

demo: $(STAMP) ## play the whole game once on this machine; own clips: make demo CLIPS="a.mp4 b.mov c.webm"
	@$(BIN)/mesh demo $(CLIPS)

up: $(STAMP) ## run the mesh until Ctrl-C
	@$(BIN)/mesh up

test: $(STAMP) ## all tests that need nothing but PyPI
	$(BIN)/python -m pytest -n 2 --dist loadgroup --ignore tests/system

test-system: $(STAMP) ## real clients, the virus scanner, Chromium and a hundred kills; installs Debian and npm packages (root)
	@tests/system/packages.sh
	CHAOS=full $(BIN)/python -m pytest -n 2 --dist loadgroup tests/system tests/chaos

k8s: $(STAMP) ## render every overlay of k8s/, validate it and test what no schema knows; needs kubectl 1.27 or newer
	@$(BIN)/python -m deploy.manifests
	@$(BIN)/python -m pytest -q tests/system/test_manifests.py

images: $(STAMP) ## build the images and play a game on them: with Docker, or buildah and mmdebstrap from Debian (root)
	@$(BIN)/python -m deploy.images

bench-deps: $(STAMP) ## install what is measured against: @tus/server (npm), tuspyserver (PyPI), ffmpeg, nginx, wrk (Debian)
	cd bench/peers && npm ci --silent --no-audit --no-fund
	$(PYTHON) -m venv bench/peers/.venv
	bench/peers/.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r bench/peers/requirements.txt
	for tool in ffmpeg nginx wrk; do command -v $$tool >/dev/null || \
	  { apt-get -qq update && apt-get -qq install --yes --no-install-recommends ffmpeg nginx-light wrk; }; done

bench: $(STAMP) ## measure uploads, merges and the gateway against others, see bench/README.md; needs make bench-deps
	@$(BIN)/python -m bench.upload
	@$(BIN)/python -m bench.merge
	@$(BIN)/python -m bench.gateway

check: $(STAMP) ## ruff, mypy --strict, import rules, buf lint and format
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(STAMP) ## put code and protos into the house form
	$(BIN)/ruff check --fix-only $(SOURCES)
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/buf format --write

protos: $(STAMP) ## generate the Python code of the protos anew
	$(BIN)/python hatch_build.py

breaking: $(STAMP) ## does the contract break clients of BASE? make breaking BASE=main~1
	$(BIN)/buf breaking --against '.git#ref=$(or $(BASE),HEAD)'

lock: $(STAMP) ## resolve the dependencies anew and pin them with hashes
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header \
	  --extra local --extra dev pyproject.toml --output-file requirements/dev.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	  --constraints requirements/dev.txt pyproject.toml --output-file requirements/runtime.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	  --constraints requirements/dev.txt --group build --output-file requirements/build.txt

clean: ## remove what was made here (not .mesh, where a mesh keeps its data)
	rm -rf $(VENV) gen dist

$(STAMP): requirements/dev.txt pyproject.toml hatch_build.py $(shell find protos -name '*.proto')
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "Python 3.11 or newer is needed: apt install python3, or name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	  { echo "Python's venv module is missing: apt install python3-venv"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)  # pip comes last: a setup that was cut off begins again
	@echo "installing into $(VENV) (a minute or so, once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)
