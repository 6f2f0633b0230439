# Everything here works from a fresh clone: each target does its own set-up, in .venv.
#
#   make install PYTHON=python3.12     another interpreter
#   make install TORCH=torch==2.13.0   the torch to install (this is the default)
#   make install TORCH=none            install no torch: .venv sees the one of PYTHON's own site-packages, as in a vendor's image
#
# What .venv was made with is remembered in .venv/made-with, so that `make install TORCH=none` and a later
# plain `make test` mean the same torch. Asking for something else makes .venv anew.

made-with := $(shell cat .venv/made-with 2>/dev/null)
PYTHON ?= $(or $(word 1,$(made-with)),python3)
TORCH ?= $(or $(word 2,$(made-with)),torch==2.13.0)

pip = .venv/bin/python -m pip --disable-pip-version-check
stamp = .venv/installed
kernels = .venv/kernels

.DEFAULT_GOAL := help
.PHONY: help install run test lint ci ci-full wheel clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: $(stamp) $(kernels)  ## make .venv with torch, HAL and its tools, and fetch the default model
	@.venv/bin/python -m hal.default_model >/dev/null

run: install  ## the main job: generate text through HAL
	.venv/bin/hal generate "What is the capital of France?"

# One torch thread a worker: two workers of two threads each on two cores wait for each other most of the time.
test: install  ## the fast test suite
	@OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 .venv/bin/python -m pytest -q -n 2 --dist loadfile tests

lint: install  ## ruff and mypy
	.venv/bin/ruff check .
	.venv/bin/mypy

ci:  ## lint, test, then one script per heavy environment
	@ci/all.sh

ci-full:  ## the long runs, on demand; leaves a dated log in docs/evidence/
	@ci/full.sh

wheel: install  ## build the wheel into dist/
	rm -rf build
	$(pip) wheel --quiet --no-deps --wheel-dir dist .
	@ls dist

clean:  ## remove .venv, builds and caches
	rm -rf .venv .venv-* build dist *.egg-info hal/kernels/cpu/*.so hal/kernels/cpu/not_built.txt ci/logs .pytest_cache .mypy_cache .ruff_cache .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

ifneq ($(PYTHON) $(TORCH),$(made-with))
.PHONY: .venv/made-with
endif
.venv/made-with:
	@ci/make_venv.sh "$(PYTHON)" "$(TORCH)"

# torch goes first and alone, so that nothing after it can choose another. accelerate is installed without its
# dependencies for the same reason: it depends on torch, and pip might satisfy that with a second one.
$(stamp): .venv/made-with pyproject.toml constraints.txt
	@grep -v '^torch==' constraints.txt >.venv/constraints.txt
ifneq ($(TORCH),none)
	$(pip) install -c .venv/constraints.txt "$(TORCH)"
endif
	$(pip) install -q -c .venv/constraints.txt -e ".[generate,serve,bench,test,lint]"
	$(pip) install -q -c .venv/constraints.txt --no-deps accelerate psutil
	@.venv/bin/python ci/check_torch.py "$(TORCH)"
	@touch $@ $(kernels)

# Changed sources alone: the editable install above builds them too. Without a compiler it says so and goes on.
$(kernels): $(stamp) setup.py $(wildcard hal/kernels/cpu/*.cpp hal/kernels/cpu/*.h)
	.venv/bin/python setup.py --quiet build_ext --inplace
	@touch $@
