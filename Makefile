# Two commands: `make figures` draws every figure, `make test` proves them. Both install what they need into .venv first.
# On Linux, for torch without CUDA, name the address of its CPU wheels (see PyTorch's install page):
#   make figures TORCH_INDEX=<address>
PYTHON ?= python3
JOBS ?= 2
RUN = .venv/bin/python -m
PYTEST = $(RUN) pytest -p no:cacheprovider -q
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: figures paper docs test check unit fence nbval gpu lab report clean

figures: .venv/installed
	$(RUN) hgcore run --profile quick --jobs $(JOBS)
	$(MAKE) docs

paper: .venv/installed
	$(RUN) hgcore run --profile paper --jobs $(JOBS)
	$(RUN) hgcore report

docs: .venv/installed
	$(RUN) sphinx -q -c docs . runs/site
	@echo "Open runs/site/index.html in a browser, or run: make lab"

# All parts run, even if one fails; the exit status is the number of those that failed.
test: .venv/installed
	@failed=0; for part in check unit fence nbval; do $(MAKE) $$part || failed=$$((failed + 1)); done; exit $$failed

check: .venv/installed
	$(RUN) ruff check hgcore tests notebooks docs conftest.py
	$(RUN) hgcore report --check

unit: .venv/installed
	OMP_NUM_THREADS=1 $(PYTEST) -p no:nbval -n $(JOBS) tests

# The tests of the library once more, in a copy without fast/: it must not be missed.
fence: .venv/installed
	rm -rf runs/fence && mkdir -p runs/fence
	cp -r hgcore tests pyproject.toml runs/fence && rm -r runs/fence/hgcore/fast runs/fence/tests/fast
	cd runs/fence && OMP_NUM_THREADS=1 PYTHONPATH=. ../../.venv/bin/python -m pytest -p no:nbval \
		-p no:cacheprovider -q -n $(JOBS) tests/core
	rm -r runs/fence

nbval: .venv/installed
	OMP_NUM_THREADS=1 $(PYTEST) -n $(JOBS) --dist loadfile --timeout 900 --nbval --nbval-current-env \
		--nbval-sanitize-with nbval_sanitize.cfg --nbval-cell-timeout 300 --ignore notebooks/own notebooks

# On a machine with a CUDA GPU, within 8 minutes: the tests that need it, then figures/beyond/gpu.json.
gpu: .venv/installed
	$(RUN) pytest -p no:nbval -p no:cacheprovider -q -m cuda tests
	$(RUN) hgcore.benchmarks.gpu

lab: .venv/installed
	$(RUN) jupyterlab --LabApp.news_url=None --notebook-dir=notebooks $$([ $$(id -u) = 0 ] && echo --allow-root)

report: .venv/installed
	$(RUN) hgcore report

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.12 figures"; exit 1; }
	$(PYTHON) -m venv .venv
	$(RUN) pip install -q -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(RUN) pip install -q -c constraints.txt -e '.[torch,fast,suite,docs,test]'
	@touch .venv/installed

clean:
	rm -rf runs figures/quick
