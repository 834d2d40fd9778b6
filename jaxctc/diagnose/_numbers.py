"""Check the numbers: NaN and infinities, half precision, masked classes, and scores that give no gradient."""

from collections.abc import Iterator, Sequence

import numpy as np

from jaxctc.diagnose._batch import Batch
from jaxctc.diagnose._findings import Finding, Row, finding

_LARGEST = {"float16": 65504.0, "bfloat16": 3.38e38}
"""Of each half precision; the second is a little less, for its rounding."""
_IMPOSSIBLE = 1e4
"""A loss a needed frame beyond this comes of masks, not of a model."""
_CONSTANTS = [float(f"1e-{k}") for k in range(4, 21)] + [
    float(np.finfo(np.float32).eps),
    float(np.finfo(np.float32).tiny),
]
"""What people add to probabilities before they take their logarithm."""


def check(batch: Batch, rows: Sequence[Row]) -> Iterator[Finding]:
    yield from _non_finite(batch)
    yield from _half(batch)
    yield from _masked(batch, rows)
    yield from _clamped(batch)
    yield from _vanishing(batch, rows)


def _non_finite(batch: Batch) -> Iterator[Finding]:
    frames = batch.scores.shape[0]
    live = np.arange(frames)[:, None] < batch.frames
    nan, infinite = np.isnan(batch.scores), np.isposinf(batch.scores)
    for code, wrong in (("nan", nan), ("positive-infinity", infinite)):
        counts = (wrong & live[:, :, None]).sum(axis=(0, 2))
        rows = np.flatnonzero(counts)
        if len(rows):
            first = int(wrong[:, rows[0]].any(axis=1).argmax())
            classes = np.flatnonzero(wrong[first, rows[0]])
            yield finding(code, rows, scores=counts[rows], first_frame_of_the_first_row=first, its_classes=classes[:8])
    padded = ((nan | infinite) & ~live[:, :, None]).sum(axis=(0, 2))
    if padded.any():
        rows = np.flatnonzero(padded)
        yield finding("non-finite-padding", rows, scores=padded[rows])


def _half(batch: Batch) -> Iterator[Finding]:
    precision = _precision(batch)
    if precision is None:
        return
    largest, overflown, underflown = _LARGEST[precision], [], []
    for x in batch.each_live():
        overflown.append(int((np.abs(x) >= largest).sum() - np.isneginf(x).sum()))
        # What is -inf in every frame is a mask.
        below = np.isneginf(x)
        underflown.append(int((below & ~below.all(axis=0)).sum()))
    for code, counts in (("half-overflow", np.array(overflown)), ("half-underflow", np.array(underflown))):
        rows = np.flatnonzero(counts)
        if len(rows):
            yield finding(code, rows, precision=precision, scores=counts[rows])


def _precision(batch: Batch) -> str | None:
    """Return the half precision that the scores have, or had before they were converted."""
    name = batch.scores.dtype.name
    if name in _LARGEST:
        return name
    finite = batch.scores[np.isfinite(batch.scores)]
    values = np.unique(finite[:10_000])
    # A few round numbers fit into any precision.
    if len(values) < 100 or np.isfinite(batch.scores).all():
        return None
    with np.errstate(over="ignore"):
        return "float16" if (values == values.astype(np.float16)).all() else None


def _masked(batch: Batch, rows: Sequence[Row]) -> Iterator[Finding]:
    found: list[int] = []
    classes: set[int] = set()
    for n, row in enumerate(rows):
        if not row.feasible or np.isnan(row.loss) or row.loss < _IMPOSSIBLE * max(row.frames, 1):
            continue
        found.append(n)
        x = batch.live(n)
        needed = np.unique(np.append(batch.labels(n), batch.blank)).astype(int)
        low = x[:, needed].max(axis=0) <= -_IMPOSSIBLE
        classes.update(int(k) for k in needed[low])
    if found:
        hint = "" if classes else "No class is masked in every frame: look for frames that are masked throughout."
        losses = [rows[n].loss for n in found]
        yield finding("masked-target", found, hint, losses=losses, classes_masked_in_every_frame=sorted(classes))


def _clamped(batch: Batch) -> Iterator[Finding]:
    lowest, at, total, values = np.inf, 0, 0, 0
    for x in batch.each_live():
        finite = x[np.isfinite(x)]
        if len(finite) == 0:
            continue
        low = finite.min()
        if low < lowest:
            lowest, at = low, 0
        at += int((finite == lowest).sum())
        total += x.size
        values = max(values, len(np.unique(finite[:1000])))
    if total == 0 or at < 0.05 * total or values < 20:
        return
    constant = min(_CONSTANTS, key=lambda c: abs(np.log(c) - lowest))
    if abs(np.log(constant) - lowest) < 1e-3 * abs(lowest):
        yield finding(
            "clamped", lowest_score=round(float(lowest), 4), logarithm_of=constant, share=round(at / total, 4)
        )


def _vanishing(batch: Batch, rows: Sequence[Row]) -> Iterator[Finding]:
    """The posterior is what the model says given the target, so that it differs from it by 1 - exp(-loss) at most."""
    known = [row for row in rows if row.feasible and row.labels]
    losses = np.array([row.loss for row in known])
    eps = float(np.finfo(np.float32).eps)
    if known and (np.abs(losses) < eps).all():
        sure = np.concatenate([np.exp(f.best_score - f.normalizer) for f in batch.facts])
        yield finding(
            "vanishing-gradient",
            largest_loss=float(losses.max()),
            least_probability_of_a_best_class=float(sure.min()),
        )
