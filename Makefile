# Everything a checkout needs: `make demo` and `make test` do their own set-up.

VENV := .venv
PY := $(VENV)/bin/python
JOBS ?= 3
unexport PYTHONDONTWRITEBYTECODE

.PHONY: venv demo test exam bench lint format packages clean

venv:
	@tools/setup-venv.sh

demo: venv
	@$(PY) tools/demo.py

packages:
	@tools/install-test-packages.sh

lint: venv
	$(VENV)/bin/ruff check src tests tools benchmarks
	$(VENV)/bin/ruff format --check src tests tools benchmarks
	$(VENV)/bin/mypy

test: packages lint
	$(PY) -m pytest -n $(JOBS) --dist worksteal -m "not exam" $(ARGS)

exam: packages lint
	$(PY) -m pytest -n $(JOBS) --dist worksteal -m exam $(ARGS)

bench: venv
	$(PY) benchmarks/run.py $(ARGS)

format: venv
	$(VENV)/bin/ruff check --fix-only src tests tools benchmarks
	$(VENV)/bin/ruff format src tests tools benchmarks

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis /var/tmp/torpor-tests-$$(id -u)
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
