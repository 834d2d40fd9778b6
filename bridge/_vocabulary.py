"""Each sequence with no classes but the blank and the labels of its own target.

The loss reads no other scores, and of its gradient nothing else depends on the lattice. Where classes are
thousands, and labels dozens, JAX is given those few: PyTorch gathers them, and adds what comes back to the
rest of the gradient, which it writes itself, once, in the caller's memory.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_CHUNK = 1 << 18
"""Elements of a gradient that are worked on while they are in the cache."""


class Vocabulary(NamedTuple):
    """K = 1 + S' classes of each of R sequences."""

    classes: Tensor
    """(R, K): which they are, the blank first, each label once; what is left over repeats the blank."""
    labels: np.ndarray
    """(R, S'): the targets in terms of them."""


def pays(labels: int, classes: int) -> bool:
    """So many labels are few among so many classes."""
    return 2 * (1 + labels) <= classes


def build(labels: np.ndarray, counts: np.ndarray, blank: int) -> Vocabulary:
    """Of targets (R, S'), of each of which so many labels count, (R,)."""
    inside = np.arange(labels.shape[1]) < counts[:, None]
    known = np.pad(np.where(inside, labels, -1), ((0, 0), (1, 0)), constant_values=-1)  # -1: the blank, first of all
    order = np.argsort(known, axis=1, kind="stable")
    ascending = np.take_along_axis(known, order, axis=1)
    place = np.pad(np.cumsum(ascending[:, 1:] != ascending[:, :-1], axis=1, dtype=np.int32), ((0, 0), (1, 0)))
    classes = np.full(known.shape, blank, np.int64)
    np.put_along_axis(classes, place, np.where(ascending < 0, blank, ascending), axis=1)
    renumbered = np.empty_like(place)
    np.put_along_axis(renumbered, order, place, axis=1)
    return Vocabulary(torch.from_numpy(classes), np.ascontiguousarray(renumbered[:, 1:]))


def gather(scores: Tensor, classes: Tensor, out: Tensor) -> None:
    """Scores (T, R, C) of the classes (R, K), to (T, R, K)."""
    torch.gather(scores, 2, classes.expand(len(scores), -1, -1), out=out)


class Share(NamedTuple):
    """How each sequence of a block takes part in the gradient."""

    base: Tensor
    """(R,): the weight of exp(scores), in all classes."""
    change: Tensor
    """(R,): that of what has come back for the vocabulary."""
    live: Tensor
    """(T, R): elsewhere the gradient is 0."""
    lost: Tensor
    """(T, R): there it is NaN."""


def spread(change: Tensor, classes: Tensor, scores: Tensor | None, share: Share, out: Tensor) -> None:
    """Writes a block's gradient, (T, R, C): the change (T, R, K), and exp(scores) if there are any."""
    wide = share.change.dtype
    dead, lost = ~share.live, share.lost
    any_dead, any_lost = bool(dead.any()), bool(lost.any())
    step = max(1, _CHUNK // max(1, out[0].numel()))
    for start in range(0, len(out), step):
        here = slice(start, start + step)
        target = out[here]
        made = target if target.dtype == wide else torch.empty_like(target, dtype=wide)
        if scores is None:
            made.zero_()
        else:
            torch.exp(scores[here].to(wide), out=made)
            made.mul_(share.base[:, None])
        own = change[here] * share.change[:, None]
        # No class comes twice but the blank, whose repetitions are 0: the order of additions is of no account.
        made.scatter_add_(2, classes.expand(len(own), -1, -1), own)
        if any_dead:
            made[dead[here]] = 0
        if any_lost:
            made[lost[here]] = torch.nan
        if made is not target:
            target.copy_(made)
