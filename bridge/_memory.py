"""Fresh memory for large tensors."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def empty(shape: Sequence[int], like: Tensor) -> Tensor:
    """Contiguous and arbitrary, of the type and device of another tensor.

    The host's comes from numpy, which asks Linux for huge pages: to touch a large tensor for the first time takes
    half as long as with the small ones that PyTorch gets.
    """
    size = math.prod(shape) * like.itemsize
    if like.device.type != "cpu" or not size:
        return like.new_empty(shape)
    return torch.from_numpy(np.empty(size, np.uint8)).view(like.dtype).view(*shape)
