"""Add up what the frames of a sequence contribute to its loss, without losing digits however many frames there are."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxctc._forward_backward.scaled import Scaled
from jaxctc._lattice import reductions
from jaxctc._sizes import is_known

_PARTS = 256
_LOG_2 = 177 / _PARTS
"""ln 2 rounded to 1/256, so that partial sums are exact."""
_ROWS_OF_UNKNOWN = 32
"""The partial sums over frames whose number is symbolic."""


def in_parts(nats: Float[Array, "steps N"], *, gpu: bool = False) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
    """Return the sum over frames in two parts: whole 256ths of a nat, whose sum is exact, and the remainder.

    Where a number is -inf, so is the first part; where one is NaN, both are.
    """
    offset = jnp.round(nats * _PARTS) / _PARTS
    least = float(jnp.finfo(nats.dtype).min)  # of -inf, nothing remains
    rest = jnp.maximum(nats, least) - jnp.maximum(offset, least)
    if gpu:
        offset, rest = reductions.sums(offset, rest, axis=0)
        return offset, rest
    return _sum(offset), _sum(rest)


def log_likelihood(likelihood: Scaled, log_scale: tuple[Float[Array, " N"], Float[Array, " N"]]) -> Float[Array, " N"]:
    """Return the logarithm of a likelihood, with the nats that were taken out of the scores added again.

    Up to 65,536 nats the large parts are added without rounding, and the result is rounded once.
    """
    offset, rest = log_scale
    # The logarithm of a number near one is small, and keeps its digits.
    halved = likelihood.mantissa > math.sqrt(2) - 1
    mantissa = jnp.where(halved, (likelihood.mantissa - 1) / 2, likelihood.mantissa)
    exponent = likelihood.exponent + jnp.where(halved, 1, 0)
    return (offset + exponent * _LOG_2) + (rest + exponent * (math.log(2) - _LOG_2) + _log1p(mantissa))


def _log1p(x: Float[Array, " N"]) -> Float[Array, " N"]:
    """Return log(1 + x) for -0.15 < x < 0.42.

    Of `jnp.log1p` LLVM makes code that it takes 40 ms to compile, be it for 16 numbers. In float32, five terms of the
    series of 2 artanh(x / (2 + x)) have an error of 2e-9 of the result.
    """
    if x.dtype == jnp.float64:
        return jnp.log1p(x)
    z = x / (2 + x)
    square, twice = z * z, 2 * z
    # A sum, for a product that a caller adds to something is rounded with the sum in some programs and not in others.
    return twice + twice * square * (1 / 3 + square * (1 / 5 + square * (1 / 7 + square * (1 / 9))))


def _sum(x: Float[Array, "steps N"]) -> Float[Array, " N"]:
    """Return the sum over steps, in two stages: thousands of numbers added one after the other would lose digits."""
    frames, sequences = x.shape
    rows = max(int(frames**0.5), 1) if is_known(frames) else _ROWS_OF_UNKNOWN
    columns = -(-frames // rows)
    padded = jnp.pad(x, ((0, rows * columns - frames), (0, 0)))
    return padded.reshape(rows, columns, sequences).sum(axis=1).sum(axis=0)
