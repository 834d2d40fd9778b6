"""Lines of handwritten digits, composed from the 1,797 real scans that scikit-learn ships.

A line is a row of 3 to 9 scans with random gaps and a little vertical play. The scans are split
before any line is composed: none is in both the training and the held-out lines.
"""

from typing import NamedTuple

import numpy as np
from _errors import Errors, count_errors
from sklearn.datasets import load_digits

BLANK = 10
CLASSES = 11
HEIGHT = 12
WIDTH = 112
MOST_DIGITS = 9
SUBSAMPLING = 2
"""Image columns to one frame of the models."""


class Lines(NamedTuple):
    """A batch of lines, padded to one size."""

    images: np.ndarray
    """(N, HEIGHT, WIDTH), ink from 0 to 1."""
    widths: np.ndarray
    """(N,), columns that are not padding."""
    targets: np.ndarray
    """(N, MOST_DIGITS), padded with the blank."""
    target_lengths: np.ndarray

    @property
    def input_lengths(self) -> np.ndarray:
        """Frames of the models that are not padding."""
        return -(-self.widths // SUBSAMPLING)


class Scans(NamedTuple):
    images: np.ndarray
    digits: np.ndarray


def load_scans(seed: int) -> tuple[Scans, Scans]:
    """Four fifths of the scans to train on, one fifth held out."""
    data = load_digits()
    order = np.random.default_rng(seed).permutation(len(data.target))
    cut = len(order) * 4 // 5
    images = (data.images / 16).astype(np.float32)
    return tuple(Scans(images[part], data.target[part]) for part in (order[:cut], order[cut:]))


def compose(scans: Scans, count: int, rng: np.random.Generator) -> Lines:
    """Draws `count` lines."""
    images = np.zeros((count, HEIGHT, WIDTH), np.float32)
    targets = np.full((count, MOST_DIGITS), BLANK, np.int32)
    target_lengths = rng.integers(3, MOST_DIGITS + 1, count).astype(np.int32)
    widths = np.zeros(count, np.int32)
    for n, length in enumerate(target_lengths):
        chosen = rng.integers(len(scans.digits), size=length)
        column = rng.integers(0, 4)
        for scan in scans.images[chosen]:
            row = rng.integers(0, HEIGHT - 8 + 1)
            images[n, row : row + 8, column : column + 8] = scan
            column += 8 + rng.integers(0, 5)
        widths[n] = min(column + rng.integers(0, 4), WIDTH)
        targets[n, :length] = scans.digits[chosen]
    return Lines(images, widths, targets, target_lengths)


def best_path(scores: np.ndarray, length: int) -> list[int]:
    """Reads one line, (T, C): the best class of each frame, repeats merged, blanks dropped."""
    classes = scores[:length].argmax(axis=1)
    starts = np.append(True, classes[1:] != classes[:-1])[:length]
    return [int(k) for k in classes[starts] if k != BLANK]


def label_errors(scores: np.ndarray, lines: Lines) -> Errors:
    """The label error rate of scores (N, T, C), read along the best path."""
    found = [best_path(row, frames) for row, frames in zip(scores, lines.input_lengths, strict=True)]
    truths = [row[:length].tolist() for row, length in zip(lines.targets, lines.target_lengths, strict=True)]
    return count_errors(found, truths)
