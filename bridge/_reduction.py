"""Reduce one loss a sequence to what the caller asked for."""

import warnings
from typing import Any, cast

import torch
from torch import Tensor

from jaxctc import _types
from jaxctc._inputs import checks


def canonical_reduction(reduction: str) -> _types.Reduction:
    """Return the reduction by the name that the core has for it, or raise."""
    if reduction == "elementwise_mean":
        message = "reduction='elementwise_mean' is deprecated. Please use reduction='mean' instead."  # PyTorch's own
        if not torch.compiler.is_compiling():  # the compiler takes no warning into a graph
            warnings.warn(message, stacklevel=4)
        return "mean"
    checks.reduction(reduction)
    return cast(_types.Reduction, reduction)


def reduce(losses: Tensor, target_lengths: Tensor, reduction: _types.Reduction, zero_infinity: bool) -> Tensor:
    """Reduce losses, (N,), to (N,) or ()."""
    if zero_infinity:
        losses = torch.where(losses == torch.inf, 0, losses)
    if reduction == "none":
        return losses
    return (losses / divisors(target_lengths.to(losses), reduction)).sum()


def divisors(target_lengths: Any, reduction: _types.Reduction) -> Any:
    """Return what each loss is divided by before all are added up; the lengths, (N,), are of numpy or of PyTorch."""
    if reduction == "mean":
        return target_lengths.clip(min=1) * target_lengths.shape[0]
    if reduction == "batchmean":
        return target_lengths.shape[0]
    if reduction == "mean_volume":
        return target_lengths.sum().clip(min=1)
    return 1
