# Everything runs in a virtual environment of its own; nothing but Python and make is expected.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The Free Spoken Digit Dataset, which not everybody has: a clone of its repository, or one file.
DATA ?= ../shared/data/fsdd.npz
export JAX_PLATFORMS ?= cpu
export MPLBACKEND ?= Agg

.PHONY: demo distributed spoken test test-all lint bench cuda-aot gpu-check gpu-bench examples-fast tutorials-fast docs docs-serve \
	package versions clean

demo: $(VENV)/examples.installed  ## train a recogniser of handwritten lines
	$(BIN)/python examples/handwritten_lines.py

# A process of tests for each of two cores.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

test: $(VENV)/dev.installed  ## run the oracles, the transforms and the errors: in three minutes on two cores
	$(PYTEST) -m "not full"

test-all: $(VENV)/dev.installed  ## run those and the rest: kernels, devices, processes, benchmarks, pictures, other libraries
	$(PYTEST)

lint: $(VENV)/dev.installed  ## run every check that runs no code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/bench.installed  ## measure time, memory and accuracy beside others, on a machine that does nothing else
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks --sweeps

# On a GPU machine whose Python already has its builds of PyTorch and JAX: PYTHON is used as it is, and so are the
# versions that it has, of whose warnings nobody here may know.
ON_GPU := JAX_PLATFORMS=cuda,cpu XLA_PYTHON_CLIENT_PREALLOCATE=false $(PYTHON) -m

# Elsewhere. JAX with its CUDA plugin has an environment of its own: it would look for CUDA whatever it is asked to do.
cuda-aot:  ## compile for NVIDIA GPUs, which need not be there, and run the tests of what comes of it
	$(MAKE) VENV=$(VENV)-cuda $(VENV)-cuda/cuda-aot.installed
	JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 $(VENV)-cuda/bin/python -m pytest -rs -m cuda_aot tests/test_gpu_kernel.py tests/test_gpu_loops.py

gpu-check:  ## compare and time every implementation on an NVIDIA GPU, then run the tests that need one
	$(ON_GPU) jaxctc.check --full
	$(ON_GPU) pytest -m gpu -rs -W default tests/gpu

gpu-bench:  ## measure beside PyTorch's CUDA kernels, cuDNN and optax on an NVIDIA GPU, and judge
	$(ON_GPU) benchmarks --no-memory --check

spoken: $(VENV)/examples.installed  ## train a recogniser of spoken digits; DATA says where the recordings are
	$(BIN)/python examples/spoken_digits.py --data $(DATA)

distributed: $(VENV)/examples.installed  ## train the reader of handwritten lines in two processes and in one, and compare
	$(BIN)/python examples/distributed.py --compare

examples-fast: $(VENV)/dev.installed  ## run the examples in their short form
	$(BIN)/python examples/handwritten_lines.py --fast
	$(BIN)/python examples/handwritten_lines_torch.py --fast
	@if [ -e "$(DATA)" ]; then $(BIN)/python examples/spoken_digits.py --fast --data "$(DATA)"; \
	else echo "Left out: examples/spoken_digits.py, for there are no recordings at $(DATA)."; fi

tutorials-fast: $(VENV)/tutorials.installed  ## run the tutorials in their short form
	@set -e; for script in examples/tutorial_*.py; do echo "$$script"; $(BIN)/python $$script --fast; done

docs: $(VENV)/docs.installed  ## build the documentation in site/, and fail at whatever is missing
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

docs-serve: $(VENV)/docs.installed  ## show the documentation at http://127.0.0.1:8000, and follow changes
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

package: $(VENV)/package.installed  ## build the source distribution and the wheel into dist/, and check both
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

versions: $(VENV)/versions.installed  ## run the tests against the wheel, on every Python that is installed and supported
	$(BIN)/nox

clean:
	rm -rf $(VENV)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"

$(VENV)/%.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable . --group $*
	touch $@
