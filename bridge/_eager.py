"""Evaluate a plain call, without transforms and without the compiler, as one node in PyTorch's graph.

JAX multiplies the gradient by the weights of the reduction when it writes it, so that the backward pass of a
`loss.backward()` has nothing left to compute. A second derivative is computed by `_autograd`.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from bridge import _autograd, _gradient, _programs
from bridge._batch import Batch, Spec, Tensors
from bridge._gradient import weighted
from bridge._reduction import divisors, reduce
from jaxctc._types import Reduction

# The batched tensors of torch.autograd.grad(..., is_grads_batched=True), which are not those of torch.vmap.
_is_batched = torch._C._functorch.is_legacy_batchedtensor
_keeps_graph = torch._C._autograd._get_current_graph_task_keep_graph


def plain(tensors: tuple[Tensor, ...]) -> bool:
    """Return whether no transform, compiler or subclass of tensors takes part, but at most PyTorch's autograd."""
    return (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined]
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()
        and forward_ad._current_level < 0
        and all(type(x) in (Tensor, torch.nn.Parameter) and not _is_batched(x) for x in tensors)
        and tensors[0].device.type in ("cpu", "cuda")
    )


def loss(problem: Tensors, spec: Spec, reduction: Reduction, zero_infinity: bool) -> Tensor:
    """Return the loss: () or, unreduced, (N,). Shapes as in `_batch`."""
    scores, _, _, target_lengths = problem
    if scores.requires_grad and torch.is_grad_enabled():
        return _Loss.apply(*problem, spec, reduction, zero_infinity)
    batch = Batch(*problem, spec)
    weights = _weights(batch, scores, reduction, zero_infinity)
    return _reduced(_programs.losses(batch, scores.detach()), target_lengths, weights, reduction, zero_infinity)


def _weights(batch: Batch, scores: Tensor, reduction: Reduction, zero_infinity: bool) -> np.ndarray:
    """Return the reduction's weights of finite losses and of infinite losses, (2, N)."""
    weights = np.ones((2, batch.sequences), _programs.precision(scores))
    weights /= divisors(batch.target_lengths, reduction)
    if zero_infinity:
        weights[1] = 0
    return weights


def _reduced(
    losses: Tensor, target_lengths: Tensor, weights: np.ndarray, reduction: Reduction, zero_infinity: bool
) -> Tensor:
    if reduction == "none" or zero_infinity or losses.device.type != "cpu":
        return reduce(losses, target_lengths, reduction, zero_infinity)
    # One operation of numpy's rather than three of PyTorch's: for a small batch each takes noticeable time.
    return torch.from_numpy(np.asarray(np.dot(losses.numpy(), weights[0])))


@_autograd.callable_node
class _Loss(Function):
    @staticmethod
    def forward(
        ctx: Any,
        scores: Tensor,
        targets: Tensor,
        input_lengths: Tensor,
        target_lengths: Tensor,
        spec: Spec,
        reduction: Reduction,
        zero_infinity: bool,
    ) -> Tensor:
        batch = Batch(scores, targets, input_lengths, target_lengths, spec)
        weights = _weights(batch, scores, reduction, zero_infinity)
        value, gradients = _programs.losses_and_gradient(batch, scores.detach(), spec.normalized, weights)
        ctx.batch, ctx.applied = batch, weights
        ctx.spec, ctx.reduction, ctx.zero_infinity = spec, reduction, zero_infinity
        ctx.save_for_backward(scores, targets, input_lengths, target_lengths, value, *gradients)
        return _reduced(value, target_lengths, weights, reduction, zero_infinity)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (cotangent,) = upstream
        scores, targets, input_lengths, target_lengths, value, *gradients = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph
            weights = torch.ones_like(value) / divisors(target_lengths.to(value), ctx.reduction)
            if ctx.zero_infinity:
                weights = torch.where(value == torch.inf, 0, weights)
            gradient = _autograd.gradients((scores, targets, input_lengths, target_lengths), ctx.spec)
            return weighted(cotangent * weights, gradient, scores, input_lengths, ctx.spec.batch_first), *(None,) * 6
        normalized = ctx.spec.normalized
        if not plain(upstream):
            gradient = _gradient.assemble(
                ctx.batch, scores, gradients, value, ctx.applied, None, normalized, value.dtype
            )
            return weighted(cotangent, gradient, scores, input_lengths, ctx.spec.batch_first), *(None,) * 6
        by_row = None
        if cotangent.ndim or cotangent.device.type != "cpu" or cotangent.item() != 1:
            by_row = cotangent.expand(len(value))
        made = _gradient.assemble(ctx.batch, scores, gradients, value, ctx.applied, by_row, normalized, scores.dtype)
        # The caller gets the program's own buffer, unless the graph is kept and the buffer is needed again.
        shared = made is gradients[0] and _keeps_graph()
        return made.clone() if shared else made, *(None,) * 6
