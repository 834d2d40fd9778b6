"""Check the arguments of other libraries, in the words of the library that the caller comes from."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxctc._inputs import checks
from jaxctc._inputs.arguments import canonical_batch
from jaxctc._inputs.checks import Names
from jaxctc._lattice.lattices import accumulation_dtype
from jaxctc._sizes import Size, is_known
from jaxctc._types import ArrayLike, Problem, Request


def canonical_logits(
    scores: ArrayLike,
    labels: ArrayLike,
    input_lengths: ArrayLike,
    target_lengths: ArrayLike,
    blank: int,
    batch_first: bool,
    names: Names,
) -> tuple[Problem, Request]:
    """Return the problem and the request of a batch of logits with padded labels."""
    scores = three_axes(names.scores, scores)
    sequences = scores.shape[0 if batch_first else 1]
    labels = two_axes(names.targets, labels, sequences)
    counts = whole_numbers(names.target_lengths, target_lengths, "an int or an array")
    counts = checks.lengths(names.target_lengths, counts, sequences, "S")
    problem, request, _ = canonical_batch(
        scores,
        whole_numbers(names.targets, labels, "labels, an array", counts=counts),
        whole_numbers(names.input_lengths, input_lengths, "an int or an array"),
        counts,
        blank_index(names.blank, blank, scores.shape[2]),
        from_logits=True,
        batch_first=batch_first,
        names=names,
    )
    return problem, request


def three_axes(name: str, x: ArrayLike) -> jax.Array:
    """Return scores with an axis of sequences."""
    made = checks.scores(name, x)
    if made.ndim != 3:
        raise ValueError(
            f"{name} must have three axes, sequences, frames and classes; got the shape {made.shape}. One sequence "
            f"needs an axis of its own, for instance {name}[None]."
        )
    return made


def two_axes(name: str, x: ArrayLike, sequences: Size) -> jax.Array | np.ndarray:
    """Return labels, one row a sequence."""
    made = checks.as_array(name, x, "labels, an array")
    if made.ndim != 2 or made.shape[0] != sequences:
        raise ValueError(
            f"{name} must have shape ({sequences}, S), one row of labels a sequence, padded to one length; "
            f"got {tuple(made.shape)}."
        )
    return made


def whole_numbers(
    name: str, x: ArrayLike, what: str, *, counts: jax.Array | np.ndarray | None = None
) -> jax.Array | np.ndarray:
    """Return integers, of integers or of floats that hold whole numbers.

    Anything else becomes -1, which no label and no length may be, and raises where it can be seen: with `counts`, (N,),
    within the first entries of each row, and without it everywhere.
    """
    made = checks.as_array(name, x, what)
    if not jnp.issubdtype(made.dtype, jnp.floating):
        return checks.integers(name, made, what)
    values = checks.host_values(made)
    if values is None:
        wide = made.astype(accumulation_dtype(made.dtype))
        whole = (wide == jnp.floor(wide)) & (jnp.abs(wide) < 2.0**31)
        return jnp.where(whole, wide, -1).astype(jnp.int32)
    values = values.astype(np.float64)
    whole = (values == np.floor(values)) & (np.abs(values) < 2.0**31)
    read = np.ones(values.shape, bool)
    if counts is not None:
        first = checks.host_values(counts)
        read = np.zeros(values.shape, bool) if first is None else np.arange(values.shape[1]) < first[:, None]
    for index in np.argwhere(read & ~whole)[:1].tolist():
        raise TypeError(
            f"{name} must be {what} of an integer type, got {made.dtype.name} with {name}{index or ''} = "
            f"{values[tuple(index)]}: floats are taken where they hold whole numbers. Convert it, for instance with "
            f"{name}.astype(jnp.int32)."
        )
    return np.where(whole, values, -1).astype(np.int64)


def blank_index(name: str, value: int, classes: Size) -> int:
    """Return the index of the blank, given one that may count from the last class."""
    made = checks.integer(name, value, "the index of the blank class")
    if not is_known(classes):
        if made >= 0:
            return made
        raise ValueError(
            f"{name} is {made}, which counts from the last class, but C = {classes} is symbolic: export with a C that "
            "is known, or make another class the blank."
        )
    if not -classes <= made < classes:
        raise ValueError(
            f"{name} is {made}, but there are C = {classes} {'class' if classes == 1 else 'classes'}: it must lie in "
            f"[-{classes}, {classes}), where -1 is the last class."
        )
    return made % classes
