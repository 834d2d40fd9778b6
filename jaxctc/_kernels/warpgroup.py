"""The 128 threads of a GPU that hold rows of columns together: how they read, write and wait for one another.

A row is so many tiles of 128 columns, (K, 128), and each thread holds one column of every tile, in registers. What
is said here runs on Hopper and Blackwell by Pallas's Mosaic GPU, whose own barriers are left out: they would stand
around every access.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.mosaic import gpu as mosaic
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

THREADS = 128
WARPS = 4
COMPILER = plgpu.CompilerParams(
    unsafe_no_auto_barriers=True,
    lowering_semantics=plgpu.LoweringSemantics.Lane,
)

# JAX 0.12 refuses a plain store of less than a sector; before there was no other, and it refused none.
_STORE = getattr(plgpu, "store", None)

Ref: TypeAlias = Any
Index: TypeAlias = int | Int[Array, ""]


class Warpgroup(NamedTuple):
    """And the width of its rows."""

    tiles: int
    interpret: Any
    """How Pallas interprets it on a CPU, if it does: that knows no layouts."""

    @property
    def columns(self) -> Int[Array, "K 128"]:
        count = self.tiles * THREADS
        return self.spread(lax.broadcasted_iota(jnp.int32, (count,), 0)).reshape(self.tiles, THREADS)

    def full(self, value: float) -> Float[Array, "K 128"]:
        return self.spread(jnp.full((self.tiles, THREADS), value, jnp.float32))

    def load(self, ref: Ref) -> Array:
        return self.spread(ref[pl.ds(0, self.tiles)])

    def store(self, ref: Ref, row: Array) -> None:
        ref[pl.ds(0, self.tiles)] = row

    def store_padded(self, ref: Ref, row: Array) -> None:
        """With zeros in the tiles beyond."""
        self.store(ref, row)
        beyond = ref.shape[0] - self.tiles
        if beyond:
            ref[pl.ds(self.tiles, beyond)] = self.spread(jnp.zeros((beyond, THREADS), jnp.float32))

    def spread(self, x: Array) -> Array:
        """One column after the other over the threads: the only layout that may be read with any offset."""
        if self.interpret:
            return x
        return plgpu.layout_cast(x, plgpu.Layout.WG_STRIDED(x.shape, vec_size=1))

    def add_up(self, rows: Ref, into: Ref) -> None:
        """Of rows in shared memory, a multiple of four, each warp adds up every fourth."""
        tiles = (self._by_warp(rows.at[:, k]) for k in range(self.tiles))
        totals = functools.reduce(operator.add, tiles).sum(axis=1)
        if self.interpret or _STORE is None:
            into[...] = totals
        else:
            _STORE(into, totals, optimized=False)

    def _by_warp(self, rows: Ref) -> Float[Array, "R 128"]:
        if self.interpret:
            return rows[...]
        tiling = plgpu.Tiling(((WARPS, THREADS), (THREADS // WARPS,), (1,)))
        return plgpu.layout_cast(rows[...], plgpu.Layout.TILED(tiling, warp_dims=(-4,), lane_dims=(-2,), vector_dim=-1))

    def wait(self) -> None:
        """For all its threads, and for what they have written to shared memory."""
        if self.interpret:
            plgpu.commit_smem()
        else:
            _barrier()


# `plgpu.commit_smem` waits for the units that copy as well.
_barrier = plgpu.inline_mgpu()(lambda _: mosaic.warpgroup_barrier())


class Shift(NamedTuple):
    """Gives each column what the one beside it holds, by way of shared memory, and the outermost what it is told."""

    threads: Warpgroup
    places: Ref
    """Two that take turns, so that one barrier is enough: no thread writes what another may still have to read."""
    written: int
    """The index of the first column in a place, as it is written,"""
    read: int
    """and as it is read."""

    def prepare(self, nothing: tuple[float, ...]) -> None:
        for turn in range(2):
            for part, value in enumerate(nothing):
                self._put(turn, part, self.read, self.threads.full(value))
        self.threads.wait()

    def __call__(self, turn: Index, rows: tuple[Array, ...], arriving: Sequence[Array] = ()) -> list[Array]:
        for part, row in enumerate(rows):
            self._put(turn, part, self.written, row)
        self.threads.wait()
        shifted = [self._get(turn, part) for part in range(len(rows))]
        if not arriving:
            return shifted
        outermost = self.threads.columns == (self._count - 1) * self.read
        return [
            jnp.where(outermost, jnp.full(row.shape, value), row) for row, value in zip(shifted, arriving, strict=True)
        ]

    def leaving(self, turn: Index) -> list[Array]:
        """What was in the column at the other end, of each row that was shifted last: it is in nobody's place."""
        return [self.places[turn, part, self._count * self.written] for part in range(self.places.shape[1])]

    @property
    def _count(self) -> int:
        return self.threads.tiles * THREADS

    def _put(self, turn: Index, part: int, first: int, row: Array) -> None:
        self.places[turn, part, pl.ds(first, row.size)] = row.reshape(row.size)

    def _get(self, turn: Index, part: int) -> Array:
        row = self.threads.spread(self.places[turn, part, pl.ds(self.read, self._count)])
        return row.reshape(self.threads.tiles, THREADS)


class Stream(NamedTuple):
    """Copies what is numbered to shared memory, ahead of its use: there is room for two numbers, even and odd."""

    sources: Callable[[Array], list[Ref]]
    """Of a number; each of a multiple of 128 bytes."""
    targets: list[Ref]
    arrived: Ref

    def start(self, number: Array) -> None:
        k = number & 1
        for source, target in zip(self.sources(number), self.targets, strict=True):
            plgpu.copy_gmem_to_smem(source, target.at[k], self.arrived.at[k])

    def wait(self, number: Array) -> list[Ref]:
        k = number & 1
        plgpu.barrier_wait(self.arrived.at[k])
        return [target.at[k] for target in self.targets]
