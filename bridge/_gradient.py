"""The gradient of a whole batch, in the caller's memory, from what the programs have made of its blocks."""

import numpy as np
import torch
from torch import Tensor

from bridge import _memory, _vocabulary
from bridge._batch import Batch
from bridge._vocabulary import Share


def weigh(weights: Tensor, gradient: Tensor, batch_first: bool) -> Tensor:
    """Each sequence's gradient times its weight, where a weight of 0 gives 0 even for a gradient of NaN."""
    weights = _wide(weights, gradient, batch_first)
    return weights * torch.where((weights == 0) & gradient.isnan(), 0, gradient)


def _weighed(weights: Tensor, gradient: Tensor, batch_first: bool) -> Tensor:
    """The same without a derivative: of a large gradient every pass shows."""
    weights = _wide(weights, gradient, batch_first)
    return (weights * gradient).masked_fill_(weights == 0, 0)


def _wide(weights: Tensor, gradient: Tensor, batch_first: bool) -> Tensor:
    weights = weights.to(gradient.dtype)
    return weights[:, None, None] if batch_first else weights[None, :, None]


def whole(
    batch: Batch,
    scores: Tensor,
    pieces: list[Tensor],
    losses: Tensor,
    inner: np.ndarray,
    outer: Tensor | None,
    normalized: bool,
) -> Tensor:
    """Of the shape of the scores.

    `inner`, (2, N), are the weights that the programs were given; `outer`, (N,) or None for ones, come on top.
    """
    if not batch.compact:
        if outer is not None:
            pieces = [
                _weighed(
                    outer[block.first : block.first + block.rows], batch.crop(piece, block), batch.options.batch_first
                )
                for block, piece in zip(batch.blocks(), pieces, strict=True)
            ]
        return batch.assemble(pieces)
    base, infinite = torch.from_numpy(inner)
    over = torch.ones_like(base) if outer is None else outer.to(base.dtype)
    lost = losses.isnan() | (losses.isposinf() & (infinite != 0) & normalized)
    lost &= over != 0
    live = batch.live()
    out = _memory.empty(scores.shape, scores)
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
