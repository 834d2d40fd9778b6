"""The log probability of all beginnings of the paths of a target, at every frame, as optax counts them.

The forward half of the recursion, for compatibility alone: neither the losses nor the posteriors need it.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxctc import _emissions, _lattice, _recursion
from jaxctc._lattice import Lattice
from jaxctc._log_space import LOG_ZERO, logaddexp
from jaxctc._recursion import States
from jaxctc._types import Options, Problem


@functools.partial(jax.jit, static_argnames="options")
def beginnings(
    problem: Problem, live: Bool[Array, "N T"], broken: Float[Array, ""] | None, options: Options
) -> tuple[Float[Array, " N"], Float[Array, "T N blanks"], Float[Array, "T N labels"]]:
    """The losses, and at each frame the beginnings that end in each blank and in each label.

    What a path that breaks a rule adds to its score is `broken`; none does if that is None. The last frame of the
    blanks has the last label added. A state beyond a target's own labels is that of its padding.
    """
    problem = moved(problem, live)
    lattice = _whole(problem, options)
    log_probs = _emissions.log_probs(problem.scores, lattice, options)
    # Where a target cannot be spelled its beginnings can, and with a broken rule all of it.
    emitted = _emissions.build(log_probs, lattice, options, possible=lattice.legal)
    rules = _emissions.rules_of(lattice)
    if broken is not None:
        rules = rules._replace(broken=jnp.maximum(broken.astype(emitted.peak.dtype), LOG_ZERO))
    states = _recursion.forward(emitted.states, rules)
    peak = jnp.pad(jnp.cumsum(emitted.peak, axis=0), ((1, 0), (0, 0)))
    states = States(*(x + peak[:, :, None] for x in states))

    def shown(x: Float[Array, "T N W"]) -> Float[Array, "T N W"]:
        return jnp.where(lattice.legal[None, :, None], jnp.where(x < LOG_ZERO / 2, -jnp.inf, x), jnp.nan)

    ended = shown(_recursion.whole(logaddexp, States(*(x[-1] for x in states)))[None])
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


def _whole(problem: Problem, options: Options) -> Lattice:
    """A column for every label, be it more than there are frames, or padding."""
    lattice = _lattice.build(problem, options)
    targets = _lattice.wide(problem.targets)
    labels = jnp.where(_lattice.within(targets, problem.scores.shape[2] - 1), targets, options.blank)
    labels = jnp.pad(labels.astype(jnp.int32), ((0, 0), (0, 1)), constant_values=options.blank)
    counts = _lattice.narrow(_lattice.wide(problem.target_lengths), lattice.legal)
    return lattice._replace(labels=labels, target_lengths=counts)
