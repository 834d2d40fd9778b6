"""Provide the loss functions, with PyTorch's signature, shapes, types and exceptions."""

from torch import Tensor

from bridge import _autograd, _eager
from bridge._arguments import Call, Lengths, canonical
from bridge._batch import Spec
from bridge._reduction import canonical_reduction, reduce
from jaxctc._inputs import checks
from jaxctc._types import Implementation


def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Lengths,
    target_lengths: Lengths,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
    *,
    normalized: bool = True,
    batch_first: bool = False,
    implementation: Implementation | None = None,
) -> Tensor:
    """Compute what `torch.nn.functional.ctc_loss` computes, by JAX.

    The gradient is PyTorch's own by default: exp(log_probs) minus the posterior, which is right if `log_probs` comes
    from a log-softmax. For scores that are not a distribution, such as scaled or masked scores or scores with label
    priors, pass ``normalized=False`` and get the true derivative. Both can be differentiated once more.

    Shapes: T frames, N sequences, C classes with the blank, S labels of the longest target.

    Args:
        log_probs: (T, N, C) or (T, C), floating point, on the CPU or a CUDA device. For half-precision scores the loss
            and the gradient are computed in float32; the gradient is rounded once, after all multiplications.
        targets: (N, S), padded with anything; or one-dimensional, all targets end to end; of any integer
            type, or a floating-point one that holds whole numbers. One sequence: (S,) or (1, S).
        input_lengths: Frames of each sequence, within [0, T]: a tensor, an array, a sequence of ints, or one int.
        target_lengths: Labels of each target, within [0, S]; the same forms.
        blank: Index of the blank class.
        reduction: ``"none"``, ``"mean"`` (each loss by its target length, then over the batch) or ``"sum"``; or the
            other ones of `jaxctc.ctc_loss`, ``"batchmean"`` and ``"mean_volume"``.
        zero_infinity: Count infinite losses, and their gradient, as 0.
        normalized: Selects the gradient. True gives PyTorch's own, exp(log_probs) minus the posterior, which is right
            for scores that are a distribution; False gives the true derivative, minus the posterior.
        batch_first: `log_probs` is (N, T, C).
        implementation: ``"reference"`` (the recursion as a textbook has it, to debug), ``"xla"`` (the fast form, which
            runs everywhere), ``"pallas"`` (GPU kernels) or None, which chooses; see `jaxctc.ctc_loss`.

    Returns:
        The loss in nats: float64 for float64, float32 otherwise; (N,) or (). An infeasible target has the loss inf.
        Its gradient is NaN with ``normalized=True``, as in PyTorch, and 0 with False; if its loss is multiplied by 0,
        its gradient is 0 with both.

    Raises:
        RuntimeError: A shape, a length, a label or `blank` is illegal; or JAX lacks the tensor's device.
        NotImplementedError: `log_probs` is not of a floating-point type.
        TypeError: An argument is of the wrong type.
        ValueError: `reduction` is unknown, or `implementation` cannot run this call.

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
    spec = Spec(blank, from_logits=False, batch_first=batch_first, normalized=normalized, implementation=implementation)
    return _evaluate(canonical(log_probs, targets, input_lengths, target_lengths, spec), reduction, zero_infinity)


def ctc_loss_with_logits(
    logits: Tensor,
    targets: Tensor,
    input_lengths: Lengths,
    target_lengths: Lengths,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
    *,
    batch_first: bool = False,
    implementation: Implementation | None = None,
) -> Tensor:
    """Compute `ctc_loss` of ``logits.log_softmax(-1)`` in one operation, which is faster and never negative.

    Args:
        logits: (T, N, C) or (T, C), unnormalized scores; all other arguments are those of `ctc_loss`.
        targets: (N, S), or end to end.
        input_lengths: Frames of each sequence.
        target_lengths: Labels of each target.
        blank: Index of the blank class.
        reduction: ``"none"``, ``"mean"``, ``"sum"``, ``"batchmean"`` or ``"mean_volume"``, as for `ctc_loss`.
        zero_infinity: Count infinite losses as 0.
        batch_first: `logits` is (N, T, C).
        implementation: ``"reference"``, ``"xla"``, ``"pallas"`` or None, as for `ctc_loss`.

    Returns:
        The loss in nats, as `ctc_loss` returns it; the gradient of an infeasible target is 0.

    Raises:
        RuntimeError: A shape, a length, a label or `blank` is illegal; or JAX lacks the tensor's device.
        NotImplementedError: `logits` is not of a floating-point type.
        TypeError: An argument is of the wrong type.
        ValueError: `reduction` is unknown, or `implementation` cannot run this call.

    Example:
        >>> import torch, bridge
        >>> logits = torch.zeros(4, 1, 3, requires_grad=True)
        >>> round(bridge.ctc_loss_with_logits(logits, torch.tensor([[1, 2]]), [4], [2]).item(), 4)
        0.8432
    """
    spec = Spec(blank, from_logits=True, batch_first=batch_first, normalized=False, implementation=implementation)
    return _evaluate(canonical(logits, targets, input_lengths, target_lengths, spec), reduction, zero_infinity)


def _evaluate(call: Call, as_given: str, zero_infinity: bool) -> Tensor:
    reduction = canonical_reduction(as_given)
    checks.flag("zero_infinity", zero_infinity)
    if _eager.plain(call.tensors):
        loss = _eager.loss(call.tensors, call.spec, reduction, zero_infinity)
    else:
        loss = reduce(_autograd.losses(call.tensors, call.spec), call.target_lengths, reduction, zero_infinity)
    return loss if call.batched or reduction != "none" else loss[0]
