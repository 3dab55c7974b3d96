# Two commands from a fresh clone: `make demo` and `make test`. Both set everything up in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
RUNNABLE := $(VENV)/.runnable
PACKAGES := interpretune-core interpretune-tlens interpretune-saelens interpretune-lightning
EXAMPLES := $(patsubst %/pyproject.toml,%,$(wildcard examples/*/pyproject.toml))
SOURCES := $(PACKAGES:%=%/src) $(EXAMPLES:%=%/src)
TLENS4 := .make/tlens4
# Where the user's cache cannot be written: a folder here, for models, and for whatever libraries keep.
OTHER_CACHE := $(shell cache="$${XDG_CACHE_HOME:-$$HOME/.cache}"; mkdir -p "$$cache" 2>/dev/null && test -w "$$cache" || echo yes)
ifneq ($(OTHER_CACHE),)
export XDG_CACHE_HOME := $(CURDIR)/.make/cache
endif
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
# One at a time: what the shell of a recipe does after this has the lock to itself, until that shell ends.
LOCK = $(PYTHON) -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX$(1))'
ALONE = mkdir -p .make && exec 9>.make/$(1).lock && { $(call LOCK, | fcntl.LOCK_NB) 2>/dev/null || \
		{ echo "Another make in this folder is at it; this one goes on when it is done." >&2; $(call LOCK,); }; }
UNCHANGED = test -e $@ && test -z "$$(find $^ -newer $@)"
QUIETLY := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1
ARGS ?=

.PHONY: setup demo test test-notebooks test-lowest test-newest test-tlens4 broken-adapters kit mutants docs notebooks browser lint format bench-overhead bench-ablation bench-suffix bench-questions bench-circuits bench-runner bench-store soak-store soak-demo clean

setup: $(INSTALLED)

$(INSTALLED): constraints.txt pyproject.toml $(PACKAGES:%=%/pyproject.toml) $(EXAMPLES:%=%/pyproject.toml)
	@$(call ALONE,setup); if $(UNCHANGED); then exit; fi; set -ex; \
	$(PYTHON) -m venv $(VENV); \
	$(BIN)/pip install --quiet --upgrade "pip>=25.1"; \
	$(BIN)/pip install --quiet --constraint constraints.txt --group dev \
		--editable "interpretune-core[completion,gguf,metrics,lora,quantization]" --editable interpretune-tlens \
		--editable interpretune-saelens --editable "interpretune-lightning[fts]"; \
	$(BIN)/pip install --quiet --constraint constraints.txt $(EXAMPLES:%=--editable %); \
	touch $@

$(RUNNABLE): constraints.txt $(PACKAGES:%=%/pyproject.toml)
	@$(call ALONE,setup); if $(UNCHANGED); then exit; fi; set -ex; \
	$(PYTHON) -m venv $(VENV); \
	$(BIN)/pip install --quiet --constraint constraints.txt \
		--editable "interpretune-core[gguf]" --editable interpretune-tlens --editable interpretune-saelens; \
	touch $@

demo: $(firstword $(wildcard $(INSTALLED)) $(RUNNABLE))  ## which units make SmolLM2 say are or is, and a page; ARGS="--help" shows what can be changed
	@$(call ALONE,demo) && set -x && $(BIN)/interpretune demo $(ARGS)

test: $(INSTALLED)  ## all tests but those of notebooks, in two processes of one thread each; ARGS="-k name" selects some
	HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= \
		$(BIN)/python -m pytest --numprocesses 2 --dist loadscope --no-loadscope-reorder \
		-m "not notebook" $(ARGS)

test-notebooks: $(INSTALLED)  ## executes examples/notebooks on the real model, beside what they show
	HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -m notebook tests/notebooks $(ARGS)

test-tlens4: $(TLENS4)/.installed  ## core and its TransformerLens adapter with TransformerLens 4: tests, the kit, the numbers of 3.9
	@$(call ALONE,tlens4) && set -ex; \
	$(QUIETLY) $(BIN)/python -m tests.tlens4.numbers $(TLENS4)/numbers.safetensors; \
	$(QUIETLY) TRANSFORMER_LENS_NUMBERS=$(TLENS4)/numbers.safetensors $(TLENS4)/bin/python -m pytest \
		tests/tlens tests/tlens4/same_numbers.py tests/tlens4/kit.py $(ARGS)

$(TLENS4)/.installed: $(INSTALLED) constraints.txt constraints-tlens4.txt tests/tlens4/environment.py
	@$(call ALONE,tlens4); if $(UNCHANGED); then exit; fi; set -ex; \
	$(BIN)/python -m tests.tlens4.environment $(TLENS4); \
	touch $@

# Held while the tests run, too: with other metadata, the next make removes the environment.
test-lowest:  ## some tests with the lowest versions that metadata allow, torch apart; PYTHON=python3.13 takes another Python
	@$(call ALONE,lowest) && set -x && $(QUIETLY) $(PYTHON) -m tests.versions lowest $(ARGS)

test-newest:  ## the same with the newest versions
	@$(call ALONE,newest) && set -x && $(QUIETLY) $(PYTHON) -m tests.versions newest $(ARGS)

broken-adapters: $(INSTALLED)  ## every rule of the kit on every adapter of tests/broken_adapters, which takes most of an hour
	HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest --numprocesses 2 tests/broken_adapters/every_rule.py $(ARGS)

mutants: $(INSTALLED)  ## faults put into copies of the sources, and whether tests find them; ARGS="-k replay" puts some
	OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutants $(ARGS)

docs: $(INSTALLED)  ## the site, in .make/site; a broken link or a public name without documentation is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

notebooks: $(INSTALLED)  ## executes the notebooks of examples/notebooks again; ARGS=memory executes one
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m tests.notebooks $(ARGS)

browser:  ## Chromium, in which a test opens the page of a question: from Debian's packages, where none is installed
	command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
		|| (apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core)

kit: $(INSTALLED)  ## every rule on every adapter here, with six seeds, both architectures, and all stacks: hours
	HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest --numprocesses 2 tests/testing/whole_kit.py $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(SOURCES)
	rm -rf .make/new-adapter && mkdir -p .make/new-adapter  # templates are type-checked as what they become
	for kind in framework model latents extension; do \
		$(BIN)/interpretune new-adapter checked_$$kind --kind $$kind --output .make/new-adapter/$$kind >/dev/null || exit; \
	done
	MYPYPATH=$$(echo .make/new-adapter/*/src | tr " " ":") $(BIN)/mypy .make/new-adapter/*/src
	$(BIN)/lint-imports
	$(BIN)/codespell

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-overhead: $(INSTALLED)  ## composed modules against hand-written ones; writes benchmarks/out/overhead.json
	HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python benchmarks/overhead.py $(ARGS)

bench-ablation: $(INSTALLED)  ## exact ablation beside the plain loop; writes benchmarks/out/ablation.json
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.ablation $(ARGS)

bench-suffix: $(INSTALLED)  ## ablation at every position of short prompts beside whole forwards; writes benchmarks/out/suffix.json
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.suffix $(ARGS)

bench-questions: $(INSTALLED)  ## effects of neurons, heads and dictionaries beside plain loops; writes benchmarks/out/questions.json
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.questions $(ARGS)

bench-circuits: $(INSTALLED)  ## circuits beside plain loops, and methods beside exact numbers; writes benchmarks/out/circuits.json
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.circuits $(ARGS)

bench-runner: $(INSTALLED)  ## the four modes with and without runner and stores; writes benchmarks/out/runner.json
	HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m benchmarks.runner $(ARGS)

bench-store: $(INSTALLED)  ## bytes, rates and memory of a store of results; writes benchmarks/out/store.json
	HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m benchmarks.store $(ARGS)

soak-store: $(INSTALLED)  ## kills writers of a store at 200 random moments; ARGS="--seed 1" repeats some
	OMP_NUM_THREADS=1 $(BIN)/python -c "from benchmarks.soak_store import main; main()" $(ARGS)

soak-demo: $(INSTALLED)  ## the demo on the real model, by its answers and its proof on held-out nouns: minutes
	HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest tests/e2e/real_demo.py tests/tasks/real_model.py $(ARGS)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
