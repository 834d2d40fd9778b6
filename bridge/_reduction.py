"""Reduce one loss a sequence to what the caller asked for."""

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

Reduction: TypeAlias = Literal["none", "mean", "sum"]
"""The reductions of PyTorch."""
REDUCTIONS: tuple[str, ...] = get_args(Reduction)


def reduce(losses: Tensor, target_lengths: Tensor, reduction: Reduction, zero_infinity: bool) -> Tensor:
    """Reduce losses, (N,), to (N,) or ()."""
    if zero_infinity:
        losses = torch.where(losses == torch.inf, 0, losses)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return (losses / target_lengths.to(losses).clamp(min=1)).mean()
