"""These tests need an NVIDIA GPU that both PyTorch and JAX can use; elsewhere they are skipped, and say why."""

import importlib.util

import jax
import pytest

collect_ignore_glob = [] if importlib.util.find_spec("torch") else ["test_*.py"]


def _missing() -> str | None:
    import torch

    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA device"
    try:
        jax.devices("cuda")
    except RuntimeError:
        return "JAX has no CUDA backend: install jax[cuda12] or jax[cuda13], and let JAX_PLATFORMS name cuda"
    return None


def pytest_collection_modifyitems(items):
    ours = [item for item in items if item.get_closest_marker("gpu")]
    reason = _missing() if ours else None
    for item in ours if reason else ():
        item.add_marker(pytest.mark.skip(reason=reason))
