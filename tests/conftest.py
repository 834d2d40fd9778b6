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
