# Everything a checkout needs: `make demo` and `make test` do their own set-up.

VENV := .venv
PY := $(VENV)/bin/python
JOBS ?= 3
CHECKED := src tests tools benchmarks $(wildcard examples)
PYTEST := $(PY) -m pytest -n $(JOBS) --dist worksteal --timeout=400
unexport PYTHONDONTWRITEBYTECODE

.PHONY: venv demo test exam bench growth lint format packages clean

venv:
	@tools/setup-venv.sh

demo: venv
	@$(PY) tools/demo.py

packages:
	@tools/install-test-packages.sh

lint: venv
	$(VENV)/bin/ruff check $(CHECKED)
	$(VENV)/bin/ruff format --check $(CHECKED)
	$(VENV)/bin/mypy

test: packages lint
	$(PYTEST) --session-timeout=2400 -m "not exam" $(ARGS) || { \
	    echo "What failed is run once more, alone: these tests measure time, and the machine may have been busy."; \
	    $(PY) -m pytest --timeout=400 --session-timeout=900 --last-failed --last-failed-no-failures none \
	        -m "not exam" $(ARGS); }

exam: packages lint
	$(PYTEST) --timeout=3600 -m exam $(ARGS)

bench: venv
	$(PY) benchmarks/run.py $(ARGS)

growth: venv
	$(PY) benchmarks/growth.py $(ARGS)

format: venv
	$(VENV)/bin/ruff check --fix-only $(CHECKED)
	$(VENV)/bin/ruff format $(CHECKED)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis /var/tmp/torpor-tests-$$(id -u)
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
