"""Check lengths: those that the loss refuses, those that make it infinite, and those that count something else."""

from collections.abc import Iterator

import numpy as np

from jaxctc.diagnose._batch import MASK, Batch
from jaxctc.diagnose._findings import Finding, finding

TIGHT = 1.2
"""Frames for each frame that a target needs, below which it is tight."""
_SAME = 1e-5
"""Two frames whose scores differ by no more are the same."""
_LEAST_END = 3
"""Frames at the end that must be the same before they are called padding."""
_COMPARED = 64
"""Sequences whose ends are compared with one another."""


def check(batch: Batch) -> Iterator[Finding]:
    yield from _ranges(batch)
    yield from _feasibility(batch)
    yield from _padded_frames(batch)
    empty = np.flatnonzero(batch.target_lengths == 0)
    if len(empty):
        yield finding("empty-target", empty, empty_targets=len(empty), sequences=batch.sequences)


def _ranges(batch: Batch) -> Iterator[Finding]:
    frames, lengths = batch.scores.shape[0], batch.input_lengths
    wrong = np.flatnonzero(lengths != batch.frames)
    if len(wrong):
        factor = lengths.max() / frames
        # The longest sequence of a batch has about T frames. Rounding does not double it, nor one wrong length.
        if lengths.min() >= 0 and factor >= 1.9 and 2 * len(wrong) >= len(lengths):
            yield finding(
                "lengths-before-subsampling",
                wrong,
                f"The longest is {factor:.4g} times T = {frames}: divided by that, they are "
                f"{_some(np.ceil(lengths / factor).astype(int))}.",
                input_lengths=lengths[wrong],
                frames=frames,
                factor=round(float(factor), 3),
            )
        else:
            yield finding("input-length-range", wrong, input_lengths=lengths[wrong], frames=frames)
    wrong = np.flatnonzero(batch.target_lengths != batch.counts)
    if len(wrong):
        yield finding(
            "target-length-range", wrong, target_lengths=batch.target_lengths[wrong], width=batch.targets.shape[1]
        )


def _feasibility(batch: Batch) -> Iterator[Finding]:
    known = batch.input_lengths == batch.frames
    rows = np.flatnonzero(known & ~batch.feasible)
    if len(rows):
        ratio = (batch.frames[rows] / batch.needed[rows]).min()
        worst = rows[np.argmin(batch.frames[rows] / batch.needed[rows])]
        yield finding(
            "infeasible",
            rows,
            f"Row {worst} has {ratio:.2f} frames for each that it needs: {_factors(ratio)}",
            frames=batch.frames[rows],
            frames_needed=batch.needed[rows],
            labels=batch.counts[rows],
            repeats=batch.needed[rows] - batch.counts[rows],
        )
    rows = np.flatnonzero(known & batch.feasible & (batch.frames < TIGHT * batch.needed))
    if len(rows):
        yield finding("tight", rows, frames=batch.frames[rows], frames_needed=batch.needed[rows])


def _factors(ratio: float) -> str:
    """Say by how much a model may subsample that has so few frames for each that it needs."""
    may = [(today, int(today * ratio)) for today in (2, 4, 8)]
    may = [(today, most) for today, most in may if most >= 1]
    if not may:
        return "no model that subsamples by 8 or less could make enough by subsampling less."
    today, most = (" or ".join(", ".join(map(str, x)).rsplit(", ", 1)) for x in zip(*may, strict=True))
    return f"if the model now subsamples by {today}, it may by {most} at most."


def _padded_frames(batch: Batch) -> Iterator[Finding]:
    """Look at the ends of sequences: frames that are the same in several of them, or do not change, are padding."""
    frames = batch.scores.shape[0]
    if batch.sequences < 2 or (batch.input_lengths != frames).any():
        return
    compared = range(min(batch.sequences, _COMPARED))
    # One number for each frame finds the other sequence that has the same end; all its scores then confirm it.
    weights = np.random.default_rng(0).normal(size=batch.classes)
    number = np.stack([_finite(batch, n) @ weights for n in compared], axis=1)
    partner = _ends(np.abs(number[:, :, None] - number[:, None]) <= _SAME * batch.classes).argmax(axis=1)
    rows, ends = [], []
    for n in compared:
        x = _finite(batch, n)
        end = max(int(_ends(np.abs(x - other).max(axis=1) <= _SAME)) for other in (_finite(batch, partner[n]), x[-1]))
        # Confident models say the same blank in many frames: only an end unlike what is before it is padding.
        if end >= _LEAST_END and not _seen_before(x, end):
            rows.append(n)
            ends.append(end)
    if len(rows) >= 2 or max(ends, default=0) >= frames / 10:
        yield finding("padded-frames-counted", rows, input_length=frames, frames_before_the_end=frames - np.array(ends))


def _finite(batch: Batch, row: int) -> np.ndarray:
    return np.nan_to_num(batch.live(row), nan=0, neginf=MASK, posinf=-MASK)


def _ends(same: np.ndarray) -> np.ndarray:
    """Return in how many frames at the end this is so; 0 where it is so in all, which says nothing of padding."""
    return np.where(same.all(axis=0), 0, np.argmin(same[::-1], axis=0))


def _seen_before(x: np.ndarray, end: int) -> bool:
    """Whether most frames of an end are also found before it."""
    before = x[: len(x) - end]
    distances = [np.abs(before - frame).max(axis=1).min() for frame in x[len(x) - end :][:32]]
    return bool(np.mean(np.array(distances) <= _SAME) > 0.5)


def _some(values: np.ndarray) -> str:
    return ", ".join(str(int(x)) for x in values[:6]) + (", ..." if len(values) > 6 else "")
