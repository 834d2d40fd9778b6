"""Check lengths: those that the loss refuses, those that make it infinite, and those that count something else."""

from collections.abc import Iterator

import numpy as np

from jaxctc.diagnose._batch import MASK, Batch
from jaxctc.diagnose._edit_distance import edit_distance
from jaxctc.diagnose._findings import Finding, finding

TIGHT = 1.2
"""Frames for each frame that a target needs, below which it is tight."""
_SUBSAMPLED = 1.3
"""The longest input length over T, from which on lengths count what was there before subsampling."""
_ROUNDING = 0.03
"""What the rounding of lengths may change in this ratio."""
_SAME = 1e-5
"""Two frames whose scores differ by no more are the same."""
_LEAST_END = 3
"""Frames at the end that must be the same before they are called padding."""
_COMPARED = 64
"""Sequences that are compared with one another, or with their targets."""


def check(batch: Batch) -> Iterator[Finding]:
    yield from _ranges(batch)
    yield from _feasibility(batch)
    yield from _padded_frames(batch)
    yield from _too_short(batch)
    empty = np.flatnonzero(batch.target_lengths == 0)
    if len(empty):
        yield finding("empty-target", empty, empty_targets=len(empty), sequences=batch.sequences)


def _ranges(batch: Batch) -> Iterator[Finding]:
    frames, lengths = batch.scores.shape[0], batch.input_lengths
    wrong = np.flatnonzero(lengths != batch.frames)
    if len(wrong):
        factor = lengths.max() / frames
        # Rounding does not make a length so much greater than T, and half of all lengths are not wrong by mistake.
        if lengths.min() >= 0 and factor >= _SUBSAMPLED and 2 * len(wrong) >= len(lengths):
            yield finding(
                "lengths-before-subsampling",
                np.arange(len(lengths)),
                _subsampled(lengths, frames),
                input_lengths=lengths,
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
            f"Row {worst} has {batch.frames[worst]} frames and needs {batch.needed[worst]}. {_factors(ratio)}",
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
    most = [(today, int(today * ratio)) for today in (2, 4, 8)]
    may = [f"by {then} instead of {today}" for today, then in most if then >= 1]
    if not may:
        return "No model that subsamples by 8 or less could make enough by subsampling less."
    return f"Enough would be to subsample {', or '.join(may)}."


def _subsampled(lengths: np.ndarray, frames: int) -> str:
    """Say what lengths before subsampling are after it, if T has no padding, and if it has."""
    factor = lengths.max() / frames
    nearest = max(round(factor), 1)
    if abs(factor / nearest - 1) <= _ROUNDING:
        return f"The longest is {factor:.4g} times T = {frames}: divided by {nearest}, {_divided(lengths, nearest)}."
    power = 1 << int(np.ceil(np.log2(factor)))
    return (
        f"The longest is {factor:.4g} times T = {frames}: the model subsamples by at least that much, and by more if T "
        f"is padded. Divided by {power}, for instance, {_divided(lengths, power)}."
    )


def _divided(lengths: np.ndarray, factor: int) -> str:
    return f"they are {_some(-(-lengths // factor))}"


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


def _too_short(batch: Batch) -> Iterator[Finding]:
    """Look for labels beyond the input lengths: for targets that the frames there go on to spell."""
    shorter = (batch.input_lengths >= 0) & (batch.input_lengths < batch.scores.shape[0])
    rows = [n for n in np.flatnonzero(shorter)[:_COMPARED] if batch.counts[n]]
    if not rows:
        return
    within = np.array([edit_distance(batch.read(n, batch.blank), batch.labels(n)) for n in rows])
    to_the_end = np.array([edit_distance(batch.read_to_the_end(n), batch.labels(n)) for n in rows])
    if within.sum() - to_the_end.sum() >= 0.3 * batch.counts[rows].sum() and 2 * to_the_end.sum() <= within.sum():
        short = to_the_end < within
        yield finding(
            "lengths-too-short",
            np.array(rows)[short],
            input_lengths=batch.input_lengths[rows][short],
            frames=batch.scores.shape[0],
            label_errors=within[short],
            with_all_frames=to_the_end[short],
        )


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
