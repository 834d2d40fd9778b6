"""Compiles ahead what a training is going to need."""

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
    """Compiles for batches of these shapes, and of all that are padded to the same sizes.

    Args:
        shapes: (T, N, C, S) of each kind of batch: frames, sequences, classes with the blank, labels of the
            longest target.
        dtype: The type of the scores.
        device: Where they are.
        logits: For `ctc_loss_with_logits` rather than `ctc_loss`.
        gradient: For a training step; without it, for the loss alone.
        blank: As for `ctc_loss`.
        normalized: As for `ctc_loss`; of no account with `logits`.
        batch_first: The scores lie in memory as (N, T, C), be it behind a transposed view.
        implementation: As for `ctc_loss`.

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
        # Sequences without a frame: nothing is left to do but compile.
        function(scores, targets, 0, labels, blank, batch_first=batch_first, implementation=implementation)
