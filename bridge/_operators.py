"""Provide losses, posteriors and their derivatives as operators that PyTorch's transforms do not look into.

Each takes a batch in canonical form: scores (T, N, C), or (N, T, C) with `batch_first`; targets (N, S) or end to
end; lengths (N,). The operators check the values, because under every transform an operator is given real ones.
An operator takes tensors and plain scalars only: the functions above the operators unpack the description of the
call, and each operator builds it again.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bridge import _gradient, _programs
from bridge._batch import Batch, Spec, Tensors


def losses(problem: Sequence[Tensor], spec: Spec) -> Tensor:
    """Return one loss a sequence, (N,)."""
    return losses_operator(*problem, *spec)


def losses_and_gradient(problem: Sequence[Tensor], spec: Spec) -> tuple[Tensor, Tensor]:
    """Return the losses, and the gradient of each with respect to its own scores, in the dtype of the losses."""
    return losses_and_gradient_operator(*problem, *spec)


def hessian_product(direction: Tensor, problem: Sequence[Tensor], spec: Spec) -> Tensor:
    """Return each loss's matrix of second derivatives times its own part of `direction`."""
    return hessian_product_operator(direction, *problem, *spec)


@torch.library.custom_op("jaxctc::losses", mutates_args=())
def losses_operator(
    scores: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    blank: int,
    from_logits: bool,
    batch_first: bool,
    normalized: bool,
    implementation: str | None = None,
) -> Tensor:
    spec = Spec(blank, from_logits, batch_first, normalized, implementation)
    batch = Batch(scores, targets, input_lengths, target_lengths, spec)
    return _programs.losses(batch, scores.detach())


@torch.library.custom_op("jaxctc::losses_and_gradient", mutates_args=())
def losses_and_gradient_operator(
    scores: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    blank: int,
    from_logits: bool,
    batch_first: bool,
    normalized: bool,
    implementation: str | None = None,
) -> tuple[Tensor, Tensor]:
    spec = Spec(blank, from_logits, batch_first, normalized, implementation)
    batch = Batch(scores, targets, input_lengths, target_lengths, spec)
    weights = np.ones((2, batch.sequences), _programs.precision(scores))
    value, gradient = _programs.losses_and_gradient(batch, scores.detach(), normalized, weights)
    return value, _gradient.assemble(batch, scores.detach(), gradient, value, weights, None, normalized, _wide(scores))


@torch.library.custom_op("jaxctc::hessian_product", mutates_args=())
def hessian_product_operator(
    direction: Tensor,
    scores: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    blank: int,
    from_logits: bool,
    batch_first: bool,
    normalized: bool,
    implementation: str | None = None,
) -> Tensor:
    """Return what `hessian_product` returns; `direction` may have the dtype of the scores or of the losses."""
    spec = Spec(blank, from_logits, batch_first, normalized, implementation)
    batch = Batch(scores, targets, input_lengths, target_lengths, spec, may_be_compact=False)
    return _programs.hessian_product(batch, scores.detach(), normalized, direction.detach())


def posteriors(problem: Sequence[Tensor], spec: Spec, slots: int) -> tuple[Tensor, Tensor]:
    """Return the posteriors of the 2 S + 1 states, S = `slots`, and those of the classes."""
    return posteriors_operator(*problem, slots, spec.blank, spec.batch_first)


def posteriors_pulled_back(states: Tensor, classes: Tensor, problem: Sequence[Tensor], spec: Spec) -> Tensor:
    """Return the cotangent of the scores, given those of the posteriors of states and classes."""
    return posteriors_pulled_back_operator(states, classes, *problem, spec.blank, spec.batch_first)


@torch.library.custom_op("jaxctc::posteriors", mutates_args=())
def posteriors_operator(
    scores: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    slots: int,
    blank: int,
    batch_first: bool,
) -> tuple[Tensor, Tensor]:
    batch = _posterior_batch((scores, targets, input_lengths, target_lengths), blank, batch_first)
    states, classes = _programs.posteriors(batch, scores.detach())
    return states[:, :, : 2 * slots + 1].contiguous(), classes


@torch.library.custom_op("jaxctc::posteriors_pulled_back", mutates_args=())
def posteriors_pulled_back_operator(
    states: Tensor,
    classes: Tensor,
    scores: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    blank: int,
    batch_first: bool,
) -> Tensor:
    batch = _posterior_batch((scores, targets, input_lengths, target_lengths), blank, batch_first)
    padding = 2 * batch.labels.shape[1] + 1 - states.shape[2]
    return _programs.posteriors_pulled_back(batch, scores.detach(), functional.pad(states, (0, padding)), classes)


def _posterior_batch(problem: Tensors, blank: int, batch_first: bool) -> Batch:
    spec = Spec(blank, from_logits=False, batch_first=batch_first, normalized=False)
    return Batch(*problem, spec, may_be_compact=False)


def _wide(scores: Tensor) -> torch.dtype:
    """Return the dtype of the losses, and of their derivatives until these are multiplied by all weights."""
    return torch.float64 if scores.dtype == torch.float64 else torch.float32


def _fake_losses(scores: Tensor, batch_first: bool) -> Tensor:
    return scores.new_empty((scores.shape[0 if batch_first else 1],), dtype=_wide(scores))


@losses_operator.register_fake
def _(scores, targets, input_lengths, target_lengths, blank, from_logits, batch_first, *_):  # noqa: ARG001
    return _fake_losses(scores, batch_first)


@losses_and_gradient_operator.register_fake
def _(scores, targets, input_lengths, target_lengths, blank, from_logits, batch_first, *_):  # noqa: ARG001
    return _fake_losses(scores, batch_first), scores.new_empty(scores.shape, dtype=_wide(scores))


@hessian_product_operator.register_fake
def _(direction, scores, *rest):  # noqa: ARG001
    return scores.new_empty(scores.shape, dtype=_wide(scores))


@posteriors_operator.register_fake
def _(scores, targets, input_lengths, target_lengths, slots, *_):  # noqa: ARG001
    shapes = (*scores.shape[:2], 2 * slots + 1), scores.shape
    return tuple(scores.new_empty(shape, dtype=_wide(scores)) for shape in shapes)


@posteriors_pulled_back_operator.register_fake
def _(states, classes, scores, *rest):  # noqa: ARG001
    return scores.new_empty(scores.shape)
