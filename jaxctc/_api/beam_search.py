"""Search for the most probable labellings with a beam of prefixes.

A prefix is the labels that the first frames spell. In the annotations K is the number of prefixes in the beam.
Everything inside a beam belongs to one sequence. The labels are in a tree: to move them at every frame would take time
quadratic in T.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer

from jaxctc._api.prefix_tree import PADDING, Tree
from jaxctc._lattice import indexing
from jaxctc._lattice.lattices import accumulation_dtype, frames_of, in_range, legal_int32, row_of_indices, wide
from jaxctc._lattice.outcome import nan_where
from jaxctc._mesh import sharded_like_scores, varying_like
from jaxctc._reference.log_space import logaddexp
from jaxctc._sizes import Size, is_at_most, larger
from jaxctc._types import LOG_ZERO, Request

ScoreFunction = Callable[[jax.Array, jax.Array], jax.Array]


class Beams(NamedTuple):
    """Hold the best prefixes of each sequence, the best first; without the axis N for a single one."""

    labels: Int[Array, "*N K T"]
    """-1 after the last label."""
    lengths: Int[Array, "*N K"]
    log_probs: Float[Array, "*N K"]
    """-inf in places that are not used, because there are fewer than K prefixes."""


class _Beam(NamedTuple):
    """Hold the prefixes of one sequence after some of its frames."""

    node: Int[Array, " K"]
    """The node of each prefix in the tree; arbitrary for the empty prefix."""
    last: Int[Array, " K"]
    """The last label of each prefix; arbitrary for the empty prefix."""
    lengths: Int[Array, " K"]
    blank: Float[Array, " K"]
    """The log probability of all paths that spell the prefix and end in a blank."""
    label: Float[Array, " K"]
    """The log probability of those that end in its last label."""
    starts: Bool[Array, "K K"]
    """Prefix b starts with prefix a, or is equal to it. False for places that were not used at first, and for the
    prefixes that come from them, which keep probability zero."""
    following: Int[Array, "K K"]
    """Where prefix b starts with prefix a and is longer: the label of b that follows a. Arbitrary elsewhere."""
    valid: Bool[Array, ""]
    """There was no NaN and no +inf so far. The beam itself would not show it: the search may drop such a prefix."""
    labels: Int[Array, "K T"] | None
    """The labels of each prefix, if a `score_function` reads them at every frame."""


@functools.partial(jax.jit, static_argnames=("request", "width", "score_function"))
@sharded_like_scores(lambda sequences, _: Beams._make([sequences] * 3))
def best_beams(
    request: Request,
    scores: Float[Array, "A B C"],
    input_lengths: Integer[Array, " N"],
    *,
    width: int,
    score_function: ScoreFunction | None,
) -> Beams:
    """Return the best prefixes of each sequence of a batch in canonical form, `width` of them."""
    frames, dtype = frames_of(scores, request), accumulation_dtype(scores.dtype)
    legal = in_range(wide(input_lengths), frames)
    counts = legal_int32(input_lengths, legal)
    # It stands for padded frames: a frame that is certainly blank changes no prefix, no probability and no order.
    certainly_blank = jnp.full(scores.shape[2], LOG_ZERO, dtype).at[request.blank].set(0)
    advance = functools.partial(_advance, blank=request.blank, score_function=score_function)

    def row(scores: Array, frame: Array) -> Array:
        return jax.lax.dynamic_index_in_dim(scores, frame, 1 if request.batch_first else 0, keepdims=False)

    def step(carry: tuple[_Beam, Tree], frame: Int[Array, ""]) -> tuple[tuple[_Beam, Tree], None]:
        rows = jnp.maximum(indexing.taken(row, scores, frame).astype(dtype), LOG_ZERO)
        rows = jnp.where((frame < counts)[:, None], rows, certainly_blank[None])
        return jax.vmap(advance, in_axes=(0, 0, None, 0))(*carry, frame, rows), None

    def found(beam: _Beam, tree: Tree, legal: Bool[Array, ""]) -> Beams:
        total, legal = logaddexp(beam.blank, beam.label), legal & beam.valid
        used = legal & (total > LOG_ZERO / 2)
        lengths = jnp.where(used, beam.lengths, 0)
        return Beams(
            labels=tree.labels(beam.node, lengths, frames),
            lengths=lengths,
            log_probs=nan_where(~legal, jnp.where(used, total, -jnp.inf)),
        )

    initial = _empty(width, frames, dtype, score_function)
    carry: tuple[_Beam, Tree] = varying_like(
        scores, jax.tree.map(lambda x: jnp.broadcast_to(x, (legal.shape[0], *x.shape)), initial)
    )
    if frames > 0:
        carry, _ = jax.lax.scan(step, carry, jnp.arange(frames, dtype=jnp.int32))
    return jax.vmap(found)(*carry, legal)


def _empty(width: int, frames: Size, dtype: jnp.dtype, score_function: ScoreFunction | None) -> tuple[_Beam, Tree]:
    """Return the beam before the first frame: the empty prefix alone, as if it ended in a blank."""
    first = jnp.arange(width) == 0
    none, nodes = jnp.zeros(width, jnp.int32), jnp.zeros((larger(frames, 1), width), jnp.int32)
    beam = _Beam(
        node=none,
        last=none,
        lengths=none,
        blank=jnp.where(first, jnp.zeros((), dtype), LOG_ZERO),
        label=jnp.full(width, LOG_ZERO, dtype),
        starts=first[:, None] & first[None],
        following=jnp.zeros((width, width), jnp.int32),
        valid=jnp.asarray(True),
        labels=None if score_function is None else jnp.full((width, larger(frames, 1)), PADDING, jnp.int32),
    )
    return beam, Tree(nodes, nodes)


def _advance(
    beam: _Beam,
    tree: Tree,
    frame: Int[Array, ""],
    scores: Float[Array, " C"],
    blank: int,
    score_function: ScoreFunction | None,
) -> tuple[_Beam, Tree]:
    """Return the beam and the tree after one more frame."""
    width, classes = beam.lengths.shape[0], scores.shape[0]
    total = logaddexp(beam.blank, beam.label)
    label_scores = scores.at[blank].set(LOG_ZERO)
    valid = beam.valid & (scores < jnp.inf).all()
    added = None
    if score_function is not None:
        added = _added(score_function, beam, classes, scores.dtype)
        reachable = (total > LOG_ZERO / 2)[:, None] & (label_scores > LOG_ZERO)[None]
        valid &= ((added < jnp.inf) | ~reachable).all()
        added = jnp.where(reachable, jnp.maximum(added, LOG_ZERO), LOG_ZERO)

    # A prefix that is not extended takes a blank or repeats its last label. The empty prefix has no last label: it
    # reads an arbitrary class, but it ends in a label with probability zero.
    last, last_scores = beam.last, label_scores[beam.last]
    blank_kept = total + scores[blank]
    label_kept = beam.label + last_scores

    # Prefixes in the beam differ. So two candidates can be equal in one way only: prefix k, extended by one label, is
    # prefix j of the beam. The probability of the extension is added to j, and the extension gets -inf as a candidate,
    # which is below even candidates of probability zero, of which there are always enough.
    parents = beam.starts & (beam.lengths[:, None] + 1 == beam.lengths[None])
    parent = jax.lax.argmax(parents, 0, jnp.int32)
    arriving = jnp.where(last == last[parent], beam.blank[parent], total[parent]) + last_scores
    if added is not None:
        arriving += added[parent, last]
    label_kept = logaddexp(label_kept, jnp.where(parents.any(axis=0), arriving, LOG_ZERO))

    # If there are many classes, the K + 1 best are enough. At least K of them are not the last label of prefix k. Each
    # of these K extends k to a candidate that is at least as probable as k with a class that is not among them; or
    # the extension was merged into a prefix that is. These K candidates fill the beam. (`logaddexp` never gives less
    # than the maximum of its operands, so that rounding does not change this.)
    labels = jnp.arange(classes, dtype=jnp.int32)
    if added is None and is_at_most(width + 3, classes):
        label_scores, labels = jax.lax.top_k(label_scores, width + 1)
    # A label that repeats the last one is a new label only after a blank.
    repeats = labels[None] == last[:, None]
    extended = jnp.where(repeats, beam.blank[:, None], total[:, None]) + label_scores[None]
    if added is not None:
        extended += added
    extended = jnp.where(parents @ repeats, -jnp.inf, extended)

    candidates = jnp.concatenate([logaddexp(blank_kept, label_kept), extended.reshape(-1)])
    best, index = jax.lax.top_k(candidates, width)
    grows = index >= width
    source, choice = jnp.divmod(index - width, labels.shape[0])
    source = jnp.where(grows, source, index)
    label = labels[choice]

    tree = tree.add(frame, beam.node[source], label)
    grown = _Beam(
        node=jnp.where(grows, frame * width + row_of_indices(width)[0], beam.node[source]),
        last=jnp.where(grows, label, last[source]),
        lengths=beam.lengths[source] + grows.astype(jnp.int32),
        blank=jnp.where(grows, LOG_ZERO, blank_kept[source]),
        label=jnp.where(grows, best, label_kept[source]),
        starts=beam.starts,
        following=beam.following,
        valid=valid,
        labels=beam.labels,
    )
    if beam.labels is not None:
        new_place = grows[:, None] & (row_of_indices(beam.labels.shape[1]) == beam.lengths[source][:, None])
        grown = grown._replace(labels=jnp.where(new_place, label[:, None], beam.labels[source]))
    return _related(beam, grown, source, grows, tree), tree


def _related(before: _Beam, beam: _Beam, source: Int[Array, " K"], grows: Bool[Array, " K"], tree: Tree) -> _Beam:
    """Return the beam with `starts` and `following` after one more frame, from those before it."""
    pairs = source[:, None], source[None]
    same = pairs[0] == pairs[1]
    # The label of b that follows what a's source was; a label is never negative.
    following = jnp.where(same, jnp.where(grows, beam.last, PADDING)[None], before.following[pairs])
    # A prefix that b's source started with still starts b, unless it was itself extended by a label that b lacks there.
    starts = before.starts[pairs] & (~grows[:, None] | (following == beam.last[:, None]))
    # A prefix that had left the beam has come back, while a longer one had stayed. This is rare, and takes few steps.
    came_back = starts & grows[:, None] & ~same
    above = jnp.where(came_back, before.lengths[pairs[1]] - before.lengths[pairs[0]] - 2, 0)
    next_label = tree.last(tree.up(jnp.broadcast_to(before.node[source][None], above.shape), above))
    return beam._replace(starts=starts, following=jnp.where(came_back, next_label, following))


def _added(score_function: ScoreFunction, beam: _Beam, classes: Size, dtype: jnp.dtype) -> Float[Array, "K C"]:
    """Return what the caller's function adds to each prefix for each class, once its shape and type are checked."""
    assert beam.labels is not None
    added = jnp.asarray(score_function(beam.labels, beam.lengths))
    if added.shape != (shape := (len(beam.lengths), classes)):
        raise ValueError(
            f"score_function returned an array of shape {added.shape}: it must return (K, C) = {shape}, one score "
            "for each prefix and each class, the blank included."
        )
    if not jnp.issubdtype(added.dtype, jnp.floating):
        raise TypeError(
            f"score_function must return scores of a floating-point type, got {added.dtype.name}. "
            "Convert them, for instance with .astype(jnp.float32)."
        )
    return added.astype(dtype)
