# Two Towers: everything from a fresh clone, with nothing but Python and make.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help install demo test docs rivals wheel lock format clean

# Which set to install: gpu where an NVIDIA GPU answers, else cpu. Overrule it with `make install DEVICE=cpu`.
ifndef DEVICE
DEVICE := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
endif
# Which Python makes the environment: the first that runs. Overrule it with `make install PYTHON=/path/to/python`.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && { echo $$python; break; }; done)

# The same for the rivals, which want an older numpy and so an older Python.
RIVALS_PYTHON ?= $(shell for python in $(PYTHON) python3.11 python3.12; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null && { echo $$python; break; }; done)

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
RIVALS_PIP := .rivals/bin/python -m pip --disable-pip-version-check
LOCK := .locks/$(DEVICE).lock
STAMP := .venv/installed-$(DEVICE)
# The builds of torch without CUDA, a tenth of the size. Where this address does not answer, torch comes as usual.
TORCH_INDEX := $(if $(filter cpu,$(DEVICE)),--extra-index-url https://download.pytorch.org/whl/cpu)
# `==` also takes the build for a CPU, 2.13.0+cpu, where an index has that beside the one for CUDA; `===` does not.
TORCH = torch$(if $(filter gpu,$(DEVICE)),===$(shell sed -n 's/^torch==//p' $(LOCK)))

help: ## show these lines
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r target line; do \
		printf '%-14s %s\n' "$$target" "$$line"; done

install: $(STAMP) ## make .venv and install everything in it (DEVICE=cpu or DEVICE=gpu)

demo: install ## generate a shop, train, evaluate, serve and ask it, showing each command
	@$(BIN)/towers demo $(if $(SIZE),--size $(SIZE)) $(if $(SEED),--seed $(SEED))

test: install ## everything that CI runs: style, types, import layers, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m compileall -q features towers training serving
	MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=8000000000 OMP_NUM_THREADS=1 $(BIN)/python -m pytest \
		--numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

docs: install ## write what is generated in docs/, and build the site into .site
	$(BIN)/python -m tests.documentation
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --config-file .mkdocs.yml
	@echo "Open .site/index.html. Its search needs a server: $(BIN)/python -m http.server --directory .site"

wheel: $(BIN)/python ## write dist: the wheel, fbgemm-gpu's stand-in for a CPU, and the versions that pip is to take
	@rm -rf dist
	@$(PIP) wheel --quiet --no-deps --wheel-dir dist . .locks/fbgemm-cpu
	@for device in cpu gpu; do cp .locks/$$device.lock dist/constraints-$$device.txt; done
	@ls dist

rivals: .rivals/installed ## make .rivals with what tests/benchmarks measures ours beside

lock: install ## find the newest set of versions that fits, and write the lock files again
	@for device in cpu gpu; do $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
		--fork-strategy fewest --no-header --group dev --override .locks/$$device.overrides \
		--output-file .locks/$$device.lock pyproject.toml .locks/$$device.in >/dev/null; echo "wrote .locks/$$device.lock"; done
	@$(BIN)/uv pip compile --quiet --upgrade --python-version 3.11 --python-platform linux --no-header \
		--override .locks/cpu.overrides --output-file .locks/rivals.lock .locks/rivals.in >/dev/null; \
		echo "wrote .locks/rivals.lock"

format: install ## put every file in the house's layout, and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove .venv, .rivals and caches (runs and data stay)
	rm -rf .venv .rivals .site dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find features towers training serving tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Four steps. torch by itself, so that it brings what its build needs; the rest exactly as locked, without asking what
# each demands (torchrec demands CUDA's fbgemm); the project, linked to this folder; and a look whether all of it loads.
$(STAMP): $(LOCK) pyproject.toml $(BIN)/python
	@if ls .venv/installed-* 2>/dev/null | grep -qv -- '-$(DEVICE)$$'; then \
		$(PIP) uninstall --quiet --yes torch faiss-cpu faiss-gpu fbgemm-gpu fbgemm-gpu-cpu; fi  # the other set's
	@rm -f .venv/installed-*
	@echo "Installing into .venv what runs on a $(DEVICE): some minutes, once."
	@echo "  torch ..."
	@$(PIP) install --quiet --retries 0 $(TORCH_INDEX) --constraint $(LOCK) $(TORCH) \
		|| $(PIP) install --quiet --constraint $(LOCK) $(TORCH)
	@echo "  $$(grep -c '^[a-z]' $(LOCK)) packages from $(LOCK) ..."
	@$(PIP) install --quiet --no-deps --requirement $(LOCK)
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@$(BIN)/towers doctor --installation
	@touch $@
	@echo "Installed. $(BIN)/towers doctor says what was found; make demo shows it at work."

# An environment of its own: what it needs does not go together with what we need.
.rivals/installed: .locks/rivals.lock
	@[ -n "$(RIVALS_PYTHON)" ] || { echo "error: no Python 3.11 or 3.12 found, which the rivals need; say where it is:" \
		"make rivals RIVALS_PYTHON=/path/to/python" >&2; exit 2; }
	@rm -rf .rivals; $(RIVALS_PYTHON) -m venv .rivals || { rm -rf .rivals; exit 1; }
	@echo "Installing the rivals into .rivals: one to three minutes, once."
	@$(RIVALS_PIP) install --quiet --retries 0 $(TORCH_INDEX) --constraint $< torch \
		|| $(RIVALS_PIP) install --quiet --constraint $< torch
	@$(RIVALS_PIP) install --quiet --no-deps --requirement $<
	@touch $@
	@echo "Installed. $(BIN)/python tests/benchmarks/speed.py measures both."

$(LOCK):
	@echo "error: there is no $(DEVICE) set; DEVICE is cpu or gpu" >&2; exit 2

$(BIN)/python:
	@[ -n "$(PYTHON)" ] || { echo "error: no Python 3.11, 3.12 or 3.13 found; install one, or say where it is:" \
		"make install PYTHON=/path/to/python" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		package=$$($(PYTHON) -c 'import sys; print("python{}.{}-venv".format(*sys.version_info))'); \
		echo "Python's venv is missing here: installing $$package"; \
		[ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -qq -y $$package >/dev/null \
		|| { echo "error: $(PYTHON) cannot make environments; type: sudo apt-get install $$package" >&2; exit 2; }; }
	@rm -rf .venv; $(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }
