"""Check the numbers: NaN and infinities, half precision, masked classes, and scores that give no gradient."""

from collections.abc import Iterator, Sequence

import numpy as np

from jaxctc.diagnose._batch import MASK, Batch
from jaxctc.diagnose._findings import Finding, Row, finding

_LARGEST = {"float16": 65504.0, "bfloat16": 3.38e38}
"""The largest number of each half precision; the second is a little less, because of its rounding."""
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
    # In half precision an infinity is an overflow.
    kinds = [("nan", nan)] if _precision(batch) else [("nan", nan), ("positive-infinity", infinite)]
    for code, wrong in kinds:
        counts = (wrong & live[:, :, None]).sum(axis=(0, 2))
        rows = np.flatnonzero(counts)
        if len(rows):
            first = int(wrong[:, rows[0]].any(axis=1).argmax())
            classes = np.flatnonzero(wrong[first, rows[0]])
            yield finding(code, rows, scores=counts[rows], first_frame_of_the_first_row=first, its_classes=classes)
    padded = ((nan | infinite) & ~live[:, :, None]).sum(axis=(0, 2))
    if padded.any():
        rows = np.flatnonzero(padded)
        yield finding("non-finite-padding", rows, scores=padded[rows])


def _half(batch: Batch) -> Iterator[Finding]:
    precision = _precision(batch)
    if precision is None:
        return
    counts = np.array([(x >= _LARGEST[precision]).sum() for x in batch.each_live()])
    code = "half-overflow"
    if not counts.any():
        # What is -inf in every frame is a mask.
        below = (np.isneginf(x) for x in batch.each_live())
        counts, code = np.array([(x & ~x.all(axis=0)).sum() for x in below]), "half-underflow"
    rows = np.flatnonzero(counts)
    if len(rows):
        yield finding(code, rows, precision=precision, scores=counts[rows])


def _precision(batch: Batch) -> str | None:
    """Return the half precision that the scores have, or had before they were converted."""
    name = batch.scores.dtype.name
    if name in _LARGEST:
        return name
    finite = np.isfinite(batch.scores)
    if finite.all():
        return None
    values = np.unique(batch.scores[finite][:10_000])
    # A few round numbers fit into any precision.
    return "float16" if len(values) >= 100 and (values == values.astype(np.float16)).all() else None


def _masked(batch: Batch, rows: Sequence[Row]) -> Iterator[Finding]:
    found: list[int] = []
    classes: set[int] = set()
    for n, row in enumerate(rows):
        if not (row.feasible and row.loss >= -MASK):
            continue
        needed = np.unique(np.append(batch.labels(n), batch.blank))
        x = batch.live(n)[:, needed]
        # Without masks the loss is at most that of the worst path.
        if row.loss <= -np.minimum(x.min(axis=1, initial=0, where=x > MASK), 0).sum():
            continue
        found.append(n)
        classes.update(int(k) for k in needed[x.max(axis=0) <= MASK])
    if found:
        hint = "" if classes else "No class is masked in every frame: look for frames that are masked throughout."
        losses = [rows[n].loss for n in found]
        yield finding("masked-target", found, hint, losses=losses, classes_masked_in_every_frame=sorted(classes))


def _clamped(batch: Batch) -> Iterator[Finding]:
    finite = [x[np.isfinite(x)] for x in batch.each_live()]
    lowest = min((x.min() for x in finite if x.size), default=0.0)
    low, total = sum(int((x <= lowest + 0.01).sum()) for x in finite), sum(x.size for x in finite)
    constant = min(_CONSTANTS, key=lambda c: abs(np.log(c) - lowest))
    some = low and 0.05 * total <= low < 0.99 * total
    if some and abs(np.log(constant) - lowest) < 1e-3 * abs(lowest):
        yield finding(
            "clamped", lowest_score=round(float(lowest), 4), logarithm_of=constant, share=round(low / total, 4)
        )


def _vanishing(batch: Batch, rows: Sequence[Row]) -> Iterator[Finding]:
    """The posterior is what the model says given the target, so that it differs from it by 1 - exp(-loss) at most."""
    known = [row for row in rows if row.feasible and row.labels]
    losses = np.array([row.loss for row in known])
    eps = float(np.finfo(np.float32).eps)
    if known and (np.abs(losses) < eps).all():
        sure = min(f.probability.min() for f in batch.facts if len(f.best))
        yield finding(
            "vanishing-gradient", largest_loss=float(losses.max()), least_probability_of_a_best_class=float(sure)
        )
