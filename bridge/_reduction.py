"""From one loss a sequence to what the caller asked for."""

import torch
from torch import Tensor

from jaxctc._types import Reduction


def reduce(losses: Tensor, target_lengths: Tensor, reduction: Reduction, zero_infinity: bool) -> Tensor:
    """(N,) losses to (N,) or ()."""
    if zero_infinity:
        losses = torch.where(losses == torch.inf, 0, losses)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return (losses / target_lengths.to(losses).clamp(min=1)).mean()
