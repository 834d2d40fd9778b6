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
    """Return the sum over frames in two parts: whole 256ths of a nat, whose sum is exact, and the remainder."""
    offset = jnp.round(nats * _PARTS) / _PARTS
    if gpu:
        offset, rest = reductions.sums(offset, nats - offset, axis=0)
        return offset, rest
    return _sum(offset), _sum(nats - offset)


def log_likelihood(likelihood: Scaled, log_scale: tuple[Float[Array, " N"], Float[Array, " N"]]) -> Float[Array, " N"]:
    """Return the logarithm of a likelihood, with the nats that were taken out of the scores added again.

    Up to 65,536 nats the large parts are added without rounding, and the result is rounded once.
    """
    offset, rest = log_scale
    # The logarithm of a number near one is small, and keeps its digits.
    halved = likelihood.mantissa > math.sqrt(2) - 1
    mantissa = jnp.where(halved, (likelihood.mantissa - 1) / 2, likelihood.mantissa)
    exponent = likelihood.exponent + jnp.where(halved, 1, 0)
    return (offset + exponent * _LOG_2) + (rest + exponent * (math.log(2) - _LOG_2) + jnp.log1p(mantissa))


def _sum(x: Float[Array, "steps N"]) -> Float[Array, " N"]:
    """Return the sum over steps, in two stages: thousands of numbers added one after the other would lose digits."""
    frames, sequences = x.shape
    rows = max(int(frames**0.5), 1) if is_known(frames) else _ROWS_OF_UNKNOWN
    columns = -(-frames // rows)
    padded = jnp.pad(x, ((0, rows * columns - frames), (0, 0)))
    return padded.reshape(rows, columns, sequences).sum(axis=1).sum(axis=0)
