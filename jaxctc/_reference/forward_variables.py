"""The log probability of all beginnings of the paths of a target, at every frame, as optax counts them.

The forward half of the recursion, for compatibility alone: neither the losses nor the posteriors need it.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxctc._lattice import lattices
from jaxctc._lattice.lattices import Lattice
from jaxctc._reference import log_emissions, recursion
from jaxctc._reference.log_space import logaddexp
from jaxctc._reference.recursion import LogStates
from jaxctc._types import LOG_ZERO, Problem, Request


@functools.partial(jax.jit, static_argnames="request")
def forward_probabilities(
    problem: Problem, live: Bool[Array, "N T"], violation_score: Float[Array, ""] | None, request: Request
) -> tuple[Float[Array, " N"], Float[Array, "T N blanks"], Float[Array, "T N labels"]]:
    """The losses, and at each frame the beginnings that end in each blank and in each label.

    What a path that breaks a rule adds to its score is `violation_score`; none does if that is None. The last frame of the
    blanks has the last label added. A state beyond a target's own labels is that of its padding.
    """
    problem = moved(problem, live)
    lattice = _whole(problem, request)
    log_probs = log_emissions.log_probs(problem.scores, lattice, request)
    # Where a target cannot be spelled its beginnings can, and with a broken rule all of it.
    emitted = log_emissions.build(log_probs, lattice, request, feasible=lattice.legal)
    topology = log_emissions.topology_of(lattice)
    if violation_score is not None:
        topology = topology._replace(violation_score=jnp.maximum(violation_score.astype(emitted.peak.dtype), LOG_ZERO))
    states = recursion.forward(emitted.states, topology)
    peak = jnp.pad(jnp.cumsum(emitted.peak, axis=0), ((1, 0), (0, 0)))
    states = LogStates(*(x + peak[:, :, None] for x in states))

    def shown(x: Float[Array, "T N W"]) -> Float[Array, "T N W"]:
        return jnp.where(lattice.legal[None, :, None], jnp.where(x < LOG_ZERO / 2, -jnp.inf, x), jnp.nan)

    ended = shown(recursion.whole(logaddexp, LogStates(*(x[-1] for x in states)))[None])
    loss = -jnp.take_along_axis(ended[0], lattice.target_lengths[:, None], axis=1)[:, 0]
    # Padded frames repeat what was before them.
    seen = jnp.cumsum(live, axis=1, dtype=jnp.int32).T[:, :, None]
    blank, label = (shown(jnp.take_along_axis(x, seen, axis=0, mode="promise_in_bounds")) for x in states)
    return loss, jnp.concatenate([blank[:-1], ended])[: len(blank)], label[:, :, :-1]


def moved(problem: Problem, live: Bool[Array, "N T"]) -> Problem:
    """The frames that are no padding come first, in their order."""

    def move(scores: Array) -> Array:
        order = jnp.argsort(~live, axis=1, stable=True)[:, :, None]
        return jnp.take_along_axis(scores, order, axis=1, mode="promise_in_bounds")

    in_place = (live[:, :-1] | ~live[:, 1:]).all()
    return problem._replace(scores=lax.cond(in_place, lambda scores: scores, move, problem.scores))


def _whole(problem: Problem, request: Request) -> Lattice:
    """A column for every label, be it more than there are frames, or padding."""
    lattice = lattices.build(problem, request)
    targets = lattices.wide(problem.targets)
    labels = jnp.where(lattices.within(targets, problem.scores.shape[2] - 1), targets, request.blank)
    labels = jnp.pad(labels.astype(jnp.int32), ((0, 0), (0, 1)), constant_values=request.blank)
    counts = lattices.narrow(lattices.wide(problem.target_lengths), lattice.legal)
    return lattice._replace(labels=labels, target_lengths=counts)
