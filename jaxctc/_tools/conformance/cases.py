"""Make the cases: small batches for every aspect of the contract, and long ones for accuracy."""

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jaxctc._tools.conformance import oracle

Ask = Literal["loss", "gradient", "second derivative", "same bits", "refusal"]
"""What an implementation is asked for. "refusal": an error or NaN, and no number."""


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
    loss_tolerance: float = 1e-5
    """The largest error of a loss, in units of the loss or of 1, whichever is larger."""
    gradient_tolerance: float = 1e-4
    """The largest error of an element of the gradient, which is between -1 and 1."""

    def __str__(self) -> str:
        return self.name

    @property
    def normalized(self) -> bool:
        """Whether each frame within its sequence's length is a distribution, so that it may be passed as logits."""
        total = np.concatenate([np.exp(x[:n]).sum(axis=1) for x, n in self._sequences()])
        return bool(np.all(np.abs(total - 1) < 1e-2))

    @functools.cached_property
    def of_logits(self) -> "Case":
        """The case whose answers are right where the scores are taken as logits: rounding has left them so."""
        with np.errstate(invalid="ignore", over="ignore"):  # in padded frames
            return dataclasses.replace(self, log_probs=_log_softmax(self.log_probs))

    def _sequences(self) -> Iterator[tuple[np.ndarray, int]]:
        for n, length in enumerate(self.input_lengths):
            yield self.log_probs[:, n], int(length)

    def _target(self, n: int) -> np.ndarray:
        count = int(self.target_lengths[n])
        if not self.end_to_end:
            return self.targets[n, :count]
        first = int(self.target_lengths[:n].sum())
        return self.targets[first : first + count]

    @functools.cached_property
    def answers(self) -> list[oracle.Answer]:
        """The right answer of each sequence, over its own frames."""
        return [
            oracle.answer(x[:length], self._target(n), self.blank) for n, (x, length) in enumerate(self._sequences())
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
        padded frames and for infeasible targets.
        """
        gradient = np.zeros_like(self.log_probs)
        for n, (x, length) in enumerate(self._sequences()):
            loss, posterior = self.answers[n]
            if np.isfinite(loss):
                gradient[:length, n] = -posterior if convention == "log_probs" else np.exp(x[:length]) - posterior
        return gradient * self.weights[:, None]

    def hessian_product(self, direction: np.ndarray) -> np.ndarray:
        """Return the right second derivative with respect to log_probs, times a direction, (T, N, C)."""
        product = np.zeros_like(self.log_probs)
        for n, (x, length) in enumerate(self._sequences()):
            if np.isfinite(self.answers[n].loss):
                product[:length, n] = oracle.hessian_product(
                    x[:length], self._target(n), self.blank, direction[:length, n]
                )
        return product

    @property
    def direction(self) -> np.ndarray:
        return np.random.default_rng(1).standard_normal(self.log_probs.shape)


def _log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(axis=2, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=2, keepdims=True))


def _rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":  # numpy has no such type: of a float32, 16 bits are kept
        bits = np.asarray(x, np.float32).view(np.uint32)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
        return bits.view(np.float32).astype(np.float64)
    return np.asarray(x, dtype).astype(np.float64)


def _scores(T: int, N: int, C: int, *, seed: int = 0, spread: float = 2.0, dtype: str = "float32") -> np.ndarray:
    drawn = np.random.default_rng([seed, T, N, C]).standard_normal((T, N, C)) * spread
    return _rounded(_log_softmax(drawn), dtype)


T, N, C = 7, 4, 4
_TARGETS = np.array([[1, 2, 3], [3, 1, 2], [2, 3, 0], [1, 0, 0]])
_COUNTS = np.array([3, 3, 2, 1])
_FULL, _LENGTHS = np.full(N, T), np.array([7, 5, 4, 2])
_WITH_EMPTY = np.array([[1, 2, 3], [0, 0, 0], [2, 3, 0], [1, 0, 0]]), _FULL, np.array([3, 0, 2, 1])


def cases() -> list[Case]:
    """Return all cases, which are the same in every call."""
    groups = _values, _targets, _infeasible, _special_scores, _blanks_and_types, _long
    return [case for group in groups for case in group(_scores(T, N, C))]


def _values(x: np.ndarray) -> Iterator[Case]:
    plain = x, _TARGETS, _FULL, _COUNTS
    yield Case("values", "values", *plain, asks=("loss",))
    yield Case("gradient", "gradient", *plain, asks=("gradient",))
    scaled = _rounded(x + 0.5, "float32")
    yield Case("scores that are no distribution", "scores that are no distribution", scaled, *plain[1:])
    second: tuple[Ask, ...] = ("second derivative",)
    yield Case("second derivative", "second derivative", *plain, asks=second, gradient_tolerance=1e-3)
    for reduction in ("mean", "sum"):
        yield Case(f"reduction {reduction}", "reductions", *plain, reduction=reduction)
    yield Case("mean with an empty target", "reductions", x, *_WITH_EMPTY, reduction="mean")
    yield Case("twice the same bits", "determinism", *plain, asks=("same bits",))
    yield Case("strides", "non-contiguous scores", *plain, contiguous=False)


def _targets(x: np.ndarray) -> Iterator[Case]:
    yield Case("padded frames", "lengths", x, _TARGETS, _LENGTHS, _COUNTS)
    ones = np.ones(N, int)
    yield Case("one frame", "lengths", x[:1], np.array([[1], [2], [3], [1]]), ones, ones)
    together = np.array([1, 2, 3, 3, 1, 2, 2, 3, 1])
    yield Case("end to end", "targets end to end", x, together, _FULL, _COUNTS, end_to_end=True)
    for filler in (-1, -100, C):
        padded = np.where(np.arange(3) < _COUNTS[:, None], _TARGETS, filler)
        yield Case(f"{filler} in padded labels", "padded labels", x, padded, _FULL, _COUNTS)
    yield Case("an empty target", "empty targets", x, *_WITH_EMPTY)
    yield Case("only empty targets", "empty targets", x, np.zeros((N, 3), int), _FULL, np.zeros(N, int))
    repeats = np.array([[1, 1, 1], [2, 2, 3], [3, 3, 0], [1, 0, 0]])
    yield Case("repeats", "repeats", x, repeats, _FULL, _COUNTS)
    yield Case("repeats without the frames", "repeats", x, repeats, np.array([4, 3, 2, 7]), _COUNTS, asks=("loss",))
    for name, label in (("C", C), ("-1", -1), ("2**31 - 1", 2**31 - 1)):
        wrong = _TARGETS.copy()
        wrong[0, 1] = label
        yield Case(f"label {name}", "labels out of range", x, wrong, _FULL, _COUNTS, asks=("refusal",))


def _infeasible(x: np.ndarray) -> Iterator[Case]:
    tight = x, _TARGETS, np.array([7, 2, 1, 1]), _COUNTS
    yield Case("too few frames, loss", "infeasible: loss inf", *tight, asks=("loss",))
    yield Case("too few frames, gradient", "infeasible: gradient 0", *tight, asks=("gradient",))
    yield Case("too few frames, zero_infinity", "zero_infinity", *tight, zero_infinity=True)
    never = x.copy()
    never[:, 0, 1] = -np.inf
    ruled_out = _log_softmax(never), _TARGETS, _FULL, _COUNTS
    yield Case("a label ruled out, loss", "infeasible: loss inf", *ruled_out, asks=("loss",))
    yield Case("a label ruled out, gradient", "infeasible: gradient 0", *ruled_out, asks=("gradient",))


def _special_scores(x: np.ndarray) -> Iterator[Case]:
    rest = _TARGETS, _FULL, _COUNTS
    some, unused = x.copy(), x.copy()
    some[2, :, 3], some[4, 0, 0], unused[:, 3, 3] = -np.inf, -np.inf, -np.inf
    for name, masked in (("in some frames", some), ("of a class that the target does not use", unused)):
        yield Case(f"-inf {name}", "-inf scores", _rounded(_log_softmax(masked), "float32"), *rest)
    for name, value in (("NaN", np.nan), ("inf", np.inf)):
        hidden = x.copy()
        hidden[np.arange(T)[:, None] >= _LENGTHS] = value
        yield Case(f"{name} in padded frames", "NaN in padded frames", hidden, _TARGETS, _LENGTHS, _COUNTS)
    yield Case("a confident model", "confident models", _scores(T, N, C, spread=40), _TARGETS, _FULL, _COUNTS)
    certain = np.full((T, 1, C), -30.0)
    certain[np.arange(T), 0, [1, 0, 2, 0, 3, 0, 0]] = 0
    yield Case("a certain model", "confident models", certain, _TARGETS[:1], _FULL[:1], _COUNTS[:1])


def _blanks_and_types(x: np.ndarray) -> Iterator[Case]:
    last = np.array([[0, 1, 2], [2, 0, 1], [1, 2, 0], [0, 0, 0]])
    yield Case("the blank last", "blank anywhere", x, last, _FULL, _COUNTS, blank=C - 1)
    middle = np.array([[0, 1, 3], [3, 0, 1], [1, 3, 0], [0, 0, 0]])
    yield Case("the blank in the middle", "blank anywhere", x, middle, _FULL, _COUNTS, blank=2)
    rest = _TARGETS, _FULL, _COUNTS
    for dtype, tolerance in (("bfloat16", 8e-3), ("float16", 1e-3)):
        scores = _scores(T, N, C, dtype=dtype)
        yield Case(dtype, "half precision", scores, *rest, dtype=dtype, gradient_tolerance=tolerance)
    exact = {"dtype": "float64", "loss_tolerance": 1e-12, "gradient_tolerance": 1e-11}
    yield Case("float64", "float64", _scores(T, N, C, dtype="float64"), *rest, **exact)  # type: ignore[arg-type]


def _long(_: np.ndarray) -> Iterator[Case]:
    for frames, labels in ((200, 40), (2000, 200), (8000, 800)):
        targets = np.random.default_rng(frames).integers(1, 32, (1, labels))
        scores, lengths = _scores(frames, 1, 32), (np.array([frames]), np.array([labels]))
        yield Case(f"T = {frames}", f"accuracy at T = {frames}", scores, targets, *lengths)
    targets = (np.arange(600) % 15 + 1)[None]
    yield Case("600 labels", "long targets", _scores(700, 1, 16), targets, np.array([700]), np.array([600]))
