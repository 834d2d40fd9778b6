"""Fresh memory for large tensors."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def empty(shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Contiguous and arbitrary, of the device of another tensor and, unless it is given, of its type.

    The host's comes from numpy, which asks Linux for huge pages: to touch a large tensor for the first time takes
    half as long as with the small ones that PyTorch gets.
    """
    dtype = dtype or like.dtype
    size = math.prod(shape) * dtype.itemsize
    if like.device.type != "cpu" or not size:
        return like.new_empty(shape, dtype=dtype)
    return torch.from_numpy(np.empty(size, np.uint8)).view(dtype).view(*shape)
