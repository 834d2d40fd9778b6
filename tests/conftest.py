"""Shapes checked, promotions strict: what a user may switch on must not break the library."""

import contextlib
import gc
import importlib.util
import os
from pathlib import Path

import compiler

os.environ.update(compiler.environment())

import jax
import pytest
from jaxtyping import install_import_hook

# The modules that hold arrays; what the public functions accept and raise is theirs to say.
SHAPED = [
    f"jaxctc.{name}"
    for name in (
        "_autodiff",
        "_forward_backward",
        "_kernels.step",
        "_kernels.tpu",
        "_kernels.tpu_layout",
        "_kernels.tpu_passes",
        "_lattice",
        "_parallel",
        "_reference",
    )
]
# A GPU machine has what it has: there, beartype may be missing.
checked = importlib.util.find_spec("beartype") is not None
with install_import_hook(SHAPED, "beartype.beartype") if checked else contextlib.nullcontext():
    import jaxctc  # noqa: F401

jax.config.update("jax_num_cpu_devices", 8)  # virtual ones, for what is sharded
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# What JAX traces stays, and looking through it for garbage, again and again, takes a twentieth of the time.
gc.set_threshold(100_000, 50, 100)

# What `make test` leaves to `make test-all`: whole files, or those of their tests that are named.
KERNELS = "kernels, which are interpreted on a CPU or compiled ahead of time for a machine that is not here"
PROCESSES = "starts processes of its own, each of which imports and compiles everything again"
LIBRARIES = "other libraries' compilers and samples"
FULL = {
    "test_tpu_kernel.py": KERNELS,
    "test_gpu_kernel.py": KERNELS,
    "test_products.py": KERNELS,
    "test_distributed.py": PROCESSES,
    "bridge/test_machinery.py::test_distributed_data_parallel": PROCESSES,
    "bridge/test_processes.py::test_a_forked_data_loader_does_not_hang_and_a_loss_inside_says_what_to_do": PROCESSES,
    "bridge/test_processes.py::test_memory_and_file_handles_stay_what_they_are": PROCESSES,
    "bridge/test_torch_samples.py": LIBRARIES,
    "test_benchmarks.py": "the benchmarks' own tests",
}

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture
def x64():
    """Float64 for one test; the others run with JAX's default."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def shared_data() -> Path:
    """Real inputs beside the checkout, which not everybody has."""
    if not SHARED.is_dir():
        pytest.skip("the shared data directory is not beside this checkout")
    return SHARED


def pytest_collection_modifyitems(items):
    """Marks as `full` what is in the table, and refuses a name in it that no test has any more."""
    here = Path(__file__).parent
    tests: dict[str, list[str]] = {}
    for name in FULL:
        file, _, test = name.partition("::")
        tests.setdefault(file, []).append(test)
    for file in tests:
        if not (here / file).exists():
            raise pytest.UsageError(f"FULL in tests/conftest.py names {file}, which does not exist")
    for item in items:
        file = item.path.relative_to(here).as_posix()
        for test in tests.get(file, ()):
            if test and not hasattr(item.module, test):
                raise pytest.UsageError(f"FULL in tests/conftest.py names {file}::{test}, which does not exist")
            if test in ("", item.originalname):
                item.add_marker(pytest.mark.full)
