"""The CTC recursion, from both ends at once: logarithms inward, probabilities outward.

A target of L labels has 2 L + 1 states. They are kept as two rows of W columns: `blank[s]` is the
blank after s labels, `label[s]` is label s (counted from 0), which lies between blank s and
blank s + 1. One frame of the forward recursion is

    u[s]      = blank[s] (+) label[s - 1]               into blank s
    w[s]      = u[s] if skip[s] else blank[s]           what may step into label s
    blank'[s] = u[s] + e_blank
    label'[s] = (label[s] (+) w[s]) + e[s]

with (+) the logaddexp: two for two states. skip[s] says that label s differs from label s - 1. The
backward recursion is the same, mirrored. Both run in one scan and meet in the middle, where the
likelihood is known. Every (+) also yields the share of its first argument, a probability; the
posterior at the meeting frame flows outward through these shares by multiplying and adding alone,
so that nothing large is ever subtracted from something large.

Both directions start from a virtual state outside the sequence: blank 0 before the first frame,
blank L after the last. Frames at or beyond a sequence's own length leave its states as they are.

`log_likelihood` is the same forward recursion written plainly. It is what higher derivatives go
through, and the reference that `posterior` is tested against.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxctc._log_space import LOG_ZERO, logaddexp, logaddexp_and_share


class States(NamedTuple):
    """One number for each state of one frame."""

    blank: Float[Array, "N W"]
    label: Float[Array, "N W"]


def _select(keep: Bool[Array, " N"], new: States, old: States) -> States:
    return States(*(jnp.where(keep[:, None], a, b) for a, b in zip(new, old, strict=True)))


def _from_left(x: Float[Array, "N W"], fill: float) -> Float[Array, "N W"]:
    """Column s takes what stood in column s - 1."""
    return jnp.concatenate([jnp.full_like(x[:, :1], fill), x[:, :-1]], axis=1)


def _from_right(x: Float[Array, "N W"], fill: float) -> Float[Array, "N W"]:
    """Column s takes what stood in column s + 1."""
    return jnp.concatenate([x[:, 1:], jnp.full_like(x[:, :1], fill)], axis=1)


def _start(column: Int[Array, "N 1"] | int, like: Float[Array, "N W"]) -> States:
    """All probability in one blank state."""
    impossible = jnp.full_like(like, LOG_ZERO)
    here = lax.broadcasted_iota(jnp.int32, like.shape, 1) == column
    return States(jnp.where(here, 0, impossible), impossible)


def _emit(state: States, emissions: Float[Array, "N W"]) -> States:
    """Adds one frame's scores. The last column holds the blank's."""
    return States(state.blank + emissions[:, -1:], state.label + emissions)


def _advance(state: States, skip: Bool[Array, "N W"]) -> tuple[States, States]:
    """From frame t - 1 to frame t, before the emission; and the shares of those that stayed."""
    into_blank, stay_blank = logaddexp_and_share(state.blank, _from_left(state.label, LOG_ZERO))
    stepping = jnp.where(skip, into_blank, state.blank)
    into_label, stay_label = logaddexp_and_share(state.label, stepping)
    return States(into_blank, into_label), States(stay_blank, stay_label)


def _retreat(state: States, skip: Bool[Array, "N W"]) -> tuple[States, States]:
    """From frame t + 1 to frame t, before the emission: `_advance`, mirrored."""
    into_blank, stay_blank = logaddexp_and_share(state.blank, state.label)
    stepping = _from_right(jnp.where(skip, into_blank, state.blank), LOG_ZERO)
    into_label, stay_label = logaddexp_and_share(state.label, stepping)
    return States(into_blank, into_label), States(stay_blank, stay_label)


def _undo_advance(posterior: States, share: States, skip: Bool[Array, "N W"]) -> States:
    """The posterior at frame t - 1 from that at frame t: each state gives back what it was given."""
    stayed = posterior.label * share.label
    stepped = posterior.label - stayed
    through_u = posterior.blank + jnp.where(skip, stepped, 0)
    blank = through_u * share.blank
    return States(blank + jnp.where(skip, 0, stepped), stayed + _from_right(through_u - blank, 0.0))


def _undo_retreat(posterior: States, share: States, skip: Bool[Array, "N W"]) -> States:
    """The posterior at frame t + 1 from that at frame t: `_undo_advance`, mirrored."""
    stayed = posterior.label * share.label
    stepped = _from_left(posterior.label - stayed, 0.0)
    through_u = posterior.blank + jnp.where(skip, stepped, 0)
    blank = through_u * share.blank
    return States(blank + jnp.where(skip, 0, stepped), stayed + through_u - blank)


class _Meeting(NamedTuple):
    """What is known when both ends have met at frame T // 2."""

    log_likelihood: Float[Array, " N"]
    posterior: States
    join: States
    shares: tuple[States, States] | None


def _inward(
    emissions: Float[Array, "T N W"],
    skip: Bool[Array, "N W"],
    input_lengths: Int[Array, " N"],
    target_lengths: Int[Array, " N"],
    *,
    keep_shares: bool,
) -> _Meeting:
    frames = emissions.shape[0]
    middle = frames // 2
    like = jnp.zeros(emissions.shape[1:], emissions.dtype)
    if frames == 0:  # a scan over no frames is traced all the same
        emissions = like[None]

    def step(carry, i):
        forward, backward = carry
        t = frames - 1 - i
        ahead, forward_share = _advance(forward, skip)
        back, backward_share = _retreat(backward, skip)
        # With an odd number of frames the last step belongs to the backward direction alone.
        forward = _select(i < jnp.minimum(input_lengths, middle), _emit(ahead, emissions[i]), forward)
        backward = _select(t < input_lengths, _emit(back, emissions[t]), backward)
        return (forward, backward), (forward_share, backward_share) if keep_shares else None

    ends = (_start(0, like), _start(target_lengths[:, None], like))
    (forward, backward), shares = lax.scan(step, ends, jnp.arange(frames - middle, dtype=jnp.int32))

    joined, join = _advance(forward, skip)
    blank, label = joined.blank + backward.blank, joined.label + backward.label
    peak = jnp.maximum(blank.max(axis=1), label.max(axis=1))[:, None]
    blank, label = jnp.exp(blank - peak), jnp.exp(label - peak)
    total = (blank.sum(axis=1) + label.sum(axis=1))[:, None]
    return _Meeting((peak + jnp.log(total))[:, 0], States(blank / total, label / total), join, shares)


def forward_log_likelihood(
    emissions: Float[Array, "T N W"],
    skip: Bool[Array, "N W"],
    input_lengths: Int[Array, " N"],
    target_lengths: Int[Array, " N"],
) -> Float[Array, " N"]:
    """The log likelihood, from both ends at once: T / 2 steps, nothing stored. Not differentiable itself."""
    return _inward(emissions, skip, input_lengths, target_lengths, keep_shares=False).log_likelihood


@jax.custom_jvp
def posterior(
    emissions: Float[Array, "T N W"],
    skip: Bool[Array, "N W"],
    input_lengths: Int[Array, " N"],
    target_lengths: Int[Array, " N"],
) -> tuple[Float[Array, " N"], Float[Array, "T N W"]]:
    """The log likelihood, and the probability of every label at every frame given the target.

    The last column holds the blank, all its states summed; each live frame sums to one, the frames
    beyond a sequence's length hold nothing of use.
    """
    frames = emissions.shape[0]
    meeting = _inward(emissions, skip, input_lengths, target_lengths, keep_shares=True)

    def by_label(gamma: States) -> Float[Array, "N W"]:
        blank = gamma.blank.sum(axis=1, keepdims=True)
        return jnp.concatenate([gamma.label[:, :-1], blank], axis=1)

    def step(carry, shares_and_i):
        (forward_share, backward_share), i = shares_and_i
        left, right = carry
        seen = by_label(left), by_label(right)
        live = i < jnp.minimum(input_lengths, frames // 2)
        left = _select(live, _undo_advance(left, forward_share, skip), left)
        right = _undo_retreat(right, backward_share, skip)
        return (left, right), seen

    ends = (_undo_advance(meeting.posterior, meeting.join, skip), meeting.posterior)
    steps = (meeting.shares, jnp.arange(frames - frames // 2, dtype=jnp.int32))
    _, (left, right) = lax.scan(step, ends, steps, reverse=True)
    return meeting.log_likelihood, jnp.concatenate([left[: frames // 2], right[::-1]])


@posterior.defjvp
def _posterior_jvp(primals, tangents):
    emissions, *lattice = primals

    def plain(emissions):
        value = log_likelihood(emissions, *lattice)
        return value.sum(), value

    gradient = jax.grad(plain, has_aux=True)
    _, (gamma_dot, value_dot) = jax.jvp(gradient, (emissions,), (tangents[0],))
    return posterior(*primals), (value_dot, gamma_dot)


def log_likelihood(
    emissions: Float[Array, "T N W"],
    skip: Bool[Array, "N W"],
    input_lengths: Int[Array, " N"],
    target_lengths: Int[Array, " N"],
) -> Float[Array, " N"]:
    """The log likelihood by the forward recursion alone: differentiable to every order by JAX itself."""

    def step(alpha, frame):
        t, e = frame
        u = logaddexp(alpha.blank, _from_left(alpha.label, LOG_ZERO))
        w = jnp.where(skip, u, alpha.blank)
        ahead = _emit(States(u, logaddexp(alpha.label, w)), e)
        return _select(t < input_lengths, ahead, alpha), None

    start = _start(0, jnp.zeros(emissions.shape[1:], emissions.dtype))
    alpha, _ = lax.scan(step, start, (jnp.arange(emissions.shape[0], dtype=jnp.int32), emissions))
    total = logaddexp(alpha.blank, _from_left(alpha.label, LOG_ZERO))  # into the virtual last blank
    return jnp.take_along_axis(total, target_lengths[:, None], axis=1)[:, 0]
