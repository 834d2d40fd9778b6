"""Convert tensors to arrays and back, without a copy where the two can share memory. No other file does so.

GPU tensors are converted by DLPack. CPU tensors become numpy views: JAX's compiled programs share their memory as
well, and accept a view in an eighth of the time.

JAX computes asynchronously, on the CPU too, while PyTorch allows a tensor to be changed in place at any time.
`to_torch` therefore waits for its array: everything that JAX computes from a shared tensor is computed before the
caller gets the result and can change the tensor. On a GPU the wait is an event on the stream, and the host does not
wait.
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
def jax_context(like: torch.Tensor) -> Iterator[None]:
    """Make JAX compute on the tensor's device, and in float64 if the tensor does, within a ``with`` block.

    Both settings belong to the thread and end with the block: JAX's global configuration is not changed.
    """
    _fork.check()
    with jax.default_device(_device(like.device)), jax.enable_x64(like.dtype == torch.float64):
        yield


@functools.cache
def _device(device: torch.device) -> jax.Device:
    """Return the device as JAX knows it."""
    platform = {"cpu": "cpu", "cuda": "rocm" if torch.version.hip else "cuda"}.get(device.type)
    if platform is None:
        raise RuntimeError(
            f"log_probs is on {device}: the bridge takes tensors on CPU and CUDA devices. Move it with log_probs.cpu()."
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
    """Return an array over the memory of a contiguous tensor. JAX must not donate or keep it."""
    if tensor.device.type != "cpu" and tensor.numel():  # not every exporter accepts an empty tensor
        return jax.dlpack.from_dlpack(tensor.resolve_neg())
    return to_numpy(tensor.cpu())


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Return an array over the memory of a tensor on the CPU."""
    tensor = tensor.resolve_neg()  # a copy, for a view of another tensor's numbers with their signs changed
    if tensor._is_zerotensor():  # autograd's zeros, which have no memory
        tensor = tensor.new_zeros(tensor.shape)
    if tensor.dtype == torch.bfloat16:  # numpy gets this dtype from JAX; PyTorch cannot export it to numpy
        return tensor.view(torch.int16).numpy().view(jax.numpy.bfloat16)
    return tensor.numpy()


def to_torch(array: jax.Array) -> torch.Tensor:
    """Return a tensor over the array's memory. The tensor is writable: the caller must not use the array again."""
    if array.size == 0:
        return torch.from_numpy(np.zeros(array.shape, np.float32)).to(getattr(torch, array.dtype.name))
    return torch.utils.dlpack.from_dlpack(array)
