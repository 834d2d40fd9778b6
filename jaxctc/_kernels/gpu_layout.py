"""How the kernels for GPUs cut the lattice and the steps to fit into shared memory, and how their inputs are laid out.

The lattice's columns are cut into strips of as many tiles of 128 columns as a block of threads has room for, mostly one
strip. The steps are cut into segments, whose scores are in shared memory at once.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from jaxctc._forward_backward.scaled_emissions import ScaledEmissions
from jaxctc._kernels import warpgroup
from jaxctc._kernels.step import RENORMALIZE_EVERY
from jaxctc._sizes import Index
from jaxctc._types import LOG_ZERO

SHARED_BYTES = 224 << 10
"""Shared memory of one block of threads."""
LEAST_SEGMENT = 4
"""The least number of steps in a segment."""
MOST_TILES = 11
"""The most tiles in a strip: of more, not even the shortest segment fits."""
COPIED = 32
"""The least number of floats in one copy."""

_ALIGNMENT = 1 << 10

Memory: TypeAlias = dict[str, Any]
"""The shared memory and barriers of a kernel, by the names of the body's parameters."""
MemoryOf: TypeAlias = Callable[[int, int, bool], Memory]
"""Returns the memory for so many tiles, a segment of so many steps, and edges if there are."""


class Cut(NamedTuple):
    """The size of the recursion, and how it is cut into strips and segments."""

    steps: int
    columns: int
    strips: int
    tiles: int
    """The number of tiles in a strip."""
    segment_size: int
    """The number of steps in a segment."""

    @classmethod
    def of(cls, emissions: ScaledEmissions, memory: MemoryOf, most: int = RENORMALIZE_EVERY) -> "Cut":
        """Choose the fewest strips, and segments of as many steps as fit, at most `most`."""
        *_, steps, columns = emissions.stored_scores.shape
        tiles = pl.cdiv(columns, warpgroup.THREADS)
        strips = pl.cdiv(tiles, MOST_TILES)
        tiles = pl.cdiv(tiles, strips)
        return cls(steps, columns, strips, tiles, _segment_size(memory, tiles, strips > 1, most))

    @property
    def widths(self) -> list[int]:
        """The numbers of tiles that the kernels are compiled for: powers of two, and that of a strip."""
        return [*(1 << k for k in range(self.tiles.bit_length()) if 1 << k < self.tiles), self.tiles]

    @property
    def has_edges(self) -> bool:
        """Whether strips pass values on to one another."""
        return self.strips > 1

    @property
    def segments(self) -> int:
        return pl.cdiv(self.steps, self.segment_size)

    @property
    def added_steps(self) -> int:
        """The number of steps that are added before the first, so that the first segment is complete."""
        return self.segments * self.segment_size - self.steps

    def pad_steps(self, x: Float[Array, "N 2 M ..."], filler: float = 0) -> Float[Array, "N 2 M ..."]:
        """Add the steps that make the first segment complete."""
        added = ((0, 0), (0, 0), (self.added_steps, 0), *[(0, 0)] * (x.ndim - 3))
        return jnp.pad(x, added, constant_values=filler)

    def to_strips(self, x: Float[Array, "N 2 ... W"], filler: float = 0) -> Float[Array, "B N 2 ... K 128"]:
        """Cut the columns into strips, after adding columns that make the last strip complete."""
        added = self.strips * self.tiles * warpgroup.THREADS - self.columns
        x = jnp.pad(x, (*[(0, 0)] * (x.ndim - 1), (0, added)), constant_values=filler)
        return jnp.moveaxis(x.reshape(*x.shape[:-1], self.strips, self.tiles, warpgroup.THREADS), -3, 0)

    def from_strips(self, x: Float[Array, "B N 2 ... K 128"]) -> Float[Array, "N 2 ... W"]:
        """Undo `to_strips`."""
        x = jnp.moveaxis(x, 0, -3)
        return x.reshape(*x.shape[:-3], self.strips * self.tiles * warpgroup.THREADS)[..., : self.columns]

    def scan_strips(self, body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, strips: Any, **options: Any) -> Any:
        """Return the stacked results of `lax.scan` over the strips; a single one needs no loop."""
        if self.strips > 1:
            return lax.scan(body, carry, strips, **options)[1]
        return jax.tree.map(lambda x: x[None], body(carry, jax.tree.map(lambda x: x[0], strips))[1])


class KernelInputs(NamedTuple):
    """The scaled emissions as the kernels read them, in K complete tiles and G complete segments.

    These are the inputs of one strip; those of all B strips have one more axis, before all others.
    """

    scores: Float[Array, "N 2 M K 128"]
    skip: Int[Array, "N 2 K 128"]
    span: Int[Array, "N 2 3"]
    """How many labels the target has from the strip's first column on, less than 0 if it ends before; the number of
    that column; and the first live step, which is beyond the last if the target ends before the strip.
    """
    per_step: Float[Array, "N 2 G E 32"]
    """In each segment, rows of one number per step: mantissas and exponents of `ScaledEmissions.blank` and, if there
    are edges, of what arrives from the strip before.
    """


def kernel_inputs(cut: Cut, emissions: ScaledEmissions, start: Index) -> KernelInputs:
    """Return the inputs of all strips, with zeros for what arrives from other strips."""
    # The blank's emission in the added steps is one, whose mantissa and exponent are 0.
    scores = [cut.pad_steps(x[:, :, :-1]) for x in emissions.blank]
    blank = jnp.stack([x.reshape(*x.shape[:2], cut.segments, cut.segment_size) for x in scores], axis=3)
    added = (0, 2 * cut.has_edges), (0, COPIED - cut.segment_size)
    first_column = lax.broadcasted_iota(jnp.int32, (cut.strips, *emissions.first.shape), 0)
    first_column = first_column * (cut.tiles * warpgroup.THREADS)
    labels = emissions.target_lengths[None, :, None] - first_column
    beyond_target = labels < 0
    first_live = (jnp.maximum(emissions.first, start) + cut.added_steps)[None]
    first_live = jnp.where(beyond_target, cut.segments * cut.segment_size, first_live)
    per_step = jnp.pad(blank, ((0, 0), (0, 0), (0, 0), *added))
    return KernelInputs(
        cut.to_strips(cut.pad_steps(emissions.stored_scores, LOG_ZERO), LOG_ZERO),
        cut.to_strips(emissions.skip.astype(jnp.int32)),
        jnp.stack([labels, first_column, first_live], axis=-1),
        jnp.broadcast_to(per_step, (cut.strips, *per_step.shape)),
    )


def bytes_of(memory: Memory) -> int:
    """Return how many bytes of shared memory this takes."""
    shapes = (x.shape for x in memory.values() if not isinstance(x, plgpu.Barrier))
    return sum(pl.cdiv(4 * math.prod(shape), _ALIGNMENT) * _ALIGNMENT for shape in shapes)


def _segment_size(memory: MemoryOf, tiles: int, edges: bool, most: int) -> int:
    size = RENORMALIZE_EVERY
    while size > LEAST_SEGMENT and (size > most or bytes_of(memory(tiles, size, edges)) > SHARED_BYTES):
        size //= 2
    return size
