# Everything one does more than once. `make help` lists it.
#
#   VENV    where the environment lives                                  (default .venv)
#   VENV_HOST  where the simulated Slicer's lives                        (default .venv-host)
#   PYTHON  the interpreter it is made from, 3.10 or newer               (default: the first that fits)
#   TORCH   what to hand to `pip install` for PyTorch, options included  (default torch==2.13.0)
#           An environment that has torch already keeps it when this is satisfied.
#   SCAN, PROMPT, RUN_ARGS   what `make demo` asks, about which scan, with which further options

VENV   ?= .venv
VENV_HOST ?= .venv-host
TORCH  ?= torch==2.13.0
# SAM 2 from Meta's own repository, one commit; PyPI has a third party's upload of the same code.
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

.PHONY: help venv venv-host demo test test-agent test-host test-verl lint types check bench bench-gpu screenshots address clean
.DEFAULT_GOAL := help

help:
	@echo "make venv    set up $(VENV) (quick when it is up to date)"
	@echo "make demo    ask the demo agent about the sample scan; results in $(OUT)/"
	@echo "make venv-host  set up the simulated Slicer's environment, 1.7 GB"
	@echo "make test    ruff, mypy, the agent's and the training's tests, and the Slicer module's (what .ci/run calls)"
	@echo "make test-agent  the agent's and the training's tests alone"
	@echo "make test-host  the Slicer module's alone, in the simulated Slicer"
	@echo "make test-verl  verl's V1 worker and one update on a CPU, in an environment of its own (2 GB)"
	@echo "make screenshots  draw the README's pictures and the module's example anew, on a phantom; needs Debian's chromium and chromium-driver"
	@echo "make address REPOSITORY=https://github.com/OWNER/SlicerIBIS  write the public address into what the Extensions Manager reads"
	@echo "make bench   seconds a step, split by part, against plain generate; what a step costs in Slicer's process"
	@echo "make bench-gpu  a 7B and MedSAM2 with random weights on a CUDA card, against plain generate and the memory's rate"
	@echo "make clean   remove what building, testing and the demo left ($(VENV), and data sets and runs that were made, stay)"

venv: $(STAMP)
	@:

# A folder without pip is the rest of a try that failed (python3-venv was missing): it is made anew.
# sam2's metadata asks for torchvision and, in an isolated build, for the newest torch with gigabytes of
# CUDA. We need neither: without dependencies, and built against the torch that is already here.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.10 or newer found. Install one, or: make venv PYTHON=/path/to/python3" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { echo "Could not make $(VENV): on Debian or Ubuntu, apt install python3-venv" >&2; exit 1; }
	$(PIP) install --quiet "setuptools>=77.0.3" wheel $(TORCH)
	$(PIP) install --quiet -c constraints.txt -e ".[models,training,tests]"
	@$(BIN)/python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("sam2") is None)' || { \
		install="$(PIP) install --quiet --no-deps --no-build-isolation"; export SAM2_BUILD_CUDA=0; \
		$$install --retries 0 --timeout 20 "$(SAM2)" || { \
			echo "Meta's repository cannot be reached: SAM 2 comes from PyPI, $(SAM2_PYPI), a third party's upload of the same code."; \
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

# The tests that need the simulated Slicer run in its own environment, which has no torch, as Slicer's has none.
HOST_TESTS = Testing/Python/slicer_module

test: lint types test-agent test-host

test-agent: venv
	$(BIN)/python -m pytest --ignore=$(HOST_TESTS) $(PYTEST_ARGS)

test-host: venv venv-host
	$(VENV_HOST)/bin/python -m pytest $(HOST_TESTS) $(PYTEST_ARGS)

# verl has an environment of its own, without vLLM: its V1 worker and one update, on a CPU.
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

# Not all of build/: training's data sets lie there, hours of work and a teacher's fees.
clean:
	rm -rf build/screenshots build/lib build/bdist.* dist $(OUT) .pytest_cache .mypy_cache .ruff_cache .hypothesis Logic/*.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -not -path './$(VENV_HOST)/*' -prune -exec rm -rf {} +
