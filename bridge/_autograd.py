"""Make the losses differentiable by PyTorch's autograd: twice, in reverse and forward mode, and under vmap.

For the losses there are three functions, each the derivative of the one before: the losses, the gradient of each loss
with respect to its own scores, and the product of that gradient's derivative with a direction. The derivative of each
calls the next one through autograd, so that PyTorch's transforms can be composed. The posteriors are differentiable
once.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from bridge import _operators
from bridge._batch import Spec, Tensors
from bridge._gradient import weighted


def losses(problem: Tensors, spec: Spec) -> Tensor:
    """Return one loss a sequence, (N,). Shapes as in `_operators`."""
    # The gradient costs little more than the loss, but something: it is computed only if it can be asked for.
    with_gradient = torch.is_grad_enabled() and problem[0].requires_grad
    # A Function would leave no derivative in an exported program, and could not be saved in a traced one.
    if torch.compiler.is_exporting() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return _operators.losses(problem, spec)
    function = _Losses if torch.compiler.is_compiling() else _DualLosses
    loss, _ = function.apply(*problem, spec, with_gradient)
    return loss


def gradients(problem: Sequence[Tensor], spec: Spec, known: Tensor | None = None) -> Tensor:
    """Return the gradient of each loss with respect to its own scores, of their shape, and differentiable.

    `known` is the gradient if it has been computed already. For half-precision scores the gradient is in float32, as
    the losses are: it is to be multiplied by all weights before it is rounded.
    """
    function = _Gradient if torch.compiler.is_compiling() else _DualGradient
    known = problem[0].new_empty(0) if known is None else known
    return function.apply(*problem, known, spec)


def posteriors(problem: Tensors, spec: Spec, slots: int) -> tuple[Tensor, Tensor]:
    """Return what `_operators.posteriors` returns, differentiable once."""
    return _Posteriors.apply(*problem, spec, slots)


def callable_node(function: type[Function]) -> type[Function]:
    """Let ``loss.grad_fn(upstream)`` return the gradient of the scores, as the node of PyTorch's own loss does."""

    def call(node: Any, *upstream: Tensor) -> Tensor:
        return node.apply(*upstream)[0]

    function._backward_cls.__call__ = call  # type: ignore[method-assign]
    return function


class _Losses(Function):
    @staticmethod
    def forward(
        scores: Tensor,
        targets: Tensor,
        input_lengths: Tensor,
        target_lengths: Tensor,
        spec: Spec,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        problem = scores, targets, input_lengths, target_lengths
        if with_gradient:
            return _operators.losses_and_gradient(problem, spec)
        return _operators.losses(problem, spec), scores.new_empty(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, spec, _ = inputs
        ctx.spec = spec
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, output[1])
        ctx.save_for_forward(*tensors, output[1])

    @staticmethod
    def backward(ctx: Any, weights: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if weights is None:
            return (None,) * 6
        *problem, known = ctx.saved_tensors
        return _weighted(weights, gradients(problem, ctx.spec, known), problem, ctx.spec), *(None,) * 5

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, ...]:
        *tensors, spec, with_gradient = args
        merged = _MergedBatches(info.batch_size, spec.batch_first)
        problem = merged.problem(tensors, in_dims)
        loss, known = _DualLosses.apply(*problem, spec, with_gradient)
        loss = loss.reshape(info.batch_size, -1)
        if not with_gradient:
            return (loss, known), (0, None)
        return (loss, merged.split(known)), (0, merged.axis)


class _Gradient(Function):
    """Compute the gradient, unless `known` holds it already; else `known` is empty."""

    @staticmethod
    def forward(
        scores: Tensor,
        targets: Tensor,
        input_lengths: Tensor,
        target_lengths: Tensor,
        known: Tensor,
        spec: Spec,
    ) -> Tensor:
        if known.numel():
            return known.detach()
        return _operators.losses_and_gradient((scores, targets, input_lengths, target_lengths), spec)[1]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        *tensors, _, spec = inputs
        ctx.spec = spec
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, direction: Tensor) -> tuple[Tensor | None, ...]:
        product = _HessianProduct.apply(direction, *ctx.saved_tensors, ctx.spec)
        return product.to(ctx.saved_tensors[0].dtype), *(None,) * 5

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        *tensors, known, spec = args
        merged = _MergedBatches(info.batch_size, spec.batch_first)
        if known.numel():
            known = merged.scores(known, in_dims[4])
        return merged.split(gradients(merged.problem(tensors, in_dims), spec, known)), merged.axis


class _HessianProduct(Function):
    @staticmethod
    def forward(
        direction: Tensor,
        scores: Tensor,
        targets: Tensor,
        input_lengths: Tensor,
        target_lengths: Tensor,
        spec: Spec,
    ) -> Tensor:
        return _operators.hessian_product(direction, (scores, targets, input_lengths, target_lengths), spec)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        _, *tensors, spec = inputs
        ctx.spec = spec
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, direction: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.needs_input_grad[1]:
            raise RuntimeError(
                "The bridge has no third derivative with respect to the scores. JAX has: differentiate jaxctc.ctc_loss."
            )
        # The matrix of second derivatives is symmetric: its transposed product is the product itself.
        return _HessianProduct.apply(direction, *ctx.saved_tensors, ctx.spec), *(None,) * 5

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        direction, *tensors, spec = args
        merged = _MergedBatches(info.batch_size, spec.batch_first)
        problem = merged.problem(tensors, in_dims[1:])
        product = _HessianProduct.apply(merged.scores(direction, in_dims[0]), *problem, spec)
        return merged.split(product), merged.axis


@callable_node
class _DualLosses(_Losses):
    """Add forward mode, which PyTorch's compiler does not accept."""

    @staticmethod
    def jvp(ctx: Any, direction: Tensor | None, *_: Any) -> tuple[Tensor | None, None]:
        if direction is None:
            return None, None
        *problem, known = ctx.saved_tensors
        slope = gradients(problem, ctx.spec, known)
        axes = (1, 2) if ctx.spec.batch_first else (0, 2)
        return torch.where(slope == 0, 0, slope * direction).sum(axes), None


class _DualGradient(_Gradient):
    @staticmethod
    def jvp(ctx: Any, direction: Tensor | None, *_: Any) -> Tensor | None:
        if direction is None:
            return None
        return _HessianProduct.apply(direction, *ctx.saved_tensors, ctx.spec)


class _Posteriors(Function):
    @staticmethod
    def forward(
        scores: Tensor, targets: Tensor, input_lengths: Tensor, target_lengths: Tensor, spec: Spec, slots: int
    ) -> tuple[Tensor, Tensor]:
        return _operators.posteriors((scores, targets, input_lengths, target_lengths), spec, slots)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG004
        *tensors, spec, _ = inputs
        ctx.spec = spec
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        return _PosteriorsPulledBack.apply(*cotangents, *ctx.saved_tensors, ctx.spec), *(None,) * 5

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, ...]:
        *tensors, spec, slots = args
        merged = _MergedBatches(info.batch_size, spec.batch_first)
        made = _Posteriors.apply(*merged.problem(tensors, in_dims), spec, slots)
        return tuple(merged.split(x) for x in made), (merged.axis,) * 2


class _PosteriorsPulledBack(Function):
    @staticmethod
    def forward(states: Tensor, classes: Tensor, *rest: Any) -> Tensor:
        *problem, spec = rest
        return _operators.posteriors_pulled_back(states, classes, problem, spec)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> None:  # noqa: ARG004
        raise RuntimeError(
            "The bridge's posteriors have no second derivative. JAX has: differentiate jaxctc.ctc_posteriors."
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        states, classes, *tensors, spec = args
        merged = _MergedBatches(info.batch_size, spec.batch_first)
        cotangents = (merged.scores(x, dim) for x, dim in zip((states, classes), in_dims, strict=False))
        made = _PosteriorsPulledBack.apply(*cotangents, *merged.problem(tensors, in_dims[2:]), spec)
        return merged.split(made), merged.axis


class _MergedBatches:
    """Merge the axis of `vmap` into the batch: B batches of N independent sequences are one batch of B N."""

    def __init__(self, size: int, batch_first: bool) -> None:
        self.size = size
        self.axis = 0 if batch_first else 1

    def problem(self, tensors: list[Tensor], in_dims: tuple[Any, ...]) -> list[Tensor]:
        scores, *others = tensors
        return [
            self.scores(scores, in_dims[0]),
            *(self._flat(x, dim, 0) for x, dim in zip(others, in_dims[1:4], strict=True)),
        ]

    def scores(self, x: Tensor, dim: int | None) -> Tensor:
        return self._flat(x, dim, self.axis)

    def _flat(self, x: Tensor, dim: int | None, axis: int) -> Tensor:
        if dim is None:
            x = x.unsqueeze(axis)
            x = x.expand(*x.shape[:axis], self.size, *x.shape[axis + 1 :])
        else:
            x = x.movedim(dim, axis)
        return x.flatten(axis, axis + 1)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(self.axis, (self.size, -1))


def _weighted(weights: Tensor, gradient: Tensor, problem: Sequence[Tensor], spec: Spec) -> Tensor:
    scores, _, input_lengths, _ = problem
    return weighted(weights, gradient, scores, input_lengths, spec.batch_first)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs[:4])
    ctx.spec = Spec(*inputs[4:])


def _backward(ctx: Any, weights: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    problem, spec = ctx.saved_tensors, ctx.spec
    return _weighted(weights, gradients(problem, spec), problem, spec), *(None,) * 8


# Exported programs contain the operators alone, without the functions above.
_operators.losses_operator.register_autograd(_backward, setup_context=_save)
