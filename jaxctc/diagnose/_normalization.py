"""Check what the scores are: log probabilities, probabilities, logits, or normalized over another axis."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxctc.diagnose._batch import Batch
from jaxctc.diagnose._findings import Finding, finding

_TOLERANCE = {"bfloat16": 0.1, "float16": 0.02}
"""What rounding makes of a log-sum-exp of 0; `_USUAL` in other precisions."""
_USUAL = 5e-3


def check(batch: Batch) -> Iterator[Finding]:
    """Nothing here concerns logits that are meant to be logits, but for probabilities in place of them."""
    tolerance = _TOLERANCE.get(batch.scores.dtype.name, _USUAL)
    sums, masked = (np.concatenate(x) for x in zip(*((f.normalizer, f.masked) for f in batch.facts), strict=True))
    # What is masked after a log_softmax is missing from the sum.
    off = (np.abs(sums) > tolerance) & ~(masked & (sums < 0))
    known, far = sums[np.isfinite(sums)], off[np.isfinite(sums)]
    if len(known) == 0 or batch.classes == 1:
        return
    if _are_probabilities(batch, tolerance):
        yield finding(
            "probabilities", frames=len(known), lowest=_extreme(batch, np.min), highest=_extreme(batch, np.max)
        )
        return
    if not batch.from_logits and far.mean() > 0.01:
        axis = _other_axis(batch, tolerance)
        if axis is not None:
            length = batch.scores.shape[axis]
            name = ("frames", "sequences")[axis]
            yield finding(
                "wrong-axis", hint=f"Here they add up to 1 over the {length} {name}.", axis=name, length=length
            )
            return
        rows = [n for n, f in enumerate(batch.facts) if (np.abs(f.normalizer) > tolerance).any()]
        low, middle, high = np.quantile(known, (0, 0.5, 1))
        yield finding(
            "logits",
            rows,
            log_sum_exp={"least": round(low, 4), "median": round(middle, 4), "greatest": round(high, 4)},
            share_of_frames=round(float(far.mean()), 4),
        )
        return
    yield from _double_softmax(batch, tolerance)


def _extreme(batch: Batch, of: Callable[..., Any]) -> float:
    return round(float(of([of(x) for x in batch.each_live() if x.size])), 4)


def _are_probabilities(batch: Batch, tolerance: float) -> bool:
    seen = False
    for x in batch.each_live():
        p = x[np.isfinite(x).all(axis=1)]
        seen = seen or len(p) > 0
        if (p < 0).any() or (np.abs(p.sum(axis=1) - 1) > tolerance).any():
            return False
    return seen


def _other_axis(batch: Batch, tolerance: float) -> int | None:
    """Return the axis of the scores, padding included, over which the probabilities sum to one."""
    frames, sequences, classes = batch.scores.shape
    over_frames, over_sequences = np.empty((sequences, classes)), np.zeros((frames, classes))
    for n in range(sequences):
        p = np.exp(batch.scores[:, n].astype(np.float64))
        over_frames[n] = p.sum(axis=0)
        over_sequences += p
    for axis, sums in enumerate((over_frames, over_sequences)):
        if batch.scores.shape[axis] > 1 and (np.abs(np.log(sums)) <= tolerance).all():
            return axis
    return None


def _double_softmax(batch: Batch, tolerance: float) -> Iterator[Finding]:
    """Undo a log_softmax of probabilities: scores are p minus a constant, which is known because p sums to one."""
    peaks = []
    for n in range(batch.sequences):
        scores = batch.log_probs(n)
        if not np.isfinite(scores).all():
            return
        p = scores + ((1 - scores.sum(axis=1)) / batch.classes)[:, None]
        if (p < -tolerance).any():
            return
        peaks.append(p.max(axis=1))
    peak = np.concatenate(peaks)
    # A young model's weak logits can be read as probabilities too, but hardly as confident ones of several classes.
    shares = np.sort(np.bincount(batch.best, minlength=batch.classes))
    if batch.classes > 2 and np.median(peak) > 0.5 and shares[-2] >= 0.02 * len(peak):
        yield finding("double-softmax", median_of_the_greatest_probability_before=round(float(np.median(peak)), 4))
