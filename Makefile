# Two commands do everything on a fresh machine with Python 3.11 and git: `make table3` and `make test`.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
export PATH := $(BIN):$(PATH)

.PHONY: table3 flow methods all repro test check check-slow lint format benchmarks preset keep plan doctor
.DEFAULT_GOAL := table3

$(VENV)/installed: requirements.txt requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	"$(BIN)"/pip install --quiet --disable-pip-version-check -r requirements.txt -c requirements.lock
	"$(BIN)"/pip install --quiet --disable-pip-version-check --no-deps -e .
	git rev-parse >/dev/null 2>&1 || "$(BIN)"/dvc config --quiet --local core.no_scm true
	touch $@

$(VENV)/installed-test: $(VENV)/installed requirements-test.txt
	"$(BIN)"/pip install --quiet --disable-pip-version-check -r requirements-test.txt -c requirements.lock
	touch $@

table3: $(VENV)/installed      ## raw video to results/table3.csv, and what belongs to it (report, depth scores), on all cores
	snakemake --cores all results/table3.csv results/report results/depth.json

flow: $(VENV)/installed        ## results/flow_consistency.csv: with and without flow consistency loss
	snakemake --cores all results/flow_consistency.csv

methods: $(VENV)/installed     ## results/methods.csv, table1.csv, table2.csv: all methods, and the tables of Three Ways
	snakemake --cores all results/methods.csv results/table1.csv results/table2.csv

all: $(VENV)/installed         ## every table
	snakemake --cores all

repro: $(VENV)/installed       ## the same with DVC as the engine, one stage after the other
	dvc repro

plan: $(VENV)/installed        ## what would run, why, how long: make plan [STAGE="train results/table3.csv"] [CORES=8]
	@"$(BIN)"/python -m semivid.pipeline.plan $(STAGE) $(if $(CORES),--cores $(CORES))

doctor:                        ## what is missing on this machine and how to get it (works without .venv)
	@PYTHONPATH=src $(or $(wildcard $(VENV)/bin/python),$(PYTHON)) -m semivid.pipeline.doctor

test: $(VENV)/installed-test   ## the whole test suite, under 15 minutes on two cores
	"$(BIN)"/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile

check-slow: $(VENV)/installed-test
	"$(BIN)"/python -m pytest -m slow

lint: $(VENV)/installed-test   ## ruff, snakefmt, snakemake --lint
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile
	snakemake --lint

format: $(VENV)/installed-test
	ruff check --fix .
	ruff format .
	snakefmt Snakefile

benchmarks: $(VENV)/installed-test
	"$(BIN)"/python -m benchmarks

preset: $(VENV)/installed      ## make preset NAME=camvid DATA=path/to/camvid : switch params.yaml
	"$(BIN)"/python -m semivid.pipeline.preset "$(NAME)" $(if $(DATA),"$(DATA)")

keep: $(VENV)/installed        ## make keep NAME=camvid : copy the results and their params to results/NAME
	"$(BIN)"/python -m semivid.pipeline.keep "$(NAME)"
