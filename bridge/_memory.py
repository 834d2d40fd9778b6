"""Allocate memory for large tensors."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_LARGE = 1 << 22
"""The size in bytes from which numpy asks for huge pages."""


def empty(shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return a contiguous tensor of arbitrary values on the device of `like`, of its dtype unless one is given.

    Large host memory comes from numpy, which asks Linux for huge pages: the first access to a large tensor takes half
    as long as with the small pages that PyTorch gets. Smaller memory comes from PyTorch, aligned as JAX wants it.
    """
    dtype = dtype or like.dtype
    size = math.prod(shape) * dtype.itemsize
    if like.device.type != "cpu" or size < _LARGE:
        return like.new_empty(shape, dtype=dtype)
    return torch.from_numpy(np.empty(size, np.uint8)).view(dtype).view(*shape)
