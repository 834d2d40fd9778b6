"""Give JAX only the classes that a sequence uses: the blank and the labels of its own target.

The loss reads no other scores, and the posterior of every other class is 0. If there are thousands of classes and
dozens of labels, PyTorch gathers the scores of those few and passes them to JAX. The rest of the gradient does not
depend on the lattice: PyTorch writes it in the caller's memory, once, and adds to it what JAX returns.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_CHUNK = 1 << 18
"""The number of elements of a gradient that are written in one piece: they fit in the cache."""


class Vocabulary(NamedTuple):
    """Hold K = 1 + S' classes of each of R sequences, and the targets in terms of them."""

    classes: Tensor
    """(R, K): the blank first, then each label once; the remaining entries repeat the blank."""
    labels: np.ndarray
    """(R, S'): the targets, as indices into the classes of their sequence."""


def build(labels: np.ndarray, counts: np.ndarray, blank: int) -> Vocabulary:
    """Build the vocabulary of targets (R, S'), given the number of labels of each, (R,)."""
    inside = np.arange(labels.shape[1]) < counts[:, None]
    # -1 stands for the blank, which is sorted first.
    known = np.pad(np.where(inside, labels, -1), ((0, 0), (1, 0)), constant_values=-1)
    order = np.argsort(known, axis=1, kind="stable")
    ascending = np.take_along_axis(known, order, axis=1)
    index = np.pad(np.cumsum(ascending[:, 1:] != ascending[:, :-1], axis=1, dtype=np.int32), ((0, 0), (1, 0)))
    classes = np.full(known.shape, blank, np.int64)
    np.put_along_axis(classes, index, np.where(ascending < 0, blank, ascending), axis=1)
    renumbered = np.empty_like(index)
    np.put_along_axis(renumbered, order, index, axis=1)
    return Vocabulary(torch.from_numpy(classes), np.ascontiguousarray(renumbered[:, 1:]))


def gather(scores: Tensor, classes: Tensor, out: Tensor) -> None:
    """Write the scores, (T, R, C), of the classes (R, K) to `out`, (T, R, K)."""
    torch.gather(scores, 2, classes.expand(len(scores), -1, -1), out=out)


class GradientWeights(NamedTuple):
    """Hold the weights of the two terms of a block's gradient, and the frames in which it is a constant."""

    exp_scores: Tensor
    """(R,): the weight of exp(scores), which is there for all classes."""
    vocabulary: Tensor
    """(R,): the weight of the gradient that JAX has computed for the vocabulary."""
    zero: Tensor
    """(T, R): the frames in which the gradient is 0."""
    nan: Tensor
    """(T, R): the frames in which it is NaN."""


def write_gradient(
    vocabulary: Tensor, classes: Tensor, scores: Tensor | None, weights: GradientWeights, out: Tensor
) -> None:
    """Write a block's gradient to `out`, (T, R, C): that of the vocabulary, (T, R, K), plus exp(scores) if given."""
    dtype = weights.vocabulary.dtype
    any_zero, any_nan = bool(weights.zero.any()), bool(weights.nan.any())
    step = max(1, _CHUNK // max(1, out[0].numel()))
    for start in range(0, len(out), step):
        here = slice(start, start + step)
        target = out[here]
        gradient = target if target.dtype == dtype else torch.empty_like(target, dtype=dtype)
        if scores is None:
            gradient.zero_()
        else:
            torch.exp(scores[here].to(dtype), out=gradient)
            gradient.mul_(weights.exp_scores[:, None])
        own = vocabulary[here] * weights.vocabulary[:, None]
        # Only the blank occurs more than once, and its repetitions are 0: the order of the additions does not matter.
        gradient.scatter_add_(2, classes.expand(len(own), -1, -1), own)
        if any_zero:
            gradient[weights.zero[here]] = 0
        if any_nan:
            gradient[weights.nan[here]] = torch.nan
        if gradient is not target:
            target.copy_(gradient)
