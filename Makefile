# Two targets do all of their own set-up, each in a virtual environment of its own making:
#   make run    install tvmm and boot the built-in guest
#   make test   install what the tests need and pass them
PYTHON ?= python3
VENV ?= .venv
ARGS ?=

.PHONY: run test check clean

run: $(VENV)/.installed
	$(VENV)/bin/tvmm run $(ARGS)

test: $(VENV)/.tests-installed
	$(VENV)/bin/ruff check tvmm tests examples bench fuzz setup.py
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(ARGS)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

SOURCES := pyproject.toml setup.py $(wildcard tvmm/kvm/*.[ch] tvmm/kvm/build.py tvmm/guest/*)

$(VENV)/.installed: $(VENV)/bin/python $(filter-out tvmm/kvm/_kvm.c tvmm/guest/guest.elf,$(SOURCES))
	$(VENV)/bin/pip install -q -e .
	touch $@

$(VENV)/.tests-installed: $(VENV)/.installed
	$(VENV)/bin/pip install -q -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info tvmm/kvm/_kvm.c tvmm/kvm/*.so tvmm/guest/guest.elf
