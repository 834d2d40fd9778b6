"""Decode scores to labels, by the best path or by prefix beam search."""

import functools
from collections.abc import Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer

from jaxctc._api.beam_search import Beams, ScoreFunction, best_beams
from jaxctc._api.prefix_tree import PADDING
from jaxctc._inputs import checks
from jaxctc._inputs.arguments import canonical_frames, canonical_scores
from jaxctc._lattice.lattices import accumulation_dtype, in_range, legal_int32, wide
from jaxctc._lattice.outcome import nan_where
from jaxctc._types import FloatsLike, IntegersLike, Request


class Decoded(NamedTuple):
    """Hold the best path of each sequence; without the axis N for a single one."""

    labels: Int[Array, "*N T"]
    """-1 after the last label."""
    lengths: Int[Array, "*N"]
    log_probs: Float[Array, "*N"]


def greedy_decode(
    log_probs: FloatsLike, input_lengths: IntegersLike, blank: int = 0, *, batch_first: bool = False
) -> Decoded:
    """Return the labels of the best path: the best class of each frame, repeats merged, then blanks removed.

    The best path need not spell the most probable labelling, which many paths share: see `beam_search_decode`.

    Shapes: T frames, N sequences, C classes with the blank.

    Args:
        log_probs: Natural logarithms of class probabilities, floating point, (T, N, C), or (T, C) for one
            sequence. They need not be normalized.
        input_lengths: Frames of each sequence, within [0, T]: (N,), a sequence of ints, or one int for all.
            Frames beyond them are ignored.
        blank: Index of the blank class, within [0, C).
        batch_first: `log_probs` is (N, T, C).

    Returns:
        A named tuple of `labels`, (N, T) and int32, which are -1 after each sequence's last; their `lengths`, (N,);
        and `log_probs`, (N,), the sums of the frames' best scores, float64 for float64 scores and float32
        otherwise. One sequence gives (T,), () and (). Among equally good classes the first is taken. A NaN counts as
        the best class, and makes the log probability of its sequence NaN, but nothing else. A length that is illegal
        but could not be checked beforehand (under `jax.jit`, or on an accelerator) gives no labels, and the log
        probability NaN.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A shape, a length or `blank` is illegal.

    Example:
        >>> import jax, jax.numpy as jnp, jaxctc
        >>> path = jnp.array([0, 1, 1, 0, 1, 2])  # 0 is the blank
        >>> decoded = jaxctc.greedy_decode(jnp.log(jax.nn.one_hot(path, 3)), 6)
        >>> decoded.labels[: decoded.lengths].tolist()
        [1, 1, 2]

    Reference:
        Graves et al., ICML 2006: section 3.2, best path decoding.
    """
    scores, request, batched = canonical_scores(log_probs, blank, batch_first)
    counts = canonical_frames(input_lengths, scores, request, batched)
    return _unbatched(best_paths(scores, counts, request), batched)


def beam_search_decode(
    log_probs: FloatsLike,
    input_lengths: IntegersLike,
    blank: int = 0,
    *,
    beam_width: int = 16,
    score_function: ScoreFunction | None = None,
    batch_first: bool = False,
) -> Beams:
    """Return the most probable labellings, by prefix beam search: a labelling counts all the paths that spell it.

    After each frame the `beam_width` most probable prefixes are kept. Prefixes that become equal are merged
    exactly. All frames run in one scan on the device.

    Shapes: T frames, N sequences, C classes with the blank, K = `beam_width`.

    Args:
        log_probs: Natural logarithms of class probabilities, floating point, (T, N, C), or (T, C) for one
            sequence. ``-inf`` and huge finite masks are legal.
        input_lengths: Frames of each sequence, within [0, T]: (N,), a sequence of ints, or one int for all.
        blank: Index of the blank class, within [0, C).
        beam_width: The number of prefixes to keep, at least 1, known when tracing.
        score_function: Additional scores, for instance those of a language model. ``score_function(labels, lengths)``
            receives the prefixes of one sequence: labels, (K, T) and int32 with -1 after each prefix's last, and
            lengths, (K,). It returns (K, C), floating point: the score that is added to the log probability of each
            prefix when it is extended by each class. The scores of the blank, and of places in the beam that are not
            used, are ignored. JAX calls the function while tracing, under `jax.vmap`; it must depend on the prefix
            alone, and it is static: another function object makes JAX compile anew. Keeping the labels for it takes
            time that grows with T squared; without it the time grows with T.
        batch_first: `log_probs` is (N, T, C).

    Returns:
        A named tuple of `labels`, (N, K, T) and int32, which are -1 after each prefix's last; their `lengths`, (N, K);
        and `log_probs`, (N, K), best first, float64 for float64 scores and float32 otherwise. One sequence gives
        (K, T), (K,) and (K,). The log probability is that of all paths that spell the labels, minus their
        `ctc_loss`, if the search dropped no prefix on the way, and a lower bound of it otherwise; the scores of
        `score_function` are included. The log probabilities can be differentiated, as a risk over the best labellings
        needs it. Places that are not used have no labels and the log probability -inf.
        Among equally probable prefixes those come first that were not extended at the last frame, then those that
        come from the better prefix before it. A NaN or +inf that the search reads, in the scores or from
        `score_function`, or an illegal length that could not be checked beforehand, gives its sequence no labels,
        and NaN for all its log probabilities.

    Raises:
        TypeError: An argument, or the result of `score_function`, is of the wrong type.
        ValueError: A shape, a length, `blank` or `beam_width` is illegal, or `score_function` returns a wrong shape.

    Example:
        >>> import jax.numpy as jnp, jaxctc
        >>> log_probs = jnp.log(jnp.array([[0.6, 0.4], [0.6, 0.4]]))  # 0 is the blank
        >>> jaxctc.greedy_decode(log_probs, 2).lengths.tolist()  # the best path is blank, blank: 0.36
        0
        >>> beams = jaxctc.beam_search_decode(log_probs, 2, beam_width=3)  # but three paths spell 1: 0.64
        >>> beams.labels[0, : beams.lengths[0]].tolist(), round(float(jnp.exp(beams.log_probs[0])), 2)
        ([1], 0.64)
        >>> def no_label(labels, lengths):
        ...     return jnp.full((len(lengths), 2), -10.0)
        >>> jaxctc.beam_search_decode(log_probs, 2, beam_width=3, score_function=no_label).lengths[0].tolist()
        0

    Reference:
        Graves, "Supervised Sequence Labelling with Recurrent Neural Networks", 2012: section 7.5, and Hannun, Maas,
        Jurafsky and Ng, "First-Pass Large Vocabulary Continuous Speech Recognition using Bi-Directional Recurrent
        DNNs", 2014: algorithm 1.
    """
    scores, request, batched = canonical_scores(log_probs, blank, batch_first)
    width = checks.integer("beam_width", beam_width, "the number of prefixes to keep")
    if width < 1:
        raise ValueError(f"beam_width is {width}: it must be at least 1, the number of prefixes to keep.")
    check_score_function(score_function)
    counts = canonical_frames(input_lengths, scores, request, batched)
    return _unbatched(best_beams(request, scores, counts, width=width, score_function=score_function), batched)


def check_score_function(value: Any) -> None:
    """Raise TypeError unless it is None or a function that can be static under `jax.jit`."""
    if value is not None and not callable(value):
        raise TypeError(
            f"score_function must be a function of labels and lengths, or None; got {value!r} of type "
            f"{type(value).__name__}."
        )
    if not isinstance(value, Hashable):
        raise TypeError(
            f"score_function must be hashable, as all that is static under jax.jit; got a {type(value).__name__}, "
            "which is not. Pass a function that calls it."
        )


def _unbatched(results: Any, batched: bool) -> Any:
    return results if batched else jax.tree.map(lambda x: x[0], results)


@functools.partial(jax.jit, static_argnames=("request", "merge_repeated"))
def best_paths(
    scores: Float[Array, "A B C"], input_lengths: Integer[Array, " N"], request: Request, merge_repeated: bool = True
) -> Decoded:
    """Return the labels of the best paths of a batch in canonical form."""

    def one(scores: Float[Array, "T C"], input_length: Integer[Array, ""]) -> Decoded:
        frames = scores.shape[0]
        legal = in_range(wide(input_length), frames)
        frame_mask = jnp.arange(frames, dtype=jnp.int32) < legal_int32(input_length, legal)
        best = jax.lax.argmax(scores, 1, jnp.int32)
        before = jnp.concatenate([jnp.full_like(best[:1], PADDING), best[:-1]])
        new_label = frame_mask & (best != request.blank)
        if merge_repeated:
            new_label &= best != before
        slot = jnp.where(new_label, jnp.cumsum(new_label, dtype=jnp.int32) - 1, frames)
        total = jnp.where(frame_mask, scores.max(axis=1).astype(accumulation_dtype(scores.dtype)), 0).sum()
        return Decoded(
            labels=jnp.full_like(best, PADDING).at[slot].set(best, mode="drop"),
            lengths=new_label.sum(dtype=jnp.int32),
            log_probs=nan_where(~legal, total),
        )

    return jax.vmap(one, in_axes=(0 if request.batch_first else 1, 0))(scores, input_lengths)
