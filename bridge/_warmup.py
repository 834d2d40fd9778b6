"""Compile, before a training starts, the programs that it needs."""

import functools
from collections.abc import Iterable
from typing import Any

import torch

from bridge._functional import ctc_loss, ctc_loss_with_logits
from jaxctc._inputs import checks
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
        TypeError: `shapes` is no list of four numbers each.
        RuntimeError: A shape or `blank` is illegal, or JAX lacks the device.

    Example:
        >>> import bridge
        >>> bridge.warmup([(60, 16, 20, 30), (100, 16, 20, 30)])
    """
    function = ctc_loss_with_logits if logits else functools.partial(ctc_loss, normalized=normalized)
    for frames, sequences, classes, labels in _checked(shapes):
        size = (sequences, frames) if batch_first else (frames, sequences)
        scores = torch.zeros((*size, classes), dtype=dtype, device=device, requires_grad=gradient)
        targets = torch.full((sequences, labels), 0 if blank else classes - 1, device="cpu")
        # With input lengths of 0 the programs have nothing to compute: only the compilation takes time.
        function(scores, targets, 0, labels, blank, batch_first=batch_first, implementation=implementation)


def _checked(shapes: Any) -> list[tuple[int, ...]]:
    what = "a list of shapes (T, N, C, S), as in [(400, 32, 29, 50)]"
    try:
        made = [tuple(shape) for shape in shapes]
    except TypeError:
        raise TypeError(f"shapes must be {what}; got {shapes!r}.") from None
    for shape in made:
        if len(shape) != 4:
            raise TypeError(f"shapes must be {what}; got {shape!r}, of {checks.plural(len(shape), 'number')}, in it.")
    return [
        tuple(
            checks.integer("each size in shapes", size, "a number of frames, sequences, classes or labels")
            for size in shape
        )
        for shape in made
    ]
