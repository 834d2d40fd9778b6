"""Align targets with frames: the best path of each target, and the spans of its labels."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxctc._inputs import checks
from jaxctc._inputs.arguments import canonical_batch
from jaxctc._lattice import indexing, lattices, outcome
from jaxctc._lattice.lattices import frames_first
from jaxctc._mesh import sharded_like_scores
from jaxctc._reference import viterbi
from jaxctc._types import FloatsLike, IntegersLike, Problem, Request


class Alignment(NamedTuple):
    """Hold the best path of each target, frame by frame."""

    labels: Int[Array, "N T"]
    """The class of each frame, blanks included; the blank beyond a sequence's length; -1 if no path spells the target.
    """
    scores: Float[Array, "N T"]
    """The log probability of that class at that frame; 0 beyond a sequence's length."""


@dataclass(frozen=True)
class TokenSpan:
    """Hold the frames of one label of a target."""

    token: int
    """The label's class."""
    start: int
    """Its first frame."""
    end: int
    """The frame after its last."""
    score: float
    """The mean score of its frames."""

    def __len__(self) -> int:
        """Return the number of frames."""
        return self.end - self.start


def forced_align(
    log_probs: FloatsLike,
    targets: IntegersLike,
    input_lengths: IntegersLike,
    target_lengths: IntegersLike,
    blank: int = 0,
    *,
    batch_first: bool = False,
    max_target_length: int | None = None,
) -> Alignment:
    """Return the most probable path that spells each target, by the Viterbi algorithm on CTC's states.

    Among equally good predecessors of a state it takes the state itself, then the nearest one, as torchaudio does.
    (Where the two other predecessors are equal and better than the state itself, torchaudio still takes the state
    itself, and so leaves the best path. This function does not.)

    Long inputs need no band: the states are stored every few hundred frames and recomputed in between, so that
    memory grows with the square root of T.

    Shapes: T frames, N sequences, C classes with the blank, S labels of the longest target.

    Args:
        log_probs: Log probabilities, floating point, (T, N, C), or (T, C) for one sequence. They need not be
            normalized: logits give the same labels.
        targets: Labels: (N, S), padded with anything; or one-dimensional, end to end; or (S,) for one sequence.
        input_lengths: Frames of each sequence, within [0, T]: (N,), a sequence of ints, or one int for all.
        target_lengths: Labels of each target, within [0, S]; the same forms.
        blank: Index of the blank class.
        batch_first: `log_probs` is (N, T, C).
        max_target_length: A bound on the target lengths, known when tracing (see `ctc_loss`).

    Returns:
        `Alignment`: labels, (N, T), and their scores, (N, T), of the dtype of `log_probs`; (T,) for one sequence.
        A target all of whose paths have a score of -inf gets the labels -1 and the scores -inf. So does, under
        `jax.jit`, a target that needs more frames than there are. A NaN or +inf score that the target uses, or an
        illegal length or label under `jax.jit`, gives the labels -1 and the scores NaN.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A shape, a length, a label or `blank` is illegal, or a target needs more frames than there are.

    Example:
        >>> import jax, jax.numpy as jnp, jaxctc
        >>> log_probs = jnp.log(jnp.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.2, 0.6, 0.2], [0.1, 0.1, 0.8]]))
        >>> labels, scores = jaxctc.forced_align(log_probs, jnp.array([1, 2]), 4, 2)
        >>> labels.tolist()
        [0, 1, 1, 2]
        >>> [(span.token, span.start, span.end) for span in jaxctc.merge_tokens(labels, scores)]
        [(1, 1, 3), (2, 3, 4)]

    Reference:
        Kürzinger, Winkelbauer, Li, Watzel and Rigoll, "CTC-Segmentation of Large Corpora for German End-to-end
        Speech Recognition", SPECOM 2020; the names are those of `torchaudio.functional.forced_align`.
    """
    problem, request, batched = canonical_batch(
        log_probs,
        targets,
        input_lengths,
        target_lengths,
        blank,
        batch_first=batch_first,
        max_target_length=max_target_length,
    )
    labels, frames, counts = (checks.host_values(x) for x in problem[1:])
    if not (labels is None or frames is None or counts is None):
        check_feasible(labels, frames, counts, batched)
    found = align(request, *problem)
    return found if batched else Alignment(*(x[0] for x in found))


def check_feasible(targets: np.ndarray, frames: np.ndarray, counts: np.ndarray, batched: bool) -> None:
    """Raise ValueError if a target, a row of (N, S), needs more frames than its sequence has."""
    counts = counts.astype(np.int64)
    inside = np.arange(1, targets.shape[1]) < counts[:, None]
    repeats = (inside & (targets[:, 1:] == targets[:, :-1])).sum(axis=1)
    bad = np.flatnonzero(frames < counts + repeats)
    if len(bad) == 0:
        return
    row, which, more = bad[0], "", ""
    if batched:
        which, more = f"[{bad[0]}]", f" (nor can {checks.plural(len(bad) - 1, 'other')})" if len(bad) > 1 else ""
    labels, needed = (
        checks.plural(x, noun) for x, noun in ((counts[row], "label"), (counts[row] + repeats[row], "frame"))
    )
    raise ValueError(
        f"targets{which} cannot be aligned{more}: {labels}, {repeats[row]} of them equal to the one before and so in "
        f"need of a blank, take {needed}, but input_lengths{which} is {frames[row]}. Leave it out, or subsample the "
        "input less."
    )


@functools.partial(jax.jit, static_argnums=0)
@sharded_like_scores(lambda sequences, _: Alignment._make([sequences] * 2))
def align(request: Request, *arrays: jax.Array) -> Alignment:
    """Return the alignment of a problem in canonical form."""
    problem = Problem(*arrays)
    lattice = lattices.build_lattice(problem, request)
    states, score = viterbi.best_path(jax.lax.stop_gradient(problem.scores), lattice, request)
    states = states.T
    label = jnp.take_along_axis(lattice.labels, states // 2, axis=1, mode="promise_in_bounds")
    label = jnp.where(states % 2 == 1, label, request.blank)

    frame_mask = lattices.frame_mask(lattice.input_lengths, label.shape[1]).T
    label = jnp.where(frame_mask, label, request.blank)
    scores = indexing.of_classes(problem.scores, frames_first(label.T, request))
    scores = frames_first(scores, request).T
    invalid = ~lattice.legal | (lattice.feasible & ~(score < jnp.inf))
    without_path = invalid | ~lattice.feasible | viterbi.zero_probability(score)
    instead = outcome.nan_where(invalid, jnp.full(invalid.shape, -jnp.inf, scores.dtype))
    # An illegal row has no length that could be trusted: all its frames are marked.
    frame_mask = frame_mask | ~lattice.legal[:, None]
    scores = jnp.where(frame_mask, jnp.where(without_path[:, None], instead[:, None], scores), 0)
    return Alignment(jnp.where(without_path[:, None], -1, label), scores)


def merge_tokens(tokens: IntegersLike, scores: FloatsLike, blank: int = 0) -> list[TokenSpan] | list[list[TokenSpan]]:
    """Return the spans of the labels on a path: equal neighbours are merged, and blanks have no span.

    Args:
        tokens: Labels of the frames, as `forced_align` returns them: (T,), or (N, T).
        scores: Their scores, of the same shape: log probabilities, or anything else to be averaged over a span.
        blank: Index of the blank class.

    Returns:
        A list of `TokenSpan`, in the order of time; for (N, T) a list of such lists. Labels of -1, which stand
        for a target that cannot be aligned, have no span.

    Raises:
        ValueError: The shapes differ, or are of another rank.

    Example:
        >>> import jax.numpy as jnp, jaxctc
        >>> jaxctc.merge_tokens(jnp.array([0, 1, 1, 0, 1]), jnp.array([0.9, 0.25, 0.75, 0.8, 0.6]))[0]
        TokenSpan(token=1, start=1, end=3, score=0.5)
    """
    labels, values = checks.numbers(tokens), checks.numbers(scores)
    if labels.ndim not in (1, 2) or labels.shape != values.shape:
        raise ValueError(
            f"tokens and scores must have the same shape, (T,) or (N, T); got {labels.shape} and {values.shape}. "
            "Both are what forced_align returns."
        )
    if labels.ndim == 2:
        return [list(_spans(*row, blank)) for row in zip(labels, values, strict=True)]
    return list(_spans(labels, values, blank))


def _spans(labels: np.ndarray, scores: np.ndarray, blank: int) -> Iterator[TokenSpan]:
    edges = np.flatnonzero(np.diff(labels)) + 1
    for start, end in zip([0, *edges], [*edges, len(labels)], strict=True):
        if start < end and labels[start] not in (blank, -1):
            score = float(np.mean(scores[start:end], dtype=np.float64))
            yield TokenSpan(int(labels[start]), int(start), int(end), score)
