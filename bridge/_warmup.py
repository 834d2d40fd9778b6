"""Compile, before a training starts, the programs that it needs."""

import functools
from collections.abc import Iterable

import torch

from bridge._functional import ctc_loss, ctc_loss_with_logits
from jaxctc._types import Implementation


def warmup(
    shapes: Iterable[tuple[int, int, int, int]],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    logits: bool = False,
    gradient: bool = True,
    blank: int = 0,
    normalized: bool = True,
    batch_first: bool = False,
    implementation: Implementation | None = None,
) -> None:
    """Compile the programs for batches of these shapes, which serve all batches that are padded to the same sizes.

    Args:
        shapes: (T, N, C, S) of each kind of batch: frames, sequences, classes with the blank, labels of the
            longest target.
        dtype: The dtype of the scores.
        device: The device of the scores.
        logits: Compile for `ctc_loss_with_logits` rather than for `ctc_loss`.
        gradient: Compile the loss with its gradient, as a training step needs; if False, the loss alone.
        blank: Index of the blank class.
        normalized: The gradient to compile, as for `ctc_loss`; it has no effect with `logits`.
        batch_first: The scores lie in memory as (N, T, C), even if the caller passes a transposed view of them.
        implementation: The implementation to compile, as for `ctc_loss`.

    Raises:
        RuntimeError: A shape or `blank` is illegal, or JAX lacks the device.

    Example:
        >>> import bridge
        >>> bridge.warmup([(60, 16, 20, 30), (100, 16, 20, 30)])
    """
    function = ctc_loss_with_logits if logits else functools.partial(ctc_loss, normalized=normalized)
    for frames, sequences, classes, labels in shapes:
        size = (sequences, frames) if batch_first else (frames, sequences)
        scores = torch.zeros((*size, classes), dtype=dtype, device=device, requires_grad=gradient)
        targets = torch.full((sequences, labels), 0 if blank else classes - 1)
        # With input lengths of 0 the programs have nothing to compute: only the compilation takes time.
        function(scores, targets, 0, labels, blank, batch_first=batch_first, implementation=implementation)
