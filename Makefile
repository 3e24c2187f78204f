# Two commands for a new user: `make demo` and `make test`. Both make the virtual environment that they need.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN = $(VENV)/bin
CODE = featurestore cli tests benchmarks

.PHONY: demo test check lint clean

demo: $(VENV)/.demo
	$(BIN)/python -m benchmarks.demo

test: check
	$(BIN)/python -m pytest

check: lint
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

lint: $(VENV)/.dev
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)

$(VENV)/.dev: EXTRAS = all,dev
$(VENV)/.demo: EXTRAS = all
$(VENV)/.dev $(VENV)/.demo: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name it with: make PYTHON=/path/to/python" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[$(EXTRAS)]"
	touch $@

clean:
	rm -rf $(VENV) demo build *.egg-info
