"""Hold a batch as it was passed, legal or not, and what the checks look at."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

MASK = -1e4
"""A score at or below this is a mask, and not what a model says."""


class FrameFacts(NamedTuple):
    """What the live frames of one sequence say; each is (frames,)."""

    best: np.ndarray
    """The best class; a NaN is never the best."""
    probability: np.ndarray
    """The probability of the best class, once the scores are normalized."""
    normalizer: np.ndarray
    """The log-sum-exp over the classes."""
    masked: np.ndarray
    """Whether some class is -inf or next to it."""


@dataclass(frozen=True)
class Batch:
    """A batch whose shapes fit together. Its values may be anything."""

    scores: np.ndarray
    """(T, N, C), in the caller's own precision."""
    targets: np.ndarray
    """(N, S), int64; what is beyond a target's length is padding."""
    input_lengths: np.ndarray
    target_lengths: np.ndarray
    blank: int
    """Within [0, C)."""
    from_logits: bool
    names: Sequence[str] | None
    """The names of the classes."""

    @property
    def sequences(self) -> int:
        return self.scores.shape[1]

    @property
    def classes(self) -> int:
        return self.scores.shape[2]

    @functools.cached_property
    def frames(self) -> np.ndarray:
        """(N,), within [0, T]: the frames that are there."""
        return np.clip(self.input_lengths, 0, self.scores.shape[0])

    @functools.cached_property
    def counts(self) -> np.ndarray:
        """(N,), within [0, S]: the labels that are there."""
        return np.clip(self.target_lengths, 0, self.targets.shape[1])

    @functools.cached_property
    def counted(self) -> np.ndarray:
        """(N, S): whether this slot of the targets holds a label."""
        return np.arange(self.targets.shape[1]) < self.counts[:, None]

    @functools.cached_property
    def used(self) -> np.ndarray:
        """All labels of the batch, end to end."""
        return self.targets[self.counted]

    def labels(self, row: int) -> np.ndarray:
        return self.targets[row, : self.counts[row]]

    @functools.cached_property
    def legal(self) -> np.ndarray:
        """(N,): whether the loss takes this sequence's lengths and labels."""
        wrong = (self.targets < 0) | (self.targets >= self.classes) | (self.targets == self.blank)
        lengths = (self.input_lengths == self.frames) & (self.target_lengths == self.counts)
        return lengths & ~(wrong & self.counted).any(axis=1)

    @functools.cached_property
    def needed(self) -> np.ndarray:
        """(N,): the frames that each target needs."""
        return frames_needed(self.targets, self.counts)

    @functools.cached_property
    def feasible(self) -> np.ndarray:
        return self.needed <= self.frames

    def live(self, row: int) -> np.ndarray:
        """(frames, C): the scores within the input length, as float64."""
        return self.scores[: self.frames[row], row].astype(np.float64)

    def log_probs(self, row: int) -> np.ndarray:
        """(frames, C): the scores as the loss takes them, which normalizes logits and nothing else."""
        x = self.live(row)
        if not self.from_logits:
            return x
        # A frame that is -inf throughout stays so, and a +inf gives NaN.
        normalizer = self.facts[row].normalizer[:, None]
        return np.where(np.isneginf(normalizer), -np.inf, x - np.where(np.isposinf(normalizer), np.nan, normalizer))

    def each_live(self) -> Iterator[np.ndarray]:
        return (self.live(n) for n in range(self.sequences))

    @functools.cached_property
    def facts(self) -> list[FrameFacts]:
        """What the live frames say, for each sequence."""
        return [_facts(x) for x in self.each_live()]

    @functools.cached_property
    def best(self) -> np.ndarray:
        """The best class of every live frame, end to end."""
        return np.concatenate([f.best for f in self.facts])

    def read(self, row: int, blank: int) -> list[int]:
        """What the best path spells: repeats merged, then blanks removed."""
        return _spelled(self.facts[row].best, blank)

    def read_to_the_end(self, row: int) -> list[int]:
        """What the best path over all T frames spells, those beyond the input length included."""
        scores = self.scores[:, row].astype(np.float64)
        return _spelled(np.where(np.isnan(scores), -np.inf, scores).argmax(axis=1), self.blank)

    def spell(self, labels: Sequence[int] | np.ndarray) -> str:
        """Labels in the caller's own names, where there are."""
        names = self.names
        if names is None:
            return " ".join(str(int(k)) for k in labels)
        words = [names[k] if 0 <= k < len(names) else f"<{int(k)}>" for k in labels]
        letters = all(len(name) <= 1 for k, name in enumerate(names) if k != self.blank)
        return ("" if letters else " ").join(words)


def frames_needed(targets: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the frames that so many labels of each target (N, S) need: one a label, and one between two equal ones."""
    counted = np.arange(1, targets.shape[1]) < counts[:, None]
    return counts + ((targets[:, 1:] == targets[:, :-1]) & counted).sum(axis=1)


def _spelled(best: np.ndarray, blank: int) -> list[int]:
    starts = np.append(True, best[1:] != best[:-1])[: len(best)]
    return [int(k) for k in best[starts] if k != blank]


def _facts(x: np.ndarray) -> FrameFacts:
    """Return what the frames (frames, C) say."""
    known = np.where(np.isnan(x), -np.inf, x)
    best = known.argmax(axis=1)
    top = known.max(axis=1)
    finite = np.where(np.isfinite(top), top, 0)
    normalizer = finite + np.log(np.exp(x - finite[:, None]).sum(axis=1))
    probability = np.exp(top - normalizer)
    return FrameFacts(best, probability, normalizer, np.any(x <= MASK, axis=1))
