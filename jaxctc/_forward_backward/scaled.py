"""Store a number as a mantissa and a power of two: sums and products need no logarithm and no exponential.

A float's own exponent cannot hold the likelihood of a long input, and the logarithm of the likelihood loses a digit
whenever it becomes ten times as large. Here the mantissa keeps every digit however small the number is, and an addition
has to align its two numbers, as it does in hardware. The exponent is itself a float that holds a whole number, so that
it neither wraps around nor overflows.

Zero has the mantissa 1 and the exponent `LOG_ZERO`:

| a      | b      | a + b                  | a b                     | fraction a / (a + b) |
| ------ | ------ | ---------------------- | ----------------------- | -------------------- |
| finite | finite | rounded once           | rounded once            | a / (a + b)          |
| finite | 0      | a                      | below any finite number | 1                    |
| 0      | finite | b                      | below any finite number | 0                    |
| 0      | 0      | 0, but with mantissa 2 | 0                       | 1/2; has no effect   |
"""

import operator
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Complex, Float

from jaxctc._sizes import Size
from jaxctc._types import LOG_ZERO

Ratio: TypeAlias = Callable[[Array, Array], Array]
"""A function that returns a / b of floats: at most 1 if a <= b, and exactly 1 if a == b."""

# The minimax polynomial of 2^f over 0 <= f < 1, with a relative error of at most 2e-9: errors that are alike from frame
# to frame add up, so that they must be smaller than those of rounding.
_EXP2 = (
    1.0,
    0.6931470632553101,
    0.24022908508777618,
    0.05548618361353874,
    0.009673775173723698,
    0.0012482289457693696,
    0.000215659718378447,
)


class Scaled(NamedTuple):
    """mantissa * 2**exponent; the mantissa is at least 1."""

    mantissa: Float[Array, "..."]
    exponent: Float[Array, "..."]

    def __add__(self, other: "Scaled") -> "Scaled":  # type: ignore[override]
        exponent, mine, others = _aligned(self, other)
        return Scaled(mine + others, exponent)

    def __mul__(self, other: "Scaled") -> "Scaled":  # type: ignore[override]
        return Scaled(self.mantissa * other.mantissa, self.exponent + other.exponent)


def zeros(shape: tuple[Size, ...], dtype: jnp.dtype) -> Scaled:
    return Scaled(jnp.ones(shape, dtype), jnp.full(shape, LOG_ZERO, dtype))


def exp2(x: Float[Array, "..."], floor: Callable[[Array], Array] = jnp.floor) -> Scaled:
    """Return 2**x, for any x but NaN and the infinities."""
    whole = floor(x)
    f = x - whole
    if x.dtype == jnp.float64:
        return Scaled(jnp.exp2(f), whole)
    c0, c1, c2, c3, c4, c5, c6 = (jnp.asarray(c, x.dtype) for c in _EXP2)
    square = f * f
    return Scaled((c0 + c1 * f) + square * ((c2 + c3 * f) + square * (c4 + c5 * f + square * c6)), whole)


def renormalized(a: Scaled) -> Scaled:
    """Return the same number with its mantissa in [1, 2)."""
    digits, bias, integer = _float_format(a.mantissa.dtype)
    bits = lax.bitcast_convert_type(a.mantissa, integer)
    mantissa = (bits & ((1 << digits) - 1)) | (bias << digits)
    shift = (bits >> digits) - bias
    return Scaled(lax.bitcast_convert_type(mantissa, a.mantissa.dtype), a.exponent + shift.astype(a.exponent.dtype))


def fraction(part: Scaled, whole: Scaled) -> Float[Array, "..."]:
    """Return part / whole, for a part no larger than the whole; it is too large for a part too small to matter."""
    floor = _min_exponent(part)
    return part.mantissa / whole.mantissa * _power_of_two(part.exponent - whole.exponent, least=floor)


def smaller_fraction(a: Scaled, b: Scaled) -> Float[Array, "..."]:
    """Return the `fraction` of a + b that the smaller of the two is, with a minus sign if that is b.

    The fraction of the larger one follows from it. A fraction of nearly one has too few digits to give the smaller one.
    """
    _, part, other = _aligned(a, b, least=_min_exponent(a))
    return jnp.where(other < part, -other, part) / (part + other)


def split(amount: Float[Array, "..."], smaller_part: Float[Array, "..."]) -> tuple[Array, Array]:
    """Return the parts of an amount that belong to a and to b.

    `smaller_part` is the amount times `smaller_fraction(a, b)`.
    """
    of_b = smaller_part < 0
    return jnp.where(of_b, amount + smaller_part, smaller_part), jnp.where(of_b, -smaller_part, amount - smaller_part)


def sum_with_fraction(a: Scaled, b: Scaled, ratio: Ratio = operator.truediv) -> tuple[Scaled, Float[Array, "..."]]:
    """Return a + b, and the fraction of it that a is: exactly 0 or 1 where one of the two is too small to matter."""
    exponent, part, other = _aligned(a, b, jnp.maximum)
    return Scaled(part + other, exponent), ratio(part, part + other)


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

    return Scaled(shifted(a.mantissa, 1.0), shifted(a.exponent, LOG_ZERO))


def total(a: Scaled, b: Scaled, axis: int) -> Scaled:
    """Return the sum over an axis of both, which stays in the result with size 1."""
    exponent = _max(a.exponent, b.exponent).max(axis=axis, keepdims=True)
    aligned, other = (x.mantissa * _power_of_two(x.exponent - exponent) for x in (a, b))
    return renormalized(Scaled((aligned + other).sum(axis=axis, keepdims=True), exponent))


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
    """The integer type of the same width."""


def _float_format(dtype: jnp.dtype) -> _FloatFormat:
    return _FloatFormat(52, 1023, jnp.int64) if dtype == jnp.float64 else _FloatFormat(23, 127, jnp.int32)


def _max(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the larger number. NaN cannot occur, and a CPU needs four instructions to respect it (`jnp.maximum`)."""
    return lax.select(a < b, b, a)


def _min_exponent(a: Scaled) -> int:
    """Return the exponent of the smallest part that still differs from smaller ones where parts are compared."""
    return -_float_format(a.exponent.dtype).bias // 2


def _aligned(
    a: Scaled, b: Scaled, maximum: Callable[[Array, Array], Array] = _max, least: int | None = None
) -> tuple[Float[Array, "..."], Float[Array, "..."], Float[Array, "..."]]:
    """Return the larger of two exponents, and both numbers in units of its power of two."""
    exponent = maximum(a.exponent, b.exponent)
    part, other = (x.mantissa * _power_of_two(x.exponent - exponent, maximum, least) for x in (a, b))
    return exponent, part, other


def _power_of_two(
    exponent: Float[Array, "..."], maximum: Callable[[Array, Array], Array] = _max, least: int | None = None
) -> Float[Array, "..."]:
    """Return 2**exponent for a whole number that is at most 0; if that is too small, return 0, or 2**least if given.

    Adding 1.5 * 2**digits leaves the whole number in the lowest bits, where it is shifted into place.
    """
    digits, bias, integer = _float_format(exponent.dtype)
    exponent = maximum(exponent, jnp.full_like(exponent, -bias if least is None else least))
    bits = lax.bitcast_convert_type(exponent + (1.5 * 2**digits + bias), integer)
    return lax.bitcast_convert_type(bits << digits, exponent.dtype)
