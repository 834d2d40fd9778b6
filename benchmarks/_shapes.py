"""Problem sizes, and batches of them."""

from typing import NamedTuple, Self

import numpy as np

BLANK = 0


class Shape(NamedTuple):
    """T frames, N sequences, C classes with the blank, S labels a target."""

    name: str
    T: int
    N: int
    C: int
    S: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads "T,N,C,S", which becomes the name."""
        T, N, C, S = map(int, text.split(","))
        if min(T, N, S) < 1 or C < 2:
            raise ValueError(f"a shape needs T, N, S >= 1 and C >= 2, not {text}")
        return cls(f"{T}, {N}, {C}, {S}", T, N, C, S)

    @property
    def sizes(self) -> str:
        return f"{self.T}, {self.N}, {self.C}, {self.S}"


SHAPES = (
    Shape("small", 50, 16, 20, 30),
    Shape("char", 500, 16, 32, 100),
    Shape("bpe", 300, 32, 1024, 60),
    Shape("ocr", 80, 64, 6000, 20),
    Shape("long", 2000, 4, 64, 400),
)
# For accelerators; most of them sizes that others have published times for.
ACCELERATED = (
    Shape("FlagGems 1", 64, 4, 32, 16),
    Shape("FlagGems 2", 256, 16, 64, 48),
    Shape("FlagGems 3", 512, 32, 64, 48),
    Shape("FlagGems 4", 1024, 32, 128, 96),
    Shape("batch", 1000, 256, 128, 200),
    Shape("RETURNN", 183, 90, 10241, 29),
)
# Where the rounding errors of float32 logarithms show most; judged for accuracy alone.
LONGEST = Shape("T=8000", 8000, 1, 64, 1600)


class Batch(NamedTuple):
    """One drawn problem, in the layout of PyTorch: scores (T, N, C), targets (N, S)."""

    shape: Shape
    logits: np.ndarray
    log_probs: np.ndarray
    targets: np.ndarray
    input_lengths: np.ndarray
    target_lengths: np.ndarray


def draw(shape: Shape, ragged: bool = False, seed: int = 0) -> Batch:
    """Normal logits and uniform labels.

    Every sequence is as long as the shape, so that the shape says how much work there is; a ragged batch
    has inputs from three quarters of T and targets from half of S.
    """
    _, T, N, C, S = shape
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((T, N, C), np.float32)
    targets = rng.integers(1, C, (N, S), np.int32)
    input_lengths, target_lengths = np.full(N, T, np.int32), np.full(N, S, np.int32)
    if ragged:
        input_lengths = rng.integers(3 * T // 4, T, N, np.int32, endpoint=True)
        target_lengths = rng.integers(max(S // 2, 1), S, N, np.int32, endpoint=True)
    repeats = (targets[:, 1:] == targets[:, :-1]).sum(axis=1)
    if (target_lengths + repeats > input_lengths).any():
        raise ValueError(f"{shape.T} frames are too few for {shape.S} labels and the blanks between repeated ones")
    log_probs = logits - np.logaddexp.reduce(logits, axis=2, keepdims=True, dtype=np.float64)
    return Batch(shape, logits, log_probs.astype(np.float32), targets, input_lengths, target_lengths)
