"""Tell the state of a training from the sequences of a batch whose loss is finite, and with which nothing is wrong."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from jaxctc.diagnose._batch import Batch
from jaxctc.diagnose._findings import Finding, Row, finding


def check(batch: Batch, rows: Sequence[Row], wrong: Collection[int]) -> Iterator[Finding]:
    known = [n for n, row in enumerate(rows) if row.frames and row.labels and np.isfinite(row.loss) and n not in wrong]
    if not known:
        return
    best = np.concatenate([batch.facts[n].best for n in known])
    losses = np.array([rows[n].loss for n in known])
    uniform = np.array([rows[n].uniform_loss for n in known])
    labels = np.array([rows[n].labels for n in known])
    sure = np.concatenate([batch.facts[n].probability for n in known])

    if len(best) > 1 and batch.classes > 1 and _is_constant(batch, known):
        yield finding("constant-output", frames=len(best), losses_a_label=round(float(losses.sum() / labels.sum()), 4))
        return
    loss, nothing = losses.sum() / labels.sum(), uniform.sum() / labels.sum()
    numbers: dict[str, Any] = {"loss_a_label": round(float(loss), 4), "uniform_loss_a_label": round(float(nothing), 4)}
    shares = np.bincount(best, minlength=batch.classes) / len(best)
    most = int(shares.argmax())
    if abs(loss - nothing) <= 0.03 * nothing and sure.mean() < 2 / batch.classes + 0.1:
        yield finding("uniform", mean_probability_of_the_best_class=round(float(sure.mean()), 4), **numbers)
    worse = losses > uniform
    if sure.mean() >= 0.8 and loss >= 1.2 * nothing and worse.mean() >= 0.5:
        yield finding(
            "confident-wrong",
            np.array(known)[worse],
            mean_probability_of_the_best_class=round(float(sure.mean()), 4),
            **numbers,
        )
    spoken = np.concatenate([batch.labels(n) for n in known])
    read = sum(len(batch.read(n, batch.blank)) for n in known)
    if shares[batch.blank] >= 0.9 and read <= 0.02 * len(spoken):
        yield finding(
            "all-blank",
            share_of_frames=round(float(shares[batch.blank]), 4),
            labels_read=read,
            labels_of_the_targets=len(spoken),
            mean_probability_of_the_blank=round(float(_mean_probability(batch, known, batch.blank)), 4),
            **numbers,
        )
    elif most != batch.blank and shares[most] >= 0.95 and (spoken == most).mean() <= 0.5:
        yield finding("one-class", label=most, share_of_frames=round(float(shares[most]), 4), **numbers)


def _is_constant(batch: Batch, known: Sequence[int]) -> bool:
    first = batch.live(known[0])[0]
    return all(np.abs(batch.live(n) - first).max() <= 1e-6 for n in known)


def _mean_probability(batch: Batch, known: Sequence[int], label: int) -> float:
    return np.concatenate([np.exp(batch.live(n)[:, label] - batch.facts[n].normalizer) for n in known]).mean()
