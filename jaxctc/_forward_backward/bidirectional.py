"""Run the forward-backward recursion from both ends of the input at once, as loops that XLA compiles.

The two directions are the same program over their own emissions (see `frame_map`); `equations` has one step of each
pass. States are numbers of a mantissa and an exponent each (`scaled`): no logarithm, no exponential but that of the
score, no digit lost however small the numbers grow. After M steps the directions meet, and the likelihood is known
(`join`). From there the backward pass divides each state's posterior among the states that it came from.

The states of all steps are not stored: of every segment of steps the first is, and the others are recomputed when the
backward pass arrives there. The posterior takes the place of the scores, step by step. How states are stored follows
from what XLA makes of it on a CPU (see `buffers`).
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Complex, Float

from jaxctc._forward_backward import equations, scaled
from jaxctc._forward_backward.buffers import (
    MARGIN,
    StateBuffers,
    empty,
    initial_states,
    interleaved,
    put,
    read,
    row_of,
    write,
)
from jaxctc._forward_backward.join import Join, join_directions, visible
from jaxctc._forward_backward.scaled import Scaled
from jaxctc._forward_backward.scaled_emissions import ScaledEmissions
from jaxctc._lattice import indexing
from jaxctc._lattice.frame_map import Index
from jaxctc._lattice.lattices import Lattice

_SMALL = 1 << 20
"""Bytes of states that are kept rather than walked again."""

Scatter: TypeAlias = Callable[..., Float[Array, "N 2 K X"]]
"""Of (N, 2, K, W) and, where there is a choice, the precision of a product."""
_Back: TypeAlias = tuple["_Segment", "_BackwardPass", tuple[Array | None, Array, Array | None]]


def _left(emissions: ScaledEmissions, blank: Scaled, i: Index) -> Scaled:
    """Return the blanks' states before step i with the emission of the frame before."""
    return blank * Scaled(*(row_of(x[..., None], i) for x in emissions.blank))


def _score(emissions: ScaledEmissions, i: Index) -> Scaled:
    return scaled.exp2(row_of(emissions.kept, i))


def _step(
    source: StateBuffers,
    k: Index,
    target: StateBuffers,
    j: Index,
    emissions: ScaledEmissions,
    i: Index,
    finish: Callable[[Scaled], Scaled],
) -> StateBuffers:
    """Step i, from row k of the source to row j of the target. In one step a mantissa grows eightfold at most."""
    prev_blank = _left(emissions, source.read("blank", k), i)
    into_blank = equations.into_blank(prev_blank, source.read("label", k, -1))
    target = target.write("blank", j, finish(into_blank))
    entering = equations.entering_label(prev_blank, target.read("blank", j), emissions.skip)
    label = equations.into_label(source.read("label", k), entering) * _score(emissions, i)
    return target.write("label", j, finish(label))


def _two_steps(
    source: StateBuffers,
    k: Index,
    between: StateBuffers,
    b: Index,
    target: StateBuffers,
    j: Index,
    emissions: ScaledEmissions,
    i: Index,
) -> tuple[StateBuffers, StateBuffers]:
    """Steps i and i + 1, by way of row b of a third buffer."""
    between = _step(source, k, between, b, emissions, i, lambda x: x)
    return between, _step(between, b, target, j, emissions, i + 1, scaled.renormalized)


class _Segment(NamedTuple):
    """The states of K steps, and the one before them: rows 0, 2, 4, ... and 1, 3, 5, ..."""

    even: StateBuffers
    odd: StateBuffers

    def walk_on(self, state: StateBuffers, emissions: ScaledEmissions, first: Index, skipped: Index) -> "_Segment":
        """On from the state before step `first`, of which so many pairs change nothing and are left out."""

        def pair(j: Index, segment: _Segment) -> _Segment:
            even, odd = segment
            odd, even = _two_steps(even, j, odd, j, even, j + 1, emissions, first + 2 * j)
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

    def from_step_0(self, join: "Join") -> "Posterior":
        """Of what has the blanks one step early: what is before step 0 first."""

        def late(rows: Array, last: Array) -> Array:
            return jnp.concatenate([rows[:, :, 1:], last], axis=2)

        last = join.blank[:, :, None]
        each = None if self.blanks is None else late(self.blanks, last)
        return Posterior(self.label, late(self.blank, last.sum(axis=3)), each)


class _BackwardPass(NamedTuple):
    """The posterior (occupancy) during the backward pass through a segment of K = 2 H steps."""

    label: Float[Array, "N 2 R W"]
    """After each step, in the row that its scores had. What is before step 0 has none: it takes the last, which is
    known before and is put there again in the end.
    """
    even: Float[Array, "N 2 H W"]
    """The blanks', in the even rows of a `_Segment`. Row K is where row 0 will be."""
    odd: Float[Array, "N 2 H W"]
    of_label: dict[str, Complex[Array, "N 2 V"]]
    """Packed: each label's after the step that is undone, and how it is `scaled.divided`. Even and odd steps have
    buffers of their own: the one before may still be read.
    """
    of_blank: Complex[Array, "N 2 V"]
    """The same of what came into each blank, that for the label behind it included."""

    def backward_step(
        self,
        j: Index,
        before: StateBuffers,
        b: Index,
        after: StateBuffers,
        a: Index,
        emissions: ScaledEmissions,
        k: Index,
        name: str,
    ) -> "_BackwardPass":
        """Return the posterior before step k; its blanks go to row j of this name, the states are in row b of `before`.

        Of each sum the smaller addend's part is multiplied out, and the other is the rest: both keep their digits.
        """
        columns, half, rows = emissions.skip.shape[2], self.odd.shape[2], self.label.shape[2]
        blank = row_of(self.odd, j) if name == "even" else row_of(self.even, jnp.where(j + 1 == half, 0, j + 1))
        label = row_of(self.label, k)
        prev_label, prev_blank = before.read("label", b, -1), _left(emissions, before.read("blank", b), k)
        entering = equations.entering_label(prev_blank, after.read("blank", a), emissions.skip)
        taken = label * scaled.smaller_fraction(before.read("label", b), entering)
        of_label = write(self.of_label[name], lax.complex(label, taken), (0, 0, 0))
        self_loop, entered = scaled.divided(lax.real(x := of_label[:, :, :columns]), lax.imag(x))

        into_blank = equations.back_into_blank(blank, entered, emissions.skip)
        taken = into_blank * scaled.smaller_fraction(prev_blank, prev_label)
        of_blank = write(self.of_blank, lax.complex(into_blank, taken), (0, 0, 0))
        kept, _ = scaled.divided(lax.real(x := of_blank[:, :, :columns]), lax.imag(x))
        _, arriving = scaled.divided(lax.real(x := of_blank[:, :, 1 : columns + 1]), lax.imag(x))

        where = jnp.where(k == 0, rows - 1, k - 1)
        labels = write(self.label, visible(self_loop + arriving)[:, :, None], (0, 0, where, 0))
        kept = kept + jnp.where(emissions.skip, 0, entered)
        blanks = write(getattr(self, name), visible(kept)[:, :, None], (0, 0, j, 0))
        both = {**self.of_label, name: of_label}
        return self._replace(label=labels, of_label=both, of_blank=of_blank, **{name: blanks})

    def backward_steps(
        self, segment: _Segment, emissions: ScaledEmissions, first: Index, skipped: Index
    ) -> "_BackwardPass":
        """Back to the state before step `first`, but for so many pairs of steps."""
        even, odd = segment
        half = self.odd.shape[2]

        def pair(n: Index, backward: _BackwardPass) -> _BackwardPass:
            j = half - 1 - n
            backward = backward.backward_step(j, odd, j, even, j + 1, emissions, first + 2 * j + 1, "odd")
            return backward.backward_step(j, even, j, odd, j, emissions, first + 2 * j, "even")

        return lax.fori_loop(0, half - skipped, pair, self)

    def blanks(self, *, every_blank: bool) -> tuple[Float[Array, "N 2 K"], Float[Array, "N 2 K W"] | None]:
        """Of rows 0 to K - 1: of all blanks together and, if it is wanted, of each."""
        sums = interleaved(self.even.sum(axis=3), self.odd.sum(axis=3))
        return sums, interleaved(self.even, self.odd) if every_blank else None

    @classmethod
    def begun(cls, join: "Join", size: int, label: Float[Array, "N 2 R W"]) -> "_BackwardPass":
        """With what is after the last step; `label` has it already."""
        columns = join.blank.shape[2]
        blanks, margin = empty(join.blank, size // 2, columns), empty(join.blank, columns + MARGIN)
        even = write(blanks, join.blank[:, :, None], (0, 0, 0, 0))
        room = scaled.pack(Scaled(margin, margin))
        return cls(label, even, blanks, {"even": room, "odd": room}, room)


def segment_size(frames: int, lattice: Lattice, dtype: jnp.dtype) -> int:
    """Steps whose states are kept at once: all where that takes little memory, about the square root elsewhere."""
    sequences, columns = lattice.labels.shape
    steps = even(frames)
    row = 4 * sequences * (columns + MARGIN) * dtype.itemsize * 2
    if steps * row <= _SMALL:
        return steps
    return max(int((frames / 2) ** 0.5) // 2 * 2, 2)


def even(frames: int, size: int = 2) -> int:
    """Steps enough for so many frames, in whole segments; a segment is of an even number of steps."""
    return max(-(-frames // (2 * size)), 1) * size


def likelihood(
    emissions: ScaledEmissions, start: Index = 0, size: int | None = None, begin: StateBuffers | None = None
) -> Scaled:
    """The likelihood of each target, (N,), but for the walk's offset. No step before `start` reads a live frame.

    Scores that are not kept are read in segments of `size` steps. The steps are even in number, of a segment too.
    `begin` is the state before the first of them, if that is not the first frame's.
    """
    return _joined(
        _advanced(emissions, initial_states(emissions, 1) if begin is None else begin, start, size), emissions
    ).likelihood


def states_after(emissions: ScaledEmissions, begin: StateBuffers, start: Index, size: int) -> StateBuffers:
    """What a walk over the frames that come next begins with."""
    end = _advanced(emissions, begin, start, size)
    return end.write("blank", 0, _left(emissions, end.read("blank", 0), emissions.steps))


def _advanced(emissions: ScaledEmissions, begin: StateBuffers, start: Index, size: int | None) -> StateBuffers:
    """The states after the last step."""
    size = emissions.steps if emissions.scores is not None or size is None else size

    def segment(s: Index, states: tuple[StateBuffers, StateBuffers]) -> tuple[StateBuffers, StateBuffers]:
        at, first = emissions.segment(s * size, size)

        def pair(j: Index, states: tuple[StateBuffers, StateBuffers]) -> tuple[StateBuffers, StateBuffers]:
            even, odd = states
            odd, even = _two_steps(even, 0, odd, 0, even, 0, at, first + 2 * j)
            return even, odd

        return lax.fori_loop(_skipped(start, s * size), size // 2, pair, states)

    states = begin, initial_states(emissions, 1)
    if size == emissions.steps:
        return segment(0, states)[0]
    return lax.fori_loop(start // size, emissions.steps // size, segment, states)[0]


def _joined(end: StateBuffers, emissions: ScaledEmissions) -> Join:
    return join_directions(end.read("blank", 0), end.read("label", 0), emissions)


def _skipped(start: Index, first: Index) -> Index:
    """Pairs of steps from `first` on that come before `start`.

    A Python number where it can be: a loop whose bounds are known is one that `vmap` handles well.
    """
    pairs = (start - first) // 2
    return max(0, pairs) if isinstance(pairs, int) else jnp.maximum(0, pairs)


def posterior(
    emissions: ScaledEmissions,
    size: int,
    start: Index = 0,
    begin: StateBuffers | None = None,
    *,
    every_blank: bool = False,
    scatter: Scatter = lambda label: label,
) -> tuple[Scaled, Posterior]:
    """The likelihoods, and the posterior, which is unspecified before `start`.

    `size` is the number of steps in a segment, an even one that divides that of all; its choice changes no result.
    `begin` is the state before the first step that is taken, if that is not the first frame's. `scatter` is what is
    wanted of the labels' posterior, if that is not all of it.
    """
    begin, half = initial_states(emissions, 1) if begin is None else begin, size // 2
    segment = _Segment(initial_states(emissions, half + 1), initial_states(emissions, half))
    if size == emissions.steps:
        at, first = emissions.segment(0, size)
        skipped = _skipped(start, 0)
        segment = segment.walk_on(begin, at, first, skipped)
        join = _joined(segment.even.row(half), emissions)
        backward = _BackwardPass.begun(join, size, _with_last(at.kept, join)).backward_steps(
            segment, at, first, skipped
        )
        rows = Posterior(scatter(_with_last(backward.label, join)), *backward.blanks(every_blank=every_blank))
    else:
        kept = _forward_pass(emissions, begin, start, size)
        join = _joined(kept.row(emissions.steps // size), emissions)
        rows = _backward_pass(emissions, segment, kept, join, start, size, scatter, every_blank=every_blank)
    return join.likelihood, rows.from_step_0(join)


def _forward_pass(emissions: ScaledEmissions, begin: StateBuffers, start: Index, size: int) -> StateBuffers:
    """The state before each segment, and after the last."""

    def blank_mass(s: Index, states: tuple[StateBuffers, StateBuffers]) -> tuple[StateBuffers, StateBuffers]:
        at, first = emissions.segment(s * size, size)
        skipped = _skipped(start, s * size)

        def pair(j: Index, states: tuple[StateBuffers, StateBuffers]) -> tuple[StateBuffers, StateBuffers]:
            kept, odd = states
            # What the segment has come to is where it will be kept.
            odd, kept = _two_steps(kept, jnp.where(j == skipped, s, s + 1), odd, 0, kept, s + 1, at, first + 2 * j)
            return kept, odd

        return lax.fori_loop(skipped, size // 2, pair, states)

    first, count = start // size, emissions.steps // size
    states = initial_states(emissions, count + 1).put(first, begin), initial_states(emissions, 1)
    return lax.fori_loop(first, count, blank_mass, states)[0]


def _backward_pass(
    emissions: ScaledEmissions,
    segment: _Segment,
    kept: StateBuffers,
    join: Join,
    start: Index,
    size: int,
    scatter: Scatter,
    *,
    every_blank: bool,
) -> Posterior:
    """One row of blanks early."""
    count, half = emissions.steps // size, size // 2
    remade = emissions.scores is None

    def recomputed(
        segment: _Segment, state: StateBuffers, at: ScaledEmissions, first: Index, skipped: Index
    ) -> _Segment:
        # All scores in a loop that reads them, and then in one that writes, are in two layouts on a TPU, and copied.
        return indexing.on_tpu(
            lambda: segment.walk_on(state, at.cut(first, size), 0, skipped),
            lambda: segment.walk_on(state, at, first, skipped),
        )

    def back(n: Index, carry: _Back) -> _Back:
        segment, backward, rows = carry
        s = count - 1 - n
        skipped = _skipped(start, s * size)
        if remade:
            # With a row before the first, for what is before the first step.
            base = jnp.maximum(s * size - 1, 0)
            at, first = emissions.segment(base, size + 1)
            first += s * size - base
        else:
            at, first = emissions._replace(scores=backward.label), s * size
        segment = recomputed(segment, kept.row(s), at, first, skipped)
        # The last score has given way to the posterior; the state after it was kept.
        segment = segment._replace(even=segment.even.put(half, kept.row(s + 1)))
        if remade:
            backward = backward._replace(label=write(at.kept, backward.label, (0, 0, first + size - 1, 0)))
        backward = backward.backward_steps(segment, at, first, skipped)
        label = None
        if remade:
            shape = (*backward.label.shape[:2], size, backward.label.shape[3])
            label = scatter(read(backward.label, (0, 0, first, 0), shape))
            backward = backward._replace(label=backward.label[:, :, :1])
        new = label, *backward.blanks(every_blank=every_blank)
        return segment, backward, jax.tree.map(lambda x, y: put(x, y, (0, 0, s * size, 0)[: x.ndim]), rows, new)

    # The posterior takes the scores' place, if they have one.
    last = join.label[:, :, None]
    backward = _BackwardPass.begun(join, size, last if remade else _with_last(emissions.kept, join))
    label = empty(last, emissions.steps, jax.eval_shape(scatter, last).shape[3]) if remade else None
    each = empty(last, emissions.steps, last.shape[3]) if every_blank else None
    carry = segment, backward, (label, empty(last, emissions.steps), each)
    _, backward, (label, *blanks) = lax.fori_loop(0, count - start // size, back, carry)
    return Posterior(scatter(_with_last(backward.label, join)) if label is None else label, *blanks)


def _with_last(label: Float[Array, "N 2 R W"], join: Join) -> Float[Array, "N 2 R W"]:
    """The posterior after the last step, put where its scores were, once more in the end."""
    return write(label, join.label[:, :, None], (0, 0, label.shape[2] - 1, 0))
