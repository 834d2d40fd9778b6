"""The gradient of a whole batch, in the caller's memory, from what the programs have made of its blocks.

The programs write the gradients of half-precision scores in float32. A loss scale, which keeps small gradients
above float16's smallest numbers, arrives afterwards, and float16 holds neither the scale nor, before it is applied,
the gradients: weights are multiplied in float32, and the product is narrowed once.
"""

import numpy as np
import torch
from torch import Tensor

from bridge import _memory, _vocabulary
from bridge._batch import Batch
from bridge._vocabulary import Share

_CHUNK = 1 << 18
"""Elements that are multiplied, and narrowed while they are in the cache."""


def weigh(weights: Tensor, gradient: Tensor, scores: Tensor, input_lengths: Tensor, batch_first: bool) -> Tensor:
    """Each sequence's gradient times its weight, differentiable, of the type of the scores.

    A weight of 0 gives 0 even for a gradient of NaN, and padded frames are 0 even for an infinite weight.
    """
    lengths = input_lengths.to(weights.device)
    live = torch.arange(gradient.shape[1 if batch_first else 0], device=weights.device)[:, None] < lengths
    by_frame = _by_frame(weights.to(gradient.dtype), live)
    if batch_first:
        by_frame = by_frame.transpose(0, 1)
    product = by_frame * torch.where((by_frame == 0) & gradient.isnan(), 0, gradient)
    return product.to(scores.dtype)


def _by_frame(weights: Tensor, live: Tensor) -> Tensor:
    """(T, N, 1): the weights, (N,), but 0 instead of an infinite one or a NaN where a frame is not live, (T, N)."""
    return torch.where(live | weights.isfinite(), weights, 0)[:, :, None]


def whole(
    batch: Batch,
    scores: Tensor,
    pieces: list[Tensor],
    losses: Tensor,
    inner: np.ndarray,
    outer: Tensor | None,
    normalized: bool,
    dtype: torch.dtype,
) -> Tensor:
    """The gradient in this type, of the shape of the scores.

    `inner`, (2, N), are the weights that the programs were given; `outer`, (N,) or None for ones, come on top.
    """
    if not batch.compact:
        if outer is None and pieces[0].dtype == dtype:
            return batch.assemble(pieces)
        return _weighed(batch, pieces, outer, _memory.empty(scores.shape, scores, dtype))
    base, infinite = torch.from_numpy(inner)
    over = torch.ones_like(base) if outer is None else outer.to(base.dtype)
    lost = losses.isnan() | (losses.isposinf() & (infinite != 0) & normalized)
    lost &= over != 0
    live = batch.live()
    out = _memory.empty(scores.shape, scores, dtype)
    for block, piece in zip(batch.blocks(), pieces, strict=True):
        rows = slice(block.first, block.first + block.rows)
        counts = live[:, rows] & losses[rows].isfinite() & (over[rows] != 0)
        share = Share(base[rows] * over[rows], over[rows], counts, live[:, rows] & lost[rows])
        change, own, target = (
            batch.frames_first(x) for x in (batch.crop(piece, block), batch.part(scores, block), batch.part(out, block))
        )
        assert block.classes is not None
        _vocabulary.spread(change, block.classes, own if normalized else None, share, target)
    return out


def _weighed(batch: Batch, pieces: list[Tensor], outer: Tensor | None, out: Tensor) -> Tensor:
    """Writes what `weigh` returns, without a derivative, in one pass: of a large gradient every pass shows."""
    weights = None if outer is None else outer[None, :, None]
    if outer is not None and (outer.device.type != "cpu" or not outer.isfinite().all()):
        weights = _by_frame(outer, batch.live().to(outer.device, non_blocking=True))
    for block, piece in zip(batch.blocks(), pieces, strict=True):
        gradient, target = (batch.frames_first(x) for x in (batch.crop(piece, block), batch.part(out, block)))
        if weights is None:
            target.copy_(gradient)
        else:
            _multiply(gradient, weights[:, block.first : block.first + block.rows], target)
    return out


def _multiply(gradient: Tensor, weights: Tensor, out: Tensor) -> None:
    """Writes gradient, (T, R, C), times weights, (T, R, 1) or (1, R, 1), with 0 wherever the weight is."""
    masked = weights == 0
    if out.device.type != "cpu" or out.dtype == gradient.dtype:
        torch.mul(gradient, weights, out=out)  # a GPU narrows in the same pass
    else:
        weights = weights.expand(len(out), -1, -1)
        step = max(1, _CHUNK // max(1, out[0].numel()))
        product = gradient.new_empty(min(step, len(out)), *out.shape[1:])
        for start in range(0, len(out), step):
            here = slice(start, start + step)
            made = product[: len(out[here])]
            out[here].copy_(torch.mul(gradient[here], weights[here], out=made))
    if out.device.type != "cpu" or masked.any():
        out.masked_fill_(masked, 0)
