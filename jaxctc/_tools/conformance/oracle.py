"""Compute right answers in float64, by the enumeration of every path where there are few, else in log space.

It is plain numpy, and shares nothing with what it judges.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MOST_PATHS = 20_000
"""Up to this many paths of a sequence are enumerated."""


class Answer(NamedTuple):
    """The right answer for one sequence of T frames and C classes."""

    loss: float
    """inf if no path spells the target, NaN if the score of one that does is NaN or +inf."""
    posterior: np.ndarray
    """(T, C): the probability of each class at each frame, given the target; all 0 if the loss is not finite."""


def answer(log_probs: np.ndarray, target: Sequence[int] | np.ndarray, blank: int) -> Answer:
    """Return the loss of one sequence, log_probs (T, C), and the posterior of its classes."""
    used = {blank, *(int(label) for label in target)}
    if len(used) ** len(log_probs) <= MOST_PATHS:
        return by_enumeration(log_probs, target, blank)
    return by_recursion(log_probs, target, blank)


def spells(path: tuple[int, ...], blank: int) -> tuple[int, ...]:
    """Return the target of a path: repeats are merged first, then blanks removed."""
    return tuple(c for c, _ in itertools.groupby(path) if c != blank)


@functools.cache
def paths_by_target(frames: int, classes: int, blank: int) -> dict[tuple[int, ...], np.ndarray]:
    """Return every path there is, (P, T), under the target that it spells."""
    found: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for path in itertools.product(range(classes), repeat=frames):
        found.setdefault(spells(path, blank), []).append(path)
    return {target: np.array(paths, np.int64).reshape(len(paths), frames) for target, paths in found.items()}


def paths(frames: int, target: Sequence[int] | np.ndarray, blank: int) -> np.ndarray:
    """Return every path that spells the target, (P, T)."""
    labels = [int(label) for label in target]
    alphabet = sorted({blank, *labels})
    place = {c: k for k, c in enumerate(alphabet)}
    found = paths_by_target(frames, len(alphabet), place[blank]).get(tuple(place[label] for label in labels))
    return np.zeros((0, frames), np.int64) if found is None else np.array(alphabet)[found]


def by_enumeration(log_probs: np.ndarray, target: Sequence[int] | np.ndarray, blank: int) -> Answer:
    """Return the answer as a sum over paths, each of them written out."""
    frames, classes = log_probs.shape
    every = paths(frames, target, blank)
    with np.errstate(invalid="ignore"):  # of an infinite score of either sign
        scores = np.asarray(log_probs, np.float64)[np.arange(frames), every].sum(axis=1)
    top = scores.max(initial=-np.inf)
    posterior = np.zeros((frames, classes))
    if not np.isfinite(top):
        return _not_finite(float(top), posterior)
    weights = np.exp(scores - top)
    loss = -(top + np.log(weights.sum()))
    np.add.at(posterior, (np.arange(frames), every), (weights / weights.sum())[:, None])
    return Answer(float(loss), posterior)


def by_recursion(log_probs: np.ndarray, target: Sequence[int] | np.ndarray, blank: int) -> Answer:
    """Return the answer by the forward and backward variables in log space, as Graves et al. (2006) have them."""
    frames, classes = log_probs.shape
    states = np.full(2 * len(target) + 1, blank)
    states[1::2] = target
    skip = np.concatenate([[False, False], (states[2:] != blank) & (states[2:] != states[:-2])])[: len(states)]
    emissions = log_probs[:, states]
    with np.errstate(invalid="ignore"):  # of two states without a path
        alpha = _forward(emissions, skip)
        beta = _forward(emissions[::-1, ::-1], np.concatenate([[False, False], skip[2:][::-1]])[: len(states)])[
            ::-1, ::-1
        ]
        total = np.logaddexp.reduce(alpha[-1, -2:]) if frames else (0.0 if len(target) == 0 else -np.inf)
        posterior = np.zeros((frames, classes))
        if not np.isfinite(total):
            return _not_finite(float(total), posterior)
        gamma = np.exp(np.where(np.isneginf(emissions), -np.inf, alpha + beta - emissions - total))
    for s, label in enumerate(states):
        posterior[:, label] += gamma[:, s]
    return Answer(-float(total), posterior)


def _not_finite(log_likelihood: float, posterior: np.ndarray) -> Answer:
    return Answer(np.inf if log_likelihood == -np.inf else np.nan, posterior)


def _forward(emissions: np.ndarray, skip: np.ndarray) -> np.ndarray:
    alpha = np.full(emissions.shape, -np.inf)
    if len(emissions):
        alpha[0, :2] = emissions[0, :2]
    for t in range(1, len(emissions)):
        before = alpha[t - 1]
        one, two = (np.concatenate([np.full(k, -np.inf), before])[: len(before)] for k in (1, 2))
        alpha[t] = np.logaddexp(np.logaddexp(before, one), np.where(skip, two, -np.inf)) + emissions[t]
    return alpha


def hessian_product(log_probs: np.ndarray, target: np.ndarray, blank: int, direction: np.ndarray) -> np.ndarray:
    """Return the second derivative of the loss with respect to log_probs, times a direction: minus a covariance.

    The gradient is minus the mean over paths of which class each frame has; its derivative is minus the covariance
    of that with the direction's sum along the path.
    """
    frames, classes = log_probs.shape
    every = paths(frames, target, blank)
    scores = log_probs[np.arange(frames), every].sum(axis=1)
    weights = np.exp(scores - scores.max())
    weights = weights / weights.sum()
    along = direction[np.arange(frames), every].sum(axis=1)
    product = np.zeros((frames, classes))
    np.add.at(product, (np.arange(frames), every), (-weights * (along - weights @ along))[:, None])
    return product


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the logits (..., C) as log probabilities, in float64. A frame whose logits are all -inf stays as it is."""
    logits = np.asarray(logits, np.float64)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):  # in frames of infinite scores
        top = logits.max(axis=-1, keepdims=True)
        shifted = logits - np.where(np.isneginf(top), 0, top)
        normalizer = np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
        return shifted - np.where(np.isneginf(normalizer), 0, normalizer)
