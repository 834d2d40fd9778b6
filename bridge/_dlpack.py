"""The only file that crosses frameworks: tensors to arrays and back, without a copy where they can share.

A GPU's tensors cross by DLPack. The host's cross as numpy views, which JAX's compiled programs share just
the same, and take in an eighth of the time.

JAX runs asynchronously, on the CPU too, while PyTorch lets a tensor be changed in place at any time.
`to_torch` waits for its array, so that what was computed from a shared tensor is computed before the
caller has the result, and with it the chance to change the tensor. On a GPU the wait is an event on
the stream, not a synchronisation.
"""

import contextlib
import functools
from collections.abc import Iterator

import jax
import numpy as np
import torch
import torch.utils.dlpack

from bridge import _fork


@contextlib.contextmanager
def crossing(like: torch.Tensor) -> Iterator[None]:
    """Within it, JAX computes on the tensor's device, and in float64 if that is the tensor's type.

    Both settings belong to the thread and end with the block: JAX's global switches stay as they are.
    """
    _fork.check()
    with jax.default_device(_device(like.device)), jax.enable_x64(like.dtype == torch.float64):
        yield


@functools.cache
def _device(device: torch.device) -> jax.Device:
    """JAX's name for the device."""
    platform = {"cpu": "cpu", "cuda": "rocm" if torch.version.hip else "cuda"}.get(device.type)
    if platform is None:
        raise RuntimeError(
            f"log_probs is on {device}: the bridge crosses on CPU and CUDA. Move it with log_probs.cpu()."
        )
    try:
        return jax.devices(platform)[device.index or 0]
    except RuntimeError as error:
        major = (torch.version.cuda or "13").split(".")[0]
        remedy = {
            "cpu": "Leave JAX its CPU backend: add cpu to JAX_PLATFORMS, as in JAX_PLATFORMS=cuda,cpu.",
            "cuda": f'Install one, with pip install "jax[cuda{major}]" for this PyTorch, and let JAX_PLATFORMS, if it '
            "is set, name cuda; or move the tensors with .cpu().",
        }.get(platform, "Install one, or move the tensors with .cpu().")
        raise RuntimeError(f"log_probs is on {device}, but this JAX has no {platform} backend. {remedy}") from error


def to_jax(tensor: torch.Tensor) -> jax.Array | np.ndarray:
    """Shares the memory of a contiguous tensor; JAX must not be told to keep it."""
    if tensor.device.type != "cpu" and tensor.numel():  # not every exporter takes an empty one
        return jax.dlpack.from_dlpack(tensor)
    tensor = tensor.cpu()
    if tensor.dtype == torch.bfloat16:  # a type that numpy has from JAX, and PyTorch does not know
        return tensor.view(torch.int16).numpy().view(jax.numpy.bfloat16)
    return tensor.numpy()


def to_torch(array: jax.Array) -> torch.Tensor:
    """A tensor over the array's memory. The caller must let go of the array: the tensor is writable."""
    if array.size == 0:
        return torch.from_numpy(np.zeros(array.shape, np.float32)).to(getattr(torch, array.dtype.name))
    return torch.utils.dlpack.from_dlpack(array)
