# Two commands for a new user: `make demo` and `make test`. Both make the virtual environment that they need.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN = $(VENV)/bin
CODE = featurestore cli tests benchmarks docs
# Processes that share the tests, one more than two cores have, as a fifth of the tests' time is waiting; 0: all in one.
JOBS ?= 3
# Where containers forbid bytecode, every process of the tests would compile all modules anew.
export PYTHONDONTWRITEBYTECODE =

# Names of oneDNN, what /proc/cpuinfo calls them, and torch's own kernels of that time.
ISAS = SSE41:sse4_1:default AVX2:avx2:avx2 AVX512_CORE:avx512bw:avx512 AVX512_CORE_BF16:avx512_bf16:avx512 \
	AVX512_CORE_AMX:amx_bf16:avx512
MODEL_TESTS = tests/models tests/encode/test_threads.py tests/pipeline/test_extractor.py \
	tests/training/pretrain/test_losses.py tests/training/pretrain/test_training.py

.PHONY: demo test tests quick test-isa nightly check lint types docs clean

demo: $(VENV)/.demo
	$(BIN)/python -m benchmarks.demo

# Types, which take one core, are looked at beside the tests.
test: lint
	$(MAKE) --no-print-directory -j 2 types tests

tests: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(JOBS) --no-loadscope-reorder

# Under a minute. What is listed at the end is slower than `fast` says, on an idle machine: mark it slow.
quick: check
	$(BIN)/python -m pytest -n $(JOBS) -m fast -q --durations 10 --durations-min 0.2

# The tests that calculate with models, as on older processors, as far as this one goes.
test-isa: $(VENV)/.dev
	@for isa in $(ISAS); do \
		set -- $$(echo $$isa | tr : ' '); \
		grep -qsw "$$2" /proc/cpuinfo || { echo "$$1: left out, /proc/cpuinfo does not say $$2"; continue; }; \
		echo "$$1:"; \
		ONEDNN_MAX_CPU_ISA=$$1 ATEN_CPU_CAPABILITY=$$3 $(BIN)/python -m pytest -q $(MODEL_TESTS) || exit 1; \
	done

# The store for a night: everything, and its hardest tests on other file systems (as root; HYPOTHESIS_PROFILE=default: in minutes).
nightly: $(VENV)/.dev
	HYPOTHESIS_PROFILE=$${HYPOTHESIS_PROFILE:-nightly} FEATURESTORE_STRESS_SECONDS=60 $(BIN)/python -m pytest tests/store
	FEATURESTORE_KILLS=200 $(BIN)/python -m pytest --timeout 3600 -k killed tests/store tests/sharing tests/pipeline
	FEATURESTORE_KILL_RUNS=40 $(BIN)/python -m pytest tests/pipeline/test_random_kills.py
	.ci/other-disks $(BIN)/python

check: lint types

types: $(VENV)/.dev
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

lint: $(VENV)/.dev
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)

# Any warning is an error, and nothing is fetched. The site is docs/_build/html/index.html.
docs: $(VENV)/.docs
	rm -rf docs/api/generated
	$(BIN)/sphinx-build -E -W --keep-going -b html docs docs/_build/html

$(VENV)/.dev: EXTRAS = all,dev
$(VENV)/.demo: EXTRAS = all
$(VENV)/.docs: EXTRAS = all,docs
$(VENV)/.dev $(VENV)/.demo $(VENV)/.docs: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name it with: make PYTHON=/path/to/python" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[$(EXTRAS)]"
	touch $@

clean:
	rm -rf $(VENV) demo build dist docs/_build docs/api/generated *.egg-info
