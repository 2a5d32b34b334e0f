# Dragoman: set-up and checks. `make demo` and `make test` are all a fresh clone needs; both make the environment first.
#
#   make env [GPU=1]   .venv with everything (once; again when setup.cfg changes)
#   make repair        try again to build what the repair stage needs, where `make env` could not
#   make demo          one real translation run with the demo models
#   make test          the whole test suite          (TESTS="tests/ipc -x" for a part of it)
#   make check         format, lint, types, import contracts, generated pages, tests: what CI runs
#   make bench         the benchmarks, with their peers in the same run
#   make docs          write the generated pages anew
#   make clean         remove what the above made (the cached llama-cpp-python wheel stays)

SHELL := /bin/bash
VENV  := .venv
BIN   := $(VENV)/bin
PY    := $(BIN)/python
STAMP := $(VENV)/ready$(if $(GPU),-gpu)
TESTS ?=
DEMO  ?=

# The distribution's own Python first, where it fits: it is built with optimisation, others often are not (pyenv's default
# is not), and every message of the node then costs a quarter more CPU. Else the first on the path. PYTHON=... overrides.
FITS   := import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
ifndef PYTHON
PYTHON := $(shell for p in /usr/bin/python3 python3 python3.13 python3.12 python3.11; do \
            "$$p" -c '$(FITS)' 2>/dev/null && { echo "$$p"; break; }; done)
endif

.PHONY: env repair demo test check static format bench nightly docs clean

env: $(STAMP)

$(STAMP): setup.cfg pyproject.toml scripts/repair_wheel.sh
	@[ -n "$(PYTHON)" ] && "$(PYTHON)" -c '$(FITS)' || { \
	  echo "make: Dragoman needs Python 3.11, 3.12 or 3.13, and python3 here is" \
	       "$$(python3 --version 2>&1 || true); install one (apt-get install python3.11 python3.11-venv) or say PYTHON=/path/to/python" >&2; exit 1; }
	@[ -x $(PY) ] || { echo "== making $(VENV) with $$($(PYTHON) --version)"; "$(PYTHON)" -m venv $(VENV); } || { \
	  rm -rf $(VENV); echo "make: $(PYTHON) cannot make a virtual environment; apt-get install python3-venv" >&2; exit 1; }
	@echo "== installing Dragoman and what it needs (about half a minute)"
	@bash scripts/meanwhile.sh installing $(PY) -m pip install --disable-pip-version-check --progress-bar off --quiet \
	  -e '.[test,bench$(if $(GPU),$(,)gpu)]'
	@bash scripts/repair_wheel.sh $(PY) $(if $(GPU),gpu)
	@if [ -n "$(GPU)" ]; then echo "== putting onnxruntime-gpu in the place of onnxruntime (last step)"; \
	  bash scripts/meanwhile.sh installing \
	    $(PY) -m pip install --disable-pip-version-check --quiet --force-reinstall --no-deps 'onnxruntime-gpu==1.26.*'; fi
	@rm -f $(VENV)/ready*; touch $@
	@echo "== $(VENV) is ready"

, := ,

repair: env
	@bash scripts/repair_wheel.sh $(PY) $(if $(GPU),gpu)

demo: env
	@$(PY) run_node.py demo $(DEMO)

# CTranslate2, llama.cpp and ONNX Runtime never share a process in the node, and not in the tests either: together in one
# they can crash it (docs/decisions/0011-one-library-a-test-run.md).
with = $(foreach name,$(1),tests/models/test_clockwork_$(name).py) $(wildcard $(foreach name,$(1),tests/stages/test_$(name).py))
BY_LIBRARY := ctranslate2 llama onnx node
TESTS_ctranslate2 := $(call with,asr tones nmt) tests/stages/test_nmt_makes.py tests/models/test_shapes.py tests/models/test_shape_ctranslate2.py
TESTS_llama := $(call with,repair)
TESTS_onnx := $(call with,tts) tests/models/test_shape_onnx.py
TESTS_node := tests/node/test_real_stages.py tests/node/test_translate.py tests/node/test_demo_models.py
APART := $(foreach library,$(BY_LIBRARY),$(TESTS_$(library)))

# pytest's 5 is "nothing to run": the tests of a library that is not installed.
test: env
ifeq ($(strip $(TESTS)),)
	@$(foreach library,$(BY_LIBRARY),$(PY) -m pytest $(TESTS_$(library)) || [ $$? = 5 ] || exit 1;)
	@$(PY) -m pytest $(addprefix --ignore=,$(APART))
else
	@$(PY) -m pytest $(TESTS)
endif

check: static
	@$(MAKE) --no-print-directory test

static: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@$(PY) scripts/pages.py --check

format: env
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: env
	@$(PY) run_node.py bench pipeline
	@$(PY) run_node.py bench hop

# Hours: what is too long for every change. Each ends non-zero when a promise is broken, times included.
nightly: env
	@$(PY) run_node.py bench histories --count 1000000 --jobs 2
	@$(PY) run_node.py bench vram --requests 1000000 --jobs 2
	@$(PY) run_node.py bench simulate --strict
	@for name in pipeline scaling fairness overload arbiter; do $(PY) run_node.py bench $$name --strict || exit 1; done
	@$(PY) run_node.py bench chaos --seconds 4200 --strict
	@DRAGOMAN_TEST_RESTARTS=10000 $(PY) -m pytest tests/node/test_restarts.py
	@DRAGOMAN_TEST_UTTERANCES=500 $(PY) -m pytest tests/node/test_cards.py
	@DRAGOMAN_TEST_SHAPES=all $(PY) -m pytest tests/bench/test_estimates_of_shapes.py
	@! nvidia-smi -L >/dev/null 2>&1 || $(PY) run_node.py bench card

docs: env
	@$(PY) scripts/pages.py --write

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .grimp_cache out/demo
	@rmdir out 2>/dev/null || true
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
