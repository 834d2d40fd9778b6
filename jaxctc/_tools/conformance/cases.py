"""Make the cases: small batches for every aspect of the contract, and long ones for accuracy.

Most of them have one shape and no option, so that an implementation that is compiled is compiled once for them all, for
the loss alone and for the loss with its gradient; those that have another shape or an option ask for the latter alone.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxctc._tools.conformance.case import Ask, Case, rounded
from jaxctc._tools.conformance.oracle import log_softmax

T, N, C = 7, 4, 4
_TARGETS = np.array([[1, 2, 3], [3, 1, 2], [2, 3, 0], [1, 0, 0]])
_COUNTS = np.array([3, 3, 2, 1])
_FULL, _LENGTHS = np.full(N, T), np.array([7, 5, 4, 2])
_REST = _TARGETS, _FULL, _COUNTS
_PADDED = _TARGETS, _LENGTHS, _COUNTS
_WITH_EMPTY = np.array([[1, 2, 3], [0, 0, 0], [2, 3, 0], [1, 0, 0]]), _FULL, np.array([3, 0, 2, 1])
_TIGHT = np.array([[1, 2, 3], [3, 1, 1], [2, 3, 0], [1, 0, 0]]), np.array([7, 3, 1, 0]), _COUNTS
"""One target is feasible; of the others, one has a frame too few for its repeat, one for its labels, one none."""

_GRADIENT: tuple[Ask, ...] = ("gradient",)
_PADDING: tuple[Ask, ...] = ("loss", "gradient", "same bits")


def cases() -> list[Case]:
    """Return all cases, which are the same in every call."""
    groups = _values, _targets, _illegal, _infeasible, _special_scores, _confident, _blanks_and_types, _long
    return [case for group in groups for case in group(_scores(T, N, C))]


def _scores(T: int, N: int, C: int, *, spread: float = 2.0, dtype: str = "float32") -> np.ndarray:
    drawn = np.random.default_rng([0, T, N, C]).standard_normal((T, N, C)) * spread
    return rounded(log_softmax(drawn), dtype)


def _values(x: np.ndarray) -> Iterator[Case]:
    yield Case("values", "values", x, *_REST, asks=("loss",))
    yield Case("gradient", "gradient", x, *_REST, asks=_GRADIENT)
    negative = rounded(x + 4, "float32")
    yield Case("scores that are no distribution", "scores that are no distribution", negative, *_REST)
    second = "second derivative"
    yield Case(second, second, x, *_PADDED, asks=("second derivative",), gradient_tolerance=1e-3)
    yield Case("forward mode", "forward mode", x, *_PADDED, asks=("forward mode",))
    for reduction in ("mean", "sum"):
        yield Case(f"reduction {reduction}", "reductions", x, *_REST, asks=_GRADIENT, reduction=reduction)
    yield Case("mean with an empty target", "reductions", x, *_WITH_EMPTY, asks=_GRADIENT, reduction="mean")
    yield Case("twice the same bits", "determinism", x, *_REST, asks=("same bits",))
    yield Case("strides", "non-contiguous scores", x, *_REST, contiguous=False)


def _targets(x: np.ndarray) -> Iterator[Case]:
    yield Case("padded frames", "lengths", x, *_PADDED, asks=_PADDING)
    ones = np.ones(N, int)
    yield Case("one frame", "lengths", x[:1], np.array([[1], [2], [3], [1]]), ones, ones, asks=_GRADIENT)
    together = np.array([1, 2, 3, 3, 1, 2, 2, 3, 1])
    yield Case("end to end", "targets end to end", x, together, _LENGTHS, _COUNTS, end_to_end=True)
    for filler in (-1, -100, C, 2**31 - 1, -(2**31)):
        padded = np.where(np.arange(3) < _COUNTS[:, None], _TARGETS, filler)
        yield Case(f"{filler} in padded labels", "padded labels", x, padded, _FULL, _COUNTS, asks=_PADDING)
    yield Case("an empty target", "empty targets", x, *_WITH_EMPTY)
    for name, longest in (("only empty targets", 3), ("targets of no columns", 0)):
        nothing = np.zeros((N, longest), int), np.array([7, 5, 4, 0]), np.zeros(N, int)
        yield Case(name, "empty targets", x, *nothing, asks=_GRADIENT)
    repeats = np.array([[1, 1, 1], [2, 2, 3], [3, 3, 0], [1, 0, 0]])
    yield Case("repeats", "repeats", x, repeats, _FULL, _COUNTS)
    yield Case("repeats with just enough frames", "repeats", x, repeats, np.array([5, 4, 3, 1]), _COUNTS)
    yield Case("repeats without the frames", "repeats", x, repeats, np.array([4, 3, 2, 7]), _COUNTS, asks=("loss",))


def _illegal(x: np.ndarray) -> Iterator[Case]:
    for name, value in (("C", C), ("-1", -1), ("2**31 - 1", 2**31 - 1), ("the blank", 0)):
        wrong = _TARGETS.copy()
        wrong[0, 1] = value
        yield _refused(f"label {name}", "labels out of range", 0, x, wrong, _FULL, _COUNTS)
    for which, most in (("input length", T), ("target length", 3)):
        for value in (-1, most + 1, 2**31 - 1, -(2**31)):
            lengths = [_LENGTHS.copy(), _COUNTS.copy()]
            lengths[which != "input length"][1] = value
            yield _refused(f"{which} {value}", "lengths out of range", 1, x, _TARGETS, *lengths)


def _refused(name: str, aspect: str, n: int, *problem: np.ndarray) -> Case:
    scores, targets, input_lengths, target_lengths = problem
    asks: tuple[Ask, ...] = ("loss", "gradient", "refusal")
    return Case(name, aspect, scores, targets, input_lengths, target_lengths, asks=asks, refused=(n,))


def _infeasible(x: np.ndarray) -> Iterator[Case]:
    loss, gradient = "infeasible: loss inf", "infeasible: gradient 0"
    for value, added in ((0, ""), (np.nan, ", NaN scores"), (np.inf, ", +inf scores")):
        scores = x.copy()
        scores[0, 1:3] += value
        problem, name = (scores, *_TIGHT), f"too few frames{added}"
        yield Case(f"{name}, loss", loss, *problem, asks=("loss",))
        yield Case(f"{name}, gradient", gradient, *problem, asks=_GRADIENT)
        yield Case(f"{name}, zero_infinity", "zero_infinity", *problem, asks=_GRADIENT, zero_infinity=True)
    mean: dict[str, Any] = {"asks": _GRADIENT, "reduction": "mean"}
    yield Case("too few frames, mean", gradient, x, *_TIGHT, **mean)
    yield Case("too few frames, mean, zero_infinity", "zero_infinity", x, *_TIGHT, zero_infinity=True, **mean)
    never, nothing = x.copy(), x.copy()
    never[:, 0, 1] = -np.inf
    nothing[1, :2] = -np.inf
    for name, scores in (("a label", log_softmax(never)), ("a frame", nothing)):
        yield Case(f"{name} ruled out, loss", loss, rounded(scores, "float32"), *_REST, asks=("loss",))
        yield Case(f"{name} ruled out, gradient", gradient, rounded(scores, "float32"), *_REST, asks=_GRADIENT)


def _special_scores(x: np.ndarray) -> Iterator[Case]:
    for mask in (-np.inf, float(np.finfo(np.float32).min), -1e9):
        some, unused = x.copy(), x.copy()
        some[2, :, 3], some[4, 0, 0], some[:2, 2, 2], unused[:, 3, 3] = mask, mask, mask, mask
        name = {-np.inf: "-inf", -1e9: "-1e9"}.get(mask, "the least float32")
        aspect = "-inf scores" if mask == -np.inf else "huge finite masks"
        for where, masked in (("in some frames", some), ("of a class that the target does not use", unused)):
            scores = np.maximum(log_softmax(masked), mask)  # what it is normalized by could make it smaller than any
            yield Case(f"{name} {where}", aspect, rounded(scores, "float32"), *_REST)
    kinds = np.array([[1, 2, 3, 4], [2, 2, 2, 2], [3, 1, 0, 0], [4, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    lengths = np.array([24, 17, 9, 1, 5, 7]), np.array([4, 4, 2, 1, 0, 4])
    masked = _scores(24, 6, 5, spread=3)
    masked[5:9, :, 2] = -np.inf
    masked[4, 2, [0, 1, 3]] = -200
    yield Case("sequences of all kinds", "-inf scores", rounded(log_softmax(masked), "float32"), kinds, *lengths)
    hopeless = x.copy()
    hopeless[:, 1, 1] = -1e9
    scores = rounded(np.maximum(log_softmax(hopeless), -1e9), "float32")
    yield Case("every path has -1e9", "huge finite masks", scores, *_REST, asks=("loss",))
    for name, value in (("NaN", np.nan), ("inf", np.inf), ("-inf", -np.inf), ("1e4", 1e4)):
        hidden = x.copy()
        hidden[np.arange(T)[:, None] >= _LENGTHS] = value
        yield Case(f"{name} in padded frames", "NaN in padded frames", hidden, *_PADDED, asks=_PADDING)
    for name, value in (("NaN", np.nan), ("+inf", np.inf)):
        used, unused = x.copy(), x.copy()
        used[2, 0, 2] = unused[1, 3, 3] = value
        yield Case(f"{name} of a class that the target uses", "NaN scores", used, *_PADDED)
        yield Case(f"{name} of a class that the target does not use", "NaN scores", unused, *_PADDED)


def _confident(_: np.ndarray) -> Iterator[Case]:
    yield Case("a confident model", "confident models", _scores(T, N, C, spread=40), *_REST)
    certain = np.full((T, N, C), -30.0)
    spelled = np.array([[1, 0, 2, 0, 3, 0, 0], [3, 3, 1, 0, 2, 2, 2], [0, 0, 2, 3, 0, 0, 0], [0, 1, 1, 0, 0, 0, 0]])
    certain[np.arange(T)[:, None], np.arange(N), spelled.T] = 0
    yield Case("a certain model", "confident models", certain, *_REST)
    # google-deepmind/optax#1771: each sequence is more confident than the one before it.
    frames = 60
    targets = np.resize([1, 3, 2], (N, frames // 2))
    path = np.zeros((frames, N), int)
    path[::2] = targets.T
    noise = np.random.default_rng(0).normal(size=(frames, N, C)) * 0.1
    logits = np.eye(C)[path] * np.array([5, 20, 100, 1e4])[:, None] + noise
    lengths = np.full(N, frames), np.full(N, frames // 2)
    never = "a loss is never negative"
    yield Case(never, never, rounded(log_softmax(logits), "float32"), targets, *lengths, asks=("loss", "sign"))


def _blanks_and_types(x: np.ndarray) -> Iterator[Case]:
    for name, blank in (("last", C - 1), ("in the middle", 2)):
        yield Case(f"the blank {name}", "blank anywhere", x, *_PADDED, asks=_GRADIENT).with_blank(blank)
    for aspect, dtypes in (("half precision", ("bfloat16", "float16")), ("float64", ("float64",))):
        for dtype in dtypes:
            yield Case(dtype, aspect, _scores(T, N, C, dtype="float64"), *_REST, asks=_GRADIENT).in_dtype(dtype)


def _long(_: np.ndarray) -> Iterator[Case]:
    for frames, labels in ((200, 40), (2000, 200), (8000, 800)):
        targets = np.random.default_rng(frames).integers(1, 32, (1, labels))
        scores, lengths = _scores(frames, 1, 32), (np.array([frames]), np.array([labels]))
        yield Case(f"T = {frames}", f"accuracy at T = {frames}", scores, targets, *lengths, asks=_GRADIENT)
    targets = (np.arange(600) % 15 + 1)[None]
    yield Case(
        "600 labels", "long targets", _scores(700, 1, 16), targets, np.array([700]), np.array([600]), asks=_GRADIENT
    )
