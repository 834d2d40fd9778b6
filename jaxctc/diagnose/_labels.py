"""Check blank and labels: those that the loss refuses, and those that mean something else."""

from collections.abc import Iterator

import numpy as np

from jaxctc.diagnose._batch import Batch
from jaxctc.diagnose._edit_distance import edit_distance
from jaxctc.diagnose._findings import Finding, finding

_PADDING = (0, -1, -100)
"""What people pad targets with, besides the blank and C."""
_COMPARED = 32
"""Sequences whose best paths are compared with targets."""
_MANY = 20
"""Labels for each class, from which on a class that never occurs is worth a word."""


def check(batch: Batch) -> Iterator[Finding]:
    padding, value = _padding(batch)
    if len(padding):
        yield finding(
            "padding-counted",
            padding,
            padding=value,
            target_lengths=batch.counts[padding],
            without_padding=batch.counts[padding] - [_run(batch.labels(n), value) for n in padding],
        )
    yield from _illegal(batch, np.isin(np.arange(batch.sequences), padding), value)
    yield from _wrong_blank(batch)
    yield from _shuffled(batch)
    if len(batch.used) >= _MANY * batch.classes:
        unseen = np.setdiff1d(np.arange(batch.classes), np.append(batch.used, batch.blank))
        if len(unseen):
            yield finding("classes-unseen", classes=unseen, labels=len(batch.used))


def _run(labels: np.ndarray, value: int) -> int:
    """Return how many labels at the end have this value."""
    others = np.flatnonzero(labels != value)
    return len(labels) - (int(others[-1]) + 1 if len(others) else 0)


def _padding(batch: Batch) -> tuple[np.ndarray, int]:
    """Return the rows that count padding as labels, and what they are padded with."""
    for value in dict.fromkeys([*_PADDING, batch.blank, batch.classes]):
        runs = np.array([_run(batch.labels(n), value) for n in range(batch.sequences)])
        rows = np.flatnonzero(runs > 0)
        elsewhere = (batch.used == value).sum() - runs.sum()
        if len(rows) == 0 or elsewhere:
            continue
        legal = 0 <= value < batch.classes and value != batch.blank
        # A label that the loss takes must look more like padding: at most ends, and repeated.
        enough = batch.sequences >= 4 and 2 * len(rows) >= batch.sequences and (runs >= 2).sum() >= 2
        # Padding fills all targets up to one length; a blank at the end of one target is a wrong label.
        filled = bool((batch.counts == batch.counts.max()).all()) and runs.max() >= 2
        if filled and (enough or not legal):
            return rows, value
        if value in (-1, -100):
            return rows, value
    return np.array([], int), 0


def _illegal(batch: Batch, padded: np.ndarray, padding: int) -> Iterator[Finding]:
    kept = batch.counted & ~(padded[:, None] & (batch.targets == padding))
    blanks, outside = (
        kept & (batch.targets == batch.blank),
        kept & ((batch.targets < 0) | (batch.targets >= batch.classes)),
    )
    used, last = batch.targets[kept], batch.classes - 1
    if len(used) == 0:
        return
    lowest, highest = int(used.min()), int(used.max())
    code = None
    # The ends must be met exactly: in many classes, one label that is the blank says nothing about the others.
    if batch.blank == 0 and lowest == 0 and highest == last - 1:
        code = "targets-zero-based"
    elif lowest == 1 and (highest == batch.classes or (highest == batch.blank == last)):
        code = "targets-one-based"
    if code and (blanks.any() or outside.any()):
        wrong = blanks | outside
        yield finding(
            code, *_where(wrong), lowest_label=lowest, highest_label=highest, classes=batch.classes, blank=batch.blank
        )
        return
    if outside.any():
        frames, hint = batch.scores.shape[0], ""
        if highest < frames and batch.input_lengths.max() == batch.classes:
            hint = f"It seems that classes and frames are swapped: T is {frames}, and the longest input is C."
        values = np.unique(batch.targets[outside])
        yield finding("label-range", *_where(outside), hint, labels=values, classes=batch.classes)
    if blanks.any():
        yield finding("label-is-blank", *_where(blanks), blank=batch.blank, labels_that_are_the_blank=int(blanks.sum()))


def _where(wrong: np.ndarray) -> tuple[np.ndarray]:
    return (np.flatnonzero(wrong.any(axis=1)),)


def _wrong_blank(batch: Batch) -> Iterator[Finding]:
    best = batch.best
    if len(best) == 0 or len(batch.used) == 0:
        return
    shares = np.bincount(best, minlength=batch.classes) / len(best)
    other = int(shares.argmax())
    if shares[batch.blank] >= 0.01 or shares[other] <= 0.5 or other in batch.used:
        return
    errors = [_error_rate(batch, blank) for blank in (batch.blank, other)]
    if errors[1] <= min(0.7, errors[0] - 0.2):
        yield finding(
            "wrong-blank",
            hint=f"It seems to be {other}.",
            blank=batch.blank,
            share_of_frames=round(float(shares[batch.blank]), 4),
            other_class=other,
            its_share_of_frames=round(float(shares[other]), 4),
            label_error_rate=round(errors[0], 3),
            with_the_other_as_blank=round(errors[1], 3),
        )


def _error_rate(batch: Batch, blank: int) -> float:
    """Return the label errors of the best paths, a label, with this class as the blank, in the first sequences."""
    rows = range(min(batch.sequences, _COMPARED))
    errors = sum(edit_distance(batch.read(n, blank), batch.labels(n)) for n in rows)
    return errors / max(sum(int(batch.counts[n]) for n in rows), 1)


def _shuffled(batch: Batch) -> Iterator[Finding]:
    """Look for best paths that spell another sequence's target, and not their own."""
    compared = [n for n in range(min(batch.sequences, _COMPARED)) if batch.counts[n]]
    if len(compared) < 2 or _error_rate(batch, batch.blank) < 0.5:
        return
    paths = [batch.read(n, batch.blank) for n in compared]
    errors = np.array([[edit_distance(path, batch.labels(n)) / batch.counts[n] for n in compared] for path in paths])
    other = errors.argmin(axis=1)
    found = (errors.min(axis=1) <= 0.3) & (errors.diagonal() >= 0.5)
    if 2 * found.sum() >= len(compared):
        rows = np.array(compared)
        yield finding(
            "targets-shuffled",
            rows[found],
            spells_the_target_of_row=rows[other[found]],
            label_error_rate=np.round(errors.diagonal()[found], 3),
            with_the_other_target=np.round(errors.min(axis=1)[found], 3),
        )
