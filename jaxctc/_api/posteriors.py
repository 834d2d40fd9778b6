"""What a batch says of its lattice beyond the loss: posteriors, and what is made of them."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from jaxctc._autodiff import posterior_rule
from jaxctc._autodiff.loss_rule import losses
from jaxctc._inputs.arguments import canonical_batch
from jaxctc._lattice import lattices, outcome
from jaxctc._lattice.lattices import frame_mask, frames_first, frames_of
from jaxctc._mesh import sharded_like_scores
from jaxctc._types import LOG_ZERO, FloatsLike, Implementation, IntegersLike, Problem, Request


class Posteriors(NamedTuple):
    """Probabilities given the target; each sums to one over its last axis in every frame of a sequence."""

    states: Float[Array, "T N states"]
    """The probabilities of the 2 S + 1 states: blank 0, label 0, blank 1, and so on."""
    classes: Float[Array, "T N C"]


class Statistics(NamedTuple):
    """Sums over the paths of each target."""

    log_likelihood: Float[Array, " N"]
    """Minus the loss."""
    entropy: Float[Array, " N"]
    """The entropy of the paths, given the target, in nats; 0 if there is only one path, or none."""
    frames: Float[Array, "N S"]
    """Expected number of frames in each label."""
    log_likelihood_ratio: Float[Array, "N S"]
    """How far each label falls behind the frame's best class, in nats a frame, over the frames that it is expected
    in: 0 if it is the best throughout, else negative. 0 where no label is.
    """


def ctc_posteriors(
    log_probs: FloatsLike,
    targets: IntegersLike,
    input_lengths: IntegersLike,
    target_lengths: IntegersLike,
    blank: int = 0,
    *,
    batch_first: bool = False,
    max_target_length: int | None = None,
    implementation: Implementation | None = None,
) -> Posteriors:
    """The probability of each state, and of each class, at each frame, given the target.

    The classes' are minus the gradient of `ctc_loss` with ``reduction="sum"``. Under `jax.jit` what is not used is
    not computed. Both can be differentiated, as often as need be.

    Shapes: T frames, N sequences, C classes with the blank, S labels of the longest target.

    Args:
        log_probs: Log probabilities, normalized or not, floating point, (T, N, C), or (T, C) for one sequence.
        targets: Labels, (N, S), (S,) for one sequence, or end to end; all forms as for `ctc_loss`.
        input_lengths: Frames of each sequence.
        target_lengths: Labels of each target.
        blank: Index of the blank class.
        batch_first: `log_probs` is (N, T, C), and the results likewise.
        max_target_length: A bound on the target lengths, known when tracing (see `ctc_loss`).
        implementation: As for `ctc_loss`.

    Returns:
        `Posteriors`: states, (T, N, 2 S + 1), and classes, (T, N, C), float64 for float64 and float32 otherwise;
        without the axis N for one sequence. Both are 0 beyond a sequence's length, and throughout where no path
        spells the target; NaN where `ctc_loss` is NaN.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A shape, a length, a label or `blank` is illegal, or `implementation` is not for this.

    Example:
        >>> import jax, jax.numpy as jnp, jaxctc
        >>> log_probs = jax.nn.log_softmax(jnp.zeros((2, 3)))
        >>> states, classes = jaxctc.ctc_posteriors(log_probs, jnp.array([1]), 2, 1)
        >>> [round(p, 3) for p in states[0].tolist()]  # three paths: blank 1, 1 1, 1 blank
        [0.333, 0.667, 0.0]

    Reference:
        Graves et al., "Connectionist Temporal Classification", ICML 2006, equation 14: alpha times beta over the
        likelihood. Computed otherwise (see `jaxctc`): no two large numbers are taken from each other.
    """
    problem, request, batched = canonical_batch(
        log_probs,
        targets,
        input_lengths,
        target_lengths,
        blank,
        batch_first=batch_first,
        max_target_length=max_target_length,
        implementation=implementation,
    )
    found = _posteriors(request, *problem)
    return found if batched else Posteriors(*(x[0] if batch_first else x[:, 0] for x in found))


@functools.partial(jax.jit, static_argnums=0)
@sharded_like_scores(lambda _, scores: Posteriors._make([P(*scores[:2]), scores]))
def _posteriors(request: Request, *problem: jax.Array) -> Posteriors:
    return Posteriors(*posterior_rule.posteriors(request, *problem))


def ctc_statistics(
    log_probs: FloatsLike,
    targets: IntegersLike,
    input_lengths: IntegersLike,
    target_lengths: IntegersLike,
    blank: int = 0,
    *,
    batch_first: bool = False,
    max_target_length: int | None = None,
    implementation: Implementation | None = None,
) -> Statistics:
    """How sure the model is of where the labels lie, how long they last, and how well they fit.

    Args:
        log_probs: Log probabilities, floating point, (T, N, C), or (T, C) for one sequence.
        targets: Labels, (N, S), (S,) for one sequence, or end to end; all forms as for `ctc_loss`.
        input_lengths: Frames of each sequence.
        target_lengths: Labels of each target.
        blank: Index of the blank class.
        batch_first: `log_probs` is (N, T, C).
        max_target_length: A bound on the target lengths, known when tracing (see `ctc_loss`).
        implementation: As for `ctc_loss`.

    Returns:
        `Statistics`: log likelihood and entropy, (N,), expected frames and log likelihood ratio of each label,
        (N, S); without the axis N for one sequence. All can be differentiated. NaN where `ctc_loss` is NaN.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A shape, a length, a label or `blank` is illegal, or `implementation` is not for this.

    Example:
        >>> import jax, jax.numpy as jnp, jaxctc
        >>> log_probs = jax.nn.log_softmax(jnp.zeros((2, 3)))
        >>> found = jaxctc.ctc_statistics(log_probs, jnp.array([1]), 2, 1)
        >>> round(float(found.entropy), 4), found.frames.tolist()  # log 3: three paths, equally likely
        (1.0986, [1.333...])

    Reference:
        Liu, Jin and Zhang, "Connectionist Temporal Classification with Maximum Entropy Regularization", NeurIPS
        2018 (the entropy); Witt and Young, "Phone-level pronunciation scoring and assessment", Speech Communication
        2000 (the ratio, there over one alignment, here in the mean over all).
    """
    problem, request, batched = canonical_batch(
        log_probs,
        targets,
        input_lengths,
        target_lengths,
        blank,
        batch_first=batch_first,
        max_target_length=max_target_length,
        implementation=implementation,
    )
    found = _statistics(request, *problem)
    return found if batched else Statistics(*(x[0] for x in found))


@functools.partial(jax.jit, static_argnums=0)
@sharded_like_scores(lambda sequences, _: Statistics._make([sequences] * 4))
def _statistics(request: Request, *arrays: jax.Array) -> Statistics:
    problem = Problem(*arrays)
    loss = losses(request, *problem)
    states, _ = posterior_rule.posteriors(request, *problem)
    occupied = frames_first(states, request)[:, :, 1::2]
    frames = occupied.sum(axis=0)

    lattice = lattices.build_lattice(problem, request)
    kept = frames_first(frame_mask(lattice.input_lengths, frames_of(problem.scores, request)), request)[:, :, None]
    scores = frames_first(jnp.where(kept, problem.scores.astype(states.dtype), 0), request)
    labels = jnp.clip(problem.targets.astype(jnp.int32), 0, scores.shape[2] - 1)
    behind = jnp.take_along_axis(scores, labels[None], axis=2, mode="promise_in_bounds") - scores.max(
        axis=2, keepdims=True
    )
    behind = jnp.where(occupied == 0, 0, jnp.maximum(behind, LOG_ZERO))
    ratio = (occupied * behind).sum(axis=0) / jnp.where(frames == 0, 1, frames)
    entropy = outcome.nan_where(jnp.isnan(loss), posterior_rule.path_entropy(request, problem))
    return Statistics(0 - loss, entropy, frames, ratio)
