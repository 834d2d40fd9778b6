"""The time that no implementation on this machine can beat.

Bytes: scores are read once and the gradient is written once, at the rate of a copy of as many (the loss alone reads of
each frame no more than the blank and the target's labels). Arithmetic: every state of the lattice that a path can reach
at a frame is one addition and one multiplication of numbers whose range exceeds float32's, at the measured rate of the
cheapest known way: a mantissa with an exponent, no logarithm. What the gradient needs beyond that, a few multiply-adds
a state, is left out, and so is everything that keeps a real machine from its best.
"""

import functools
import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._machine import threads
from benchmarks._peers import Job, on_gpu
from benchmarks._shapes import Batch

_SECONDS = 0.25
"""Seconds to look for the fastest of many short calls: even on a busy machine some run undisturbed."""
_FLOAT_BYTES = 4


class Roofline:
    """Rates of this machine, measured when first asked for."""

    @functools.cached_property
    def seconds_per_cell(self) -> float:
        """One update of one state, with all threads at work."""
        cells, steps = 1 << 16, 32
        rng = np.random.default_rng(0)
        mantissas = jnp.asarray(rng.uniform(1, 2, (2, cells)).astype(np.float32))
        exponents = jnp.asarray(rng.integers(-9, 9, (2, cells), np.int32))

        @jax.jit
        def chain(mantissas: jax.Array, exponents: jax.Array) -> jax.Array:
            (m, n), (e, f) = mantissas, exponents
            for _ in range(steps):
                m, e = _update(m, e, n, f)
            return m + e.astype(m.dtype)  # one result: XLA would compute the whole chain once for each of two

        return _fastest(lambda: jax.block_until_ready(chain(mantissas, exponents))) / (cells * steps)

    @functools.cache  # noqa: B019 (there is one roofline a run)
    def bytes_per_second(self, size: int) -> float:
        """Return the speed of a copy of so many bytes, in bytes read and written; small ones stay in caches."""
        import torch

        source = torch.ones(size // _FLOAT_BYTES, device="cuda" if on_gpu() else "cpu")
        target = torch.empty_like(source).copy_(source)

        def copy() -> None:
            target.copy_(source)
            if on_gpu():
                torch.cuda.synchronize()

        taken = []
        for count in (1, threads()):  # threads pay off for large copies, on a machine that has them free
            torch.set_num_threads(count)
            taken.append(_fastest(copy))
        return 2 * size / min(taken)

    def copy(self, batch: Batch) -> float:
        """Seconds of a copy of the scores."""
        return 2 * batch.logits.nbytes / self.bytes_per_second(batch.logits.nbytes)

    def floor(self, job: Job, batch: Batch) -> float:
        """Seconds."""
        live = _FLOAT_BYTES * int(batch.input_lengths.sum())
        if job is Job.LOSS:
            moved = live * min(batch.shape.S + 1, batch.shape.C)
        else:
            moved = live * batch.shape.C + batch.logits.nbytes
        cells = sum(map(reachable, batch.input_lengths.tolist(), batch.target_lengths.tolist()))
        return moved / self.bytes_per_second(batch.logits.nbytes) + cells * self.seconds_per_cell


def reachable(frames: int, labels: int) -> int:
    """States of a sequence's lattice, over all its frames, that lie on some path."""
    passed = np.arange(frames)
    last = np.minimum(2 * passed + 1, 2 * labels)
    first = np.maximum(2 * labels - 1 - 2 * (frames - 1 - passed), 0)
    return int((last - first + 1).sum())


def _update(m: jax.Array, e: jax.Array, n: jax.Array, f: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(m 2^e + n 2^f) n, its mantissa in [1, 2) again."""
    top = jnp.maximum(e, f)
    total = (m * _power_of_two(e - top) + n * _power_of_two(f - top)) * n
    bits = jax.lax.bitcast_convert_type(total, jnp.int32)
    mantissa = jax.lax.bitcast_convert_type((bits & 0x007FFFFF) | 0x3F800000, jnp.float32)
    return mantissa, top + f + (bits >> 23) - 127


def _power_of_two(exponent: jax.Array) -> jax.Array:
    """Return 2**exponent for an exponent that is at most 0; 0 below the range of float32."""
    return jax.lax.bitcast_convert_type((jnp.maximum(exponent, -127) + 127) << 23, jnp.float32)


def _fastest(call: Callable[[], object]) -> float:
    call()
    first = before = time.perf_counter()
    count, fastest = 0, math.inf
    while count < 3 or before - first < _SECONDS:
        call()
        after = time.perf_counter()
        count, fastest, before = count + 1, min(fastest, after - before), after
    return fastest
