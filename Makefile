# Two commands: `make figures` draws every figure, `make test` proves them. Both install what they need into .venv first.
# On Linux, for torch without CUDA, name the address of its CPU wheels (see PyTorch's install page):
#   make figures TORCH_INDEX=<address>
PYTHON ?= python3
JOBS ?= 2
RUN = .venv/bin/python -m
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: figures paper test lab report clean

figures: .venv/installed
	$(RUN) hgcore run --profile quick --jobs $(JOBS)
	$(RUN) hgcore report
	@echo "Open figures/index.html in a browser, or run: make lab"

paper: .venv/installed
	$(RUN) hgcore run --profile paper --jobs $(JOBS)
	$(RUN) hgcore report

test: .venv/installed
	$(RUN) ruff check hgcore tests notebooks conftest.py
	$(RUN) hgcore report --check
	OMP_NUM_THREADS=1 $(RUN) pytest -p no:nbval -p no:cacheprovider -q -n $(JOBS) tests
	OMP_NUM_THREADS=1 $(RUN) pytest -p no:cacheprovider -q -n $(JOBS) --dist loadfile --timeout 900 \
		--nbval --nbval-current-env --nbval-sanitize-with nbval_sanitize.cfg --nbval-cell-timeout 300 notebooks

lab: .venv/installed
	$(RUN) jupyterlab --LabApp.news_url=None --notebook-dir=notebooks

report: .venv/installed
	$(RUN) hgcore report

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.12 figures"; exit 1; }
	$(PYTHON) -m venv .venv
	$(RUN) pip install -q -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(RUN) pip install -q -c constraints.txt -e '.[fast,lab,test]'
	@touch .venv/installed

clean:
	rm -rf runs figures/quick figures/pages figures/index.html
