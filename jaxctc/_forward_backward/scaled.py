"""Store a number as a mantissa and a power of two: sums and products need no logarithm and no exponential.

A float's own exponent cannot hold the likelihood of a long input, and the logarithm of the likelihood loses a digit
whenever it becomes ten times as large. Here the mantissa keeps every digit however small the number is, and an addition
has to align its two numbers, as it does in hardware. The exponent is itself a float that holds a whole number, so that
it neither wraps around nor overflows.

The leading one of a number is not part of its mantissa, as in the bits of a float. But here the mantissa is a float of
its own, which has more digits the nearer it is to 0: 1 + 1e-10 is a number, and not 1. With emissions relative to each
frame's best, the likelihood of a confident model is such a number, whose loss is what it has beyond one.

Zero has the mantissa 0 and the exponent `LOG_ZERO`:

| a      | b      | a + b                  | a b                     | fraction a / (a + b) |
| ------ | ------ | ---------------------- | ----------------------- | -------------------- |
| finite | finite | rounded                | rounded                 | a / (a + b)          |
| finite | 0      | a                      | below any finite number | 1                    |
| 0      | finite | b                      | below any finite number | 0                    |
| 0      | 0      | 0, but with mantissa 1 | 0                       | 1/2; has no effect   |
"""

import math
import operator
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Complex, Float

from jaxctc._lattice import reductions
from jaxctc._sizes import Size
from jaxctc._types import LOG_ZERO

Ratio: TypeAlias = Callable[[Array, Array], Array]
"""A function that returns a / b of floats: at most 1 if a <= b, and exactly 1 if a == b."""

# The minimax polynomial of 2^f - 1 over 0 <= f < 1, with an error of at most 2e-9 of 2^f: errors that are alike from
# frame to frame add up, so that they must be smaller than those of rounding.
_EXP2 = (
    0.6931470632553101,
    0.24022908508777618,
    0.05548618361353874,
    0.009673775173723698,
    0.0012482289457693696,
    0.000215659718378447,
)


class Scaled(NamedTuple):
    """(1 + mantissa) * 2**exponent; the mantissa is at least 0, but for its rounding."""

    mantissa: Float[Array, "..."]
    exponent: Float[Array, "..."]

    def __add__(self, other: "Scaled") -> "Scaled":  # type: ignore[override]
        return _sum(self, other, *_powers(self, other))

    def __mul__(self, other: "Scaled") -> "Scaled":  # type: ignore[override]
        # Of the second, 1 + mantissa may be rounded: that changes the product by as much, relative to what it adds. If
        # the first mantissa were read twice, XLA would no longer compute the product where it is wanted.
        return Scaled(self.mantissa * (1 + other.mantissa) + other.mantissa, self.exponent + other.exponent)


def zeros(shape: tuple[Size, ...], dtype: jnp.dtype) -> Scaled:
    return Scaled(jnp.zeros(shape, dtype), jnp.full(shape, LOG_ZERO, dtype))


def exp2(x: Float[Array, "..."], floor: Callable[[Array], Array] = jnp.floor) -> Scaled:
    """Return 2**x, for any x but NaN and the infinities."""
    whole = floor(x)
    f = x - whole
    if x.dtype == jnp.float64:
        return Scaled(jnp.expm1(f * math.log(2)), whole)
    c1, c2, c3, c4, c5, c6 = _EXP2
    square = f * f
    return Scaled(c1 * f + square * ((c2 + c3 * f) + square * (c4 + c5 * f + square * c6)), whole)


def renormalized(a: Scaled) -> Scaled:
    """Return the same number with its mantissa in [0, 1), but for its rounding; one that is there already stays."""
    digits, bias, integer = _float_format(a.mantissa.dtype)
    power = lax.bitcast_convert_type(1 + a.mantissa, integer) & ~((1 << digits) - 1)
    scale = lax.bitcast_convert_type((2 * bias << digits) - power, a.mantissa.dtype)  # 1 over the power
    # XLA would make additions of subtractions, in another run of its simplifications.
    shift = (power >> digits) + -bias
    return Scaled(a.mantissa * scale + (scale + -1), a.exponent + shift.astype(a.exponent.dtype))


def fraction(part: Scaled, whole: Scaled) -> Float[Array, "..."]:
    """Return part / whole, for a part no larger than the whole; it is too large for a part too small to matter."""
    floor = _min_exponent(part)
    return (1 + part.mantissa) / (1 + whole.mantissa) * _power_of_two(part.exponent - whole.exponent, least=floor)


def smaller_fraction(a: Scaled, b: Scaled) -> Float[Array, "..."]:
    """Return the `fraction` of a + b that the smaller of the two is, with a minus sign if that is b.

    The fraction of the larger one follows from it. A fraction of nearly one has too few digits to give the smaller one.
    """
    _, mine, others = _powers(a, b, least=_min_exponent(a))
    part, other = (1 + a.mantissa) * mine, (1 + b.mantissa) * others
    return jnp.where(other < part, -other, part) / (part + other)


def split(amount: Float[Array, "..."], smaller_part: Float[Array, "..."]) -> tuple[Array, Array]:
    """Return the parts of an amount that belong to a and to b.

    `smaller_part` is the amount times `smaller_fraction(a, b)`.
    """
    of_b = smaller_part < 0
    return jnp.where(of_b, amount + smaller_part, smaller_part), jnp.where(of_b, -smaller_part, amount - smaller_part)


def sum_with_fraction(a: Scaled, b: Scaled, ratio: Ratio = operator.truediv) -> tuple[Scaled, Float[Array, "..."]]:
    """Return a + b, and the fraction of it that a is: exactly 0 or 1 where one of the two is too small to matter."""
    exponent, mine, others = _powers(a, b, jnp.maximum)
    part, other = (1 + a.mantissa) * mine, (1 + b.mantissa) * others
    return _sum(a, b, exponent, mine, others, jnp.minimum), ratio(part, part + other)


def negligible(dtype: jnp.dtype) -> float:
    """Return a probability that counts as 0, as all smaller ones do.

    It is more than any `fraction` of a part too small to matter. The product of the two is still a normal number, so
    that subnormal numbers, which hardware handles slowly, never occur.
    """
    return 2.0 ** -(_float_format(dtype).bias // 3)


def where(condition: Array, a: Scaled, b: Scaled) -> Scaled:
    return Scaled(jnp.where(condition, a.mantissa, b.mantissa), jnp.where(condition, a.exponent, b.exponent))


def from_left(a: Scaled) -> Scaled:
    """Return in each column what the column to the left of it has, and zero in the first column."""

    def shifted(x: Array, zero: float) -> Array:
        return lax.pad(x, jnp.asarray(zero, x.dtype), [*[(0, 0, 0)] * (x.ndim - 1), (1, -1, 0)])

    return Scaled(shifted(a.mantissa, 0.0), shifted(a.exponent, LOG_ZERO))


def total(a: Scaled) -> Scaled:
    """Return the sum over the last axis, which stays in the result with size 1; the axis has an even size."""
    exponent = reductions.maximum(*jnp.split(a.exponent, 2, axis=-1))[..., None]
    power = _power_of_two(a.exponent - exponent)
    rest = jnp.where(power < 1, (1 + a.mantissa) * power, a.mantissa)
    # Leading ones of the largest power are counted, and all else is added up apart: one of them is not in the mantissa.
    rest, ones = (x[..., None] for x in reductions.sums(rest, jnp.floor(power)))
    return renormalized(Scaled(rest + (ones - 1), exponent))


def pack(a: Scaled) -> Complex[Array, "..."]:
    """Return both parts in one array, so that XLA does not compute twice what both have in common."""
    return lax.complex(a.mantissa, a.exponent)


def unpack(z: Complex[Array, "..."]) -> Scaled:
    return Scaled(lax.real(z), lax.imag(z))


class _FloatFormat(NamedTuple):
    """The layout of the bits of a float."""

    digits: int
    bias: int
    integer: type
    """The integer type of the same width, NumPy's."""


def _float_format(dtype: jnp.dtype) -> _FloatFormat:
    return _FloatFormat(52, 1023, np.int64) if dtype == jnp.float64 else _FloatFormat(23, 127, np.int32)


def _min_exponent(a: Scaled) -> int:
    """Return the exponent of the smallest part that still differs from smaller ones where parts are compared."""
    return -_float_format(a.exponent.dtype).bias // 2


def _min(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    return lax.select(lax.lt(a, b), a, b)


def _powers(
    a: Scaled, b: Scaled, maximum: Callable[[Array, Array], Array] = reductions.larger, least: int | None = None
) -> tuple[Float[Array, "..."], Float[Array, "..."], Float[Array, "..."]]:
    """Return the larger of two exponents, and the power of two of each number in units of that of the larger one."""
    exponent = maximum(a.exponent, b.exponent)
    mine, others = (_power_of_two(lax.sub(x.exponent, exponent), maximum, least) for x in (a, b))
    return exponent, mine, others


def _sum(
    a: Scaled,
    b: Scaled,
    exponent: Float[Array, "..."],
    power_of_a: Float[Array, "..."],
    power_of_b: Float[Array, "..."],
    minimum: Callable[[Array, Array], Array] = _min,
) -> Scaled:
    """Return a + b. Of their two powers the larger one is 1, which is the leading one of the sum."""
    smaller = lax.add(lax.mul(b.mantissa, power_of_b), minimum(power_of_a, power_of_b))
    return Scaled(lax.add(lax.mul(a.mantissa, power_of_a), smaller), exponent)


def _power_of_two(
    exponent: Float[Array, "..."],
    maximum: Callable[[Array, Array], Array] = reductions.larger,
    least: int | None = None,
) -> Float[Array, "..."]:
    """Return 2**exponent for a whole number that is at most 0; if that is too small, return 0, or 2**least if given.

    Adding 1.5 * 2**digits leaves the whole number in the lowest bits, where it is shifted into place.
    """
    digits, bias, integer = _float_format(exponent.dtype)
    exponent = maximum(exponent, lax.full_like(exponent, -bias if least is None else least))
    bits = lax.bitcast_convert_type(lax.add(exponent, exponent.dtype.type(1.5 * 2**digits + bias)), integer)
    return lax.bitcast_convert_type(lax.shift_left(bits, integer(digits)), exponent.dtype)
