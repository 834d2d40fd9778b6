"""Shapes checked, promotions strict: what a user may switch on must not break the library."""

import contextlib
from pathlib import Path

import jax
import pytest
from jaxtyping import install_import_hook

with install_import_hook(["jaxctc", "bridge"], "beartype.beartype"):
    import jaxctc  # noqa: F401

    with contextlib.suppress(ImportError):
        import bridge  # noqa: F401

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

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
