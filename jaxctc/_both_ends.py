"""The recursion from both ends of the input at once: scaled numbers inward, probabilities outward.

Both directions walk alike (see `_walk`). One step of each is

    stay      = blank[s] * blank score                  the frame before, its emission included
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
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Complex, Float

from jaxctc import _products, _scaled
from jaxctc._lattice import Lattice
from jaxctc._log_space import LOG_ZERO
from jaxctc._mesh import varying_like
from jaxctc._scaled import Scaled, pack, unpack
from jaxctc._walk import Index, Walk

_MARGIN = 8
"""Columns of zeros before the first; a vector's worth keeps the rest aligned."""
_SMALL = 1 << 20
"""Bytes of states that are kept rather than walked again."""

Fold: TypeAlias = Callable[..., Float[Array, "N 2 K X"]]
"""Of (N, 2, K, W) and, where there is a choice, the precision of a product."""
_Back: TypeAlias = tuple["_Segment", "_Flow", tuple[Array | None, Array, Array | None]]


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
    zero = varying_like(walk.blank, _scaled.zeros(shape, walk.blank.mantissa.dtype))
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
    return blank * Scaled(*(_row(x[..., None], i) for x in walk.blank))


def _score(walk: Walk, i: Index) -> Scaled:
    return _scaled.exp2(_row(walk.kept, i))


def _step(
    source: States, k: Index, target: States, j: Index, walk: Walk, i: Index, finish: Callable[[Scaled], Scaled]
) -> States:
    """Step i, from row k of the source to row j of the target. In one step a mantissa grows eightfold at most."""
    stay = _left(walk, source.read("blank", k), i)
    target = target.write("blank", j, finish(stay + source.read("label", k, -1)))
    step = _scaled.where(walk.skip, target.read("blank", j), stay)
    label = (source.read("label", k) + step) * _score(walk, i)
    return target.write("label", j, finish(label))


def _two_steps(
    source: States, k: Index, between: States, b: Index, target: States, j: Index, walk: Walk, i: Index
) -> tuple[States, States]:
    """Steps i and i + 1, by way of row b of a third buffer."""
    between = _step(source, k, between, b, walk, i, lambda x: x)
    return between, _step(between, b, target, j, walk, i + 1, _scaled.normalised)


class _Segment(NamedTuple):
    """The states of K steps, and the one before them: rows 0, 2, 4, ... and 1, 3, 5, ..."""

    even: States
    odd: States

    def walk_on(self, state: States, walk: Walk, first: Index, skipped: Index) -> "_Segment":
        """On from the state before step `first`, of which so many pairs change nothing and are left out."""

        def pair(j: Index, segment: _Segment) -> _Segment:
            even, odd = segment
            odd, even = _two_steps(even, j, odd, j, even, j + 1, walk, first + 2 * j)
            return _Segment(even, odd)

        count = self.odd.blank.shape[0]
        return lax.fori_loop(skipped, count, pair, self._replace(even=self.even.put(skipped, state)))


class Posterior(NamedTuple):
    """Given the target, the probability of each label at each step, and of all blanks together."""

    label: Float[Array, "N 2 M W"]
    """Of each column, in each direction's own order of labels."""
    blank: Float[Array, "N 2 M"]
    blanks: Float[Array, "N 2 M W"] | None = None
    """Of each blank, if it was asked for."""

    def from_step_0(self, meeting: "Meeting") -> "Posterior":
        """Of what has the blanks one step early: what is before step 0 first."""

        def late(rows: Array, last: Array) -> Array:
            return jnp.concatenate([rows[:, :, 1:], last], axis=2)

        last = meeting.blank[:, :, None]
        each = None if self.blanks is None else late(self.blanks, last)
        return Posterior(self.label, late(self.blank, last.sum(axis=3)), each)


class _Flow(NamedTuple):
    """The posterior as it flows outward through a segment of K = 2 H steps."""

    label: Float[Array, "N 2 R W"]
    """After each step, in the row that its scores had. What is before step 0 has none: it takes the last, which is
    known before and is put there again in the end.
    """
    even: Float[Array, "N 2 H W"]
    """The blanks', in the even rows of a `_Segment`. Row K is where row 0 will be."""
    odd: Float[Array, "N 2 H W"]
    of_label: dict[str, Complex[Array, "N 2 V"]]
    """Packed: each label's after the step that is undone, and how it is `_scaled.divided`. Even and odd steps have
    buffers of their own: the one before may still be read.
    """
    of_blank: Complex[Array, "N 2 V"]
    """The same of what came into each blank, that for the label behind it included."""

    def undo(
        self, j: Index, before: States, b: Index, after: States, a: Index, walk: Walk, k: Index, name: str
    ) -> "_Flow":
        """Each state gives back what step k gave it. The state before is row j of this name, row b of `before`."""
        columns, half, rows = walk.skip.shape[2], self.odd.shape[2], self.label.shape[2]
        blank = _row(self.odd, j) if name == "even" else _row(self.even, jnp.where(j + 1 == half, 0, j + 1))
        label = _row(self.label, k)
        into_blank, stay = before.read("label", b, -1), _left(walk, before.read("blank", b), k)
        step = _scaled.where(walk.skip, after.read("blank", a), stay)
        taken = label * _scaled.smaller_share(before.read("label", b), step)
        of_label = _write(self.of_label[name], lax.complex(label, taken), (0, 0, 0))
        stayed, stepped = _scaled.divided(lax.real(x := of_label[:, :, :columns]), lax.imag(x))

        # Where the blank may be skipped, what stepped into the label came through it.
        through = blank + jnp.where(walk.skip, stepped, 0)
        taken = through * _scaled.smaller_share(stay, into_blank)
        of_blank = _write(self.of_blank, lax.complex(through, taken), (0, 0, 0))
        kept, _ = _scaled.divided(lax.real(x := of_blank[:, :, :columns]), lax.imag(x))
        _, arriving = _scaled.divided(lax.real(x := of_blank[:, :, 1 : columns + 1]), lax.imag(x))

        where = jnp.where(k == 0, rows - 1, k - 1)
        labels = _write(self.label, _visible(stayed + arriving)[:, :, None], (0, 0, where, 0))
        kept = kept + jnp.where(walk.skip, 0, stepped)
        blanks = _write(getattr(self, name), _visible(kept)[:, :, None], (0, 0, j, 0))
        both = {**self.of_label, name: of_label}
        return self._replace(label=labels, of_label=both, of_blank=of_blank, **{name: blanks})

    def undone(self, segment: _Segment, walk: Walk, first: Index, skipped: Index) -> "_Flow":
        """Back to the state before step `first`, but for so many pairs of steps."""
        even, odd = segment
        half = self.odd.shape[2]

        def pair(n: Index, flow: _Flow) -> _Flow:
            j = half - 1 - n
            flow = flow.undo(j, odd, j, even, j + 1, walk, first + 2 * j + 1, "odd")
            return flow.undo(j, even, j, odd, j, walk, first + 2 * j, "even")

        return lax.fori_loop(0, half - skipped, pair, self)

    def blanks(self, *, every_blank: bool) -> tuple[Float[Array, "N 2 K"], Float[Array, "N 2 K W"] | None]:
        """Of rows 0 to K - 1: of all blanks together and, if it is wanted, of each."""
        sums = _in_turn(self.even.sum(axis=3), self.odd.sum(axis=3))
        return sums, _in_turn(self.even, self.odd) if every_blank else None

    @classmethod
    def begun(cls, meeting: "Meeting", size: int, label: Float[Array, "N 2 R W"]) -> "_Flow":
        """With what is after the last step; `label` has it already."""
        columns = meeting.blank.shape[2]
        blanks, margin = _empty(meeting.blank, size // 2, columns), _empty(meeting.blank, columns + _MARGIN)
        even = _write(blanks, meeting.blank[:, :, None], (0, 0, 0, 0))
        room = _scaled.pack(Scaled(margin, margin))
        return cls(label, even, blanks, {"even": room, "odd": room}, room)


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

    def turned(a: Any, last: Array) -> Any:
        """One array, or two."""
        there = jnp.maximum(last - column, 0)
        return _products.on_tpu(
            lambda: jax.tree.map(lambda x: _products.picked(x, last - column), a),
            lambda: jax.tree.map(lambda x: jnp.take_along_axis(x, there, axis=1), a),
        )

    def mirrored(a: Array, last: Array) -> Array:
        return jnp.where(column <= last, turned(a, last), 0)

    def other_way(a: Scaled, last: Array) -> Scaled:
        zero = _scaled.zeros(a.mantissa.shape, a.mantissa.dtype)
        return _scaled.where(column <= last, turned(a, last), zero)

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
    stayed, stepped = _scaled.divided(at_label, at_label * _scaled.smaller_share(kept, step))
    through = at_blank + jnp.where(skip, stepped, 0)
    held, left = _scaled.divided(through, through * _scaled.smaller_share(stay, from_left(kept)))
    arriving = jnp.pad(left, ((0, 0), (0, 1)))[:, 1:]
    return Meeting(
        Scaled(whole.mantissa[:, 0], whole.exponent[:, 0]),
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
    return _met(_advanced(walk, started(walk, 1) if begin is None else begin, start, size), walk).likelihood


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
            odd, even = _two_steps(even, 0, odd, 0, even, 0, at, first + 2 * j)
            return even, odd

        return lax.fori_loop(_skipped(start, s * size), size // 2, pair, states)

    states = begin, started(walk, 1)
    if size == walk.steps:
        return segment(0, states)[0]
    return lax.fori_loop(start // size, walk.steps // size, segment, states)[0]


def _met(end: States, walk: Walk) -> Meeting:
    return meet(end.read("blank", 0), end.read("label", 0), walk)


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
    fold: Fold = lambda label: label,
) -> tuple[Scaled, Posterior]:
    """The likelihoods, and the posterior, which is unspecified before `start`.

    `size` is the number of steps in a segment, an even one that divides that of all; its choice changes no result.
    `begin` is the state before the first step that is taken, if that is not the first frame's. `fold` is what is
    wanted of the labels' posterior, if that is not all of it.
    """
    begin, half = started(walk, 1) if begin is None else begin, size // 2
    segment = _Segment(started(walk, half + 1), started(walk, half))
    if size == walk.steps:
        at, first = walk.segment(0, size)
        skipped = _skipped(start, 0)
        segment = segment.walk_on(begin, at, first, skipped)
        meeting = _met(segment.even.row(half), walk)
        flow = _Flow.begun(meeting, size, _with_last(at.kept, meeting)).undone(segment, at, first, skipped)
        rows = Posterior(fold(_with_last(flow.label, meeting)), *flow.blanks(every_blank=every_blank))
    else:
        kept = _inward(walk, begin, start, size)
        meeting = _met(kept.row(walk.steps // size), walk)
        rows = _outward(walk, segment, kept, meeting, start, size, fold, every_blank=every_blank)
    return meeting.likelihood, rows.from_step_0(meeting)


def _inward(walk: Walk, begin: States, start: Index, size: int) -> States:
    """The state before each segment, and after the last."""

    def through(s: Index, states: tuple[States, States]) -> tuple[States, States]:
        at, first = walk.segment(s * size, size)
        skipped = _skipped(start, s * size)

        def pair(j: Index, states: tuple[States, States]) -> tuple[States, States]:
            kept, odd = states
            # What the segment has come to is where it will be kept.
            odd, kept = _two_steps(kept, jnp.where(j == skipped, s, s + 1), odd, 0, kept, s + 1, at, first + 2 * j)
            return kept, odd

        return lax.fori_loop(skipped, size // 2, pair, states)

    first, count = start // size, walk.steps // size
    states = started(walk, count + 1).put(first, begin), started(walk, 1)
    return lax.fori_loop(first, count, through, states)[0]


def _outward(
    walk: Walk,
    segment: _Segment,
    kept: States,
    meeting: Meeting,
    start: Index,
    size: int,
    fold: Fold,
    *,
    every_blank: bool,
) -> Posterior:
    """One row of blanks early."""
    count, half = walk.steps // size, size // 2
    remade = walk.scores is None

    def walked_on(segment: _Segment, state: States, at: Walk, first: Index, skipped: Index) -> _Segment:
        # All scores in a loop that reads them, and then in one that writes, are in two layouts on a TPU, and copied.
        return _products.on_tpu(
            lambda: segment.walk_on(state, at.cut(first, size), 0, skipped),
            lambda: segment.walk_on(state, at, first, skipped),
        )

    def back(n: Index, carry: _Back) -> _Back:
        segment, flow, rows = carry
        s = count - 1 - n
        skipped = _skipped(start, s * size)
        if remade:
            # With a row before the first, for what is before the first step.
            base = jnp.maximum(s * size - 1, 0)
            at, first = walk.segment(base, size + 1)
            first += s * size - base
        else:
            at, first = walk._replace(scores=flow.label), s * size
        segment = walked_on(segment, kept.row(s), at, first, skipped)
        # The last score has given way to the posterior; the state after it was kept.
        segment = segment._replace(even=segment.even.put(half, kept.row(s + 1)))
        if remade:
            flow = flow._replace(label=_write(at.kept, flow.label, (0, 0, first + size - 1, 0)))
        flow = flow.undone(segment, at, first, skipped)
        label = None
        if remade:
            shape = (*flow.label.shape[:2], size, flow.label.shape[3])
            label = fold(_read(flow.label, (0, 0, first, 0), shape))
            flow = flow._replace(label=flow.label[:, :, :1])
        new = label, *flow.blanks(every_blank=every_blank)
        return segment, flow, jax.tree.map(lambda x, y: _put(x, y, (0, 0, s * size, 0)[: x.ndim]), rows, new)

    # The posterior takes the scores' place, if they have one.
    last = meeting.label[:, :, None]
    flow = _Flow.begun(meeting, size, last if remade else _with_last(walk.kept, meeting))
    label = _empty(last, walk.steps, jax.eval_shape(fold, last).shape[3]) if remade else None
    each = _empty(last, walk.steps, last.shape[3]) if every_blank else None
    carry = segment, flow, (label, _empty(last, walk.steps), each)
    _, flow, (label, *blanks) = lax.fori_loop(0, count - start // size, back, carry)
    return Posterior(fold(_with_last(flow.label, meeting)) if label is None else label, *blanks)


def _with_last(label: Float[Array, "N 2 R W"], meeting: Meeting) -> Float[Array, "N 2 R W"]:
    """The posterior after the last step, put where its scores were, once more in the end."""
    return _write(label, meeting.label[:, :, None], (0, 0, label.shape[2] - 1, 0))


def _empty(like: Float[Array, "N 2 ..."], *shape: int) -> Float[Array, "N 2 ..."]:
    return varying_like(like, jnp.zeros((*like.shape[:2], *shape), like.dtype))


def _in_turn(even: Float[Array, "N 2 H ..."], odd: Float[Array, "N 2 H ..."]) -> Float[Array, "N 2 K ..."]:
    sequences, _, half, *rest = even.shape
    return jnp.stack([even, odd], axis=3).reshape(sequences, 2, 2 * half, *rest)
