"""From the posterior of the lattice's labels to the posterior of the classes.

Several columns may hold one class: a repeated label, and the padding, which carries the blank's.
Both forms below add those up by a matrix product first, so that neither has an atomic addition in
it and the result is the same from run to run on every backend.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxctc._lattice import frames_first, row_of_indices
from jaxctc._types import Options


def _product(a: Float[Array, "T N W"], b: Float[Array, "N W K"]) -> Float[Array, "T N K"]:
    # The default precision of a product is low on TPU and GPU.
    return jnp.einsum("tnw,nwk->tnk", a, b, precision=jax.lax.Precision.HIGHEST)


def subtract_posterior(
    base: Float[Array, "A B C"],
    posterior: Float[Array, "T N W"],
    labels: Int[Array, "N W"],
    options: Options,
) -> Float[Array, "A B C"]:
    """`base` minus the posterior of each class."""
    classes, columns = base.shape[2], labels.shape[1]
    if classes <= 2 * columns:
        one_hot = jax.nn.one_hot(labels, classes, dtype=posterior.dtype)
        return base - frames_first(_product(posterior, one_hot), options)

    # Few labels among many classes: only the classes that occur are written, each once.
    same = labels[:, :, None] == labels[:, None, :]
    first = jnp.argmax(same, axis=2).astype(jnp.int32)
    fold = jax.nn.one_hot(first, columns, dtype=posterior.dtype)
    folded = frames_first(_product(posterior, fold), options)
    column = row_of_indices(columns)
    # The columns that repeat an earlier one aim beyond the end, apart from each other, and are dropped.
    aim = jnp.where(first == column, labels, classes + column)
    a, b = jnp.ogrid[: base.shape[0], : base.shape[1]]
    aim = jnp.expand_dims(aim, 1 if options.batch_first else 0)
    return base.at[a[:, :, None], b[:, :, None], aim].add(-folded, mode="drop", unique_indices=True)
