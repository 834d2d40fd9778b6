"""Numbers kept as a mantissa and a power of two: sums and products without a logarithm or an exponential.

A float's own exponent cannot hold the likelihood of a long input, and its logarithm loses a digit
whenever it grows tenfold. Here the mantissa keeps every digit however small the number, and adding
two numbers costs an alignment, as it does in hardware. The exponent is itself a float that holds a
whole number, so that it neither wraps around nor overflows.

Zero has the mantissa 1 and the exponent `LOG_ZERO`:

| a      | b      | a + b              | a b        | portion a of (a + b) |
| ------ | ------ | ------------------ | ---------- | -------------------- |
| finite | finite | rounded once       | rounded once | a / (a + b)        |
| finite | 0      | a                  | below any finite number | 1       |
| 0      | finite | b                  | below any finite number | 0       |
| 0      | 0      | 2 mantissas of 0   | 0          | 1/2; never seen      |
"""

import operator
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Complex, Float

from jaxctc._types import LOG_ZERO

Ratio: TypeAlias = Callable[[Array, Array], Array]
"""a / b of floats, no more than 1 if a <= b, and exactly 1 if a == b."""

# The minimax polynomial of 2^f over 0 <= f < 1, right to 2e-9 of its value: errors that are alike from frame to
# frame add up, and must be smaller than those of rounding.
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


def zeros(shape: tuple[int, ...], dtype: jnp.dtype) -> Scaled:
    return Scaled(jnp.ones(shape, dtype), jnp.full(shape, LOG_ZERO, dtype))


def exp2(x: Float[Array, "..."], floor: Callable[[Array], Array] = jnp.floor) -> Scaled:
    """2**x, for any x but NaN and the infinities."""
    whole = floor(x)
    f = x - whole
    if x.dtype == jnp.float64:
        return Scaled(jnp.exp2(f), whole)
    c0, c1, c2, c3, c4, c5, c6 = (jnp.asarray(c, x.dtype) for c in _EXP2)
    square = f * f
    return Scaled((c0 + c1 * f) + square * ((c2 + c3 * f) + square * (c4 + c5 * f + square * c6)), whole)


def renormalized(a: Scaled) -> Scaled:
    """The same number with its mantissa in [1, 2)."""
    digits, bias, integer = _layout(a.mantissa.dtype)
    bits = lax.bitcast_convert_type(a.mantissa, integer)
    mantissa = (bits & ((1 << digits) - 1)) | (bias << digits)
    shift = (bits >> digits) - bias
    return Scaled(lax.bitcast_convert_type(mantissa, a.mantissa.dtype), a.exponent + shift.astype(a.exponent.dtype))


def fraction(part: Scaled, whole: Scaled) -> Float[Array, "..."]:
    """part / whole, for a part that is no larger than the whole; a part too small to matter gives a little more."""
    floor = _floor(part)
    return part.mantissa / whole.mantissa * _power_of_two(part.exponent - whole.exponent, least=floor)


def smaller_fraction(a: Scaled, b: Scaled) -> Float[Array, "..."]:
    """The `fraction` of a + b that the smaller of the two is, with a minus sign if that is b.

    What is left for the larger one follows from it; from a share of nearly one nothing follows for the other.
    """
    _, part, other = _aligned(a, b, least=_floor(a))
    return jnp.where(other < part, -other, part) / (part + other)


def divided(amount: Float[Array, "..."], taken: Float[Array, "..."]) -> tuple[Array, Array]:
    """The two parts of an amount, of which `taken` is that times a `smaller_fraction`: of a, and of b."""
    of_b = taken < 0
    return jnp.where(of_b, amount + taken, taken), jnp.where(of_b, -taken, amount - taken)


def sum_with_fraction(a: Scaled, b: Scaled, ratio: Ratio = operator.truediv) -> tuple[Scaled, Float[Array, "..."]]:
    """a + b, and a's portion of it, exactly 0 or 1 where one of the two is too small to be seen."""
    exponent, part, other = _aligned(a, b, jnp.maximum)
    return Scaled(part + other, exponent), ratio(part, part + other)


def least(dtype: jnp.dtype) -> float:
    """A probability that counts as 0, and so does all below it.

    It is more than any `fraction` of a part too small to matter. And its product with one is still a normal
    number: the others, which hardware handles slowly, never occur.
    """
    return 2.0 ** -(_layout(dtype).bias // 3)


def where(condition: Array, a: Scaled, b: Scaled) -> Scaled:
    return Scaled(jnp.where(condition, a.mantissa, b.mantissa), jnp.where(condition, a.exponent, b.exponent))


def total(a: Scaled, axis: tuple[int, ...]) -> Scaled:
    """The sum over some axes, which are kept."""
    exponent = a.exponent.max(axis=axis, keepdims=True)
    aligned = a.mantissa * _power_of_two(a.exponent - exponent)
    return renormalized(Scaled(aligned.sum(axis=axis, keepdims=True), exponent))


def pack(a: Scaled) -> Complex[Array, "..."]:
    """Both parts in one array: what is computed once for both is not computed twice, once for each array."""
    return lax.complex(a.mantissa, a.exponent)


def unpack(z: Complex[Array, "..."]) -> Scaled:
    return Scaled(lax.real(z), lax.imag(z))


class _Layout(NamedTuple):
    """How a float is made."""

    digits: int
    bias: int
    integer: type
    """Of the same width."""


def _layout(dtype: jnp.dtype) -> _Layout:
    return _Layout(52, 1023, jnp.int64) if dtype == jnp.float64 else _Layout(23, 127, jnp.int32)


def _max(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """`jnp.maximum` but for NaN, which cannot occur, and which it takes a CPU four instructions to respect."""
    return lax.select(a < b, b, a)


def _floor(a: Scaled) -> int:
    """The exponent of the least part that is told from a smaller one where parts are compared."""
    return -_layout(a.exponent.dtype).bias // 2


def _aligned(
    a: Scaled, b: Scaled, maximum: Callable[[Array, Array], Array] = _max, least: int | None = None
) -> tuple[Float[Array, "..."], Float[Array, "..."], Float[Array, "..."]]:
    """The larger of two exponents, and what both numbers are in units of its power of two."""
    exponent = maximum(a.exponent, b.exponent)
    part, other = (x.mantissa * _power_of_two(x.exponent - exponent, maximum, least) for x in (a, b))
    return exponent, part, other


def _power_of_two(
    exponent: Float[Array, "..."], maximum: Callable[[Array, Array], Array] = _max, least: int | None = None
) -> Float[Array, "..."]:
    """2**exponent for a whole number that is at most 0; 0 for what is too small to be seen, or 2**least.

    Adding 1.5 * 2**digits leaves the whole number in the lowest bits, where it is shifted into place.
    """
    digits, bias, integer = _layout(exponent.dtype)
    exponent = maximum(exponent, jnp.full_like(exponent, -bias if least is None else least))
    bits = lax.bitcast_convert_type(exponent + (1.5 * 2**digits + bias), integer)
    return lax.bitcast_convert_type(bits << digits, exponent.dtype)
