"""Compute right answers in float64, by the enumeration of every path where there are few, else in log space.

It is plain numpy, and shares nothing with what it judges.
"""

import itertools
from typing import NamedTuple

import numpy as np

MOST_PATHS = 300_000
"""Up to this many paths of a sequence are enumerated."""


class Answer(NamedTuple):
    """The right answer for one sequence of T frames and C classes."""

    loss: float
    posterior: np.ndarray
    """(T, C): the probability of each class at each frame, given the target; all 0 if no path spells it."""


def answer(log_probs: np.ndarray, target: np.ndarray, blank: int) -> Answer:
    """Return the loss of one sequence, log_probs (T, C), and the posterior of its classes."""
    frames = len(log_probs)
    used = sorted({blank, *(int(label) for label in target)})
    if frames and len(used) ** frames <= MOST_PATHS:
        return by_enumeration(log_probs, target, blank)
    return by_recursion(log_probs, target, blank)


def paths(frames: int, target: np.ndarray, blank: int) -> np.ndarray:
    """Return every path that spells the target, (P, T): merged repeats first, then blanks removed."""
    alphabet = sorted({blank, *(int(label) for label in target)})
    spelled = []
    for path in itertools.product(alphabet, repeat=frames):
        merged = [c for c, _ in itertools.groupby(path)]
        if [c for c in merged if c != blank] == [int(label) for label in target]:
            spelled.append(path)
    return np.array(spelled, np.int64).reshape(-1, frames)


def by_enumeration(log_probs: np.ndarray, target: np.ndarray, blank: int) -> Answer:
    """Return the answer as a sum over paths, each of them written out."""
    frames, classes = log_probs.shape
    every = paths(frames, target, blank)
    scores = log_probs[np.arange(frames), every].sum(axis=1)
    top = scores.max(initial=-np.inf)
    posterior = np.zeros((frames, classes))
    if not np.isfinite(top):
        return Answer(np.nan if np.isnan(top) else np.inf, posterior)
    weights = np.exp(scores - top)
    loss = -(top + np.log(weights.sum()))
    weights = weights / weights.sum()
    for t in range(frames):
        np.add.at(posterior[t], every[:, t], weights)
    return Answer(float(loss), posterior)


def by_recursion(log_probs: np.ndarray, target: np.ndarray, blank: int) -> Answer:
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
            return Answer(-float(total), posterior)
        gamma = np.exp(np.where(np.isneginf(emissions), -np.inf, alpha + beta - emissions - total))
    for s, label in enumerate(states):
        posterior[:, label] += gamma[:, s]
    return Answer(-float(total), posterior)


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
    for t in range(frames):
        np.add.at(product[t], every[:, t], -weights * (along - weights @ along))
    return product
