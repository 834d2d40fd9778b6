"""The reference recursion over a batch, with the contract's infinities and NaN; differentiated by JAX itself."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxctc._lattice import outcome
from jaxctc._lattice.lattices import Lattice, accumulation_dtype, frame_mask, frames_first, frames_of
from jaxctc._reference import log_emissions
from jaxctc._reference.ctc import ctc_losses
from jaxctc._types import LOG_ZERO, Request


def losses(
    scores: Float[Array, "A B C"], lattice: Lattice, request: Request, dtype: jnp.dtype | None = None
) -> Float[Array, " N"]:
    """Return one loss a sequence, with derivatives of every order. `dtype` is the caller's, if not that of the scores.

    An infeasible row has the loss +inf and the gradient 0, an invalid one NaN in both. Rows that are infeasible by
    their lengths do not read their scores: a NaN among them would find its way into the derivative.
    """
    feasible = frames_first(lattice.feasible[None], request)[:, :, None]
    log_probs = log_emissions.log_probs(jnp.where(feasible, scores, 0), lattice, request)
    lengths = lattice.input_lengths, lattice.target_lengths
    loss = ctc_losses(log_probs, lattice.labels, *lengths, request.blank)
    infeasible = ~lattice.feasible | (loss > -LOG_ZERO / 2)
    frames, dtype = frames_of(scores, request), dtype or scores.dtype
    value = outcome.finished(loss, ~lattice.legal, infeasible, request, frames, dtype)
    # The value is what the contract says; its derivative is that of the recursion, whatever was rounded or replaced.
    nan = jnp.isnan(value)
    differentiable = jnp.where(infeasible | nan, 0, loss) + _nan_of_rows(nan, scores, lattice, request)
    return jax.lax.stop_gradient(value) + (differentiable - jax.lax.stop_gradient(differentiable))


def _nan_of_rows(
    nan: Bool[Array, " N"], scores: Float[Array, "A B C"], lattice: Lattice, request: Request
) -> Float[Array, " N"]:
    """Return 0, or for these rows a NaN whose derivative is NaN in every frame that counts.

    Where an illegal length hides which frames count, it is NaN in all of them.
    """
    scores = frames_first(scores, request)
    mask = frame_mask(lattice.input_lengths, scores.shape[0]) | ~lattice.legal[None]
    scores = jnp.where((nan[None] & mask)[:, :, None], scores.astype(accumulation_dtype(scores.dtype)), 0)
    total = scores.sum(axis=(0, 2))
    return outcome.nan_where(nan, jnp.zeros_like(total)) * total
