# Commands for working on the project. `make help` lists them.
#
#   VENV    folder of the environment                                    (default .venv)
#   VENV_HOST  folder of the simulated Slicer's environment              (default .venv-host)
#   PYTHON  the interpreter to create them with, 3.10 or newer           (default: the first found)
#   TORCH   arguments of `pip install` for PyTorch                       (default torch==2.13.0)
#           If the environment already has a torch that satisfies them, it is kept.
#   SCAN, PROMPT, RUN_ARGS   scan, question and further options of `make demo`

VENV   ?= .venv
VENV_HOST ?= .venv-host
TORCH  ?= torch==2.13.0
# SAM 2 from one commit of Meta's own repository; on PyPI, the same code was uploaded by a third party.
SAM2   ?= SAM-2@https://github.com/facebookresearch/sam2/archive/2b90b9f5ceec907a1c18123530e92e794ad901a4.zip
SAM2_PYPI ?= sam2==1.1.0
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && { echo $$p; break; }; done)

BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
STAMP  := $(VENV)/.up-to-date

OUT      ?= demo-out
SCAN     ?= $(OUT)/scan.nii.gz
PROMPT   ?= Segment the liver
RUN_ARGS ?=

.PHONY: help venv venv-host demo test test-agent test-host test-verl lint types bench bench-gpu screenshots address clean
.DEFAULT_GOAL := help

help:
	@echo "make venv    set up $(VENV) (quick if it is up to date)"
	@echo "make demo    ask the demo agent about the sample scan; results in $(OUT)/"
	@echo "make venv-host  set up the simulated Slicer's environment, 1.7 GB"
	@echo "make test    ruff, mypy, the tests of the agent, of training and of the Slicer module (called by .ci/run)"
	@echo "make test-agent  only the tests of the agent and of training"
	@echo "make test-host  only the tests of the Slicer module, in the simulated Slicer"
	@echo "make test-verl  the tests of verl on a CPU, in a separate environment (2 GB)"
	@echo "make screenshots  update the README's screenshots and the module's example, on a phantom; needs Debian's chromium and chromium-driver"
	@echo "make address REPOSITORY=https://github.com/OWNER/SlicerIBIS  write the public address into the files that the Extensions Manager reads"
	@echo "make bench   time of a step by part, compared with plain generate, and in Slicer's process"
	@echo "make bench-gpu  a 7B and MedSAM2 with random weights on a GPU, compared with plain generate and the memory's speed"
	@echo "make clean   remove files left by building, tests and the demo (keeps $(VENV), data sets and runs)"

venv: $(STAMP)
	@:

# A folder without pip is left from a failed attempt (python3-venv was missing): it is created again.
# The metadata of sam2 requires torchvision and, in an isolated build, the newest torch with gigabytes of CUDA.
# Neither is needed, so it is installed without dependencies and built with the torch that is already installed.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.10 or newer found. Install one, or: make venv PYTHON=/path/to/python3" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { echo "Could not create $(VENV). On Debian or Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PIP) install --quiet "setuptools>=77.0.3" wheel $(TORCH)
	$(PIP) install --quiet -c constraints.txt -e ".[models,training,tests]"
	@$(BIN)/python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("sam2") is None)' || { \
		install="$(PIP) install --quiet --no-deps --no-build-isolation"; export SAM2_BUILD_CUDA=0; \
		$$install --retries 0 --timeout 20 "$(SAM2)" || { \
			echo "Meta's repository cannot be reached: installing SAM 2 from PyPI, $(SAM2_PYPI), the same code uploaded by a third party."; \
			$$install "$(SAM2_PYPI)"; }; }
	@touch $(STAMP)

venv-host: $(VENV_HOST)/.up-to-date

$(VENV_HOST)/.up-to-date: Testing/host/requirements.txt constraints.txt
	@$(VENV_HOST)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV_HOST)
	$(VENV_HOST)/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt -r $<
	@touch $@

demo: venv
	@mkdir -p $(OUT)
	@test "$(SCAN)" != "$(OUT)/scan.nii.gz" || $(BIN)/python -m training.phantoms --seed 7 --out $(SCAN)
	$(BIN)/ibis-agent run "$(SCAN)" --prompt "$(PROMPT)" --out $(OUT) $(RUN_ARGS)
	@echo "Open $(OUT)/review.html in a browser, and the mask in $(OUT)/ over $(SCAN) in a viewer."

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: venv
	$(BIN)/mypy

# Tests that need the simulated Slicer run in its environment, which has no torch, like Slicer's.
HOST_TESTS = Testing/Python/slicer_module

test: lint types test-agent test-host

test-agent: venv
	$(BIN)/python -m pytest --ignore=$(HOST_TESTS) $(PYTEST_ARGS)

test-host: venv venv-host
	$(VENV_HOST)/bin/python -m pytest $(HOST_TESTS) $(PYTEST_ARGS)

# verl has a separate environment, without vLLM.
VENV_VERL ?= .venv-verl
$(VENV_VERL)/.up-to-date: training/grpo/verl/requirements.lock
	@$(VENV_VERL)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV_VERL)
	$(VENV_VERL)/bin/python -m pip --disable-pip-version-check install --quiet $(TORCH)
	$(VENV_VERL)/bin/python -m pip --disable-pip-version-check install --quiet -r training/grpo/verl/requirements.txt \
		-c training/grpo/verl/requirements.lock
	$(VENV_VERL)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps \
		"$$(grep ^verl== training/grpo/verl/requirements.lock)" "$$(grep ^torchvision== training/grpo/verl/requirements.lock)"
	SAM2_BUILD_CUDA=0 $(VENV_VERL)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --no-build-isolation "$(SAM2_PYPI)"
	@touch $@

test-verl: $(VENV_VERL)/.up-to-date
	PYTHONPATH=Logic:. $(VENV_VERL)/bin/python -m pytest Testing/Python/training/test_verl.py \
		Testing/Python/training/test_verl_v1.py $(PYTEST_ARGS)

bench: venv venv-host
	$(BIN)/python -m training.bench $(BENCH_ARGS)
	$(VENV_HOST)/bin/python Testing/bench_slicer.py

bench-gpu: venv
	$(BIN)/python -m training.bench.card --compile --write BENCHMARKS.md $(BENCH_ARGS)

# A patient that no model was trained on, finer than the one of `make demo`.
SHOT_SEED  ?= 7
SHOT_SLICE ?= 27
SHOT_RANGE ?= 39 46
screenshots: venv venv-host
	@mkdir -p build/screenshots
	$(BIN)/python -m training.phantoms --seed $(SHOT_SEED) --spacing 1.5 1.5 3 --out build/screenshots/phantom.nii.gz
	$(VENV_HOST)/bin/python Testing/screenshots.py --scan build/screenshots/phantom.nii.gz --slice $(SHOT_SLICE) \
		--range $(SHOT_RANGE) --example IBISSlicer/Resources/Example/trajectory.json

BRANCH ?= main
address:
	python3 docs/set_address.py "$(REPOSITORY)" "$(BRANCH)"

# Not all of build/: it contains training's data sets, which cost hours of work and a teacher's fees.
clean:
	rm -rf build/screenshots build/lib build/bdist.* dist $(OUT) .pytest_cache .mypy_cache .ruff_cache .hypothesis Logic/*.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -not -path './$(VENV_HOST)/*' -prune -exec rm -rf {} +
