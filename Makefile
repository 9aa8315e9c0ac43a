# make run     install and run the syllabus; ends with the path of the report
# make test    install what tests need; lint, types, tests
# make docs    install what the pages need and build them in docs/_build/
# make bench   install what benchmarks need and measure the ratios of benchmarks/results/
# make parity  the same against other packages; ARGS="influence privacy" measures these families alone, and keeps the other rows
#
# ARGS go to the program: make run ARGS="--scale tiny --jobs 1" · make test ARGS="-k verdicts"
# TORCH=cuda takes PyTorch's CUDA build. PYTHON=python3.12 chooses the interpreter.
VENV ?= .venv
ARGS ?=

.PHONY: run test docs bench parity lint clean

run:
	@scripts/install.sh
	@$(VENV)/bin/theorylab run $(ARGS) || { s=$$?; [ $$s -ne 1 ] || echo "A claim fails, or a study stopped with an error: the report says which, and why."; exit $$s; }

test: lint
	$(VENV)/bin/python -m pytest -n 2 $(ARGS)

lint:
	@scripts/install.sh test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/basedpyright --pythonpath $(VENV)/bin/python

docs:
	@scripts/install.sh docs
	$(VENV)/bin/sphinx-build -W --keep-going -q -b html docs docs/_build
	@echo "$(CURDIR)/docs/_build/index.html"

bench:
	@scripts/install.sh bench
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m benchmarks $(ARGS)

parity:
	@scripts/install.sh bench
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m benchmarks.parity --peers $(ARGS)

clean:
	rm -rf $(VENV) runs dist
