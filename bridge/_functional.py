"""The public functions: PyTorch's signature, shapes, types and exceptions."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from bridge import _autograd, _eager
from bridge._reduction import REDUCTIONS, Reduction, reduce
from jaxctc import _checks

Lengths: TypeAlias = Tensor | np.ndarray | Sequence[Any] | int
"""What PyTorch takes for lengths, and numpy arrays and plain numbers besides."""


def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Lengths,
    target_lengths: Lengths,
    blank: int = 0,
    reduction: Reduction = "mean",
    zero_infinity: bool = False,
    *,
    normalized: bool = True,
    batch_first: bool = False,
) -> Tensor:
    """`torch.nn.functional.ctc_loss`, computed by JAX.

    The gradient is PyTorch's own by default: exp(log_probs) minus the posterior, the right one when
    `log_probs` comes out of a log-softmax. For scores that are no distribution, such as those with label
    priors, scaled or masked ones, pass ``normalized=False`` and get the true derivative. Either can be
    differentiated once more.

    Shapes: T frames, N sequences, C classes with the blank, S labels of the longest target.

    Args:
        log_probs: (T, N, C) or (T, C), floating point, on the CPU or a CUDA device. Half precisions are
            computed in float32.
        targets: (N, S), padded with anything; or one-dimensional, all targets end to end; of any integer
            type, or a floating-point one that holds whole numbers. One sequence: (S,) or (1, S).
        input_lengths: Frames of each sequence, within [0, T]: a tensor, an array, a sequence of ints, or one int.
        target_lengths: Labels of each target, within [0, S]; the same forms.
        blank: Index of the blank class.
        reduction: ``"none"``, ``"mean"`` (each loss by its target length, then over the batch) or ``"sum"``.
        zero_infinity: Count infinite losses, and their gradient, as 0.
        normalized: The scores are a distribution, so that PyTorch's gradient is right.
        batch_first: `log_probs` is (N, T, C).

    Returns:
        The loss in nats: float64 for float64, float32 otherwise; (N,) or (). An infeasible target has the
        loss inf, and the gradient NaN with ``normalized=True``, as in PyTorch, and 0 with False; where its
        loss is multiplied by 0 the gradient is 0.

    Raises:
        RuntimeError: A shape, a length, a label or `blank` is illegal; or JAX lacks the tensor's device.
        NotImplementedError: `log_probs` is not of a floating-point type.
        TypeError: An argument is of the wrong type.
        ValueError: `reduction` is unknown.

    Example:
        >>> import torch, bridge
        >>> log_probs = torch.zeros(4, 1, 3).log_softmax(2).requires_grad_()
        >>> loss = bridge.ctc_loss(log_probs, torch.tensor([[1, 2]]), [4], [2])
        >>> loss.backward()
        >>> round(loss.item(), 4), tuple(log_probs.grad.shape)
        (0.8432, (4, 1, 3))

    Reference:
        Graves et al., "Connectionist Temporal Classification", ICML 2006.
    """
    return _evaluate(
        "log_probs",
        log_probs,
        targets,
        input_lengths,
        target_lengths,
        blank,
        reduction,
        zero_infinity,
        normalized,
        batch_first,
    )


def ctc_loss_with_logits(
    logits: Tensor,
    targets: Tensor,
    input_lengths: Lengths,
    target_lengths: Lengths,
    blank: int = 0,
    reduction: Reduction = "mean",
    zero_infinity: bool = False,
    *,
    batch_first: bool = False,
) -> Tensor:
    """`ctc_loss` of ``logits.log_softmax(-1)``, fused: faster, and never negative.

    Args:
        logits: (T, N, C) or (T, C), unnormalised scores; all other arguments are those of `ctc_loss`.
        targets: (N, S), or end to end.
        input_lengths: Frames of each sequence.
        target_lengths: Labels of each target.
        blank: Index of the blank class.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        zero_infinity: Count infinite losses as 0.
        batch_first: `logits` is (N, T, C).

    Returns:
        The loss in nats, as `ctc_loss` does; the gradient of an infeasible target is 0.

    Raises:
        RuntimeError: A shape, a length, a label or `blank` is illegal; or JAX lacks the tensor's device.
        NotImplementedError: `logits` is not of a floating-point type.
        TypeError: An argument is of the wrong type.
        ValueError: `reduction` is unknown.

    Example:
        >>> import torch, bridge
        >>> logits = torch.zeros(4, 1, 3, requires_grad=True)
        >>> round(bridge.ctc_loss_with_logits(logits, torch.tensor([[1, 2]]), [4], [2]).item(), 4)
        0.8432
    """
    return _evaluate(
        "logits",
        logits,
        targets,
        input_lengths,
        target_lengths,
        blank,
        reduction,
        zero_infinity,
        False,
        batch_first,
    )


def _evaluate(
    name: str,
    scores: Tensor,
    targets: Tensor,
    input_lengths: Lengths,
    target_lengths: Lengths,
    blank: int,
    reduction: Reduction,
    zero_infinity: bool,
    normalized: bool,
    batch_first: bool,
) -> Tensor:
    _checks.reduction(reduction, REDUCTIONS)
    flags = {"zero_infinity": zero_infinity, "normalized": normalized, "batch_first": batch_first}
    for flag, value in flags.items():
        _checks.flag(flag, value)
    _check_scores(name, scores, batch_first)
    try:
        blank = _checks.blank(blank, scores.shape[-1])
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

    # A transposed view is taken as it lies in memory rather than copied.
    turned = not scores.is_contiguous() and scores.transpose(0, 1).is_contiguous()
    if turned:
        scores, batch_first = scores.transpose(0, 1), not batch_first
    settings = (blank, name == "logits", batch_first, normalized)
    arguments = scores, targets, input_lengths, target_lengths
    if _eager.plain(arguments):
        loss = _eager.loss(*arguments, settings, reduction, zero_infinity)
    else:
        loss = reduce(_autograd.losses(*arguments, settings), target_lengths, reduction, zero_infinity)
    return loss if batched or reduction != "none" else loss[0]


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
    whole = targets.long()
    if not torch.equal(whole.to(targets.dtype), targets):
        raise RuntimeError(
            f"targets is of type {targets.dtype} and holds values that are no whole numbers: labels are indices. "
            "Convert it with targets.long()."
        )
    return whole


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
    """(S,) is taken for end to end: like PyTorch, the bridge wants no padding there."""
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
