# make demo    shows what Backup Audit does        make test    runs the tests
# make help    lists the rest

PYTHON ?= python3
VENV   ?= .venv
PYTEST ?= pytest

BIN     := $(VENV)/bin
INSTALL := -m pip install --quiet --disable-pip-version-check
RUNTIME := $(VENV)/.runtime-installed
DEV     := $(VENV)/.dev-installed
LOWEST  := .venv-lowest
AUDIT   := $(BIN)/python backup_audit.py --config demo/mydb_config.py

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-quick test-lowest lint format bench monitoring clean

help:  ## list what make can do
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name what; do \
		printf '%-20s %s\n' "$$name" "$$what"; done

venv: $(RUNTIME)  ## set up .venv with what Backup Audit needs to run

# Exit status 1 and 2 say that containers need attention, which those of the demo do; 3 is a failure.
demo: $(RUNTIME)  ## build a small admin database and audit it
	@$(BIN)/python demo/build.py
	@echo; $(AUDIT) || [ $$? -le 2 ]
	@echo; echo 'The textfiles for node_exporter:'; ls demo/textfiles/*.prom
	@echo 'The evidence of 30 days, a page for your browser, and its SHA-256:'
	@$(AUDIT) --history 30 --html demo/evidence.html
	@echo 'All containers:  $(AUDIT) -v'
	@echo 'One container:   $(AUDIT) consent-records'

test: $(DEV)  ## run the tests, on PostgreSQL servers that they start themselves
	$(BIN)/python -m $(PYTEST) -n 2 --dist loadfile

test-quick: $(DEV)  ## run the tests without the slow ones
	$(BIN)/python -m $(PYTEST) -n 2 --dist loadfile -m 'not slow'

test-lowest: $(LOWEST)/.installed  ## run the quick tests of the data layer, metrics and demo with the oldest versions allowed
	$(LOWEST)/bin/python -m $(PYTEST) -n 2 --dist loadfile -m 'not slow' tests/test_admin_db.py tests/test_metrics.py tests/test_demo.py

lint: $(DEV)  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict

format: $(DEV)  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(DEV)  ## measure the audit of a large site
	$(BIN)/python bench/bench.py

# Only the rules go to OUT itself, which Prometheus may load whole.
MONITORING := alerts.yml:backup_audit.yml dashboard.json:grafana/dashboard.json \
	alertmanager.example.yml:alertmanager/alertmanager.example.yml mail.tmpl:alertmanager/mail.tmpl

# RUNBOOK and OUT come through the environment: whatever they hold, the shell only reads them.
monitoring:  ## copy the alert rules, mails and dashboard: RUNBOOK=https://... OUT=FOLDER
	@test -n "$$RUNBOOK" && test -n "$$OUT" || { \
		echo 'usage: make monitoring RUNBOOK=https://wiki.example.org/backup-audit OUT=/etc/prometheus/rules' >&2; exit 2; }
	@set -e; umask 022; mkdir -p "$$OUT/alertmanager" "$$OUT/grafana"; \
	runbook=$$(printf '%s' "$$RUNBOOK" | sed 's/[&|\]/\\&/g'); \
	for file in $(MONITORING); do \
		copy=$$OUT/$${file#*:}; \
		sed "s|https://runbook.example.org/README.md|$$runbook|g" monitoring/$${file%:*} >"$$copy"; \
		echo "$$copy"; \
	done

clean:  ## delete all that can be made again, the virtual environments included
	rm -rf $(VENV) $(LOWEST) .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -rf demo/*.db demo/*.db-journal demo/*.prom demo/textfiles demo/evidence.html
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python $(LOWEST)/bin/python: %/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv --clear $* || { rm -rf $*; exit 1; }

# The environment is made anew, with its packages, if its Python is gone or is not the PYTHON that was given.
FOUND  := $(shell $(BIN)/python --version 2>/dev/null)
WANTED := $(if $(filter file,$(origin PYTHON)),$(FOUND),$(shell $(PYTHON) --version 2>/dev/null))
ifneq ($(FOUND),$(or $(WANTED),none))
.PHONY: $(BIN)/python
endif

$(RUNTIME): requirements.txt $(BIN)/python
	$(BIN)/python $(INSTALL) -r requirements.txt
	@touch $@

$(DEV): requirements.txt requirements-dev.txt $(BIN)/python
	$(BIN)/python $(INSTALL) -r requirements-dev.txt
	@touch $(RUNTIME) $@

$(LOWEST)/.installed: requirements-lowest.txt requirements.txt requirements-dev.txt $(LOWEST)/bin/python
	$(LOWEST)/bin/python $(INSTALL) -r requirements-dev.txt -c requirements-lowest.txt
	@touch $@
