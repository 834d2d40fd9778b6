"""Write the gradient of a batch in the caller's memory, from the gradients that the programs return for its blocks.

The programs write the gradients of half-precision scores in float32. A loss scale, which keeps small gradients
above float16's smallest numbers, is known only in the backward pass. Float16 can represent neither the scale nor,
before the scale is applied, the gradients: both are multiplied in float32, and the product is rounded once.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from bridge import _memory, _threads, _vocabulary
from bridge._batch import Batch
from bridge._vocabulary import GradientWeights, Rest


def weighted(weights: Tensor, gradient: Tensor, scores: Tensor, input_lengths: Tensor, batch_first: bool) -> Tensor:
    """Return each sequence's gradient times its weight, differentiable, in the dtype of the scores.

    A weight of 0 gives 0 even if the gradient is NaN, and padded frames are 0 even if the weight is infinite.
    """
    lengths = input_lengths.to(weights.device)
    frame_mask = torch.arange(gradient.shape[1 if batch_first else 0], device=weights.device)[:, None] < lengths
    by_frame = _by_frame(weights.to(gradient.dtype), frame_mask)
    if batch_first:
        by_frame = by_frame.transpose(0, 1)
    product = by_frame * torch.where((by_frame == 0) & gradient.isnan(), 0, gradient)
    return product.to(scores.dtype)


def _by_frame(weights: Tensor, frame_mask: Tensor) -> Tensor:
    """Return the weights, (N,), as (T, N, 1), with 0 for infinities and NaN outside the frame mask, (T, N)."""
    return torch.where(frame_mask | weights.isfinite(), weights, 0)[:, :, None]


def assemble(
    batch: Batch,
    scores: Tensor,
    pieces: list[Tensor],
    losses: Tensor,
    applied: np.ndarray,
    upstream: Tensor | None,
    normalized: bool,
    dtype: torch.dtype,
) -> Tensor:
    """Return the gradient of a batch, of the shape of the scores, in this dtype.

    The programs have multiplied the gradients, `pieces`, by the weights `applied`, (2, N). This function multiplies
    them by `upstream`, (N,); None stands for ones.
    """
    if not batch.compact:
        if upstream is None and pieces[0].dtype == dtype:
            return pieces[0] if batch.whole else batch.assemble(pieces)
        return _assemble_weighted(batch, pieces, upstream, _memory.empty(scores.shape, scores, dtype))
    rest = Rest.OTHERS if batch.request.from_logits else Rest.EXP_SCORES if normalized else Rest.NOTHING
    finite, infinite = torch.from_numpy(applied)
    weights = torch.ones_like(finite) if upstream is None else upstream.to(finite.dtype)
    # As in the programs: illegal rows are NaN; so are, in PyTorch's gradient, infeasible rows whose weight is not 0.
    nan = losses.isnan() | (losses.isposinf() & (infinite != 0) & (rest is Rest.EXP_SCORES))
    nan &= weights != 0
    frame_mask = batch.frame_mask()
    out = _memory.empty(scores.shape, scores, dtype)
    parts: list[tuple[Any, ...]] = []
    for block, piece in zip(batch.blocks(), pieces, strict=True):
        rows = slice(block.first, block.first + block.rows)
        zero = ~(frame_mask[:, rows] & losses[rows].isfinite() & (weights[rows] != 0))
        own_weights = GradientWeights(
            finite[rows] * weights[rows], weights[rows], zero, frame_mask[:, rows] & nan[rows]
        )
        gradient, own_scores, target = (
            batch.frames_first(x) for x in (batch.crop(piece, block), batch.part(scores, block), batch.part(out, block))
        )
        assert block.classes is not None
        parts += [
            (gradient[x], block.classes, own_scores[x], rest, own_weights.of_frames(x), target[x])
            for x in _vocabulary.chunks(target)
        ]
    _threads.side_by_side(lambda part: _vocabulary.write_gradient(*part), parts, batch.large)
    return out


def _assemble_weighted(batch: Batch, pieces: list[Tensor], upstream: Tensor | None, out: Tensor) -> Tensor:
    """Write what `weighted` returns, without a derivative, in one pass: each pass over a large gradient takes time."""
    weights = None if upstream is None else upstream[None, :, None]
    if upstream is not None and (upstream.device.type != "cpu" or not upstream.isfinite().all()):
        weights = _by_frame(upstream, batch.frame_mask().to(upstream.device, non_blocking=True))
    if weights is not None:
        weights = weights.expand(batch.frames, -1, -1)
    if batch.whole:
        blocks = [(pieces[0], out, slice(None))]
    else:
        blocks = [
            (batch.real_classes(piece, block), batch.part(out, block), slice(block.first, block.first + block.rows))
            for block, piece in zip(batch.blocks(), pieces, strict=True)
        ]
    parts: list[tuple[Tensor, Tensor | None, Tensor]] = []
    for piece, own, rows in blocks:
        gradient, target = batch.frames_first(piece), batch.frames_first(own)
        by_frame = None if weights is None else weights[:, rows]
        parts += [
            (gradient[x], None if by_frame is None else by_frame[x], target[x]) for x in _vocabulary.chunks(target)
        ]
    _threads.side_by_side(lambda part: _multiply(*part), parts, batch.on_cpu and batch.large)
    return out


def _multiply(gradient: Tensor, weights: Tensor | None, out: Tensor) -> None:
    """Write gradient, (T, R, C), times weights, (T, R, 1), to `out`; a weight of 0 always gives 0."""
    if weights is None:
        out.copy_(gradient)
        return
    masked = weights == 0
    if out.device.type != "cpu" or out.dtype == gradient.dtype:
        torch.mul(gradient, weights, out=out)  # a GPU rounds in the same pass
    else:
        out.copy_(gradient * weights)
    if out.device.type != "cpu" or masked.any():
        out.masked_fill_(masked, 0)
