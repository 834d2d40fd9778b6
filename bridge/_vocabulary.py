"""Give JAX only the classes that a sequence uses: the blank and the labels of its own target.

The posterior of every other class is 0. If there are thousands of classes and dozens of labels, PyTorch gathers the
scores of those few and passes them to JAX. The loss of log probabilities reads no other scores. That of logits needs to
know how likely all other classes are together: they are one class more, with the log-sum-exp of their logits. The rest
of the gradient does not depend on the lattice: PyTorch writes it in the caller's memory, once, and adds to it what JAX
returns.
"""

from collections.abc import Iterator
from enum import Enum, auto
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

_CHUNK = 1 << 18
"""The number of elements that are computed in one piece: they fit in a CPU's cache."""


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


def gather_log_probs(log_probs: Tensor, classes: Tensor, out: Tensor) -> None:
    """Write the log probabilities, (T, R, C), of the classes (R, K) to `out`, (T, R, K)."""
    torch.gather(log_probs, 2, classes.expand(len(log_probs), -1, -1), out=out)


def gather_logits(logits: Tensor, classes: Tensor, out: Tensor) -> None:
    """Write the logits, (T, R, C), of the classes (R, K), and of all other classes together, to `out`, (T, R, K + 1).

    They are relative to the largest logit of their frame, because the log-sum-exp of large logits would lose digits.
    """
    repeated = classes == classes[:, :1]
    repeated[:, 0] = False
    for here in chunks(logits):
        wide = logits[here].to(out.dtype)
        index = classes.expand(len(wide), -1, -1)
        peak = wide.amax(2, keepdim=True)
        peak = torch.where(peak.isfinite(), peak, 0)
        own, others = out[here].split((classes.shape[1], 1), dim=2)
        torch.sub(wide.gather(2, index), peak, out=own)
        own.masked_fill_(repeated, -torch.inf)
        others.copy_(torch.logsumexp((wide - peak).scatter_(2, index, -torch.inf), 2, keepdim=True))


def chunks(x: Tensor) -> Iterator[slice]:
    """Yield slices of the first axis, of so few elements of `x` that they fit in a CPU's cache: on a GPU all of it."""
    step = max(1, _CHUNK // max(1, x[:1].numel())) if x.device.type == "cpu" else len(x)
    for start in range(0, len(x), step):
        yield slice(start, start + step)


class Rest(Enum):
    """Say what a block's gradient has besides that of the vocabulary."""

    NOTHING = auto()
    EXP_SCORES = auto()
    """For all classes exp(scores), as in PyTorch's gradient of log probabilities."""
    OTHERS = auto()
    """For all classes outside of the vocabulary, their parts of the gradient of the one class that stands for them."""


class GradientWeights(NamedTuple):
    """Hold the weights of the two terms of a block's gradient, and the frames in which it is a constant."""

    exp_scores: Tensor
    """(R,): the weight of exp(scores), where it is there for all classes."""
    vocabulary: Tensor
    """(R,): the weight of the gradient that JAX has computed for the vocabulary."""
    zero: Tensor
    """(T, R): the frames in which the gradient is 0."""
    nan: Tensor
    """(T, R): the frames in which it is NaN."""

    def of_frames(self, frames: slice) -> Self:
        return self._replace(zero=self.zero[frames], nan=self.nan[frames])


def write_gradient(
    vocabulary: Tensor, classes: Tensor, scores: Tensor, rest: Rest, weights: GradientWeights, out: Tensor
) -> None:
    """Write a block's gradient to `out`, (T, R, C), given that of the vocabulary, (T, R, K), and what the rest is.

    With `Rest.OTHERS` the vocabulary has one class more, for all others.
    """
    dtype = weights.vocabulary.dtype
    gradient = out if out.dtype == dtype else torch.empty_like(out, dtype=dtype)
    own = vocabulary * weights.vocabulary[:, None]
    index = classes.expand(len(own), -1, -1)
    if rest is Rest.NOTHING:
        gradient.zero_()
    elif rest is Rest.EXP_SCORES:
        torch.exp(scores.to(dtype), out=gradient)
        gradient.mul_(weights.exp_scores[:, None])
    else:
        own, others = own.split((classes.shape[1], 1), dim=2)
        without = scores.to(dtype, copy=True).scatter_(2, index, -torch.inf)
        torch.mul(torch.softmax(without, 2), others, out=gradient)
        # Where no other class is possible their softmax is NaN.
        gradient.masked_fill_(others == 0, 0)
    # Only the blank occurs more than once, and its repetitions are 0: the order of the additions does not matter.
    gradient.scatter_add_(2, index, own)
    if weights.zero.any():
        gradient[weights.zero] = 0
    if weights.nan.any():
        gradient[weights.nan] = torch.nan
    if gradient is not out:
        out.copy_(gradient)
