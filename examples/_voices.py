"""Digits in artificial voices, for those who do not have the recordings of spoken_digits.py.

A voice is a pitch and the length of a throat. A digit is two to five sounds, each with three formants, the resonances
that make a vowel, or with noise in a band of frequencies, as in "s". It does not sound like a person, but the task is
of the same kind: sounds of varying length without boundaries, and voices that are not in the training.
"""

import numpy as np
from _speech import RATE, Takes

VOWELS = {
    "i": (300, 2300, 3000),
    "e": (500, 1900, 2600),
    "a": (750, 1200, 2500),
    "o": (500, 900, 2500),
    "u": (320, 800, 2300),
    "n": (250, 1100, 2100),
    "r": (350, 1100, 1500),
}
NOISES = {"s": (2600, 3700), "f": (1500, 3200), "t": (1800, 3000)}
DIGITS = ("siro", "uan", "tu", "fri", "for", "faif", "sits", "sefen", "eit", "nain")
"""From zero to nine, spelled with the sounds above."""


def voice(seed: int, takes: int = 12) -> Takes:
    """Return so many takes of every digit in one voice."""
    rng = np.random.default_rng(seed)
    pitch, throat = rng.uniform(90, 230), rng.uniform(0.88, 1.15)
    return [[_say(word, pitch, throat, rng) for _ in range(takes)] for word in DIGITS]


def _say(word: str, pitch: float, throat: float, rng: np.random.Generator) -> np.ndarray:
    sounds = [_sound(letter, pitch * rng.uniform(0.9, 1.1), throat, rng) for letter in word]
    return np.concatenate(sounds).astype(np.float32)


def _sound(letter: str, pitch: float, throat: float, rng: np.random.Generator) -> np.ndarray:
    count = int(RATE * rng.uniform(0.06, 0.13))
    if letter in NOISES:
        low, high = NOISES[letter]
        spectrum = np.fft.rfft(rng.standard_normal(count))
        hertz = np.fft.rfftfreq(count, 1 / RATE)
        made = np.fft.irfft(np.where((hertz > low) & (hertz < high), spectrum, 0), count) * 0.6
    else:
        harmonics = pitch * np.arange(1, int(3800 / pitch))
        formants = throat * np.array(VOWELS[letter]) * rng.uniform(0.96, 1.04, 3)
        loudness = sum(1 / (1 + ((harmonics - f) / 90) ** 2) / (k + 1) for k, f in enumerate(formants))
        phase = 2 * np.pi * harmonics[:, None] * np.arange(count) / RATE
        made = np.einsum("h,ht->t", loudness, np.sin(phase + rng.uniform(0, 2 * np.pi, (len(harmonics), 1))))
    return made * np.hanning(count) ** 0.3
