"""Say what one case is: a batch, what is asked of an implementation, and the right answers."""

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jaxctc._tools.conformance import oracle

Ask = Literal["loss", "gradient", "second derivative", "forward mode", "same bits", "sign", "refusal"]
"""What an implementation is asked for.

"loss" is asked without a gradient, and "gradient" with the loss that comes with it. "same bits": a second call, in
which all padding is 0, gives no other. "sign": no loss is negative. "refusal": an error is right; else the illegal
sequences have NaN, and the others their answers.
"""

TOLERANCES = {"float64": (1e-12, 1e-11), "float32": (1e-5, 1e-4), "bfloat16": (1e-5, 8e-3), "float16": (1e-5, 1e-3)}
"""By dtype: the largest errors of a loss and of an element of the gradient (see `Case`)."""


@dataclass(frozen=True, eq=False)
class Case:
    """One batch, and what is asked of an implementation. `str` gives its name."""

    name: str
    aspect: str
    """The row of the table that the case belongs to."""
    log_probs: np.ndarray
    """(T, N, C) in float64, all of whose values `dtype` holds exactly."""
    targets: np.ndarray
    """(N, S), or all targets end to end if `end_to_end`."""
    input_lengths: np.ndarray
    target_lengths: np.ndarray
    asks: tuple[Ask, ...] = ("loss", "gradient")
    blank: int = 0
    dtype: str = "float32"
    reduction: Literal["none", "mean", "sum"] = "none"
    zero_infinity: bool = False
    end_to_end: bool = False
    contiguous: bool = True
    """Whether the scores are handed over as one block of memory in the order (T, N, C)."""
    refused: tuple[int, ...] = ()
    """The sequences with an illegal label or length."""
    logits: np.ndarray | None = None
    """(T, N, C): what a function of logits is given (see `of_logits`)."""
    loss_tolerance: float = 1e-5
    """The largest error of a loss, in units of the loss or of 1, whichever is larger."""
    gradient_tolerance: float = 1e-4
    """The largest error of an element of the gradient, which is between -1 and 1."""

    def __str__(self) -> str:
        return self.name

    @property
    def scores(self) -> np.ndarray:
        """What is handed over: `logits` if there are any, else `log_probs`."""
        return self.log_probs if self.logits is None else self.logits

    @property
    def normalized(self) -> bool:
        """Whether each frame is a distribution, or has no path or a NaN, so that logits of this case can be made."""
        total = np.concatenate([np.exp(x).sum(axis=1) for x in self._sequences()])
        return bool(np.all((np.abs(total - 1) < 1e-2) | (total == 0) | ~np.isfinite(total)))

    @functools.cached_property
    def of_logits(self) -> "Case":
        """The case for functions of logits: each frame's scores have a number added, which changes no answer."""
        added = np.random.default_rng(2).standard_normal((*self.log_probs.shape[:2], 1)) * 2
        logits = rounded(self.log_probs + added, self.dtype)
        return dataclasses.replace(self, logits=logits, log_probs=oracle.log_softmax(logits))

    def in_dtype(self, dtype: str) -> "Case":
        """Return the case with its scores rounded to another type, and the tolerances of that type."""
        loss, gradient = TOLERANCES[dtype]
        return dataclasses.replace(
            self,
            dtype=dtype,
            log_probs=rounded(self.log_probs, dtype),
            loss_tolerance=loss,
            gradient_tolerance=gradient,
        )

    def with_blank(self, blank: int) -> "Case":
        """Return the case in which another class is the blank: the two change places."""
        order = np.arange(self.log_probs.shape[2])
        order[[self.blank, blank]] = blank, self.blank
        legal = (self.targets >= 0) & (self.targets < len(order))
        targets = np.where(legal, order[np.where(legal, self.targets, 0)], self.targets)
        return dataclasses.replace(self, blank=blank, log_probs=self.log_probs[:, :, order], targets=targets)

    @functools.cached_property
    def clean(self) -> "Case":
        """The case with 0 in all that is padding."""
        padding = ~self.frame_mask
        scores = {
            name: x.copy() for name, x in (("log_probs", self.log_probs), ("logits", self.logits)) if x is not None
        }
        for x in scores.values():
            x[padding] = 0
        targets = self.targets
        if not self.end_to_end:
            targets = np.where(np.arange(targets.shape[1]) < self.target_lengths[:, None], targets, 0)
        return dataclasses.replace(self, **scores, targets=targets)  # type: ignore[arg-type]

    @property
    def frame_mask(self) -> np.ndarray:
        """(T, N): which frames are within their sequence's length."""
        return np.arange(len(self.log_probs))[:, None] < self.input_lengths

    def _sequences(self) -> Iterator[np.ndarray]:
        """Yield the frames of each sequence that are within its length."""
        for n, length in enumerate(self.input_lengths):
            yield self.log_probs[: max(int(length), 0), n]

    def target(self, n: int) -> np.ndarray:
        """Return the target of one sequence, without padding."""
        count = int(self.target_lengths[n])
        if not self.end_to_end:
            return self.targets[n, :count]
        first = int(self.target_lengths[:n].sum())
        return self.targets[first : first + count]

    @functools.cached_property
    def answers(self) -> list[oracle.Answer]:
        """The right answer of each sequence, over its own frames."""
        return [
            oracle.Answer(np.nan, np.zeros_like(x))
            if n in self.refused
            else oracle.answer(x, self.target(n), self.blank)
            for n, x in enumerate(self._sequences())
        ]

    @property
    def losses(self) -> np.ndarray:
        """The right loss of each sequence; 0 for an infeasible one with `zero_infinity`."""
        losses = np.array([answer.loss for answer in self.answers])
        return np.where(np.isposinf(losses), 0, losses) if self.zero_infinity else losses

    @property
    def loss(self) -> np.ndarray:
        """The right value, reduced: "mean" divides each loss by its target's length first, as PyTorch does."""
        if self.reduction == "none":
            return self.losses
        if self.reduction == "sum":
            return self.losses.sum()
        return (self.losses / np.maximum(self.target_lengths, 1)).mean()

    @property
    def weights(self) -> np.ndarray:
        """What the loss of each sequence counts in the reduced value, by which its gradient is multiplied."""
        sequences = len(self.target_lengths)
        if self.reduction == "mean":
            return 1 / np.maximum(self.target_lengths, 1) / sequences
        return np.ones(sequences)

    def gradient(self, convention: str) -> np.ndarray:
        """Return the right gradient of the sum of the losses, or of the reduced one, (T, N, C).

        "log_probs" is the true derivative, minus the posterior. "torch" and "logits" are the probabilities minus the
        posterior: what PyTorch returns for log_probs, and the true derivative with respect to logits. All are 0 in
        padded frames and for infeasible targets, and NaN in the other frames of a sequence whose loss is NaN.
        """
        gradient = np.zeros_like(self.log_probs)
        for n, x in enumerate(self._sequences()):
            loss, posterior = self.answers[n]
            if np.isnan(loss):
                gradient[: len(x), n] = np.nan
            elif np.isfinite(loss):
                gradient[: len(x), n] = -posterior if convention == "log_probs" else np.exp(x) - posterior
        return gradient * self.weights[:, None]

    @property
    def without_gradient(self) -> np.ndarray:
        """(T, N): where the gradient is exactly 0, in padded frames and for infeasible targets."""
        return ~self.frame_mask | np.isposinf([answer.loss for answer in self.answers])

    def hessian_product(self, convention: str) -> np.ndarray:
        """Return the derivative of the gradient of a convention, along the direction, (T, N, C)."""
        product = np.zeros_like(self.log_probs)
        for n, x in enumerate(self._sequences()):
            if np.isfinite(self.answers[n].loss):
                along = self.direction[: len(x), n]
                product[: len(x), n] = oracle.hessian_product(x, self.target(n), self.blank, along)
                if convention != "log_probs":
                    p = np.exp(x)
                    mean = (p * along).sum(axis=1, keepdims=True) if convention == "logits" else 0
                    product[: len(x), n] += p * (along - mean)
        return product

    @property
    def direction(self) -> np.ndarray:
        """(T, N, C): along which derivatives are asked for."""
        return rounded(np.random.default_rng(1).standard_normal(self.log_probs.shape), self.dtype)


def rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    """Return x in float64, rounded to numbers of another type."""
    with np.errstate(over="ignore"):
        if dtype != "bfloat16":
            return np.asarray(x, dtype).astype(np.float64)
        # numpy has no such type: of a float32, 16 bits are kept. A NaN may have none but those that are cut off.
        bits = np.asarray(x, np.float32).view(np.uint32)
        kept = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
        return np.where(np.isnan(x), np.nan, kept.view(np.float32).astype(np.float64))
