"""Compiling for NVIDIA GPUs where there is none: XLA's plugin does, and needs to be told what they are like."""

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax
import pytest

TARGET = Path(__file__).parents[2] / "shared" / "data" / "h100_target_config.pbtxt"


def need() -> None:
    """What `make cuda-aot` sees to."""
    for package in ("jax-cuda13-plugin", "nvidia-cuda-nvcc", "nvidia-cuda-nvdisasm"):
        try:
            version(package)
        except PackageNotFoundError:
            pytest.skip(f"{package} is not installed: see make cuda-aot")
    if not TARGET.exists():
        pytest.skip("the description of an H100 is not beside this checkout")


def devices(count: int) -> list[jax.Device]:
    """Return the devices of one host."""
    need()
    if "JAX_SKIP_CUDA_CONSTRAINTS_CHECK" not in os.environ:
        pytest.skip("JAX looks for CUDA's libraries unless JAX_SKIP_CUDA_CONSTRAINTS_CHECK is set, as in make cuda-aot")
    from jax.experimental import topologies

    return topologies.get_topology_desc(
        platform="cuda", topology_name="H100", target_config=TARGET.read_text(), topology=f"1x1x{count}"
    ).devices
