"""Describe the batches that `jaxctc.check` runs, each of them one row of its report."""

from typing import Any, NamedTuple

import numpy as np


class Case(NamedTuple):
    """One batch, and the call that is made of it."""

    name: str
    T: int
    S: int
    N: int = 6
    C: int = 20
    function: str = "ctc_loss"
    """A public function of `jaxctc`."""
    dtype: str = "float32"
    gap: float = 3.0
    """The standard deviation of the logits: how confident the model is."""
    blank_away: int = 0
    """In every so many frames the blank has the log probability -200; 0: in none."""
    masked: bool = False
    """Whether some classes have -inf, and padded frames and padded labels hold NaN and illegal labels."""
    batch_first: bool = False
    under_vmap: bool = False
    chunk: int | None = None
    sharded: bool = False
    """Whether the sequences are sharded over all devices, of which there are more than one."""
    full: bool = False
    """Whether the case is left out unless the full check is asked for."""

    @property
    def size(self) -> str:
        return f"{self.T}, {self.N}, {self.C}, {self.S}"


# Kernels for TPUs and GPUs take 128 columns at a time, and a target of S labels has S + 2: the widths are on both sides
# of where another tile, and another strip of tiles, begins.
CASES = (
    Case("short targets", 40, 10),
    Case("logits", 40, 10, function="ctc_loss_with_logits"),
    Case("confident logits", 40, 10, function="ctc_loss_with_logits", gap=40),
    Case("masked classes, NaN in padding", 40, 10, masked=True),
    Case("bfloat16", 40, 10, dtype="bfloat16"),
    Case("float16", 40, 10, dtype="float16"),
    Case("float64", 40, 10, dtype="float64"),
    Case("batch first", 40, 10, batch_first=True),
    Case("posteriors", 40, 10, function="ctc_posteriors"),
    Case("under vmap", 40, 10, under_vmap=True),
    Case("in chunks", 40, 10, chunk=2),
    Case("sharded over the devices", 40, 10, N=8, sharded=True),
    Case("one tile, filled", 200, 126, N=3),
    Case("two tiles", 260, 127, N=3),
    Case("the blank far behind", 260, 127, N=3, blank_away=5),
    Case("eleven tiles, one strip", 1450, 1406, N=2),
    Case("strips", 1500, 1420, N=2, blank_away=5),
    Case("many classes", 60, 20, C=5000, full=True),
    Case("three tiles", 400, 300, N=4, full=True),
    Case("four tiles, filled", 700, 510, N=4, full=True),
    Case("posteriors in strips", 1500, 1420, N=1, function="ctc_posteriors", full=True),
    Case("strips, the blank far behind", 2600, 1420, N=2, blank_away=5, full=True),
    Case("three strips", 3000, 2900, N=1, full=True),
    Case("a long input", 8000, 400, N=2, full=True),
    Case("a large batch", 300, 100, N=128, full=True),
)

SMALL = 300
"""Frames up to which a case is run by an interpreter, which takes long."""


def chosen(*, full: bool, devices: int, interpreted: bool) -> list[Case]:
    """Return the cases for so many devices; an interpreter is given small ones only."""
    cases = [case for case in CASES if full or not case.full]
    cases = [case for case in cases if devices > 1 or not case.sharded]
    return [case for case in cases if not interpreted or (case.T <= SMALL and case.C < 1000 and case.N < 100)]


def batch(case: Case, devices: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return logits (T, N, C) in float64, targets (N, S) and lengths.

    Among its sequences, as far as there are so many, are a full one, one with an empty target, an infeasible one, one
    with repeats and one of a single frame.
    """
    rng = np.random.default_rng([case.T, case.S, case.C])
    sequences = -(-case.N // devices) * devices if case.sharded else case.N
    logits = rng.standard_normal((case.T, sequences, case.C)) * case.gap
    targets = rng.integers(1, case.C, (sequences, case.S))
    # Neighbours differ but where repeats are wanted, so that a full target is feasible in few frames. The last class,
    # which some cases mask, stands in the target of one sequence alone.
    for s in range(case.S):
        before = targets[:, s - 1] if s else 0
        targets[:, s] = np.where(targets[:, s] == case.C - 1, 1, targets[:, s])
        targets[:, s] = np.where(targets[:, s] == before, before % (case.C - 2) + 1, targets[:, s])
    input_lengths = np.full(sequences, case.T)
    target_lengths = np.full(sequences, case.S)
    if sequences > 1:
        input_lengths[1], target_lengths[1] = case.T - 3, case.S - 1
        targets[1, 0] = case.C - 1
    if sequences > 2:
        input_lengths[2], target_lengths[2] = case.T // 2 + 1, max(case.S // 3, 1)
        targets[2, 1:3] = targets[2, :1]
    if sequences > 3:
        target_lengths[3] = 0
    if sequences > 4:
        input_lengths[4] = case.S - 1  # one frame too few
    if sequences > 5:
        input_lengths[5], target_lengths[5] = 1, 1
    if case.masked:
        targets[np.arange(case.S) >= target_lengths[:, None]] = -7
    return logits, targets, input_lengths, target_lengths


def scores_of(case: Case, logits: np.ndarray, input_lengths: np.ndarray) -> np.ndarray:
    """Return what the function takes, in float64: logits, or log probabilities with what the case does to them."""
    if case.function == "ctc_loss_with_logits":
        return logits
    top = logits.max(axis=2, keepdims=True)
    scores = logits - top - np.log(np.exp(logits - top).sum(axis=2, keepdims=True))
    if case.blank_away:
        scores[:: case.blank_away, :, 0] = -200
    if case.masked:
        scores[:, :, -1] = -np.inf
        for n, length in enumerate(input_lengths):
            scores[length:, n] = np.nan
    return scores


def as_json(case: Case) -> dict[str, Any]:
    return {"name": case.name, "T": case.T, "N": case.N, "C": case.C, "S": case.S}
