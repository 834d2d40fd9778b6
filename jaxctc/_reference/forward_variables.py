"""Compute the forward variables of every frame in the form in which optax returns them.

`compat` alone uses this: neither the losses nor the posteriors need all forward variables at once.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from jaxctc._lattice import lattices, outcome
from jaxctc._lattice.lattices import Lattice
from jaxctc._mesh import sharded_like_scores
from jaxctc._reference import log_emissions, recursion
from jaxctc._reference.log_space import logaddexp
from jaxctc._reference.recursion import LogStates
from jaxctc._types import LOG_ZERO, Problem, Request


@functools.partial(jax.jit, static_argnames="request")
@sharded_like_scores(lambda sequences, _: (P(None, *sequences),) * 2)
def forward_variables(
    request: Request, problem: Problem, frame_mask: Bool[Array, "N T"]
) -> tuple[Float[Array, "T N blanks"], Float[Array, "T N labels"]]:
    """Return alpha of the blank states and of the label states, after the emission of each frame.

    `frame_mask` says which frames are not padding, wherever they stand. As with optax, a padded frame repeats the frame
    before it, the last frame of blank s includes label s - 1, and states beyond a target's own labels are those of its
    padding. Probability zero is -inf, and an illegal row is NaN.
    """
    problem = problem._replace(scores=lattices.padding_last(problem.scores, frame_mask, request))
    lattice = _with_padding_labels(problem, request)
    log_probs = log_emissions.log_probs(problem.scores, lattice, request)
    # An infeasible target has forward variables too: its first labels can be spelled.
    emissions = log_emissions.build_emissions(log_probs, lattice, request, feasible=lattice.legal)
    alpha = recursion.forward(emissions.states, log_emissions.topology_of(lattice))
    peak = jnp.pad(jnp.cumsum(emissions.peak, axis=0), ((1, 0), (0, 0)))
    alpha = LogStates(*(x + peak[:, :, None] for x in alpha))

    def finished(x: Float[Array, "T N W"]) -> Float[Array, "T N W"]:
        return outcome.nan_where(~lattice.legal[None, :, None], jnp.where(x < LOG_ZERO / 2, -jnp.inf, x))

    ended = finished(recursion.into_blank(logaddexp, LogStates(*(x[-1] for x in alpha)))[None])
    frames_so_far = jnp.cumsum(frame_mask, axis=1, dtype=jnp.int32).T[:, :, None]
    blank, label = (finished(jnp.take_along_axis(x, frames_so_far, axis=0, mode="promise_in_bounds")) for x in alpha)
    return jnp.concatenate([blank[:-1], ended])[: blank.shape[0]], label[:, :, :-1]


def _with_padding_labels(problem: Problem, request: Request) -> Lattice:
    """Return a lattice with a column for every label, those of the padding and those beyond T frames included."""
    lattice = lattices.build_lattice(problem, request)
    targets = lattices.wide(problem.targets)
    labels = jnp.where(lattices.in_range(targets, problem.scores.shape[2] - 1), targets, request.blank)
    labels = jnp.pad(labels.astype(jnp.int32), ((0, 0), (0, 1)), constant_values=request.blank)
    counts = lattices.legal_int32(lattices.wide(problem.target_lengths), lattice.legal)
    return lattice._replace(labels=labels, target_lengths=counts)
