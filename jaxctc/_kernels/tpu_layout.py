"""How the kernels for TPUs cut their work into blocks that fit into VMEM, and how their operands are laid out.

A row is one direction of one sequence. In an array of states, (R, W), rows lie in sublanes and columns in lanes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from jaxctc._forward_backward.scaled_emissions import ScaledEmissions
from jaxctc._sizes import Index

SUBLANES, LANES = 8, 128
"""The shape of a register."""
UNROLLED = 4
"""Steps that are scheduled as one, after which the states are renormalized; at most `step.RENORMALIZE_EVERY`."""
STATE_ARRAYS, OCCUPANCY_ARRAYS = 4, 2
"""How many arrays the states and the occupancy consist of."""

_REGISTERS_PER_ARRAY = 16
"""How many registers of one array of states a kernel works on at once. While it rolls one, which takes long, it
computes with the others; more of them would have to be fetched from VMEM.
"""
_MOST_STEPS = LANES
"""The most steps in a block, since the blanks' scores of a block lie in lanes."""
_VMEM = 13 << 20
"""Bytes that a kernel may use; every TPU gives it 16 MB, of which the compiler needs some."""
_ARRAYS, _ARRAYS_PER_STEP = 22, 7
"""How many arrays of the size of one array of states a block needs in VMEM, once and for each step. A step has its
scores and its posterior twice each (for one block is copied while another is worked on), either of them transposed, and
the transition probabilities.
"""
_BLANK_ARRAYS_PER_STEP = 3
"""How many more a step needs if the posterior of each blank is wanted: that twice, and transposed."""

Ref: TypeAlias = Any


class Cut(NamedTuple):
    """The size of the recursion, and how it is cut into blocks of rows and steps."""

    row_count: int
    step_count: int
    column_count: int
    rows: int
    """The number of rows in a block."""
    steps: int
    """The number of steps in a block."""
    lanes: int
    """The number of columns, in whole registers."""

    @property
    def grid(self) -> tuple[int, int]:
        """The number of blocks of rows, and of blocks of steps."""
        return pl.cdiv(self.row_count, self.rows), pl.cdiv(self.step_count, self.steps)

    def first_block(self, start: Array) -> Array:
        """Return the block of steps that contains step `start`."""
        return jnp.minimum(lax.div(start, np.int32(self.steps)), self.grid[1] - 1)


def cut(shape: tuple[int, ...], steps: int = _MOST_STEPS, *, every_blank: bool = False) -> Cut:
    """Cut scores of this shape, (N, 2, M, W), into blocks of about `steps` steps, or fewer if VMEM has no more room."""
    sequences, _, step_count, columns = shape
    lanes = pl.cdiv(columns, LANES) * LANES
    registers = pl.cdiv(2 * sequences, SUBLANES)
    registers_per_block = max(_REGISTERS_PER_ARRAY * LANES // lanes, 1)
    rows = pl.cdiv(registers, pl.cdiv(registers, registers_per_block)) * SUBLANES
    fitting = max(_fitting_steps(rows * lanes, every_blank) // SUBLANES, 1)
    steps = min(pl.cdiv(steps, SUBLANES), fitting, _MOST_STEPS // SUBLANES) * SUBLANES
    return Cut(2 * sequences, step_count, columns, rows, steps, lanes)


def most_columns(every_blank: bool) -> int:
    """Return how many columns fit into VMEM, in a block of one register's rows and as many steps."""
    arrays = _ARRAYS + _arrays_per_step(every_blank) * SUBLANES
    return _VMEM // (4 * arrays * SUBLANES * LANES) * LANES


def _fitting_steps(array_size: int, every_blank: bool) -> int:
    return (_VMEM // (4 * array_size) - _ARRAYS) // _arrays_per_step(every_blank)


def _arrays_per_step(every_blank: bool) -> int:
    return _ARRAYS_PER_STEP + every_blank * _BLANK_ARRAYS_PER_STEP


class Operands(NamedTuple):
    """The scaled emissions as the kernels take them: B blocks of steps, V lanes for columns, K for a block's steps."""

    start: Int[Array, " 1"]
    scores: Float[Array, "R M W"]
    exponent: Float[Array, "B R K"]
    """The exponents of `ScaledEmissions.blank`: those of a block's steps lie in lanes."""
    mantissa: Float[Array, "B R K"]
    skip: Float[Array, "R V"]


def operands(emissions: ScaledEmissions, start: Index, cut: Cut) -> Operands:
    """Lay out the scaled emissions for the kernels; the scores, by far the most, are neither copied nor padded."""
    rows, blocks = cut.row_count, cut.grid[1]

    def in_lanes(x: Float[Array, "N 2 M+1"]) -> Float[Array, "B R K"]:
        x = x[:, :, :-1].reshape(rows, cut.step_count)
        x = jnp.pad(x, ((0, 0), (0, blocks * cut.steps - cut.step_count))).reshape(rows, blocks, cut.steps)
        return pad_lanes(x.swapaxes(0, 1), LANES)

    return Operands(
        jnp.asarray(start, jnp.int32)[None],
        emissions.stored_scores.reshape(rows, cut.step_count, cut.column_count),
        in_lanes(emissions.blank.exponent),
        in_lanes(emissions.blank.mantissa),
        pad_lanes(emissions.skip.reshape(rows, cut.column_count).astype(emissions.stored_scores.dtype), cut.lanes),
    )


def pad_lanes(x: Array, lanes: int) -> Array:
    """Pad the last axis with zeros to this size."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, lanes - x.shape[-1])])


class BlockSpecs(NamedTuple):
    """Which block of each kind of operand a point of the grid works on."""

    scores: pl.BlockSpec
    steps_in_lanes: pl.BlockSpec
    skip: pl.BlockSpec
    checkpoints: pl.BlockSpec
    states: pl.BlockSpec
    occupancy: pl.BlockSpec


def block_specs(cut: Cut, *, backward: bool = False) -> BlockSpecs:
    """Return the specs for a pass over the blocks of steps, forward or backward.

    At points before the first block they repeat its index: Pallas does not fetch a block again that is there already.
    """

    def spec(shape: tuple[int | None, ...], place: Callable[[Array, Array], tuple[Array | int, ...]]) -> pl.BlockSpec:
        """`place` returns the index of the block of rows r and steps n."""

        def index(r: Array, i: Array, start: Ref) -> tuple[Array | int, ...]:
            n = cut.grid[1] - 1 - i if backward else i
            return place(r, jnp.maximum(n, cut.first_block(start[0])))

        return pl.BlockSpec(shape, index)

    rows, steps, lanes = cut.rows, cut.steps, cut.lanes
    return BlockSpecs(
        scores=spec((rows, steps, lanes), lambda r, n: (r, n, 0)),
        steps_in_lanes=spec((None, rows, LANES), lambda r, n: (n, r, 0)),
        skip=spec((rows, lanes), lambda r, _: (r, 0)),
        checkpoints=spec((None, STATE_ARRAYS, rows, lanes), lambda r, n: (n, 0, r, 0)),
        states=spec((STATE_ARRAYS, rows, lanes), lambda r, _: (0, r, 0)),
        occupancy=spec((OCCUPANCY_ARRAYS, rows, lanes), lambda r, _: (0, r, 0)),
    )


def lane_numbers(rows: int, lanes: int = LANES) -> Int[Array, "R K"]:
    return lax.broadcasted_iota(jnp.int32, (rows, lanes), 1)
