# Short names for the commands of CONTRIBUTING.md. PYTHON is that of .venv, else the active one.
PYTHON ?= $(if $(wildcard .venv/bin/python),$(CURDIR)/.venv/bin/python,python)

FAST = tests/pipelines tests/kernels/reference tests/kernels/common \
  $(addprefix tests/fastseg/,config methods models report)

.PHONY: test test-fast endurance lint types demo ci

test:  ## everything, some of it on two processes
	$(PYTHON) -m pytest

test-fast:  ## no run of the trainer, no second process, not the interpreter
	$(PYTHON) -m pytest -m "not slow" $(FAST)

endurance:  ## kills, full disks, hanging ranks, flipped bits: a quarter of an hour
	$(PYTHON) -m pytest -m endurance

lint:  ## the rules and the format
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types:  ## mypy on the installed package: from another folder, so that it does not see the checkout
	rm -rf build
	$(PYTHON) -m pip install --quiet --no-deps .
	cd tests && $(PYTHON) -m mypy --config-file ../pyproject.toml -p fastseg

demo:  ## train and score on the embedded data set
	$(PYTHON) -m fastseg.train

ci:  ## a fresh .venv, lint, types and all tests: what has to pass
	.ci/run
