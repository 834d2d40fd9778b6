"""Convert the caller's arguments to one batch in canonical form, or raise the exception that PyTorch raises."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from bridge._batch import Spec, Tensors
from jaxctc._inputs import checks

Lengths: TypeAlias = Tensor | np.ndarray | Sequence[Any] | int
"""The types of lengths: those that PyTorch takes, numpy arrays, and single numbers."""


class Call(NamedTuple):
    """Hold a call whose arguments are checked and converted. Shapes as in `_batch`."""

    scores: Tensor
    targets: Tensor
    input_lengths: Tensor
    target_lengths: Tensor
    spec: Spec
    """`batch_first` is that of `scores` here: a transposed view is taken as it lies in memory rather than copied."""
    batched: bool
    transposed: bool
    """Frames and sequences are swapped with respect to the caller's scores."""

    @property
    def tensors(self) -> Tensors:
        return self.scores, self.targets, self.input_lengths, self.target_lengths


def canonical(scores: Tensor, targets: Tensor, input_lengths: Lengths, target_lengths: Lengths, spec: Spec) -> Call:
    """Check the arguments and convert them to one form."""
    checks.flag("normalized", spec.normalized)
    batch_first, name = checks.flag("batch_first", spec.batch_first), spec.scores_name
    checks.implementation(spec.implementation)
    _check_scores(name, scores, batch_first)
    try:
        blank = checks.blank(spec.blank, scores.shape[-1])
    except ValueError as error:
        raise RuntimeError(str(error)) from None
    targets = _labels(targets)
    lengths = (_lengths("input_lengths", input_lengths), _lengths("target_lengths", target_lengths))

    batched = scores.ndim == 3
    if not batched:
        scores, targets = scores.unsqueeze(0 if batch_first else 1), _one_target(name, targets)
    sequences = scores.shape[0 if batch_first else 1]
    _check_shapes(name, targets, lengths, sequences)
    input_lengths, target_lengths = (x if x.ndim == 1 else x.reshape(-1).expand(sequences) for x in lengths)

    transposed = not scores.is_contiguous() and scores.transpose(0, 1).is_contiguous()
    if transposed:
        scores, batch_first = scores.transpose(0, 1), not batch_first
    spec = Spec(blank, spec.from_logits, batch_first, spec.normalized, spec.implementation)
    return Call(scores, targets, input_lengths, target_lengths, spec, batched, transposed)


def _check_scores(name: str, scores: Any, batch_first: bool) -> None:
    if not isinstance(scores, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(scores).__name__}.")
    if not scores.is_floating_point():
        raise NotImplementedError(
            f"{name} must be of a floating-point type, got {scores.dtype}. Convert it with {name}.float()."
        )
    if scores.ndim not in (2, 3):
        order = "(N, T, C)" if batch_first else "(T, N, C)"
        raise RuntimeError(f"{name} must have shape {order}, or (T, C) for one sequence; got {tuple(scores.shape)}.")
    if scores.numel() == 0:
        raise RuntimeError(
            f"{name} must not be empty, got shape {tuple(scores.shape)}: at least one frame, one sequence and one "
            "class."
        )


def _labels(targets: Any) -> Tensor:
    targets = _tensor("targets", targets)
    if targets.dtype == torch.bool or targets.is_complex():
        raise TypeError(
            f"targets must hold the indices of labels, in an integer type; got {targets.dtype}. "
            "Convert it with targets.long()."
        )
    if not targets.is_floating_point():
        return targets
    converted = targets.long()
    if not torch.equal(converted.to(targets.dtype), targets):
        raise RuntimeError(
            f"targets is of type {targets.dtype} and holds values that are no whole numbers: labels are indices. "
            "Convert it with targets.long()."
        )
    return converted


def _lengths(name: str, lengths: Any) -> Tensor:
    lengths = _tensor(name, lengths)
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        if lengths.numel() == 0:
            return lengths.long()
        raise RuntimeError(f"{name} must be integral, got {lengths.dtype}. Convert it with {name}.long().")
    return lengths


def _tensor(name: str, x: Any) -> Tensor:
    if isinstance(x, Tensor):
        return x
    if isinstance(x, Sequence) and any(isinstance(item, Tensor) for item in x):
        return torch.stack([torch.as_tensor(item).reshape(()) for item in x])
    try:
        return torch.as_tensor(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a tensor of integers, got {type(x).__name__} ({error}).") from None


def _one_target(name: str, targets: Tensor) -> Tensor:
    """Check the target of one sequence. (S,) counts as end to end, without padding, as in PyTorch."""
    if not (targets.ndim == 1 or (targets.ndim == 2 and targets.shape[0] == 1)):
        raise RuntimeError(
            f"targets must have shape (S,) or (1, S) for one sequence, that is {name} of shape (T, C); got "
            f"{tuple(targets.shape)}."
        )
    return targets


def _check_shapes(name: str, targets: Tensor, lengths: tuple[Tensor, Tensor], sequences: int) -> None:
    if targets.ndim not in (1, 2) or (targets.ndim == 2 and targets.shape[0] != sequences):
        raise RuntimeError(
            f"targets must have shape (N, S) with N = {sequences}, as {name} has, or be one-dimensional, all "
            f"targets end to end; got {tuple(targets.shape)}."
        )
    for which, length in zip(("input_lengths", "target_lengths"), lengths, strict=True):
        if tuple(length.shape) not in ((), (sequences,), (sequences, 1)):
            raise RuntimeError(
                f"{which} has shape {tuple(length.shape)}, but there are N = {sequences} sequences: it must have "
                f"shape ({sequences},), or be one number that serves all."
            )
