# Each target does all of its own set-up: Python 3.11 or later and make are enough to start with.
#   make demo     a small model learns to alliterate and writes report.html
#   make test     the whole test suite          make test ARGS="-k kl"
#   make check    format, lint, types, layers
#   make bench    one RL step of ours against TRL's, in turn     make bench ARGS="--rows 15m-10"
#   make install  the virtual environment alone; EXTRAS=dev,ray,eval adds what some tests would skip without
# Override with make PYTHON=python3.12 VENV=/somewhere/else; pip's own settings (PIP_EXTRA_INDEX_URL,
# PIP_FIND_LINKS, ...) decide where packages come from, a CPU-only torch for instance.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then echo $$p; break; fi; done)
VENV ?= .venv
EXTRAS ?= dev
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=

.PHONY: install demo test check bench clean

install: $(STAMP)

# torch goes first and alone, so that the build pip prefers here is the one everything else is resolved against.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed; name one with make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is older than Python 3.11; name another with make PYTHON=..." >&2; exit 1; }
	@echo "Setting up $(VENV) with $(PYTHON): once, a few minutes"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check torch -c constraints.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(EXTRAS)]' -c constraints.txt
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/talltree demo $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest $(ARGS)

bench: $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]' -c constraints.txt
	$(BIN)/python -m bench rl $(ARGS)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache dist build
