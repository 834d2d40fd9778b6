"""Advise what to do with lengths that are no counts, by what their values are."""

from typing import NamedTuple

import numpy as np


class Dialect(NamedTuple):
    """Hold the expressions that convert an array in the caller's framework."""

    integers: str
    rounded: str
    along: str
    """What the framework calls an axis of an array."""


JAX = Dialect("{x}.astype(jnp.int32)", "jnp.round({x} * {n}).astype(jnp.int32)", "axis")
TORCH = Dialect("{x}.long()", "({x} * {n}).round().long()", "dim")


def convert_lengths(name: str, values: np.ndarray | None, axis: str, dialect: Dialect = JAX) -> str:
    """Return a sentence on lengths that are floats or bools; `axis` is the size that they count: T or S."""
    count = dialect.integers.format(x=name)
    scale = dialect.rounded.format(x=name, n=axis)
    if values is not None and values.dtype == np.bool_:
        return (
            f"If it is a mask, True within each sequence, its lengths are {name}.sum({dialect.along}=-1); "
            "if it is True for padding, negate it first."
        )
    either = f"Convert counts with {count}, and lengths relative to {axis} with {scale}."
    if values is None or not np.isrealobj(values):
        return either
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        return f"It holds {values[~np.isfinite(values)][0]}, which is no length."
    fractions = values[values != np.floor(values)]
    relative = ((values >= 0) & (values <= 1)).all()
    if len(fractions) == 0:
        return either if relative and values.any() else f"Convert it with {count}."
    if relative:
        return f"It holds {fractions[0]:.3g}, a length relative to {axis}: convert it with {scale}."
    return f"It holds {fractions[0]:.6g}, which is no whole number: a length counts frames or labels."


def convert_labels(name: str, values: np.ndarray | None) -> str:
    """Return a sentence on labels that are of no integer type."""
    if values is not None and values.dtype == np.bool_:
        return f"For labels that are one-hot pass {name}.argmax(axis=-1)."
    if values is not None and np.isrealobj(values):
        fractions = values[values != np.floor(values)]
        if len(fractions):
            return f"It holds {fractions[0]:.6g}, which is no index of a class."
    return f"Convert it, for instance with {name}.astype(jnp.int32)."


def reduce_lengths(name: str, values: np.ndarray | None, dialect: Dialect = JAX) -> str:
    """Return a sentence on lengths of two axes that are a mask or one-hot, and nothing for any others."""
    if values is None or values.ndim != 2 or values.size == 0 or not ((values == 0) | (values == 1)).all():
        return ""
    if (values[:, 1:] <= values[:, :-1]).all():
        return f" For a mask, which it seems to be, pass {name}.sum({dialect.along}=-1)."
    if (values.sum(axis=1) == 1).all():
        return f" For one-hot lengths, which these seem to be, pass {name}.argmax({dialect.along}=-1)."
    return ""


def swapped_lengths(fits: bool) -> str:
    """Return a question whether frames and labels are swapped, if both lengths `fit` with them swapped."""
    return " Or are input_lengths and target_lengths swapped?" if fits else ""


def order_of_axes(scores: str, batch_first: bool | None, fits: bool) -> str:
    """Return a sentence on frames and sequences that are swapped, if the value `fits` with them swapped.

    `batch_first` is what the caller passed, or None if that is not known.
    """
    if not fits:
        return ""
    if batch_first is None:
        return f" Or are the axes of {scores} not (T, N, C)? Then see batch_first."
    if batch_first:
        return f" With batch_first=True {scores} must be (N, T, C): for (T, N, C) leave batch_first out."
    return f" If {scores} is (N, T, C), pass batch_first=True."
