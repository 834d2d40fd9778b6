"""A warpgroup, the 128 threads of a GPU that hold rows of columns together: how they read, write and synchronize.

A row consists of K tiles of 128 columns, (K, 128), and each thread holds one column of every tile in registers. The
code here runs on Hopper and Blackwell GPUs by Pallas's Mosaic GPU. Mosaic's automatic barriers are switched off, for
they would stand around every access: whoever reads from shared memory what another thread wrote calls `wait` first.
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

# JAX 0.12 refuses a plain store of less than a sector; older versions have no other, and refuse none.
_STORE = getattr(plgpu, "store", None)

Ref: TypeAlias = Any
Index: TypeAlias = int | Int[Array, ""]


class Warpgroup(NamedTuple):
    """The operations of a warpgroup on rows of so many tiles."""

    tiles: int
    interpret: Any
    """The parameters with which Pallas interprets the kernel on a CPU, where layouts do not exist; None on a GPU."""

    @property
    def columns(self) -> Int[Array, "K 128"]:
        """The number of each column."""
        count = self.tiles * THREADS
        return self.spread(lax.broadcasted_iota(jnp.int32, (count,), 0)).reshape(self.tiles, THREADS)

    def full(self, value: float) -> Float[Array, "K 128"]:
        return self.spread(jnp.full((self.tiles, THREADS), value, jnp.float32))

    def load(self, ref: Ref) -> Array:
        return self.spread(ref[pl.ds(0, self.tiles)])

    def store(self, ref: Ref, row: Array) -> None:
        ref[pl.ds(0, self.tiles)] = row

    def store_padded(self, ref: Ref, row: Array) -> None:
        """Store the row, and zeros in those tiles of `ref` that the row does not have."""
        self.store(ref, row)
        beyond = ref.shape[0] - self.tiles
        if beyond:
            ref[pl.ds(self.tiles, beyond)] = self.spread(jnp.zeros((beyond, THREADS), jnp.float32))

    def spread(self, x: Array) -> Array:
        """Return x with successive columns in successive threads: the only layout that loads from any offset allow."""
        if self.interpret:
            return x
        return plgpu.layout_cast(x, plgpu.Layout.WG_STRIDED(x.shape, vec_size=1))

    def sum_rows(self, rows: Ref, sums: Ref) -> None:
        """Store the sum of each row in shared memory. Their number is a multiple of 4; each warp adds every fourth."""
        tiles = (self._by_warp(rows.at[:, k]) for k in range(self.tiles))
        totals = functools.reduce(operator.add, tiles).sum(axis=1)
        if self.interpret or _STORE is None:
            sums[...] = totals
        else:
            _STORE(sums, totals, optimized=False)

    def _by_warp(self, rows: Ref) -> Float[Array, "R 128"]:
        if self.interpret:
            return rows[...]
        tiling = plgpu.Tiling(((WARPS, THREADS), (THREADS // WARPS,), (1,)))
        return plgpu.layout_cast(rows[...], plgpu.Layout.TILED(tiling, warp_dims=(-4,), lane_dims=(-2,), vector_dim=-1))

    def wait(self) -> None:
        """Wait until all threads are here and see what the others have written to shared memory."""
        if self.interpret:
            plgpu.commit_smem()
        else:
            _barrier()


# `plgpu.commit_smem` would wait for the copy engine as well.
_barrier = plgpu.inline_mgpu()(lambda _: mosaic.warpgroup_barrier())


class Shift(NamedTuple):
    """Shift rows by one column through shared memory, and put arriving values into the column that becomes free."""

    threads: Warpgroup
    buffers: Ref
    """Two buffers, used in turn: with one barrier no thread writes what another may still have to read."""
    written: int
    """The index in a buffer at which column 0 is written."""
    read: int
    """The index at which column 0 is read; it is one more or one less."""

    def prepare(self, fillers: tuple[float, ...]) -> None:
        """Fill the buffers, so that the free column receives the filler where no values arrive."""
        for turn in range(2):
            for k, value in enumerate(fillers):
                self._put(turn, k, self.read, self.threads.full(value))
        self.threads.wait()

    def __call__(self, turn: Index, rows: tuple[Array, ...], arriving: Sequence[Array] = ()) -> list[Array]:
        for k, row in enumerate(rows):
            self._put(turn, k, self.written, row)
        self.threads.wait()
        shifted = [self._get(turn, k) for k in range(len(rows))]
        if not arriving:
            return shifted
        free = self.threads.columns == (self._count - 1) * self.read
        return [jnp.where(free, jnp.full(row.shape, value), row) for row, value in zip(shifted, arriving, strict=True)]

    def leaving(self, turn: Index) -> list[Array]:
        """Return what the last shift moved out of each row, at the end opposite to the free column."""
        return [self.buffers[turn, k, self._count * self.written] for k in range(self.buffers.shape[1])]

    @property
    def _count(self) -> int:
        return self.threads.tiles * THREADS

    def _put(self, turn: Index, k: int, first: int, row: Array) -> None:
        self.buffers[turn, k, pl.ds(first, row.size)] = row.reshape(row.size)

    def _get(self, turn: Index, k: int) -> Array:
        row = self.threads.spread(self.buffers[turn, k, pl.ds(self.read, self._count)])
        return row.reshape(self.threads.tiles, THREADS)


class Stream(NamedTuple):
    """Copy numbered pieces of memory to shared memory ahead of their use, into two buffers that take turns."""

    sources: Callable[[Array], list[Ref]]
    """Returns a piece's references by its number; each is of a multiple of 128 bytes."""
    targets: list[Ref]
    arrived: Ref

    def start(self, number: Array) -> None:
        """Begin to copy a piece."""
        k = number & 1
        for source, target in zip(self.sources(number), self.targets, strict=True):
            plgpu.copy_gmem_to_smem(source, target.at[k], self.arrived.at[k])

    def wait(self, number: Array) -> list[Ref]:
        """Wait until a piece has arrived, and return where."""
        k = number & 1
        plgpu.barrier_wait(self.arrived.at[k])
        return [target.at[k] for target in self.targets]
