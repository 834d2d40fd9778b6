"""Run the forward-backward recursion from both ends of the input at once, as loops that XLA compiles.

The two directions are the same program over their own emissions (see `frame_map`); `equations` has one step of each
pass. Each state is a number of a mantissa and an exponent (`scaled`): this needs no logarithm and no exponential but
that of the score, and no digit is lost however small the numbers become. After M steps the two directions are joined,
which gives the likelihood (`join`). From there the backward pass divides each state's posterior among the states that
it came from.

Where the states of all steps take much memory, only the state before each segment of steps is stored, and the others
are recomputed when the backward pass arrives there. The posterior overwrites the scores, step by step. How states are
stored follows from how XLA compiles these loops for a CPU (see `buffers`).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Complex, Float

from jaxctc._forward_backward import equations, scaled
from jaxctc._forward_backward.buffers import (
    MARGIN,
    StateBuffers,
    empty_states,
    initial_states,
    of_step,
    put_step,
    write,
    zeros,
)
from jaxctc._forward_backward.join import Join, flush_negligible, join_directions
from jaxctc._forward_backward.scaled import Scaled
from jaxctc._forward_backward.scaled_emissions import ScaledEmissions
from jaxctc._lattice import indexing, reductions
from jaxctc._sizes import Index, Size
from jaxctc._slices import put_in_axis, read_in_axis
from jaxctc._tracing import fori_loop, jit

Scatter: TypeAlias = Callable[..., Float[Array, "N 2 K X"]]
"""A function of the labels' posterior (N, 2, K, W) and, where there is a choice, of the precision of a product."""
_Back: TypeAlias = tuple["_Segment", "_BackwardPass", tuple[Array | None, Array, Array | None]]


def unchanged(label: Float[Array, "*rows K W"], *_: Any) -> Float[Array, "*rows K W"]:
    """Return the labels' posterior itself, in rows or not: a `Scatter`."""
    return label


class _Read(NamedTuple):
    """What the steps read of the emissions."""

    blank: Scaled
    skip: Bool[Array, "*rows W"]
    scores: Float[Array, "*rows M W"] | None = None
    """None in the backward pass, which writes where they were: XLA would copy a buffer that is read and written."""

    def with_blank_emission(self, blank: Scaled, i: Index) -> Scaled:
        """Return the blanks' states before step i with the emission of the frame before."""
        return blank * Scaled(*(of_step(x[..., None], i) for x in self.blank))


def _step(
    source: StateBuffers,
    k: Index,
    target: StateBuffers,
    j: Index,
    read: _Read,
    i: Index,
    finish: Callable[[Scaled], Scaled],
) -> StateBuffers:
    """Run step i from the states k of `source`, and return `target` with its states j written.

    A number becomes at most eight times as large in one step.
    """
    scores = read.scores
    assert scores is not None
    prev_blank = read.with_blank_emission(source.read("blank", k), i)
    into_blank = equations.into_blank(prev_blank, source.read("label", k, -1))
    target = target.write("blank", j, finish(into_blank))
    entering = equations.entering_label(prev_blank, target.read("blank", j), read.skip)
    label = equations.into_label(source.read("label", k), entering) * scaled.exp2(of_step(scores, i))
    return target.write("label", j, finish(label))


@jit  # traced and lowered once, however often it is called
def _two_steps(
    source: StateBuffers,
    k: Index,
    between: StateBuffers,
    b: Index,
    target: StateBuffers,
    j: Index,
    read: _Read,
    i: Index,
) -> tuple[StateBuffers, StateBuffers]:
    """Run steps i and i + 1; the states between the two become states b of `between`."""
    between = _step(source, k, between, b, read, i, lambda x: x)
    return between, _step(between, b, target, j, read, i + 1, scaled.renormalized)


class _Segment(NamedTuple):
    """The states before and after each of K steps: states 0, 2, 4, ... in `even`, and states 1, 3, 5, ... in `odd`.

    Both have room for the states of H + 1 steps, where K = 2 H.
    """

    even: StateBuffers
    odd: StateBuffers

    def run_forward(self, state: StateBuffers, emissions: ScaledEmissions, first: Index, skipped: Index) -> "_Segment":
        """Run the forward pass from the state before step `first`, and store the states.

        The first `skipped` pairs of steps change nothing and are left out.
        """
        read = _Read(emissions.blank, emissions.skip, emissions.stored_scores)

        def pair(j: Index, segment: _Segment) -> _Segment:
            even, odd = segment
            odd, even = _two_steps(even, j, odd, j, even, j + 1, read, first + 2 * j)
            return _Segment(even, odd)

        return fori_loop(skipped, len(self.odd.blank) - 1, pair, self._replace(even=self.even.put(skipped, state)))


class Posterior(NamedTuple):
    """The probability, given the target, of each label at each step, and of all blanks together."""

    label: Float[Array, "N 2 M W"]
    """The posterior of the label of each column, in each direction's own order; or what a `Scatter` makes of it."""
    blank: Float[Array, "N 2 M"]
    each_blank: Float[Array, "N 2 M W"] | None = None
    """The posterior of each blank, if it was asked for."""


class _BackwardPass(NamedTuple):
    """The posterior (occupancy) during the backward pass through a segment of K = 2 H steps."""

    label: Float[Array, "*rows M W"]
    """The labels' posterior after each step, in the place that had the scores of the step. The one before step 0 has no
    place of its own: it overwrites the last one, which is known already and is written again at the end.
    """
    blank: Float[Array, "*rows W"]
    """The blanks' posterior after the last step of the segment that comes next."""
    even: Float[Array, "*rows H+1 W"]
    """The blanks' posterior for the even states of a `_Segment`: before the first step, ..., after the last one."""
    odd: Float[Array, "*rows H+1 W"]
    """The same for the odd states, and one place that is not used."""
    of_label: tuple[Complex[Array, "*rows V"], Complex[Array, "*rows V"]]
    """Two numbers packed in one: each label's posterior after the step that is being undone, and the `smaller_part` of
    it (see `scaled.split`). Even and odd steps have separate buffers, since the previous one may still be read.
    """
    of_blank: Complex[Array, "*rows V"]
    """The same for all that came into each blank, including what went on to the label after it."""

    def swapped(self) -> "_BackwardPass":
        """Return the same with odd states in the place of even ones, and even ones in the place of odd ones."""
        return self._replace(even=self.odd, odd=self.even, of_label=self.of_label[::-1])

    @jit  # traced and lowered once, however often it is called
    def backward_step(
        self, j: Index, before: StateBuffers, after: StateBuffers, a: Index, read: _Read, k: Index, place: Index
    ) -> "_BackwardPass":
        """Return the posterior before step k, with its blanks written as number j of the even states.

        The states before step k are number j of `before`, and those after it number a of `after`; the labels' posterior
        is written at `place`. For each sum of two states, a product gives the part of the smaller one, and a
        subtraction the part of the larger one: both keep their digits.
        """
        columns = self.label.shape[-1]
        blank = of_step(self.odd, a)
        label = of_step(self.label, k)
        prev_label = before.read("label", j, -1)
        prev_blank = read.with_blank_emission(before.read("blank", j), k)
        entering = equations.entering_label(prev_blank, after.read("blank", a), read.skip)
        smaller_part = label * scaled.smaller_fraction(before.read("label", j), entering)
        of_label = write(self.of_label[0], lax.complex(label, smaller_part), (0,) * label.ndim)
        self_loop, entered = scaled.split(lax.real(x := of_label[..., :columns]), lax.imag(x))

        into_blank = equations.back_into_blank(blank, entered, read.skip)
        smaller_part = into_blank * scaled.smaller_fraction(prev_blank, prev_label)
        of_blank = write(self.of_blank, lax.complex(into_blank, smaller_part), (0,) * label.ndim)
        staying, _ = scaled.split(lax.real(x := of_blank[..., :columns]), lax.imag(x))
        _, arriving = scaled.split(lax.real(x := of_blank[..., 1 : columns + 1]), lax.imag(x))

        labels = put_step(self.label, place, flush_negligible(self_loop + arriving))
        before_step = flush_negligible(equations.back_in_blank(staying, entered, read.skip))
        even = put_step(self.even, j, before_step)
        return self._replace(label=labels, even=even, of_label=(of_label, self.of_label[1]), of_blank=of_blank)

    def backward_steps(
        self, segment: _Segment, emissions: ScaledEmissions, first: Index, skipped: Index
    ) -> "_BackwardPass":
        """Run the backward pass to the state before step `first`; the first `skipped` pairs of steps are left out."""
        even, odd = segment
        half, steps = self.odd.shape[-2] - 1, self.label.shape[-2]
        initial = self._replace(even=put_step(self.even, half, self.blank))
        read = _Read(emissions.blank, emissions.skip)

        def pair(n: Index, backward: _BackwardPass) -> _BackwardPass:
            j, after = half - 1 - n, half - n
            k = first + 2 * j
            backward = backward.swapped().backward_step(j, odd, even, after, read, k + 1, k).swapped()
            # Of a subtraction XLA would make an addition, in another run of its simplifications.
            return backward.backward_step(j, even, odd, j, read, k, jnp.where(k == 0, steps - 1, k + -1))

        found = fori_loop(0, half - skipped, pair, initial)
        return found._replace(blank=of_step(found.even, 0))

    def blank_posteriors(
        self, *, every_blank: bool
    ) -> tuple[Float[Array, "*rows K"], Float[Array, "*rows K W"] | None]:
        """Return the posterior of all blanks after each step and, if `every_blank`, that of each blank."""
        *rows, steps, columns = self.odd.shape
        half = steps - 1
        kinds = self.odd, self.even
        # In one axis: of an inner loop within a short one LLVM makes as many copies as that has elements. Where the
        # directions are an axis, a TPU would copy the blanks.
        flat = (x.reshape(math.prod(rows) * steps, columns) for x in kinds) if len(rows) == 1 else kinds
        sums = (x.reshape(*rows, steps) for x in reductions.sums(*flat))

        def after_each_step(odd: Array, even: Array, *columns: Size) -> Array:
            axis = len(rows)
            odd, even = (lax.slice_in_dim(x, i, i + half, axis=axis) for i, x in enumerate((odd, even)))
            return jnp.stack([odd, even], axis=axis + 1).reshape(*rows, 2 * half, *columns)

        return after_each_step(*sums), after_each_step(*kinds, columns) if every_blank else None

    @classmethod
    def initial(cls, join: "Join", size: int, label: Float[Array, "*rows M W"]) -> "_BackwardPass":
        """Return a backward pass that holds the posterior after the last step; `label` has the labels' already."""
        columns = join.blank.shape[-1]
        even, margin = zeros(join.blank, size // 2 + 1, columns), zeros(join.blank, columns + MARGIN)
        scratch = scaled.pack(Scaled(margin, margin))
        return cls(label, join.blank, even, even, (scratch, scratch), scratch)


def likelihood(
    emissions: ScaledEmissions, start: Index = 0, size: int | None = None, initial: StateBuffers | None = None
) -> Scaled:
    """Return the likelihood of each target, (N,), from emissions that are relative to each frame's best score.

    No step before `start` reads a frame within its sequence's length. Scores that are not stored are computed in
    segments of `size` steps. The number of steps is even, and so is `size`. `initial` are the states before the
    first step that is run, if those are not the ones before the first frame.
    """
    return _joined(
        _last_states(emissions, initial_states(emissions) if initial is None else initial, start, size), emissions
    ).likelihood


def states_after(emissions: ScaledEmissions, initial: StateBuffers, start: Index, size: int) -> StateBuffers:
    """Return the states with which the recursion over the frames that come next begins."""
    end = _last_states(emissions, initial, start, size)
    read = _Read(emissions.blank, emissions.skip)
    return end.write("blank", 0, read.with_blank_emission(end.read("blank", 0), emissions.steps))


def _last_states(emissions: ScaledEmissions, initial: StateBuffers, start: Index, size: int | None) -> StateBuffers:
    """Return the states after the last step."""
    size = emissions.steps if emissions.scores is not None or size is None else size

    def segment(s: Index, states: tuple[StateBuffers, StateBuffers]) -> tuple[StateBuffers, StateBuffers]:
        at, first = emissions.segment(s * size, size)

        def pair(j: Index, states: tuple[StateBuffers, StateBuffers]) -> tuple[StateBuffers, StateBuffers]:
            even, odd = states
            odd, even = _two_steps(even, 0, odd, 0, even, 0, read, first + 2 * j)
            return even, odd

        read = _Read(at.blank, at.skip, at.stored_scores)

        return fori_loop(_skipped(start, s * size), size // 2, pair, states)

    states = initial, empty_states(emissions, 1)
    if size == emissions.steps:
        return segment(0, states)[0]
    return fori_loop(start // size, emissions.steps // size, segment, states)[0]


def _joined(end: StateBuffers, emissions: ScaledEmissions) -> Join:
    return join_directions(end.read("blank", 0), end.read("label", 0), emissions, end.read("label", 0, -1))


def _skipped(start: Index, first: Index) -> Index:
    """Return the number of pairs of steps from `first` on that come before `start`.

    It is a Python number where that is possible: loops of known length compile faster, and `vmap` handles them well.
    """
    if isinstance(start, int) and start == 0:
        return 0
    pairs = (start - first) >> 1
    return max(0, pairs) if isinstance(pairs, int) else jnp.maximum(0, pairs)


def posterior(
    emissions: ScaledEmissions,
    size: int,
    start: Index = 0,
    initial: StateBuffers | None = None,
    *,
    every_blank: bool = False,
    scatter: Scatter = unchanged,
) -> tuple[Scaled, Posterior]:
    """Return the likelihoods, and the posterior, which is unspecified before step `start`.

    `size` is the number of steps in a segment; it is even and divides the number of all steps, and its choice changes
    no result. `initial` are the states before the first step that is run, if those are not the ones before the first
    frame. `scatter` computes what the caller wants from the labels' posterior, if that is not the posterior itself.
    """
    initial, half = initial_states(emissions) if initial is None else initial, size // 2
    segment = _Segment(*(empty_states(emissions, half + 1) for _ in range(2)))
    if size == emissions.steps:
        at, first = emissions.segment(0, size)
        skipped = _skipped(start, 0)
        segment = segment.run_forward(initial, at, first, skipped)
        join = _joined(segment.even.at(half), emissions)
        backward = _BackwardPass.initial(join, size, _with_last(at.stored_scores, join)).backward_steps(
            segment, at, first, skipped
        )
        label = scatter(_with_last(backward.label, join))
        return join.likelihood, Posterior(label, *backward.blank_posteriors(every_blank=every_blank))
    segment, checkpoints = _forward_pass(emissions, segment, initial, start, size)
    join = _joined(checkpoints.at(emissions.steps // size), emissions)
    found = _backward_pass(emissions, segment, checkpoints, join, start, size, scatter, every_blank=every_blank)
    return join.likelihood, found


def _forward_pass(
    emissions: ScaledEmissions, segment: _Segment, initial: StateBuffers, start: Index, size: int
) -> tuple[_Segment, StateBuffers]:
    """Run the forward pass, and return the states before each segment and after the last one.

    Its steps are those that the backward pass will run once more, in the same buffers: XLA compiles them once.
    """

    def segment_forward(s: Index, carry: tuple[_Segment, StateBuffers]) -> tuple[_Segment, StateBuffers]:
        segment, checkpoints = carry
        at, first = emissions.segment(s * size, size)
        segment = segment.run_forward(checkpoints.at(s), at, first, _skipped(start, s * size))
        return segment, checkpoints.put(s + 1, segment.even.at(size // 2))

    first, count = start // size, emissions.steps // size
    checkpoints = empty_states(emissions, count + 1).put(first, initial)
    return fori_loop(first, count, segment_forward, (segment, checkpoints))


def _backward_pass(
    emissions: ScaledEmissions,
    segment: _Segment,
    checkpoints: StateBuffers,
    join: Join,
    start: Index,
    size: int,
    scatter: Scatter,
    *,
    every_blank: bool,
) -> Posterior:
    """Run the backward pass, and return the posterior."""
    count, half = emissions.steps // size, size // 2
    recompute = emissions.scores is None

    def recomputed(
        segment: _Segment, state: StateBuffers, at: ScaledEmissions, first: Index, skipped: Index
    ) -> _Segment:
        # If one loop reads all scores and the next one writes them, a TPU uses two layouts and copies the scores.
        return indexing.on_tpu(
            lambda: segment.run_forward(state, at.cut(first, size), 0, skipped),
            lambda: segment.run_forward(state, at, first, skipped),
        )

    def back(n: Index, carry: _Back) -> _Back:
        segment, backward, found = carry
        s, after = count - 1 - n, count - n
        skipped = _skipped(start, s * size)
        if recompute:
            # The additional step before the first one is for the posterior before the first step.
            base = jnp.maximum(s * size - 1, 0)
            at, first = emissions.segment(base, size + 1)
            first += s * size - base
        else:
            at, first = emissions._replace(scores=backward.label), s * size
        segment = recomputed(segment, checkpoints.at(s), at, first, skipped)
        # The posterior may have overwritten the last step's scores; the state after that step was stored.
        segment = segment._replace(even=segment.even.put(half, checkpoints.at(after)))
        if recompute:
            backward = backward._replace(label=put_step(at.stored_scores, first + size - 1, backward.label[..., 0, :]))
        backward = backward.backward_steps(segment, at, first, skipped)
        label = None
        if recompute:
            label = scatter(read_in_axis(backward.label, first, size, axis=-2))
            backward = backward._replace(label=backward.label[..., :1, :])
        new = label, *backward.blank_posteriors(every_blank=every_blank)
        axis = last.ndim - 1
        found = jax.tree.map(lambda x, y: put_in_axis(x, y, s * size, axis), found, new)
        return segment, backward, found

    # The posterior overwrites the scores, if these are stored.
    last, steps = join.label, emissions.steps
    labels = last[..., None, :] if recompute else _with_last(emissions.stored_scores, join)
    backward = _BackwardPass.initial(join, size, labels)
    label = zeros(last, steps, jax.eval_shape(scatter, labels).shape[-1]) if recompute else None
    each = zeros(last, steps, last.shape[-1]) if every_blank else None
    carry = segment, backward, (label, zeros(last, steps), each)
    _, backward, (label, blank, each) = fori_loop(0, count - start // size, back, carry)
    return Posterior(scatter(_with_last(backward.label, join)) if label is None else label, blank, each)


def _with_last(label: Float[Array, "*rows M W"], join: Join) -> Float[Array, "*rows M W"]:
    """Return `label` with the posterior after the last step in its last place, which had the scores of that step."""
    return put_step(label, label.shape[-2] - 1, join.label)
