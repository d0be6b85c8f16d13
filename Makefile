# Needs Python 3.11 or newer with pip, and a package index. `make demo` is the front door.
PYTHON ?= python3
VENV := .venv
RUNS := runs/tiny runs/smollm2-edit
# Passed to pip, as in: make demo PIP_FLAGS='--extra-index-url …' (README, "Without a GPU").
PIP_FLAGS ?=

PINS := pyproject.toml constraints.txt
INSTALLED := $(VENV)/.installed
# What other programs make of a saved model is tried in an environment of its own: theirs is large.
INTEROP := .venv-interop
LLAMA_CPP := $(INTEROP)/llama_cpp
INSTALLED_DEV := $(VENV)/.installed-dev
INSTALLED_BENCH := $(VENV)/.installed-bench
INSTALLED_DOCS := $(VENV)/.installed-docs
# Present only while pip works: an environment found with it was interrupted and is made again.
UNFINISHED := $(VENV)/.unfinished

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo real test slow interop bench docs check format clean

help:
	@echo "make demo    install into $(VENV), run the tiny recipe, say where the report is"
	@echo "make real    install, fetch SmolLM2-135M (93 MB), rewrite fifty facts in it, say where the report is"
	@echo "make test    install with the test extras, run the test suite"
	@echo "make interop install lm-evaluation-harness, peft and llama.cpp (built with cmake) into $(INTEROP), try our files with them"
	@echo "make slow    the tests that take longest, minutes"
	@echo "make bench   install with the peers, time generation and training beside them on a small model (minutes)"
	@echo "make docs    install with mkdocs, build the documentation as a site that needs no network: site/index.html"
	@echo "make check   formatting, lint and types"
	@echo "make format  rewrite the source in the house format"
	@echo "make clean   remove $(VENV), caches, $(RUNS)"

demo: RECIPE := tiny
real: RECIPE := smollm2-edit
demo real: $(INSTALLED)
	@out=runs/$(RECIPE); status=0; $(VENV)/bin/nanogpt-edit run $(RECIPE) --out $$out || status=$$?; \
	if [ -f $$out/report.html ]; then echo "The report: $(CURDIR)/$$out/report.html (and report.md, summary.json)"; fi; \
	exit $$status

# One process a core, each with one thread, and a file's tests in one of them: they share what they have made. The files
# come in the order of tests/conftest.py, those that take longest first. Python keeps what it compiles: they start it often.
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(VENV)/bin/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
test: $(INSTALLED_DEV)
	$(PYTEST)

slow: $(INSTALLED_DEV)
	$(PYTEST) --slow -m slow

interop: $(INTEROP)/.installed
	LLAMA_CPP=$$(echo $(LLAMA_CPP)/*/vendor/llama.cpp) $(INTEROP)/bin/python -m pytest -s -rs tests/test_interop.py tests/test_interop_gguf.py tests/test_interop_serving.py

# Three pairs of each on a quarter of GPT-2; DATA=folder takes GSM8K and GPT-2's vocabulary from it.
BENCH := $(VENV)/bin/python benchmarks
BENCH_FLAGS := --size quarter $(if $(DATA),--data $(DATA))
bench: $(INSTALLED_BENCH)
	$(BENCH)/generate.py $(BENCH_FLAGS) --tokens 32 --mean 16 --longest 50
	$(BENCH)/sft_step.py $(BENCH_FLAGS) --sides ours trl trainer stream
	$(BENCH)/grpo_step.py $(BENCH_FLAGS) --tokens 32

# Strictly: a link or an anchor that leads nowhere, a page that nothing leads to, fails. The banner is mkdocs-material's
# word about its successor.
docs: $(INSTALLED_DOCS)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet
	@echo "The documentation: $(CURDIR)/site/index.html"

check: $(INSTALLED_DEV)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

format: $(INSTALLED_DEV)
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

$(INSTALLED): $(PINS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "$(PYTHON) is missing or older than 3.11. Install Python 3.11+, or name one: make demo PYTHON=python3.12" >&2; \
		exit 1; }
	@if [ -e $(UNFINISHED) ]; then echo "An earlier install was interrupted: making $(VENV) again."; rm -rf $(VENV); fi
	@if [ "$$(uname)" = Linux ] && [ -z "$(PIP_FLAGS)" ] && ! command -v nvidia-smi >/dev/null; then \
		echo "No NVIDIA GPU is here, and pip may take the build of PyTorch for one (gigabytes). README, \"Without a GPU\", says how"; \
		echo "to install its small CPU build instead: make demo PIP_FLAGS='--extra-index-url …'"; fi
	@mkdir -p $(VENV) && touch $(UNFINISHED)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install $(PIP_FLAGS) --constraint constraints.txt --editable '.[serve]'
	@rm -f $(UNFINISHED) && touch $@

$(INSTALLED_DEV): $(INSTALLED)
	@touch $(UNFINISHED) && rm -f $(INSTALLED)
	$(VENV)/bin/python -m pip install $(PIP_FLAGS) --constraint constraints.txt --editable '.[dev]'
	@rm -f $(UNFINISHED) && touch $(INSTALLED) $@

$(INSTALLED_BENCH): $(INSTALLED)
	@touch $(UNFINISHED) && rm -f $(INSTALLED)
	$(VENV)/bin/python -m pip install $(PIP_FLAGS) --constraint constraints.txt --editable '.[bench]'
	@rm -f $(UNFINISHED) && touch $(INSTALLED) $@

$(INSTALLED_DOCS): $(INSTALLED)
	@touch $(UNFINISHED) && rm -f $(INSTALLED)
	$(VENV)/bin/python -m pip install $(PIP_FLAGS) --constraint constraints.txt --editable '.[docs]'
	@rm -f $(UNFINISHED) && touch $(INSTALLED) $@

$(INTEROP)/.installed: $(PINS)
	rm -rf $(INTEROP)
	$(PYTHON) -m venv $(INTEROP)
	$(INTEROP)/bin/python -m pip install $(PIP_FLAGS) --constraint constraints.txt --editable '.[interop]'
	$(INTEROP)/bin/python -m pip download $(PIP_FLAGS) --no-deps --no-build-isolation --no-binary llama-cpp-python \
		--constraint constraints.txt --dest $(LLAMA_CPP) llama-cpp-python
	tar xzf $(LLAMA_CPP)/*.tar.gz -C $(LLAMA_CPP)
	CMAKE_BUILD_PARALLEL_LEVEL=$$(getconf _NPROCESSORS_ONLN) $(INTEROP)/bin/python -m pip install $(PIP_FLAGS) \
		--constraint constraints.txt --no-binary llama-cpp-python llama-cpp-python
	@touch $@

clean:
	rm -rf $(VENV) $(INTEROP) $(RUNS) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
