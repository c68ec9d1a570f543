# resolvent: `make help` lists what can be done. Variables may follow a target: make train EXP=chimera_lrgb
PYTHON ?= python3
VENV ?= .venv
RUN_PYTHON = $(VENV)/bin/python
INSTALLED = $(VENV)/.installed
PEERS = $(VENV)/.peers

SCALE ?= demo
TRAINER ?= auto
ARGS ?=
export DATA_DIR

.DEFAULT_GOAL := help
.PHONY: help setup train data reproduce tune results resume eval predict keep test test-slow test-faults benchmark \
	fit-costs compile-kernels gallery lint tensorboard doctor list hours clean gpu-bundle gpu-setup gpu-test gpu-benchmark gpu-fit-costs gpu-train

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 17

# neuraloperator, a peer, without the services that it can log to.
setup: $(INSTALLED) ## install everything into .venv, once

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "resolvent needs Python 3.11 or newer, found " + sys.version.split()[0] + ": make setup PYTHON=python3.11")'
	test -x $(RUN_PYTHON) || $(PYTHON) -m venv $(VENV)
	$(RUN_PYTHON) -m pip install --quiet --constraint constraints.txt --editable '.[cpu,dev,language]'
	$(RUN_PYTHON) -m pip install --quiet --constraint constraints.txt --no-deps neuraloperator
	touch $@

train: setup ## train an experiment: EXP=… [SCALE=demo|paper] [TRAINER=auto|cpu|gpu|ddp|fsdp] [ARGS="seed=1 model.net.layers=2"]
	@test -n "$(EXP)" || { echo 'error: name an experiment, for instance make train EXP=chimera_lrgb; make list shows all.'; exit 1; }
	$(RUN_PYTHON) train.py $(filter -%,$(ARGS)) experiment=$(EXP) scale=$(SCALE) trainer=$(TRAINER) $(filter-out -%,$(ARGS))

data: setup ## solve a PDE into one HDF5 file: PDE=… [SCALE=demo] [ARGS="data.equation.viscosity=1e-3"]
	@test -n "$(PDE)" || { echo 'error: name a file of configs/data/pde, for instance make data PDE=kolmogorov_flow.'; exit 1; }
	$(RUN_PYTHON) -m tools.generate $(PDE) scale=$(SCALE) $(ARGS)

reproduce tune: setup
	@test -n "$(CLAIM)" || { echo 'error: name a claim, for instance make $@ CLAIM=edge_star, or CLAIM=all; they stand in results/RESULTS.md.'; exit 1; }
	$(RUN_PYTHON) reproduce.py $@ $(CLAIM) --scale $(SCALE) $(if $(filter-out auto,$(TRAINER)),--trainer $(TRAINER)) $(ARGS)
reproduce: ## test a paper's claim: CLAIM=…|all [SCALE=demo] [SEEDS=3|0,1,2]
reproduce: ARGS += $(if $(SEEDS),--seeds $(SEEDS))
tune: ## try a claim's settings on validation data, before its protocol is frozen: CLAIM=…|all

results: setup ## render results/RESULTS.md and its figures from the claims' JSON
	$(RUN_PYTHON) reproduce.py results

resume eval predict: setup
	@test -n "$(RUN)" || { echo 'error: name the folder of a run, for instance make $@ RUN=runs/…'; exit 1; }
	$(RUN_PYTHON) runs.py $@ "$(RUN)" $(if $(SMILES),"$(SMILES)")
resume: ## go on with an interrupted run: RUN=runs/…
eval: ## test a run's selected checkpoint again: RUN=runs/…
predict: ## write a run's test predictions to RUN/predictions.csv, of fields .hdf5, or those of a file of SMILES: RUN=runs/… [SMILES=file]

keep: setup ## keep finished runs' reports and curves in results/runs: NAME=… RUNS="runs/… runs/…"
	@test -n "$(NAME)" -a -n "$(RUNS)" || { echo 'error: name the result and the folders of runs, for instance make keep NAME=cifar10 RUNS="runs/A runs/B".'; exit 1; }
	$(RUN_PYTHON) -m tools.keep_runs $(NAME) $(RUNS)

# Two processes of one thread each: two threads that share a core with others wait for each other.
test: setup ## the default test suite, no network and no GPU needed
	OMP_NUM_THREADS=1 $(RUN_PYTHON) -m pytest -n 2 --dist loadfile $(ARGS)

test-slow: setup ## the tests that take minutes
	$(RUN_PYTHON) -m pytest -m slow $(ARGS)

test-faults: setup ## plant faults in the kernels, one at a time: their tests must go red
	$(RUN_PYTHON) -m tests.planted_faults $(ARGS)

benchmark: $(PEERS) ## time kernels and models against their peers, into results/benchmarks
	$(RUN_PYTHON) -m pytest --benchmark $(ARGS)

# mamba-ssm without its CUDA extension and what that asks for: its pure-torch listing is a peer.
$(PEERS): $(INSTALLED)
	$(RUN_PYTHON) -m pip install --quiet --constraint constraints.txt --editable '.[peers]'
	MAMBA_FORCE_BUILD=TRUE MAMBA_SKIP_CUDA_BUILD=TRUE $(RUN_PYTHON) -m pip install --quiet --no-compile \
		--no-deps --no-build-isolation --constraint constraints.txt mamba-ssm \
		|| echo 'mamba-ssm cannot be had here: the benchmark against it will be skipped.'
	touch $@

fit-costs: setup ## fit the cost models of the kernels' forms to this machine
	$(RUN_PYTHON) -m kernels.resolvent.fit_cost
	$(RUN_PYTHON) -m kernels.spectral_conv.fit_cost

compile-kernels: setup ## compile the Triton kernels for sm_80 and sm_90; none may spill registers: [ARGS=mix]
	$(RUN_PYTHON) -m kernels.aot $(ARGS)

gallery: setup ## draw a trajectory of every PDE into docs/gallery
	$(RUN_PYTHON) -m tools.gallery

lint: setup ## check style, formatting and types
	$(RUN_PYTHON) -m ruff check .
	$(RUN_PYTHON) -m ruff format --check .
	$(VENV)/bin/basedpyright --pythonpath $(RUN_PYTHON)

tensorboard: setup ## watch every run: http://localhost:6006
	$(RUN_PYTHON) -m tensorboard.main --logdir runs $(ARGS)

doctor: setup ## what works on this machine
	$(RUN_PYTHON) -m tools.doctor

list: setup ## every experiment: paper, what it shows, time, hardware; every claim
	$(RUN_PYTHON) -m tools.list_experiments

hours: setup ## how long an experiment takes at paper scale, from a step measured here: EXP=…
	@test -n "$(EXP)" || { echo 'error: name an experiment, for instance make hours EXP=chimera_mlm ARGS=data.source=generated.'; exit 1; }
	$(RUN_PYTHON) -m tools.hours experiment=$(EXP) $(ARGS)

# For a GPU machine without network. gpu/ is what travels: there it is unpacked into .gpu/ and data/,
# and what is to come back, and to be in gpu/ when a bare machine is to go on, is left in OUT.
GPU_PYTHON ?= python3
GPU_RUN = PYTHONPATH=$(CURDIR)/.gpu/site:$(CURDIR) $(GPU_PYTHON)
MINUTES ?= 8
OUT ?= gpu
export OUT
gpu-bundle gpu-train: SCALE = paper
gpu-train: TRAINER = gpu

gpu-bundle: setup ## pack code, wheels and data for a GPU machine without network: [EXP="…"] [ARGS=--no-wheels]
	$(RUN_PYTHON) -m tools.gpu_bundle $(EXP) scale=$(SCALE) $(ARGS)

gpu-setup: .gpu/.installed ## there: unpack gpu/, once; the three below do it themselves

.gpu/.installed: gpu/SHA256SUMS
	cd gpu && sha256sum --check --quiet SHA256SUMS
	rm -rf .gpu/site && mkdir -p .gpu/site data
	$(if $(wildcard gpu/wheels/*.whl),$(GPU_PYTHON) -m pip install --quiet --no-index --no-deps --no-compile --target .gpu/site gpu/wheels/*.whl)
	tar -xzf gpu/data.tar.gz --no-same-owner --skip-old-files -C data
	touch $@

gpu/SHA256SUMS:
	@echo 'error: there is no gpu/ here: run `make gpu-bundle` on a machine with network and bring gpu/, or gpu-bundle.tar.gz.'; exit 1

gpu-test: gpu-setup ## there: the kernels' tests, without those that have passed: [ARGS=--again]
	$(GPU_RUN) -m pytest -p tools.gpu_tests -n logical --dist worksteal tests/kernels $(ARGS)

gpu-benchmark: gpu-setup ## there: the benchmarks, without those that are done: [ARGS=--again]
	$(GPU_RUN) -m pytest -p tools.gpu_tests --benchmark $(ARGS)

gpu-fit-costs: gpu-setup ## there: fit the cost models to the GPU, into OUT/OP-cost.json, to replace kernels/OP/cost.json
	for op in resolvent spectral_conv; do \
		$(GPU_RUN) -m kernels.$$op.fit_cost && cp kernels/$$op/cost.json "$(OUT)/$$op-cost.json" || exit 1; done

gpu-train: gpu-setup ## there: train for MINUTES, from where it stands: EXP=… [MINUTES=8] [SCALE=paper] [ARGS=seed=1]
	@test -n "$(EXP)" || { echo 'error: name an experiment, for instance make gpu-train EXP=chimera_lrgb.'; exit 1; }
	$(GPU_RUN) -m tools.gpu_train $(EXP) --minutes $(MINUTES) --out "$(OUT)" scale=$(SCALE) trainer=$(TRAINER) $(ARGS)

clean: ## delete the virtual environment and caches; runs/ and data/ stay
	rm -rf $(VENV) .gpu .pytest_cache .ruff_cache *.egg-info
