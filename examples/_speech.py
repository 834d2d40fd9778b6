"""Strings of spoken digits, composed from the Free Spoken Digit Dataset, as log-mel features.

The dataset holds single digits: 50 takes of each by each of six speakers. An utterance is a row of 3 to 7
takes of one speaker with pauses between them, and noise over all of it. No speaker is in two of the three sets.
"""

import functools
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

SPEAKERS = {
    "training": ("george", "jackson", "lucas", "nicolas"),
    "validation": ("theo",),
    "test": ("yweweler",),
}
"""In alphabetical order, so that no speaker was chosen for the results."""

BLANK = 10
CLASSES = 11
MOST_DIGITS = 7

RATE = 8000
WINDOW, HOP, SPECTRUM = 200, 80, 256
"""Samples: 25 ms every 10 ms, padded to a power of two for the transform."""
MELS = 40
FRAMES = 500
"""Every utterance is padded to these, five seconds; a digit that no longer fits is left out."""
SUBSAMPLING = 4
"""Feature frames to one frame of the model."""
SECONDS_PER_FRAME = SUBSAMPLING * HOP / RATE

Takes = list[list[np.ndarray]]
"""One speaker's recordings: for each digit, the samples of every take, from -1 to 1."""


class Speech(NamedTuple):
    """A batch of utterances, padded to one size."""

    features: np.ndarray
    """(N, FRAMES, MELS), of mean 0 and variance 1 in each utterance."""
    frames: np.ndarray
    """(N,), frames that are not padding."""
    targets: np.ndarray
    """(N, MOST_DIGITS), padded with the blank."""
    target_lengths: np.ndarray

    @property
    def input_lengths(self) -> np.ndarray:
        """Frames of the model that are not padding."""
        return -(-self.frames // SUBSAMPLING)

    @property
    def truths(self) -> list[list[int]]:
        return [row[:length].tolist() for row, length in zip(self.targets, self.target_lengths, strict=True)]


def load_takes(path: Path) -> dict[str, Takes]:
    """The recordings of every speaker, from a clone of the dataset's repository or from one `.npz` of it."""
    recordings = _from_npz(path) if path.suffix == ".npz" else _from_clone(path)
    takes: dict[str, Takes] = {}
    for speaker, digit, samples in recordings:
        takes.setdefault(speaker, [[] for _ in range(10)])[digit].append(samples.astype(np.float32) / 2**15)
    return takes


def _from_npz(path: Path):
    with np.load(path) as data:
        pieces = np.split(data["samples"], data["offsets"][1:-1])
        return list(zip(data["speaker"].tolist(), data["digit"].tolist(), pieces, strict=True))


def _from_clone(path: Path):
    for file in sorted((path / "recordings").glob("*_*_*.wav")):
        digit, speaker, _ = file.stem.split("_")
        with wave.open(str(file)) as recording:
            yield speaker, int(digit), np.frombuffer(recording.readframes(recording.getnframes()), "<i2")


def compose(speakers: Sequence[Takes], count: int, rng: np.random.Generator, *, vary: bool = False) -> Speech:
    """Draws `count` utterances; with `vary`, with artificial voices and noise."""
    features = np.zeros((count, FRAMES, MELS), np.float32)
    frames = np.zeros(count, np.int32)
    targets = np.full((count, MOST_DIGITS), BLANK, np.int32)
    target_lengths = np.zeros(count, np.int32)
    for n in range(count):
        samples, digits = _speak(speakers[rng.integers(len(speakers))], rng, vary)
        mels = log_mels(samples, 1 / rng.uniform(0.9, 1.1) if vary else 1)
        mels -= mels.mean(0)
        mels /= mels.std()
        if vary:
            _mask(mels, rng)
        frames[n], target_lengths[n] = len(mels), len(digits)
        features[n, : len(mels)] = mels
        targets[n, : len(digits)] = digits
    return Speech(features, frames, targets, target_lengths)


def _speak(takes: Takes, rng: np.random.Generator, vary: bool) -> tuple[np.ndarray, list[int]]:
    """The samples of one utterance, and its digits."""
    room = WINDOW + (FRAMES - 1) * HOP
    pieces, digits = [_pause(rng)], []
    length = len(pieces[0])
    speed = rng.uniform(0.8, 1.25) if vary else 1
    for digit in rng.integers(10, size=rng.integers(3, MOST_DIGITS + 1)):
        take = takes[digit][rng.integers(len(takes[digit]))]
        if vary:
            take = _faster(take, speed * rng.uniform(0.93, 1.07)) * rng.uniform(0.5, 1.5)
        pause = _pause(rng)
        length += len(take) + len(pause)
        if length > room:
            break
        pieces += [take, pause]
        digits.append(int(digit))
    samples = np.concatenate(pieces)
    decibels = rng.uniform(10, 45) if vary else rng.uniform(20, 40)
    noise = rng.standard_normal(len(samples), np.float32)
    return samples / samples.std() + noise * np.float32(10 ** (-decibels / 20)), digits


def _pause(rng: np.random.Generator) -> np.ndarray:
    return np.zeros(rng.integers(0, RATE // 4), np.float32)


def _faster(samples: np.ndarray, factor: float) -> np.ndarray:
    """Plays it at another speed, which also moves pitch and formants, as if another speaker spoke."""
    return np.interp(np.arange(0, len(samples) - 1, factor), np.arange(len(samples)), samples).astype(np.float32)


def _mask(mels: np.ndarray, rng: np.random.Generator) -> None:
    """Hides bands of frequency and moments of time (Park et al., SpecAugment, 2019)."""
    for _ in range(2):
        start, width = rng.integers(MELS), rng.integers(10)
        mels[:, start : start + width] = 0
        start, width = rng.integers(len(mels)), rng.integers(12)
        mels[start : start + width] = 0


def log_mels(samples: np.ndarray, warp: float = 1) -> np.ndarray:
    """(frames, MELS): the logarithm of the energy in each band of the mel scale; `warp` moves the bands."""
    windows = sliding_window_view(samples, WINDOW)[::HOP] * np.hanning(WINDOW).astype(np.float32)
    power = np.abs(np.fft.rfft(windows, SPECTRUM)) ** 2
    # Not `@`, whose threads get into the way of JAX's.
    return np.log(np.einsum("tf,mf->tm", power, _bands(round(warp, 2))) + 1e-6)


@functools.cache
def _bands(warp: float) -> np.ndarray:
    """(MELS, bins): triangles, evenly spaced on the mel scale from 60 Hz to 3,400 Hz."""
    low, high = (2595 * np.log10(1 + hertz / 700) for hertz in (60, 3400))
    edges = warp * 700 * (10 ** (np.linspace(low, high, MELS + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(SPECTRUM, 1 / RATE)
    left, centre, right = (edges[i : i + MELS, None] for i in range(3))
    return np.maximum(0, np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre))).astype("f4")
