"""The recursion of `bidirectional` as kernels for TPUs: they loop over the frames, and the states stay where they are.

A row is one direction of one sequence; rows lie in sublanes, columns in lanes. The grid is blocks of rows, which
know nothing of each other, by blocks of steps, one after the other: while one is walked the scores of the next
stream in. One kernel walks inward and leaves behind the states before each block of steps; XLA joins the two
directions (`bidirectional.join_directions`); and one walks outward, from the last block to the first: each it walks
again, keeps the shares, and undoes, step by step. The posterior takes the place of the scores.

Nothing is copied or padded in HBM. A block turns its scores from rows of steps to steps of rows when they are in
VMEM, and the posterior back. Where it reaches beyond the walk, what is there in a row concerns no other row and is
not written back, and a column there is given the scores of one without a label.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int

from jaxctc._forward_backward import bidirectional
from jaxctc._forward_backward.bidirectional import Join, Posterior
from jaxctc._forward_backward.scaled import Scaled
from jaxctc._forward_backward.scaled_emissions import Index, ScaledEmissions
from jaxctc._kernels.step import Occupancy, States, TransitionProbs, backward_step, initial_states, renormalized, step
from jaxctc._types import LOG_ZERO

PRECISION = lax.Precision.HIGHEST
"""Of a product with ones and noughts: all bits count."""

_SUBLANES, _LANES = 8, 128
"""Of a register."""
_TOGETHER = 16
"""Registers of one array of states that are worked on at once: while one is rolled, which takes long, the others are
computed with. With more of them it is VMEM that they have to be fetched from."""
_UNROLLED = 4
"""Steps that are scheduled as one, after which the states are normalised; no more than `step.ROOM`."""
_MOST_STEPS = _LANES
"""In a block: what a row has one of a step lies in lanes."""
_VMEM = 13 << 20
"""Bytes; every TPU gives a kernel 16 MB, of which the compiler needs some."""
_STATES, _FLOWS = 4, 2
"""Arrays that they are made of."""
_ARRAYS_A_STEP, _ARRAYS = 7, 22
"""In VMEM, as large as one array of states: a step's scores and posterior, twice each, for one block is on its way
while one is worked on, either of them turned, and shares; and whatever else a block needs."""
_BLANKS_A_STEP = 3
"""Besides, where each blank's posterior is wanted: twice, and turned."""

# Where newer versions of jax have it, and where older ones do.
_reciprocal = getattr(pltpu, "reciprocal", None) or pl.reciprocal

_Ref: TypeAlias = Any
_Slice: TypeAlias = Any


class _Cut(NamedTuple):
    """A walk's size, and how it is cut into blocks."""

    row_count: int
    step_count: int
    column_count: int
    rows: int
    """Of a block, and so on."""
    steps: int
    lanes: int

    @property
    def grid(self) -> tuple[int, int]:
        return pl.cdiv(self.row_count, self.rows), pl.cdiv(self.step_count, self.steps)

    def first(self, start: Array) -> Array:
        """The block of steps that the first live one is in."""
        return jnp.minimum(lax.div(start, np.int32(self.steps)), self.grid[1] - 1)


def _arrays_a_step(every_blank: bool) -> int:
    return _ARRAYS_A_STEP + every_blank * _BLANKS_A_STEP


def _fitting(states: int, every_blank: bool) -> int:
    """Steps that VMEM has room for, of so many states of each kind."""
    return (_VMEM // (4 * states) - _ARRAYS) // _arrays_a_step(every_blank)


def _widest(every_blank: bool) -> int:
    """Columns of which a register's rows, and as many steps, fit into VMEM."""
    arrays = _ARRAYS + _arrays_a_step(every_blank) * _SUBLANES
    return _VMEM // (4 * arrays * _SUBLANES * _LANES) * _LANES


def _cut(shape: tuple[int, ...], size: int = _MOST_STEPS, *, every_blank: bool = False) -> _Cut:
    """Into blocks of about `size` steps or, where VMEM has no room for so many, fewer."""
    sequences, _, step_count, columns = shape
    lanes = pl.cdiv(columns, _LANES) * _LANES
    registers = pl.cdiv(2 * sequences, _SUBLANES)
    together = max(_TOGETHER * _LANES // lanes, 1)
    rows = pl.cdiv(registers, pl.cdiv(registers, together)) * _SUBLANES
    fitting = max(_fitting(rows * lanes, every_blank) // _SUBLANES, 1)
    steps = min(pl.cdiv(size, _SUBLANES), fitting, _MOST_STEPS // _SUBLANES) * _SUBLANES
    return _Cut(2 * sequences, step_count, columns, rows, steps, lanes)


def objection(shape: tuple[int, ...], dtype: jnp.dtype, *, every_blank: bool = False) -> str | None:
    """Why a walk whose scores are of this shape is not for these kernels, or None."""
    if dtype != jnp.float32:
        return f"a TPU computes in float32, and the scores are of type {dtype}"
    if 0 in shape:
        return "there is no sequence"
    if shape[3] > (widest := _widest(every_blank)):
        return f"a lattice of {shape[3]} columns does not fit into VMEM, where there is room for {widest}"
    return None


class _Block(NamedTuple):
    """What a kernel holds of a walk: some steps of some rows."""

    cut: _Cut
    number: Array
    """Of the block of steps."""
    start: Array
    by_step: _Ref
    """(steps, rows, lanes), for the scores and what takes their place."""
    blank: tuple[_Ref, _Ref]
    """The exponents of the blank's emissions, and their mantissas."""
    skip: Bool[Array, "R W"]

    def fetch(self, scores: _Ref) -> None:
        """From rows of steps to steps of rows; of no label in the columns beyond the walk's."""
        inner = self.cut.lanes - _LANES

        def some(steps: _Slice, rows: _Slice) -> None:
            self.by_step[steps, rows] = scores[rows, steps].swapaxes(0, 1)
            edge = self.by_step[steps, rows, inner:]
            exists = lax.broadcasted_iota(jnp.int32, edge.shape, 2) < self.cut.column_count - inner
            self.by_step[steps, rows, inner:] = jnp.where(exists, edge, LOG_ZERO)

        self._in_tiles(some)

    def deliver(self, by_step: _Ref, by_row: _Ref) -> None:
        """And back."""

        def some(steps: _Slice, rows: _Slice) -> None:
            by_row[rows, steps] = by_step[steps, rows].swapaxes(0, 1)

        self._in_tiles(some)

    def forward_steps(self, states: States, visit: Callable[[Array, TransitionProbs], None]) -> States:
        """On by all steps of the block, whose shares are there to be kept."""

        def some(k: Array, count: int, states: States) -> States:
            for j in range(count):
                exponent, mantissa = (_column(x[...], k + j) for x in self.blank)
                blank, score = Scaled(mantissa, exponent), self.by_step[k + j]
                states, transition_probs = step(states, self.skip, blank, score, _shift_right, _ratio)
                visit(k + j, transition_probs)
            return renormalized(states)

        first, aligned, groups = self._live
        states = lax.fori_loop(first, aligned, lambda k, states: some(k, 1, states), states)
        return lax.fori_loop(0, groups, lambda i, states: some(aligned + i * _UNROLLED, _UNROLLED, states), states)

    def backward_steps(
        self,
        occupancy: Occupancy,
        transition_probs: Callable[[Array], TransitionProbs],
        visit: Callable[[Array, Occupancy], None],
    ) -> Occupancy:
        """Back by all steps of the block; a visit finds what has not been undone yet."""

        def some(k: Array, count: int, occupancy: Occupancy) -> Occupancy:
            for j in range(count):
                visit(k - j, occupancy)
                occupancy = backward_step(occupancy, transition_probs(k - j), self.skip, _shift_left)
            return occupancy

        first, aligned, groups = self._live
        last = aligned + groups * _UNROLLED - 1
        occupancy = lax.fori_loop(
            0, groups, lambda i, occupancy: some(last - i * _UNROLLED, _UNROLLED, occupancy), occupancy
        )
        return lax.fori_loop(
            first, aligned, lambda k, occupancy: some(first + aligned - 1 - k, 1, occupancy), occupancy
        )

    @property
    def _live(self) -> tuple[Array, Array, Array]:
        """The first step that reads a live frame; that from which they are taken `_UNROLLED` at a time; how often."""
        begin = self.number * self.cut.steps
        first = jnp.maximum(self.start - begin, 0)
        stop = jnp.minimum(self.cut.steps, self.cut.step_count - begin)
        groups = lax.div(stop - first, np.int32(_UNROLLED))
        return first, stop - groups * _UNROLLED, groups

    def _in_tiles(self, some: Callable[[_Slice, _Slice], None]) -> None:
        """Calls it with eight steps of eight rows at a time."""
        first, _, _ = self._live

        def each(i: Array, _: None) -> None:
            for row in range(0, self.cut.rows, _SUBLANES):
                some(pl.ds(i * _SUBLANES, _SUBLANES), pl.ds(row, _SUBLANES))

        lax.fori_loop(lax.div(first, np.int32(_SUBLANES)), self.cut.steps // _SUBLANES, each, None)


def _shift_right(x: Scaled) -> Scaled:
    """Round the edge: what the last column, which no target reaches, passes on to the first is nothing."""
    return Scaled(*(pltpu.roll(y, 1, axis=1) for y in x))


def _shift_left(x: Float[Array, "R W"]) -> Float[Array, "R W"]:
    """Round the edge: nothing leaves blank 0 but for itself, as exactly as `_ratio` says."""
    return pltpu.roll(x, x.shape[1] - 1, axis=1)


def _ratio(part: Float[Array, "R W"], whole: Float[Array, "R W"]) -> Float[Array, "R W"]:
    """What `scaled.Ratio` asks for does not come by itself where division is a product with the reciprocal."""
    return jnp.where(part == whole, 1, jnp.minimum(part * _reciprocal(whole, full_range=False), 1))


def _lane(rows: int, lanes: int = _LANES) -> Int[Array, "R K"]:
    return lax.broadcasted_iota(jnp.int32, (rows, lanes), 1)


def _column(x: Float[Array, "R K"], k: Array) -> Float[Array, "R 1"]:
    return jnp.where(_lane(len(x)) == k, x, 0).sum(axis=1, keepdims=True)


def _load(ref: _Ref) -> States:
    return States(Scaled(ref[0], ref[1]), Scaled(ref[2], ref[3]))


def _store(ref: _Ref, states: States) -> None:
    for i, x in enumerate(jax.tree.leaves(states)):
        ref[i] = x


def _forward_pass(
    cut: _Cut,
    start: _Ref,
    scores: _Ref,
    exponent: _Ref,
    mantissa: _Ref,
    skip: _Ref,
    last: _Ref,
    *rest: _Ref,
) -> None:
    """Leaves the last states and, if there is room for them, those before each block of steps."""
    *kept, states, by_step = rest
    number = pl.program_id(1)
    block = _Block(cut, number, start[0], by_step, (exponent, mantissa), skip[...] > 0)

    @pl.when(number == 0)
    def _() -> None:
        _store(states, initial_states(_lane(cut.rows, cut.lanes), by_step.dtype))

    @pl.when(number >= cut.first(start[0]))
    def _() -> None:
        before = _load(states)
        for each in kept:
            _store(each, before)
        block.fetch(scores)
        _store(states, block.forward_steps(before, lambda *_: None))

    @pl.when(number == cut.grid[1] - 1)
    def _() -> None:
        last[...] = states[...]


def _backward_pass(
    cut: _Cut,
    start: _Ref,
    scores: _Ref,
    exponent: _Ref,
    mantissa: _Ref,
    skip: _Ref,
    kept: _Ref,
    join: _Ref,
    label: _Ref,
    blank: _Ref,
    *rest: _Ref,
) -> None:
    """Leaves the posterior of each label and step, that of all blanks and, if there is room for it, of each."""
    *each, occupancy, by_step, transition_probs = rest  # by row, and by step
    number = cut.grid[1] - 1 - pl.program_id(1)
    block = _Block(cut, number, start[0], by_step, (exponent, mantissa), skip[...] > 0)

    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
        occupancy[...] = join[...]

    def keep(k: Array, now: TransitionProbs) -> None:
        for i, x in enumerate(now):
            transition_probs[k, i] = x

    def show(k: Array, now: Occupancy) -> None:
        by_step[k] = now.label
        for blanks in each[1:]:
            blanks[k] = now.blank
        blank[...] = jnp.where(_lane(cut.rows) == k, now.blank.sum(axis=1, keepdims=True), blank[...])

    @pl.when(number >= cut.first(start[0]))
    def _() -> None:
        block.fetch(scores)
        block.forward_steps(_load(kept), keep)
        backward_steps = block.backward_steps(
            Occupancy(occupancy[0], occupancy[1]),
            lambda k: TransitionProbs(transition_probs[k, 0], transition_probs[k, 1]),
            show,
        )
        for i, x in enumerate(backward_steps):
            occupancy[i] = x
        block.deliver(by_step, label)
        if each:
            block.deliver(*reversed(each))


class _Operands(NamedTuple):
    """A walk as the kernels take it."""

    start: Int[Array, " 1"]
    scores: Float[Array, "R M W"]
    exponent: Float[Array, "B R K"]
    """Those of `ScaledEmissions.blank`: of each block, its steps in lanes."""
    mantissa: Float[Array, "B R K"]
    skip: Float[Array, "R V"]


def _operands(emissions: ScaledEmissions, start: Index, cut: _Cut) -> _Operands:
    rows, blocks = cut.row_count, cut.grid[1]

    def in_lanes(x: Float[Array, "N 2 M+1"]) -> Float[Array, "B R K"]:
        x = x[:, :, :-1].reshape(rows, cut.step_count)
        x = jnp.pad(x, ((0, 0), (0, blocks * cut.steps - cut.step_count))).reshape(rows, blocks, cut.steps)
        return _to_lanes(x.swapaxes(0, 1), _LANES)

    return _Operands(
        jnp.asarray(start, jnp.int32)[None],
        emissions.kept.reshape(rows, cut.step_count, cut.column_count),
        in_lanes(emissions.blank.exponent),
        in_lanes(emissions.blank.mantissa),
        _to_lanes(emissions.skip.reshape(rows, cut.column_count).astype(emissions.kept.dtype), cut.lanes),
    )


def _to_lanes(x: Array, lanes: int) -> Array:
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, lanes - x.shape[-1])])


class _Specs(NamedTuple):
    """How the blocks of each operand follow one another. Blocks before the start are not even fetched."""

    scores: pl.BlockSpec
    by_lane: pl.BlockSpec
    skip: pl.BlockSpec
    kept: pl.BlockSpec
    states: pl.BlockSpec
    occupancy: pl.BlockSpec


def _specs(cut: _Cut, *, backward: bool = False) -> _Specs:
    def spec(shape: tuple[int | None, ...], place: Callable[[Array, Array], tuple[Array | int, ...]]) -> pl.BlockSpec:
        """`place` is that of the block of rows r and steps n."""

        def index(r: Array, i: Array, start: _Ref) -> tuple[Array | int, ...]:
            n = cut.grid[1] - 1 - i if backward else i
            return place(r, jnp.maximum(n, cut.first(start[0])))

        return pl.BlockSpec(shape, index)

    rows, steps, lanes = cut.rows, cut.steps, cut.lanes
    return _Specs(
        scores=spec((rows, steps, lanes), lambda r, n: (r, n, 0)),
        by_lane=spec((None, rows, _LANES), lambda r, n: (n, r, 0)),
        skip=spec((rows, lanes), lambda r, _: (r, 0)),
        kept=spec((None, _STATES, rows, lanes), lambda r, n: (n, 0, r, 0)),
        states=spec((_STATES, rows, lanes), lambda r, _: (0, r, 0)),
        occupancy=spec((_FLOWS, rows, lanes), lambda r, _: (0, r, 0)),
    )


def _called(
    kernel: Callable[..., None],
    cut: _Cut,
    operands: Sequence[Array],
    inputs: Sequence[pl.BlockSpec],
    outputs: Sequence[tuple[pl.BlockSpec, tuple[int, ...]]],
    scratch: Sequence[tuple[int, ...]],
    *,
    in_place: dict[int, int],
    interpret: bool,
) -> list[Array]:
    """Outputs have a shape besides, and the type of the scores; some take the place of operands."""
    dtype, axes = operands[1].dtype, jax.typeof(operands[1]).manual_axis_type
    # Where 64 bits are JAX's default a kernel's constants have 32 all the same.
    with jax.enable_x64(dtype == jnp.float64):
        return pl.pallas_call(
            functools.partial(kernel, cut),
            out_shape=[jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=axes) for _, shape in outputs],
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                grid=cut.grid,
                in_specs=inputs,
                out_specs=[spec for spec, _ in outputs],
                scratch_shapes=[pltpu.VMEM(shape, dtype) for shape in scratch],
            ),
            input_output_aliases=in_place,
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
            interpret=interpret,
            name=f"ctc{kernel.__name__}",
        )(*operands)


def _run_forward(cut: _Cut, operands: _Operands, *, keep: bool, interpret: bool) -> tuple[States, list[Array]]:
    """The last states, and those before each block of steps if they are to be kept."""
    specs, tile = _specs(cut), (cut.rows, cut.lanes)
    shape = _STATES, cut.row_count, cut.lanes
    outputs = [(specs.states, shape), (specs.kept, (cut.grid[1], *shape))]
    last, *kept = _called(
        _forward_pass,
        cut,
        operands,
        inputs=[specs.scores, specs.by_lane, specs.by_lane, specs.skip],
        outputs=outputs if keep else outputs[:1],
        scratch=[(_STATES, *tile), (cut.steps, *tile)],
        in_place={},
        interpret=interpret,
    )
    return _load(last), kept


def _run_backward(
    cut: _Cut, operands: _Operands, kept: Array, join: Occupancy, *, every_blank: bool, interpret: bool
) -> list[Array]:
    """The posterior of each label, that of all blanks as `_Operands.exponent` is and, if wanted, of each."""
    specs, tile = _specs(cut, backward=True), (cut.rows, cut.lanes)
    each = (specs.scores, operands.scores.shape)
    return _called(
        _backward_pass,
        cut,
        [*operands, kept, jnp.stack(join)],
        inputs=[specs.scores, specs.by_lane, specs.by_lane, specs.skip, specs.kept, specs.occupancy],
        outputs=[each, (specs.by_lane, operands.exponent.shape), *[each] * every_blank],
        scratch=[*[(cut.steps, *tile)] * every_blank, (_FLOWS, *tile), (cut.steps, *tile), (cut.steps, _FLOWS, *tile)],
        # A block is fetched before anything is written there, and is not fetched again.
        in_place={1: 0, 2: 1},
        interpret=interpret,
    )


def likelihood(emissions: ScaledEmissions, start: Index = 0, *, interpret: bool = False) -> Scaled:
    """As `bidirectional.likelihood`."""
    cut = _cut(emissions.kept.shape)
    states, _ = _run_forward(cut, _operands(emissions, start, cut), keep=False, interpret=interpret)
    return _joined(states, emissions).likelihood


def posterior(
    emissions: ScaledEmissions, size: int, start: Index = 0, *, every_blank: bool = False, interpret: bool = False
) -> tuple[Scaled, Posterior]:
    """As `bidirectional.posterior`. Segments are blocks of steps: see `_cut`."""
    cut = _cut(emissions.kept.shape, size, every_blank=every_blank)
    operands = _operands(emissions, start, cut)
    states, (kept,) = _run_forward(cut, operands, keep=True, interpret=interpret)
    join = _joined(states, emissions)
    occupancy = Occupancy(*(_to_lanes(x.reshape(cut.row_count, -1), cut.lanes) for x in (join.blank, join.label)))
    label, blank, *each = _run_backward(cut, operands, kept, occupancy, every_blank=every_blank, interpret=interpret)
    blank = blank[:, :, : cut.steps].swapaxes(0, 1).reshape(cut.row_count, -1)[:, : cut.step_count]
    label, *each = (x.reshape(emissions.kept.shape) for x in (label, *each))
    return join.likelihood, Posterior(label, blank.reshape(emissions.kept.shape[:3]), *each)


def _joined(states: States, emissions: ScaledEmissions) -> Join:
    sequences, _, _, columns = emissions.kept.shape
    blank, label = jax.tree.map(lambda x: x[:, :columns].reshape(sequences, 2, columns), states)
    return bidirectional.join_directions(blank, label, emissions)
