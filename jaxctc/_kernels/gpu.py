"""The recursion of `bidirectional` as kernels for NVIDIA GPUs: the frames are looped over inside.

A block of threads walks one direction of one sequence, from its own first live step on. Steps are taken in segments:
while one is walked the scores of the next are copied to shared memory, and before each the states are normalised.

One kernel walks inward and leaves the states before each segment behind; XLA joins the two directions
(`bidirectional.join_directions`); and one walks outward, from the last segment to the first. There one warpgroup
walks each segment again and keeps its shares in shared memory, and another, one segment behind, undoes it, step by
step. The posterior takes the place of the scores. No thread adds to what another has written: results are the same from run to run.

Rows of one, two, four, ... tiles are each compiled on their own, and a block takes the narrowest that holds its
target: columns beyond are not computed. A lattice of more columns than a block has room for is cut into strips, which
are walked one after the other: inward from the first to the last, each with what the last column of the one before
has passed on at every step, and outward the other way.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Bool, Float, Int

from jaxctc._forward_backward import bidirectional, scaled
from jaxctc._forward_backward.bidirectional import Join, Posterior
from jaxctc._forward_backward.scaled import Scaled
from jaxctc._forward_backward.scaled_emissions import Index, ScaledEmissions
from jaxctc._kernels.step import (
    ROOM,
    Occupancy,
    States,
    TransitionProbs,
    backward_step,
    initial_states,
    renormalized,
    step,
)
from jaxctc._kernels.warpgroup import COMPILER, THREADS, Ref, Shift, Stream, Warpgroup
from jaxctc._mesh import divided
from jaxctc._types import LOG_ZERO

PRECISION = lax.DotAlgorithmPreset.BF16_BF16_F32_X6
"""Of a product with ones and noughts: three numbers of 8 bits hold all 24 of a float, and tensor cores take them."""

_SHARED = 224 << 10
"""Bytes of shared memory for one block."""
_ALIGNED = 1 << 10
_LEAST = 4
"""Steps of a segment."""
_MOST_TILES = 11
"""In a strip: of more not even the shortest segment fits."""
_GENERATIONS = ("9", "10")
"""Hopper and Blackwell, but not Blackwell for desktops: that is 12."""
_COPIED = 32
"""Numbers, at least, in one copy."""

_Memory = dict[str, Any]
_Sizes = Callable[[int, int, bool], _Memory]
"""The memory for so many tiles, a segment of so many steps, and edges if there are."""


def objection(dtype: jnp.dtype, *, varies: bool = False) -> str | None:
    """Why a walk whose scores are of this type is not for these kernels, or None."""
    if varies:
        return "Pallas knows no values that vary from device to device: call jax.shard_map with check_vma=False"
    if dtype != jnp.float32:
        return f"they compute in float32, and the scores are {dtype}"
    for version in _capabilities():
        if version.split(".")[0] not in _GENERATIONS:
            return f"they are for GPUs of compute capability 9 and 10, and that of this one is {version}"
    return None


def _capabilities() -> set[str]:
    """Of this process's GPUs. It may have none, and compile for one elsewhere."""
    try:
        return {device.compute_capability for device in jax.local_devices(backend="cuda")}
    except RuntimeError:
        return set()


class _Cut(NamedTuple):
    """How a walk is cut into strips of tiles, and segments."""

    steps: int
    columns: int
    strips: int
    tiles: int
    """Of a strip."""
    size: int
    """Steps of a segment."""

    @property
    def widths(self) -> list[int]:
        """Of rows, in tiles."""
        return [*(1 << k for k in range(self.tiles.bit_length()) if 1 << k < self.tiles), self.tiles]

    @property
    def edges(self) -> bool:
        """Whether strips have something to pass on."""
        return self.strips > 1

    @property
    def segments(self) -> int:
        return pl.cdiv(self.steps, self.size)

    @property
    def early(self) -> int:
        """Steps that are added before the first, so that all segments are whole."""
        return self.segments * self.size - self.steps

    @classmethod
    def of(cls, emissions: ScaledEmissions, memory: _Sizes, most: int = ROOM) -> "_Cut":
        *_, steps, columns = emissions.kept.shape
        tiles = pl.cdiv(columns, THREADS)
        strips = pl.cdiv(tiles, _MOST_TILES)
        tiles = pl.cdiv(tiles, strips)
        return cls(steps, columns, strips, tiles, _size(memory, tiles, strips > 1, most))

    def rows(self, x: Float[Array, "N 2 ... W"], filler: float = 0) -> Float[Array, "B N 2 ... K 128"]:
        """Columns are added after the last, so that all strips are whole."""
        late = self.strips * self.tiles * THREADS - self.columns
        x = jnp.pad(x, (*[(0, 0)] * (x.ndim - 1), (0, late)), constant_values=filler)
        return jnp.moveaxis(x.reshape(*x.shape[:-1], self.strips, self.tiles, THREADS), -3, 0)

    def columns_of(self, rows: Float[Array, "B N 2 ... K 128"]) -> Float[Array, "N 2 ... W"]:
        rows = jnp.moveaxis(rows, 0, -3)
        return rows.reshape(*rows.shape[:-3], self.strips * self.tiles * THREADS)[..., : self.columns]

    def over_strips(self, body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, strips: Any, **request: Any) -> Any:
        """As `lax.scan`, whose results it gives; of a single strip there is no loop."""
        if self.strips > 1:
            return lax.scan(body, carry, strips, **request)[1]
        return jax.tree.map(lambda x: x[None], body(carry, jax.tree.map(lambda x: x[0], strips))[1])


class _Given(NamedTuple):
    """What the kernels read of a walk, in whole tiles and segments: K and G of them.

    Of one strip; where there is an axis more, before all others, of all B.
    """

    scores: Float[Array, "N 2 M K 128"]
    skip: Int[Array, "N 2 K 128"]
    span: Int[Array, "N 2 3"]
    """Labels from the strip's first column on, less than 0 if it is beyond the target; the number of that column; and
    the first live step, where beyond the target there is none.
    """
    per_step: Float[Array, "N 2 G E 32"]
    """Mantissas and exponents of each segment's steps, and room for more: of `ScaledEmissions.blank` and, if there are
    edges, of what arrives from the strip before.
    """


def _given(cut: _Cut, emissions: ScaledEmissions, start: Index) -> _Given:
    """Of all strips; nothing arrives."""

    def whole(x: Array, filler: float = 0) -> Array:
        return jnp.pad(x, ((0, 0), (0, 0), (cut.early, 0), *[(0, 0)] * (x.ndim - 3)), constant_values=filler)

    scores = [whole(x[:, :, :-1], one) for x, one in zip(emissions.blank, (1, 0), strict=True)]
    blank = jnp.stack([x.reshape(*x.shape[:2], cut.segments, cut.size) for x in scores], axis=3)
    room = (0, 2 * cut.edges), (0, _COPIED - cut.size)
    offset = lax.broadcasted_iota(jnp.int32, (cut.strips, *emissions.first.shape), 0) * (cut.tiles * THREADS)
    length = emissions.target_lengths[None, :, None] - offset
    first = jnp.where(length < 0, cut.segments * cut.size, (jnp.maximum(emissions.first, start) + cut.early)[None])
    per_step = jnp.pad(blank, ((0, 0), (0, 0), (0, 0), *room))
    return _Given(
        cut.rows(whole(emissions.kept, LOG_ZERO), LOG_ZERO),
        cut.rows(emissions.skip.astype(jnp.int32)),
        jnp.stack([length, offset, first], axis=-1),
        jnp.broadcast_to(per_step, (cut.strips, *per_step.shape)),
    )


class _Way(NamedTuple):
    """One direction of one sequence; what it reads is named as in `_Given`."""

    cut: _Cut
    threads: Warpgroup
    scores: Ref
    skip: Bool[Array, "K 128"]
    offset: Int[Array, ""]
    first_live: Int[Array, ""]
    """The first step that is."""
    per_step: Ref

    @property
    def first(self) -> Int[Array, ""]:
        """The segment that this step is in."""
        return self.first_live // self.cut.size

    def segment(self, s: Array) -> list[Ref]:
        steps = pl.ds(s * self.cut.size, self.cut.size)
        return [self.scores.at[steps, pl.ds(0, self.threads.tiles)], self.per_step.at[s]]

    def forward_steps(
        self,
        s: Array,
        segment: list[Ref],
        states: States,
        shift_right: Shift,
        keep: Callable[[Array, TransitionProbs], None],
        edges: list[Array],
    ) -> tuple[States, list[Array]]:
        """On by a segment, which is in shared memory. Its shares may be kept; what it passes on joins the edges."""
        scores, per_step = segment
        dead = self.first_live - s * self.cut.size

        def one(
            j: Array, carry: tuple[States, TransitionProbs, list[Array]]
        ) -> tuple[States, TransitionProbs, list[Array]]:
            states, before, edges = carry
            # What is there in steps that no frame was read for may be anything.
            score = jnp.where(j < dead, LOG_ZERO, self.threads.load(scores.at[j]))
            blank = Scaled(*(jnp.full(self.skip.shape, per_step[k, j]) for k in range(2)))
            arriving = [per_step[k, j] for k in range(2, per_step.shape[0])]
            states, transition_probs = step(
                states, self.skip, blank, score, lambda x: Scaled(*shift_right(j & 1, x, arriving)), _ratio, _exp2
            )
            # One step late: a shift waits for all that is stored before it. (What the first is late for is nothing.)
            keep((j - 1) & (self.cut.size - 1), before)
            return states, transition_probs, self.passed_on(edges, j, shift_right)

        nothing = TransitionProbs(self.threads.full(0), self.threads.full(0))
        states, last, edges = self.loop(one, (states, nothing, edges))
        keep(jnp.int32(self.cut.size - 1), last)
        return renormalized(states), edges

    def backward_steps(
        self,
        occupancy: Occupancy,
        transition_probs: Callable[[Array], TransitionProbs],
        shift_left: Shift,
        visit: Callable[[Array, Occupancy], None],
        arriving: Ref | None,
        edges: list[Array],
    ) -> tuple[Occupancy, list[Array]]:
        """Back by a segment. A visit finds what has not been undone yet."""

        def one(back: Array, carry: tuple[Occupancy, list[Array]]) -> tuple[Occupancy, list[Array]]:
            occupancy, edges = carry
            j = self.cut.size - 1 - back
            now = transition_probs(j)
            visit(j, occupancy)

            def shifted(row: Array) -> Array:
                return shift_left(j & 1, (row,), [] if arriving is None else [arriving[0, j]])[0]

            occupancy = backward_step(occupancy, now, self.skip, shifted)
            return occupancy, self.passed_on(edges, j, shift_left)

        return self.loop(one, (occupancy, edges))

    def passed_on(self, edges: list[Array], j: Array, shift: Shift) -> list[Array]:
        """With what leaves the strip in this step, if there are edges."""
        if not edges:
            return edges
        return [jnp.where(self.edge.columns == j, x, edge) for x, edge in zip(shift.leaving(j & 1), edges, strict=True)]

    @property
    def edge(self) -> Warpgroup:
        """Of rows that hold a step in a column."""
        return self.threads._replace(tiles=1)

    def loop(self, body: Callable[[Array, Any], Any], carry: Any) -> Any:
        """Over the steps of a segment; where a row is narrow, many are scheduled together."""
        unroll = 1 if self.threads.interpret else max(self.cut.size >> (self.threads.tiles - 1).bit_length(), 2)
        return lax.fori_loop(0, self.cut.size, body, carry, unroll=unroll)

    def backward(self, body: Callable[[Array, Any], Any], carry: Any) -> Any:
        """Over its segments, from the last to the first."""
        last = self.cut.segments - 1
        return lax.fori_loop(0, last + 1 - self.first, lambda back, carry: body(last - back, carry), carry)


def _ratio(part: Float[Array, "K 128"], whole: Float[Array, "K 128"]) -> Float[Array, "K 128"]:
    """As `scaled.Ratio` asks. A division would be a branch, and the hardware's own reciprocal takes longer."""
    # The bits of a float are nearly its logarithm; the constant is nearly that of 2^127, twice.
    bits = jnp.int32(0x7EF311C7) - lax.bitcast_convert_type(whole, jnp.int32)
    reciprocal = lax.bitcast_convert_type(bits, jnp.float32)
    missing = 1 - whole * reciprocal
    reciprocal = reciprocal + reciprocal * (missing + missing * missing)
    ratio = part * reciprocal
    ratio = ratio + (part - ratio * whole) * reciprocal
    return jnp.where(part == whole, 1, jnp.minimum(ratio, 1))


def _exp2(x: Float[Array, "K 128"]) -> Scaled:
    def floor(x: Array) -> Array:  # which cannot be lowered, by what can
        nearest = lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN)
        return nearest - jnp.where(nearest > x, 1.0, 0.0)

    return scaled.exp2(x, floor)


def _load_states(threads: Warpgroup, ref: Ref) -> States:
    blank, label = (Scaled(*(threads.load(ref.at[k, part]) for part in range(2))) for k in range(2))
    return States(blank, label)


def _store_states(threads: Warpgroup, ref: Ref, states: States) -> None:
    for k, state in enumerate(states):
        for part, row in enumerate(state):
            threads.store(ref.at[k, part], row)


def _forward_memory(tiles: int, size: int, edges: bool) -> _Memory:
    return {
        "scores": plgpu.SMEM((2, size, tiles, THREADS), jnp.float32),
        "per_step": plgpu.SMEM((2, 4 if edges else 2, _COPIED), jnp.float32),
        "arrived": plgpu.Barrier(num_arrivals=2, num_barriers=2),
        "right": plgpu.SMEM((2, 2, tiles * THREADS + 1), jnp.float32),
    }


def _forward_pass(
    way: _Way, kept: Ref, *passed_on: Ref, everything: bool, arrived: Ref, right: Ref, **room: Ref
) -> None:
    """Leaves the last states and, if wanted, those before each segment; and what the next strip is to be given."""
    threads, count = way.threads, way.cut.segments
    shift_right = Shift(threads, right, written=1, read=0)
    shift_right.prepare((1.0, LOG_ZERO))
    stream = Stream(way.segment, [room["scores"], room["per_step"]], arrived)
    pl.when(way.first < count)(lambda: stream.start(way.first))

    def segment(s: Array, states: States) -> States:
        pl.when(s + 1 < count)(lambda: stream.start(s + 1))
        if everything:
            _store_states(threads, kept.at[s], states)
        edges = [way.edge.full(0) for _ in range(2 * len(passed_on))]
        states, edges = way.forward_steps(s, stream.wait(s), states, shift_right, lambda *_: None, edges)
        for k, edge in enumerate(edges):
            way.edge.store(passed_on[0].at[s, k], edge)
        return states

    states = jax.tree.map(threads.spread, initial_states(threads.columns + way.offset, jnp.dtype(jnp.float32)))
    states = lax.fori_loop(way.first, count, segment, states)
    _store_states(threads, kept.at[count if everything else 0], states)


def _backward_memory(tiles: int, size: int, edges: bool) -> _Memory:
    return {
        **_forward_memory(tiles, size, edges),
        "states": plgpu.SMEM((2, 2, 2, tiles, THREADS), jnp.float32),
        "arrived": plgpu.Barrier(num_arrivals=3, num_barriers=2),
        "left": plgpu.SMEM((2, 1, tiles * THREADS + 1), jnp.float32),
        "transition_probs": plgpu.SMEM((2, size, 2, tiles, THREADS), jnp.float32),
        "full": plgpu.Barrier(num_barriers=2),
        "empty": plgpu.Barrier(num_barriers=2),
        **({"edge": plgpu.SMEM((1, THREADS), jnp.float32)} if edges else {}),
    }


def _backward_pass(
    way: _Way,
    kept: Ref,
    join: Ref,
    *rest: Ref,
    transition_probs: Ref,
    full: Ref,
    empty: Ref,
    left: Ref,
    edge: Ref | None = None,
    **walking: Ref,
) -> None:
    """Leaves the posterior of each label, that of all blanks together and, if wanted, of each.

    With edges, after the meeting comes what arrives from the next strip at each step, and last what this one passes on
    to the one before. The shares of two segments have room, those of even and of odd ones.
    """
    part = lax.axis_index("part")
    edges = None if edge is None else _Edges(rest[0], edge, rest[-1])
    found = rest if edges is None else rest[1:-1]
    # Nothing can be read and written again where the kernel is only interpreted.
    label, total, *blanks = found if way.threads.interpret else (way.scores, *found)
    pl.when(part == 0)(lambda: _recompute(way, kept, transition_probs, full, empty, **walking))
    pl.when(part == 1)(
        lambda: _backward_part(way, join, label, total, blanks, transition_probs, full, empty, left, edges)
    )


class _Edges(NamedTuple):
    """By segment and step, what the outermost columns of strips give one another on the way out."""

    arriving: Ref
    place: Ref
    """For one segment's, where a step can be read."""
    passed_on: Ref


def _recompute(
    way: _Way,
    kept: Ref,
    transition_probs: Ref,
    full: Ref,
    empty: Ref,
    *,
    scores: Ref,
    per_step: Ref,
    states: Ref,
    arrived: Ref,
    right: Ref,
) -> None:
    threads, count = way.threads, way.cut.segments
    shift_right = Shift(threads, right, written=1, read=0)
    shift_right.prepare((1.0, LOG_ZERO))

    def sources(s: Array) -> list[Ref]:
        return [*way.segment(s), kept.at[s, :, :, pl.ds(0, threads.tiles)]]

    stream = Stream(sources, [scores, per_step, states], arrived)
    pl.when(way.first < count)(lambda: stream.start(jnp.int32(count - 1)))

    def segment(s: Array, _: None) -> None:
        def keep(j: Array, now: TransitionProbs) -> None:
            for part, share in enumerate(now):
                threads.store(transition_probs.at[s & 1, j, part], share)

        pl.when(s > way.first)(lambda: stream.start(s - 1))
        *given, before = stream.wait(s)
        pl.when(s + 2 < count)(lambda: plgpu.barrier_wait(empty.at[s & 1]))
        way.forward_steps(s, given, _load_states(threads, before), shift_right, keep, [])
        plgpu.barrier_arrive(full.at[s & 1])

    way.backward(segment, None)


def _backward_part(
    way: _Way,
    join: Ref,
    label: Ref,
    total: Ref,
    blanks: list[Ref],
    transition_probs: Ref,
    full: Ref,
    empty: Ref,
    left: Ref,
    edges: _Edges | None,
) -> None:
    threads = way.threads
    shift_left = Shift(threads, left, written=0, read=1)
    shift_left.prepare((0.0,))

    def segment(s: Array, occupancy: Occupancy) -> Occupancy:
        mine = transition_probs.at[s & 1]

        def visit(j: Array, occupancy: Occupancy) -> None:
            threads.store_padded(label.at[s * way.cut.size + j], occupancy.label)
            for each in blanks:
                threads.store_padded(each.at[s * way.cut.size + j], occupancy.blank)
            # Where its share was, until all are added up.
            threads.store(mine.at[j, 0], occupancy.blank)

        def shares_of(j: Array) -> TransitionProbs:
            return TransitionProbs(*(threads.load(mine.at[j, k]) for k in range(2)))

        if edges:
            way.edge.store(edges.place, way.edge.load(edges.arriving.at[s]))
            threads.wait()
        plgpu.barrier_wait(full.at[s & 1])
        arriving, leaving = (edges.place, [way.edge.full(0)]) if edges else (None, [])
        occupancy, leaving = way.backward_steps(occupancy, shares_of, shift_left, visit, arriving, leaving)
        threads.wait()
        threads.add_up(mine.at[:, 0], total.at[s])
        if edges:
            way.edge.store(edges.passed_on.at[s], *leaving)
        pl.when(s - 2 >= way.first)(lambda: plgpu.barrier_arrive(empty.at[s & 1]))
        return occupancy

    way.backward(segment, Occupancy(*(threads.load(join.at[k]) for k in range(2))))


def _size(memory: _Sizes, tiles: int, edges: bool, most: int) -> int:
    """Steps of a segment: as many as there is shared memory for."""
    size = ROOM
    while size > _LEAST and (size > most or _bytes(memory(tiles, size, edges)) > _SHARED):
        size //= 2
    return size


def _bytes(memory: _Memory) -> int:
    shapes = (x.shape for x in memory.values() if not isinstance(x, plgpu.Barrier))
    return sum(pl.cdiv(4 * math.prod(shape), _ALIGNED) * _ALIGNED for shape in shapes)


class _Kernel(NamedTuple):
    """Runs a body for each direction of each sequence, in rows that suit its target."""

    name: str
    body: Callable[..., None]
    memory: _Sizes
    parts: int | None = None
    """Warpgroups, if more than one."""

    def __call__(self, cut: _Cut, out: list[jax.ShapeDtypeStruct], interpret: Any) -> Callable[..., list[Array]]:
        sequences, directions, *_ = out[0].shape
        mesh = plgpu.Mesh(
            grid=(directions, sequences),  # the last is the one that CUDA sets no limit to
            grid_names=("direction", "sequence"),
            num_threads=self.parts,
            thread_name="part" if self.parts else None,
        )

        def blocks(scores: Ref, skip: Ref, span: Ref, per_step: Ref, *rest: Ref) -> None:
            n, d = lax.axis_index("sequence"), lax.axis_index("direction")
            length, offset, first_live = (span[n, d, k] for k in range(3))

            def as_wide_as(tiles: int) -> None:
                threads = Warpgroup(tiles, interpret)
                states_after = threads.load(skip.at[n, d]) != 0
                way = _Way(cut, threads, scores.at[n, d], states_after, offset, first_live, per_step.at[n, d])
                body = functools.partial(self.body, way, *(x.at[n, d] for x in rest))
                memory = self.memory(tiles, cut.size, cut.edges)
                pl.run_scoped(body, collective_axes=mesh.thread_name or (), **memory)

            narrower = sum((length >= width * THREADS).astype(jnp.int32) for width in cut.widths[:-1])
            lax.switch(narrower, [functools.partial(as_wide_as, width) for width in cut.widths])

        return pl.kernel(
            blocks, out_type=out, mesh=mesh, compiler_params=COMPILER, interpret=interpret or False, name=self.name
        )


_FORWARD = _Kernel("ctc_inward", functools.partial(_forward_pass, everything=True), _forward_memory)
_LAST = _Kernel("ctc_likelihood", functools.partial(_forward_pass, everything=False), _forward_memory)
_BACKWARD = _Kernel("ctc_outward", _backward_pass, _backward_memory, 2)


def _folded(function: Callable[..., Any], interpret: Any) -> Callable[..., Any]:
    """A function of sequences: those of all members of a mapped batch are one batch, and each device has its own."""
    # What an interpreter does has effects, which a function that is divided may not have.
    to_classes = jax.custom_batching.custom_vmap(function if interpret else divided(function))

    @to_classes.def_vmap
    def _(members: int, mapped: list[bool], *arguments: Array) -> tuple[Any, Any]:
        pairs = zip(arguments, mapped, strict=True)
        each = (x if own else jnp.broadcast_to(x, (members, *x.shape)) for x, own in pairs)
        # Each sequence with its members, and not the other way round, stays on its device.
        results = to_classes(*(x.swapaxes(0, 1).reshape(-1, *x.shape[2:]) for x in each))
        results = jax.tree.map(lambda x: x.reshape(-1, members, *x.shape[1:]).swapaxes(0, 1), results)
        return results, jax.tree.map(lambda _: True, results)

    return to_classes


def _room(scores: Float[Array, "N 2 M K 128"], *shape: int) -> jax.ShapeDtypeStruct:
    """For so much of each direction of each sequence."""
    return jax.ShapeDtypeStruct((*scores.shape[:2], *shape), jnp.float32)


def _run_forward(kernel: _Kernel, cut: _Cut, given: _Given, states: int, interpret: Any) -> tuple[Array, _Given]:
    """(B, N, 2, so many states, 2, 2, K, 128); and the walk with what arrives at each strip."""

    @functools.partial(_folded, interpret=interpret)
    def call(*given: Array) -> list[Array]:
        of = functools.partial(_room, given[0])
        out = [of(states, 2, 2, cut.tiles, THREADS), of(cut.segments, 2, 1, THREADS)]
        return kernel(cut, out if cut.edges else out[:1], interpret)(*given)

    def strip(arriving: Array | None, given: _Given) -> tuple[Array | None, tuple[Array, _Given]]:
        if arriving is not None:
            given = given._replace(per_step=given.per_step.at[:, :, :, 2:, : cut.size].set(arriving))
        kept, *passed_on = call(*given)
        return passed_on[0][:, :, :, :, 0, : cut.size] if passed_on else None, (kept, given)

    if not cut.edges:
        return cut.over_strips(strip, None, given)
    zero = scaled.zeros(given.per_step[0, :, :, :, 0, : cut.size].shape, given.per_step.dtype)
    return cut.over_strips(strip, jnp.stack(zero, axis=3), given)


def _run_backward(
    cut: _Cut, given: _Given, kept: Array, join: Array, *, every_blank: bool, interpret: Any
) -> list[Array]:
    """The posterior of labels, of all blanks, and of each, if wanted: of all strips.

    In rows before a direction's first live segment is whatever was in memory.
    """

    @functools.partial(_folded, interpret=interpret)
    def call(scores: Array, *rest: Array) -> list[Array]:
        of = functools.partial(_room, scores)
        each = of(*scores.shape[2:])
        out = [of(cut.segments, cut.size), *[each] * every_blank, *[of(cut.segments, 1, THREADS)] * cut.edges]
        if interpret:
            return _BACKWARD(cut, [each, *out], interpret)(scores, *rest)

        def run(refs: list[Ref]) -> None:
            label, *others = refs
            for ref, value in zip(others, _BACKWARD(cut, out, interpret)(label, *rest), strict=True):
                ref[...] = value

        return pl.run_state(run)([scores, *(jnp.zeros(x.shape, x.dtype) for x in out)])

    def strip(arriving: Array | None, operands: tuple[_Given, Array, Array]) -> tuple[Array | None, list[Array]]:
        given, kept, join = operands
        if arriving is None:
            return None, call(*given, kept, join)
        *found, passed_on = (
            # Of strips beyond the target nothing was written.
            jnp.where((given.span[:, 0, 0] < 0).reshape(-1, *[1] * (x.ndim - 1)), 0, x)
            for x in call(*given, kept, join, arriving)
        )
        return passed_on, found

    sequences = kept.shape[1]
    nothing = jnp.zeros((sequences, 2, cut.segments, 1, THREADS), jnp.float32) if cut.edges else None
    return cut.over_strips(strip, nothing, (given, kept, join), reverse=True)


def _meet(last: Float[Array, "N 2 2 2 W"], emissions: ScaledEmissions) -> Join:
    """The columns beyond a target were not written."""
    real = lax.broadcasted_iota(jnp.int32, (1, 1, last.shape[-1]), 2) <= emissions.target_lengths[:, None, None]
    blank, label = (Scaled(last[:, :, k, 0], last[:, :, k, 1]) for k in range(2))
    zero = scaled.zeros(blank.mantissa.shape, last.dtype)
    return bidirectional.join_directions(scaled.where(real, blank, zero), scaled.where(real, label, zero), emissions)


def likelihood(emissions: ScaledEmissions, start: Index = 0, *, interpret: Any = None) -> Scaled:
    """As `bidirectional.likelihood`. Nothing is padded if there are steps for whole segments, of `ROOM`."""
    if emissions.kept.size == 0:
        return bidirectional.likelihood(emissions, start)
    cut = _Cut.of(emissions, _forward_memory)
    last, _ = _run_forward(_LAST, cut, _given(cut, emissions, start), 1, interpret)
    return _meet(cut.columns_of(last[:, :, :, -1]), emissions).likelihood


def posterior(
    emissions: ScaledEmissions, size: int, start: Index = 0, *, every_blank: bool = False, interpret: Any = None
) -> tuple[Scaled, Posterior]:
    """As `bidirectional.posterior`. A segment has `size` steps or less, whatever shared memory has room for."""
    if emissions.kept.size == 0:
        return bidirectional.posterior(emissions, size, start, every_blank=every_blank)
    cut = _Cut.of(emissions, _backward_memory, size)
    kept, given = _run_forward(_FORWARD, cut, _given(cut, emissions, start), cut.segments + 1, interpret)
    join = _meet(cut.columns_of(kept[:, :, :, -1]), emissions)
    occupancy = cut.rows(jnp.stack([join.blank, join.label], axis=2))
    label, total, *blanks = _run_backward(cut, given, kept, occupancy, every_blank=every_blank, interpret=interpret)

    label, *blanks = (cut.columns_of(x)[:, :, cut.early :] for x in (label, *blanks))
    total = total.sum(axis=0).reshape(*total.shape[1:3], -1)[:, :, cut.early :]
    return join.likelihood, Posterior(label, total, *blanks)
