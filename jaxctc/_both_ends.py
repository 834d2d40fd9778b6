"""The recursion from both ends of the input at once: scaled numbers inward, probabilities outward.

Both directions walk alike (see `_walk`). One step of each is

    stay      = blank[s] * 2^drop                       the frame before, its emission included
    blank'[s] = stay[s] + label[s - 1]                  into blank s, before its emission
    label'[s] = (label[s] + (blank'[s] if skip[s] else stay[s])) * score[s]

in numbers of a mantissa and an exponent each (`_scaled`): no logarithm, no exponential but that of the
score, no digit lost however small the numbers grow. After M steps the two directions meet, and the
likelihood is known. What each state had from its first operand is a portion, a probability; the
posterior at the meeting flows outward through these portions by multiplying and adding alone.

The states of the steps are not all kept: of every segment of steps the first is, and the rest is walked
again when the posterior arrives there. The posterior takes the place of the scores, step by step.

How it is written follows from what XLA makes of it on a CPU. States live in buffers that each step
updates in place, those of even and of odd steps in buffers of their own: one that is read and written
in the same step would be copied as a whole, and a result with no buffer of its own to go to would be
handed to several threads, which takes longer than computing it. A few columns of zeros before the first
serve as its left neighbour.

`_recursion.log_likelihood` is the same recursion written plainly: what all this is tested against.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Complex, Float

from jaxctc import _scaled
from jaxctc._lattice import Lattice
from jaxctc._log_space import LOG_ZERO
from jaxctc._mesh import varying_like
from jaxctc._scaled import Scaled, pack, unpack
from jaxctc._walk import Index, Walk

_MARGIN = 8
"""Columns of zeros before the first; a vector's worth keeps the rest aligned."""
_SMALL = 1 << 20
"""Bytes of states that are kept rather than walked again."""

Fold: TypeAlias = Callable[[Float[Array, "N 2 K W"]], Float[Array, "N 2 K X"]]
_Outward: TypeAlias = tuple["_Segment", "_Flow", "Posterior"]


class States(NamedTuple):
    """Packed states after each of K steps, margins included. The blank's are before their emission."""

    blank: Complex[Array, "K N 2 V"]
    label: Complex[Array, "K N 2 V"]

    def read(self, name: str, k: Index, shift: int = 0) -> Scaled:
        rows = getattr(self, name)
        size = (1, *rows.shape[1:3], rows.shape[3] - _MARGIN)
        return unpack(_read(rows, (k, 0, 0, _MARGIN + shift), size)[0])

    def write(self, name: str, k: Index, value: Scaled) -> "States":
        return self._replace(**{name: _write(getattr(self, name), pack(value)[None], (k, 0, 0, _MARGIN))})

    def row(self, k: Index) -> "States":
        rows = (_read(x, (k, 0, 0, 0), (1, *x.shape[1:])) for x in self)
        return lax.optimization_barrier(States(*rows))

    def put(self, k: Index, row: "States") -> "States":
        return States(*(_put(x, y, (k, 0, 0, 0)) for x, y in zip(self, row, strict=True)))


def started(walk: Walk, count: int) -> States:
    """Rows that all hold the state before the first frame: in blank 0."""
    sequences, directions, columns = walk.skip.shape
    shape = (count, sequences, directions, _MARGIN + columns)
    zero = varying_like(walk.drop, _scaled.zeros(shape, walk.drop.dtype))
    here = lax.broadcasted_iota(jnp.int32, shape, 3) == _MARGIN
    return States(pack(Scaled(zero.mantissa, jnp.where(here, 0, zero.exponent))), pack(zero))


def unit(walk: Walk, x: Index) -> States:
    """In one state alone: blank x, or beyond the last column label x - W."""
    nowhere = started(walk, 1).label
    column = lax.broadcasted_iota(jnp.int32, nowhere.shape, 3) - _MARGIN
    columns = walk.skip.shape[2]
    one = jnp.ones_like(nowhere)  # a mantissa of one and an exponent of nought
    return States(jnp.where(column == x, one, nowhere), jnp.where(column == x - columns, one, nowhere))


def superposed(weights: States, states: States) -> States:
    """What many states lead to, (X, 1, N, 2, V), as `unit` counts them, each as probable as `weights` says."""

    def columns(z: Complex[Array, "1 N 2 V"]) -> Complex[Array, "W 1 N 2 1"]:
        return jnp.moveaxis(z[..., _MARGIN:], 3, 0)[..., None]

    weight = unpack(jnp.concatenate([columns(z) for z in weights]))

    def total(z: Complex[Array, "X 1 N 2 V"]) -> Complex[Array, "1 N 2 V"]:
        found = _scaled.total(unpack(z) * weight, axis=(0,))
        # Nothing is more impossible than impossible, however often.
        return pack(Scaled(found.mantissa[0], jnp.maximum(found.exponent[0], LOG_ZERO)))

    return States(*map(total, states))


def _left(walk: Walk, blank: Scaled, i: Index) -> Scaled:
    """The blank's states before step i, the emission of the frame before included."""
    return blank._replace(exponent=blank.exponent + _row(walk.drop[..., None], i))


def _score(walk: Walk, i: Index) -> Scaled:
    return _scaled.exp2(_row(walk.kept, i))


def _step(source: States, k: Index, target: States, j: Index, walk: Walk, i: Index) -> States:
    """Step i, from row k of the source to row j of the target."""
    stay = _left(walk, source.read("blank", k), i)
    target = target.write("blank", j, stay + source.read("label", k, -1))
    step = _scaled.where(walk.skip, target.read("blank", j), stay)
    label = (source.read("label", k) + step) * _score(walk, i)
    return target.write("label", j, _scaled.normalised(label))


class _Segment(NamedTuple):
    """The states of K steps, and the one before them: rows 0, 2, 4, ... and 1, 3, 5, ..."""

    even: States
    odd: States

    def walk_on(self, state: States, walk: Walk, first: Index, skipped: Index) -> "_Segment":
        """On from the state before step `first`, of which so many pairs change nothing and are left out."""

        def pair(j: Index, segment: _Segment) -> _Segment:
            even, odd = segment
            odd = _step(even, j, odd, j, walk, first + 2 * j)
            return _Segment(_step(odd, j, even, j + 1, walk, first + 2 * j + 1), odd)

        count = self.odd.blank.shape[0]
        return lax.fori_loop(skipped, count, pair, self._replace(even=self.even.put(skipped, state)))


class Posterior(NamedTuple):
    """Given the target, the probability of each label at each step, and of all blanks together."""

    label: Float[Array, "N 2 M W"]
    """Of each column, in each direction's own order of labels."""
    blank: Float[Array, "N 2 M"]
    blanks: Float[Array, "N 2 M W"] | None = None
    """Of each blank, if it was asked for."""


class _Flow(NamedTuple):
    """Probabilities of the states after each of K steps, and before the first."""

    rows: Posterior
    """Row k is after k steps."""
    even: Float[Array, "N 2 V"]
    """The blank's, of the last even row that was written; a margin after the last column."""
    odd: Float[Array, "N 2 V"]
    moves: Complex[Array, "N 2 V"]
    """Packed: what leaves each blank for the label before it, and what stays in each label."""

    def undo(
        self, k: Index, before: States, b: Index, after: States, a: Index, walk: Walk, i: Index, name: str
    ) -> "_Flow":
        """Row k from row k + 1: each state gives back what step i gave it. `name` is that of row k's blanks."""
        columns = walk.skip.shape[2]
        other = {"even": "odd", "odd": "even"}[name]
        blank = getattr(self, other)[:, :, :columns]
        label = _row(self.rows.label, k + 1)
        gain = before.read("label", b) * _score(walk, i)
        stayed = label * jnp.minimum(_scaled.portion(gain, after.read("label", a)), 1)
        through = blank + jnp.where(walk.skip, label - stayed, 0)
        stay = _left(walk, before.read("blank", b), i)
        kept = through * jnp.minimum(_scaled.portion(stay, after.read("blank", a)), 1)
        moves = _write(self.moves, lax.complex(through - kept, stayed), (0, 0, 0))

        stayed = lax.imag(moves[:, :, :columns])
        arriving = lax.real(moves[:, :, 1 : columns + 1])
        labels = _write(self.rows.label, _visible(stayed + arriving)[:, :, None], (0, 0, k, 0))

        left, stayed = lax.real(moves[:, :, :columns]), lax.imag(moves[:, :, :columns])
        stepped = _row(labels, k + 1) - stayed
        # Where the blank may be skipped, what stepped into the label came through it.
        kept = blank - left + stepped
        blanks = _write(getattr(self, name), _visible(kept), (0, 0, 0))
        total = _write(self.rows.blank, blanks[:, :, :columns].sum(axis=2)[:, :, None], (0, 0, k))
        each = self.rows.blanks
        if each is not None:
            each = _write(each, blanks[:, :, None, :columns], (0, 0, k, 0))
        return self._replace(rows=Posterior(labels, total, each), moves=moves, **{name: blanks})


def _row(x: Float[Array, "N 2 M W"], i: Index) -> Float[Array, "N 2 W"]:
    return _read(x, (0, 0, i, 0), (*x.shape[:2], 1, x.shape[3]))[:, :, 0]


def _write(buffer: Array, value: Array, where: tuple[Index, ...]) -> Array:
    """In place. The barrier keeps XLA from computing the value again for each of its readers."""
    return lax.optimization_barrier(_put(buffer, value, where))


def _put(buffer: Array, value: Array, where: tuple[Index, ...]) -> Array:
    return lax.dynamic_update_slice(buffer, value, _place(where), allow_negative_indices=False)


def _read(buffer: Array, where: tuple[Index, ...], size: tuple[int, ...]) -> Array:
    return lax.dynamic_slice(buffer, _place(where), size, allow_negative_indices=False)


def _place(where: tuple[Index, ...]) -> tuple[np.int32 | Array, ...]:
    """Of one type, whatever the loops have made of each."""
    return tuple(np.int32(i) if isinstance(i, int) else lax.convert_element_type(i, jnp.int32) for i in where)


def _visible(probability: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.where(probability <= _scaled.least(probability.dtype), 0, probability)


class Meeting(NamedTuple):
    """What is known when both directions have met."""

    likelihood: Scaled
    """Of each sequence, (N,)."""
    blank: Float[Array, "N 2 W"]
    label: Float[Array, "N 2 W"]
    """The posterior after the last step of each direction, in its own order of labels."""


def meet(blank: Scaled, label: Scaled, walk: Walk) -> Meeting:
    """Joins the last forward state, by one more step without an emission, with the last backward state.

    The states are those after the last step, (N, 2, W), the blanks' before their emission.
    """
    columns = walk.skip.shape[2]
    length = walk.target_lengths[:, None]
    column = lax.broadcasted_iota(jnp.int32, (1, columns), 1)

    def direction(a: Scaled, d: int) -> Scaled:
        return Scaled(*(x[:, d] for x in a))

    def mirrored(a: Array, last: Array) -> Array:
        return jnp.where(column <= last, jnp.take_along_axis(a, jnp.maximum(last - column, 0), axis=1), 0)

    def other_way(a: Scaled, last: Array) -> Scaled:
        zero = _scaled.zeros(a.mantissa.shape, a.mantissa.dtype)
        turned = Scaled(*(jnp.take_along_axis(x, jnp.maximum(last - column, 0), axis=1) for x in a))
        return _scaled.where(column <= last, turned, zero)

    def from_left(a: Scaled) -> Scaled:
        zero = _scaled.zeros((a.mantissa.shape[0], 1), a.mantissa.dtype)
        return Scaled(*(jnp.concatenate([x, y[:, :-1]], axis=1) for x, y in zip(zero, a, strict=True)))

    blank = _left(walk, blank, walk.steps)
    skip = walk.skip[:, 0]
    stay, kept = direction(blank, 0), direction(label, 0)
    into_blank = stay + from_left(kept)
    step = _scaled.where(skip, into_blank, stay)
    into_label = kept + step

    joint_blank = into_blank * other_way(direction(blank, 1), length)
    joint_label = into_label * other_way(direction(label, 1), length - 1)
    both = Scaled(*(jnp.concatenate(x, axis=1) for x in zip(joint_blank, joint_label, strict=True)))
    whole = _scaled.total(both, axis=(1,))

    at_blank, at_label = (
        jnp.where(column <= last, _visible(_scaled.portion(_scaled.normalised(x), whole)), 0)
        for x, last in ((joint_blank, length), (joint_label, length - 1))
    )
    stayed = at_label * _scaled.portion(kept, into_label)
    stepped = at_label - stayed
    through = at_blank + jnp.where(skip, stepped, 0)
    held = through * _scaled.portion(stay, into_blank)
    arriving = jnp.pad(through - held, ((0, 0), (0, 1)))[:, 1:]
    return Meeting(
        Scaled(whole.mantissa[:, 0], whole.exponent[:, 0] + walk.exponent),
        jnp.stack([_visible(held + jnp.where(skip, 0, stepped)), mirrored(at_blank, length)], axis=1),
        jnp.stack([_visible(stayed + arriving), mirrored(at_label, length - 1)], axis=1),
    )


def segment_size(frames: int, lattice: Lattice, dtype: jnp.dtype) -> int:
    """Steps whose states are kept at once: all where that takes little memory, about the square root elsewhere."""
    sequences, columns = lattice.labels.shape
    steps = even(frames)
    row = 4 * sequences * (columns + _MARGIN) * dtype.itemsize * 2
    if steps * row <= _SMALL:
        return steps
    return max(int((frames / 2) ** 0.5) // 2 * 2, 2)


def even(frames: int, size: int = 2) -> int:
    """Steps enough for so many frames, in whole segments; a segment is of an even number of steps."""
    return max(-(-frames // (2 * size)), 1) * size


def likelihood(walk: Walk, start: Index = 0, size: int | None = None, begin: States | None = None) -> Scaled:
    """The likelihood of each target, (N,), but for the walk's offset. No step before `start` reads a live frame.

    Scores that are not kept are read in segments of `size` steps. The steps are even in number, of a segment too.
    `begin` is the state before the first of them, if that is not the first frame's.
    """
    end = _advanced(walk, started(walk, 1) if begin is None else begin, start, size)
    return meet(end.read("blank", 0), end.read("label", 0), walk).likelihood


def passed(walk: Walk, begin: States, start: Index, size: int) -> States:
    """What a walk over the frames that come next begins with."""
    end = _advanced(walk, begin, start, size)
    return end.write("blank", 0, _left(walk, end.read("blank", 0), walk.steps))


def _advanced(walk: Walk, begin: States, start: Index, size: int | None) -> States:
    """The states after the last step."""
    size = walk.steps if walk.scores is not None or size is None else size

    def segment(s: Index, states: tuple[States, States]) -> tuple[States, States]:
        at, first = walk.segment(s * size, size)

        def pair(j: Index, states: tuple[States, States]) -> tuple[States, States]:
            even, odd = states
            odd = _step(even, 0, odd, 0, at, first + 2 * j)
            return _step(odd, 0, even, 0, at, first + 2 * j + 1), odd

        return lax.fori_loop(_skipped(start, s * size), size // 2, pair, states)

    states = begin, started(walk, 1)
    if size == walk.steps:
        return segment(0, states)[0]
    return lax.fori_loop(start // size, walk.steps // size, segment, states)[0]


def _skipped(start: Index, first: Index) -> Index:
    """Pairs of steps from `first` on that come before `start`.

    A Python number where it can be: a loop whose bounds are known is one that `vmap` handles well.
    """
    pairs = (start - first) // 2
    return max(0, pairs) if isinstance(pairs, int) else jnp.maximum(0, pairs)


def posterior(
    walk: Walk,
    size: int,
    start: Index = 0,
    begin: States | None = None,
    *,
    every_blank: bool = False,
    fold: Fold | None = None,
) -> tuple[Scaled, Posterior]:
    """The likelihoods, and the posterior, which is unspecified before `start`.

    `size` is the number of steps in a segment, an even one that divides that of all; its choice changes no result.
    `begin` is the state before the first step that is taken, if that is not the first frame's. `fold` is what is
    wanted of the labels' posterior, if that is not all of it.
    """
    sequences, _, columns = walk.skip.shape
    count = walk.steps // size
    half = size // 2
    first = start // size
    begin = started(walk, 1) if begin is None else begin

    segment = _Segment(started(walk, half + 1), started(walk, half))
    if count == 1:
        segment = segment.walk_on(begin, *walk.segment(0, size), _skipped(start, 0))
    else:

        def inward(s: Index, carry: tuple[_Segment, States]) -> tuple[_Segment, States]:
            segment, kept = carry
            segment = segment.walk_on(kept.row(s), *walk.segment(s * size, size), _skipped(start, s * size))
            # By way of `kept`: a row that two buffers take from a third is read there after it was written.
            return segment, kept.put(s + 1, segment.even.row(half))

        kept = started(walk, count + 1).put(first, begin)
        segment, kept = lax.fori_loop(first, count, inward, (segment, kept))
    meeting = meet(segment.even.read("blank", half), segment.even.read("label", half), walk)

    def empty(*shape: int) -> Array:
        return varying_like(walk.drop, jnp.zeros((sequences, 2, *shape), walk.drop.dtype))

    blank, label = empty(columns + _MARGIN), empty(size + 1, columns)
    rows = Posterior(
        _write(label, meeting.label[:, :, None], (0, 0, size, 0)),
        _write(label[:, :, :, 0], meeting.blank.sum(axis=2)[:, :, None], (0, 0, size)),
        _write(label, meeting.blank[:, :, None], (0, 0, size, 0)) if every_blank else None,
    )
    gamma = _Flow(rows, _write(blank, meeting.blank, (0, 0, 0)), blank, _scaled.pack(Scaled(blank, blank)))

    def undone(segment: _Segment, gamma: _Flow, at: Walk, first: Index, skipped: Index) -> _Flow:
        even, odd = segment

        def pair(back: Index, gamma: _Flow) -> _Flow:
            j = half - 1 - back
            i = first + 2 * j
            gamma = gamma.undo(2 * j + 1, odd, j, even, j + 1, at, i + 1, "odd")
            return gamma.undo(2 * j, even, j, odd, j, at, i, "even")

        return lax.fori_loop(0, half - skipped, pair, gamma)

    def after(rows: Posterior) -> Posterior:
        """The steps, without what was before the first."""
        return jax.tree.map(lambda x: x[:, :, 1:], rows)

    def folded(found: Posterior) -> Posterior:
        return found if fold is None else found._replace(label=fold(found.label))

    if count == 1:
        gamma = undone(segment, gamma, *walk.segment(0, size), _skipped(start, 0))
        return meeting.likelihood, folded(after(gamma.rows))

    def put(rows: Posterior, value: Posterior, k: Index) -> Posterior:
        return jax.tree.map(lambda x, y: _put(x, y, (0, 0, k, 0)[: x.ndim]), rows, value)

    kept_scores = walk.scores is not None

    def outward(back: Index, carry: _Outward) -> _Outward:
        s = count - 1 - back
        segment, gamma, found = carry
        at, first = (walk._replace(scores=found.label) if kept_scores else walk).segment(s * size, size)
        skipped = _skipped(start, s * size)
        segment = segment.walk_on(kept.row(s), at, first, skipped)
        gamma = undone(segment, gamma, at, first, skipped)
        piece = after(gamma.rows)
        found = put(found, piece if kept_scores else folded(piece), s * size)
        # The segment before ends as this one begins.
        rows = put(gamma.rows, jax.tree.map(lambda x: x[:, :, :1], gamma.rows), size)
        return segment, gamma._replace(rows=rows), found

    # The posterior takes the scores' place, if they have one.
    if walk.scores is not None:
        label = walk.scores
    else:
        label = empty(walk.steps, columns if fold is None else jax.eval_shape(fold, rows.label).shape[3])
    found = Posterior(label, label[:, :, :, 0], empty(walk.steps, columns) if every_blank else None)
    *_, found = lax.fori_loop(0, count - first, outward, (segment, gamma, found))
    return meeting.likelihood, folded(found) if kept_scores else found
