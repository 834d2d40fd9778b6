r"""CTC losses with other weights, other paths, or something added: each from its paper.

All take what `jaxctc.ctc_loss` takes, and a few keywords of their own, and return what it returns: the same
shapes, dtypes, reductions, infinities and errors. With :math:`L` the CTC loss:

| function | loss |
| --- | --- |
| `prior_ctc_loss` | of :math:`p_t(k) / p(k)^\alpha`: no class is preferred for being frequent |
| `entropy_ctc_loss` | :math:`L - w H`, the entropy of the paths: they stay many |
| `focal_ctc_loss` | :math:`\alpha (1 - e^{-L})^\gamma L`: what is hard counts more |
| `smoothed_ctc_loss` | :math:`(1 - w) L + w \sum_t KL(u \| p_t)`: no class is ruled out |
| `delay_penalised_ctc_loss` | of paths weighted by how early their labels begin |
| `wildcard_ctc_loss` | of paths that spell the target in some stretch of the input |
| `star_ctc_loss` | of paths that spell the target with anything between its labels |

Gradients are the true derivatives with respect to `log_probs`. The entropy and the last three go through the plain
recursion (`jaxctc._reference.recursion`), and take a few times as long as `ctc_loss`.
"""

import functools
from collections.abc import Callable
from typing import TypeAlias, TypedDict, Unpack

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from jaxctc._api.reduction import reduce
from jaxctc._autodiff import posterior_rule
from jaxctc._autodiff.loss_rule import losses
from jaxctc._inputs import checks
from jaxctc._inputs.arguments import canonical_batch, canonical_frames, canonical_scores
from jaxctc._lattice import lattices
from jaxctc._lattice.lattices import Lattice, accumulation_dtype, frame_mask, frames_first, frames_of, row_of_indices
from jaxctc._reference import log_emissions, recursion
from jaxctc._reference.log_emissions import Emissions
from jaxctc._reference.log_space import logaddexp
from jaxctc._reference.recursion import LogStates, Topology
from jaxctc._types import LOG_ZERO, ArrayLike, Implementation, Problem, Reduction, Request

__all__ = [
    "Common",
    "delay_penalised_ctc_loss",
    "entropy_ctc_loss",
    "focal_ctc_loss",
    "label_priors",
    "prior_ctc_loss",
    "smoothed_ctc_loss",
    "star_ctc_loss",
    "wildcard_ctc_loss",
]

Losses: TypeAlias = Callable[..., Float[Array, " N"]]
"""From the options, the problem and numbers of its own to one loss a sequence."""


class Common(TypedDict, total=False):
    """The keywords that every loss takes, as `jaxctc.ctc_loss` does."""

    blank: int
    """Index of the blank class; 0 unless given."""
    reduction: Reduction
    """``"mean"`` unless given."""
    zero_infinity: bool
    """Count infinite losses as 0; False unless given."""
    batch_first: bool
    """`log_probs` is (N, T, C); False unless given."""
    max_target_length: int | None
    """A bound on the target lengths, known when tracing; None unless given."""
    implementation: Implementation | None
    """As for `jaxctc.ctc_loss`; only losses that come of that one have kernels. None unless given."""


def label_priors(log_probs: ArrayLike, input_lengths: ArrayLike, *, batch_first: bool = False) -> Float[Array, " C"]:
    """The logarithm of the mean probability of each class over all frames, for `prior_ctc_loss`.

    Args:
        log_probs: Normalised, (T, N, C), or (T, C) for one sequence; best of a whole epoch.
        input_lengths: Frames of each sequence: (N,), a sequence of ints, or one int.
        batch_first: `log_probs` is (N, T, C).

    Returns:
        (C,), without a derivative: priors are held fixed, as in the papers.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A shape or a length is illegal.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxctc import variants
        >>> priors = variants.label_priors(jnp.log(jnp.array([[0.75, 0.25], [0.25, 0.75]])), 2)
        >>> jnp.exp(priors).round(4).tolist()
        [0.5, 0.5]
    """
    scores, request, batched = canonical_scores("log_probs", log_probs, 0, batch_first)
    return _label_priors(scores, canonical_frames("log_probs", input_lengths, scores, request, batched), request)


@functools.partial(jax.jit, static_argnames="request")
def _label_priors(
    scores: Float[Array, "A B C"], input_lengths: Integer[Array, " N"], request: Request
) -> Float[Array, " C"]:
    kept = frames_first(frame_mask(input_lengths, frames_of(scores, request)), request)[:, :, None]
    scores = jax.lax.stop_gradient(scores.astype(accumulation_dtype(scores.dtype)))
    probabilities = jnp.where(kept, jnp.exp(scores), 0).sum(axis=(0, 1))
    return jnp.log(probabilities) - jnp.log(kept.sum(dtype=jnp.int32).astype(scores.dtype))


def prior_ctc_loss(
    log_probs: ArrayLike,
    targets: ArrayLike,
    input_lengths: ArrayLike,
    target_lengths: ArrayLike,
    *,
    log_priors: ArrayLike,
    scale: float = 0.3,
    **common: Unpack[Common],
) -> Float[Array, "..."]:
    """CTC of the scores over the classes' priors: less peaky, and better aligned.

    Without them the blank, frequent as it is, wins more frames with every step of training. Divided by its own
    frequency it has no such advantage.

    Args:
        log_probs: Normalised, (T, N, C), or (T, C) for one sequence.
        targets: As for `jaxctc.ctc_loss`, and so are the lengths.
        input_lengths: Frames of each sequence.
        target_lengths: Labels of each target.
        log_priors: (C,), such as `label_priors` of the epoch before; held fixed, without a derivative. Where it is
            -inf, as for a class that was never seen, the score stays as it is.
        scale: The exponent of the priors: 0.3 is the choice of torchaudio's recipe; 0 gives `ctc_loss`.
        **common: See `Common`.

    Returns:
        The loss in nats, which may be negative: the scores are no distribution.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A shape, a length, a label, `blank` or `reduction` is illegal.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxctc import variants
        >>> log_probs = jax.nn.log_softmax(jnp.zeros((4, 3)))
        >>> priors = variants.label_priors(log_probs, 4)
        >>> loss = variants.prior_ctc_loss(
        ...     log_probs, jnp.array([1, 2]), 4, 2, log_priors=priors, scale=1.0, reduction="sum"
        ... )
        >>> round(float(loss), 4)  # 15 paths of weight 1: -log(15)
        -2.7081

    Reference:
        Zeyer, Schlüter and Ney, "Why does CTC result in peaky behavior?", 2021; Huang et al., "Less Peaky and More
        Accurate CTC Forced Alignment by Label Priors", ICASSP 2024. The priors are the mean over an epoch and held
        fixed, as in the latter; the former also considers softmax averages over a batch.
    """
    scores = checks.scores("log_probs", log_probs)
    priors = jax.lax.stop_gradient(jnp.asarray(log_priors))
    if priors.shape != scores.shape[-1:]:
        raise ValueError(
            f"log_priors has shape {priors.shape}, but there are C = {scores.shape[-1]} classes: it must have shape "
            f"({scores.shape[-1]},), one a class, the blank included."
        )
    priors = jnp.where(jnp.isneginf(priors), 0, priors).astype(accumulation_dtype(scores.dtype))
    scores = scores.astype(priors.dtype) - scale * jnp.broadcast_to(priors, scores.shape)
    return _evaluate(_ctc, (), scores, targets, input_lengths, target_lengths, **common)


def _ctc(request: Request, problem: Problem) -> Float[Array, " N"]:
    return losses(request, *problem)


def entropy_ctc_loss(
    log_probs: ArrayLike,
    targets: ArrayLike,
    input_lengths: ArrayLike,
    target_lengths: ArrayLike,
    *,
    weight: float,
    **common: Unpack[Common],
) -> Float[Array, "..."]:
    """EnCTC: the loss less `weight` times the entropy of the paths of the target.

    It rewards a model for leaving open where the labels lie, against the overconfident alignments that plain CTC
    runs into.

    Args:
        log_probs: Normalised, (T, N, C), or (T, C) for one sequence.
        targets: As for `jaxctc.ctc_loss`, and so are the lengths.
        input_lengths: Frames of each sequence.
        target_lengths: Labels of each target.
        weight: Of the entropy, in nats a nat. The paper calls it beta.
        **common: See `Common`.

    Returns:
        The loss in nats, which may be negative.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A shape, a length, a label, `blank` or `reduction` is illegal.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxctc import variants
        >>> log_probs = jax.nn.log_softmax(jnp.zeros((2, 3)))
        >>> loss = variants.entropy_ctc_loss(log_probs, jnp.array([1]), 2, 1, weight=0.5)
        >>> round(float(loss), 4)  # -log(3 / 9) - log(3) / 2
        0.5493

    Reference:
        Liu, Jin and Zhang, "Connectionist Temporal Classification with Maximum Entropy Regularization", NeurIPS 2018.
        The entropy is that of the paths given the target, normalised, as there.
    """
    return _evaluate(_entropy, (weight,), log_probs, targets, input_lengths, target_lengths, **common)


def _entropy(request: Request, problem: Problem, weight: Array) -> Float[Array, " N"]:
    return losses(request, *problem) - weight * posterior_rule.path_entropy(request, problem)


def focal_ctc_loss(
    log_probs: ArrayLike,
    targets: ArrayLike,
    input_lengths: ArrayLike,
    target_lengths: ArrayLike,
    *,
    gamma: float,
    alpha: float = 1.0,
    **common: Unpack[Common],
) -> Float[Array, "..."]:
    r"""Focal CTC: :math:`\alpha (1 - p)^\gamma L` with :math:`p = e^{-L}` the probability of the target.

    Sequences that the model reads well already count for less.

    Args:
        log_probs: Normalised, (T, N, C), or (T, C) for one sequence.
        targets: As for `jaxctc.ctc_loss`, and so are the lengths.
        input_lengths: Frames of each sequence.
        target_lengths: Labels of each target.
        gamma: How much less, at least 0; 0 gives alpha times `ctc_loss`.
        alpha: A factor.
        **common: See `Common`.

    Returns:
        The loss in nats; 0 where p is 1 or, of scores that are no distribution, more.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A shape, a length, a label, `blank` or `reduction` is illegal, or `gamma` negative.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxctc import variants
        >>> log_probs = jax.nn.log_softmax(jnp.zeros((2, 3)))
        >>> round(float(variants.focal_ctc_loss(log_probs, jnp.array([1]), 2, 1, gamma=2.0)), 4)  # (2 / 3)^2 log 3
        0.4883

    Reference:
        Feng, Yao and Zhang, "Focal CTC Loss for Chinese Optical Character Recognition on Unbalanced Datasets",
        Complexity 2019. The probability is that of the whole target, as there, not of each label.
    """
    if isinstance(gamma, int | float) and gamma < 0:
        raise ValueError(f"gamma is {gamma}: it must be at least 0, where 0 leaves the loss as it is.")
    return _evaluate(_focal, (gamma, alpha), log_probs, targets, input_lengths, target_lengths, **common)


def _focal(request: Request, problem: Problem, gamma: Array, alpha: Array) -> Float[Array, " N"]:
    loss = losses(request, *problem)
    # Zero times the derivative at infinity would be NaN, and so would that of 0 to the power of gamma.
    usual = (loss > 0) & ~jnp.isposinf(loss)
    kept = jnp.where(usual, loss, 1)
    focal = alpha * jnp.power(-jnp.expm1(-kept), gamma) * kept
    # With gamma 0 it is the loss itself, wherever.
    rest = jnp.where(jnp.isposinf(loss) | jnp.isnan(loss) | (gamma == 0), alpha * loss, 0)
    return jnp.where(usual, focal, rest)


def smoothed_ctc_loss(
    log_probs: ArrayLike,
    targets: ArrayLike,
    input_lengths: ArrayLike,
    target_lengths: ArrayLike,
    *,
    weight: float,
    **common: Unpack[Common],
) -> Float[Array, "..."]:
    r"""Label smoothing: :math:`(1 - w) L + w \sum_t KL(u \| p_t)`, with u the uniform distribution over classes.

    Args:
        log_probs: Normalised, (T, N, C), or (T, C) for one sequence. A score of -inf makes the loss infinite.
        targets: As for `jaxctc.ctc_loss`, and so are the lengths.
        input_lengths: Frames of each sequence.
        target_lengths: Labels of each target.
        weight: Of the second term, within [0, 1].
        **common: See `Common`.

    Returns:
        The loss in nats.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A shape, a length, a label, `blank`, `reduction` or `weight` is illegal.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxctc import variants
        >>> log_probs = jax.nn.log_softmax(jnp.zeros((2, 3)))
        >>> round(float(variants.smoothed_ctc_loss(log_probs, jnp.array([1]), 2, 1, weight=0.1)), 4)  # 0.9 log 3
        0.9888

    Reference:
        Kim, Seltzer, Li and Zhao, "Improved Training for Online End-to-end Speech Recognition Systems", Interspeech
        2018. The divergence is taken from the uniform distribution to the model's, so that its gradient is that of
        label smoothing as in Szegedy et al., "Rethinking the Inception Architecture", CVPR 2016; it is summed over
        the frames, as the loss is.
    """
    if isinstance(weight, int | float) and not 0 <= weight <= 1:
        raise ValueError(f"weight is {weight}: it must lie in [0, 1], where 0 gives ctc_loss.")
    return _evaluate(_smoothed, (weight,), log_probs, targets, input_lengths, target_lengths, **common)


def _smoothed(request: Request, problem: Problem, weight: Array) -> Float[Array, " N"]:
    loss = losses(request, *problem)
    # What is infinite is so whatever the scores.
    kept = _live(problem, request) & frames_first(~jnp.isposinf(loss)[None], request)
    scores = jnp.where(kept[:, :, None], problem.scores.astype(weight.dtype), 0)
    divergence = jnp.where(kept, -scores.mean(axis=2) - jnp.log(jnp.asarray(scores.shape[2], weight.dtype)), 0)
    return (1 - weight) * loss + weight * frames_first(divergence, request).sum(axis=0)


def delay_penalised_ctc_loss(
    log_probs: ArrayLike,
    targets: ArrayLike,
    input_lengths: ArrayLike,
    target_lengths: ArrayLike,
    *,
    penalty: float,
    **common: Unpack[Common],
) -> Float[Array, "..."]:
    """CTC of paths weighted by how early their labels begin, for streaming models.

    The first frame t of each label adds ``penalty * ((T - 1) / 2 - t)`` to the score of a path, with T the
    sequence's own length.

    Args:
        log_probs: Normalised, (T, N, C), or (T, C) for one sequence.
        targets: As for `jaxctc.ctc_loss`, and so are the lengths.
        input_lengths: Frames of each sequence.
        target_lengths: Labels of each target.
        penalty: Nats a frame and label; 0 gives `ctc_loss`. The papers' lambda, 0.001 to 0.02 there.
        **common: See `Common`.

    Returns:
        The loss in nats, which may be negative: the weights are no distribution.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A shape, a length, a label, `blank` or `reduction` is illegal.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxctc import variants
        >>> log_probs = jax.nn.log_softmax(jnp.zeros((2, 3)))
        >>> loss = variants.delay_penalised_ctc_loss(log_probs, jnp.array([1]), 2, 1, penalty=2.0)
        >>> round(float(loss), 4)  # two paths begin at frame 0, one at frame 1: -log((2 e + 1 / e) / 9)
        0.4386

    Reference:
        Yao et al., "Delay-penalized CTC Implemented Based on Finite State Transducer", Interspeech 2023 (k2's
        `ctc_loss` with `delay_penalty`); the offset by the middle frame is that of Kang et al., "Delay-penalized
        transducer for low-latency streaming ASR", ICASSP 2023.
    """
    return _evaluate(_delayed, (penalty,), log_probs, targets, input_lengths, target_lengths, **common)


def _delayed(request: Request, problem: Problem, penalty: Array) -> Float[Array, " N"]:
    lattice, emissions = _emitted(request, problem)
    frame = row_of_indices(frames_of(problem.scores, request)).T
    early = penalty * ((lattice.input_lengths[None] - 1 - 2 * frame).astype(penalty.dtype) / 2)
    blank, label = emissions.states
    # What every frame of a label is given, all but the first give back.
    topology = log_emissions.topology_of(lattice)._replace(self_loop_score=-early)
    return _summed(emissions._replace(states=LogStates(blank, label + early[:, :, None])), topology, lattice, request)


def wildcard_ctc_loss(
    log_probs: ArrayLike,
    targets: ArrayLike,
    input_lengths: ArrayLike,
    target_lengths: ArrayLike,
    *,
    begin: bool = True,
    end: bool = True,
    **common: Unpack[Common],
) -> Float[Array, "..."]:
    """W-CTC: the target is spelled in some stretch of the input; what comes before and after it is anything.

    For targets that are cut off: words missing at the beginning or the end of a transcript. A wildcard stands
    before and behind the target, and has the probability 1 in every frame.

    Args:
        log_probs: Normalised, (T, N, C), or (T, C) for one sequence.
        targets: As for `jaxctc.ctc_loss`, and so are the lengths.
        input_lengths: Frames of each sequence.
        target_lengths: Labels of each target.
        begin: There is a wildcard before the target.
        end: There is one behind it.
        **common: See `Common`.

    Returns:
        The loss in nats, minus the logarithm of the sum of the likelihoods of all stretches of at least one frame;
        it may be negative, for stretches overlap.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A shape, a length, a label, `blank` or `reduction` is illegal.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxctc import variants
        >>> log_probs = jnp.log(jnp.array([[0.5, 0.5], [0.5, 0.5]]))
        >>> loss = variants.wildcard_ctc_loss(log_probs, jnp.array([1]), 2, 1)
        >>> round(float(loss), 4)  # frame 0, frame 1 and both: -log(1/2 + 1/2 + 3/4)
        -0.5596

    Reference:
        Cai, Yuan, Qin, Zhou and Meng, "W-CTC: a Connectionist Temporal Classification Loss with Wild Cards", ICLR
        2022. Of its ways to choose among the ends this is the sum, which alone is a sum over paths.
    """
    flags = checks.flag("begin", begin), checks.flag("end", end)
    return _evaluate(_wildcard[flags], (), log_probs, targets, input_lengths, target_lengths, **common)


def _between(request: Request, problem: Problem, *, begin: bool, end: bool) -> Float[Array, " N"]:
    # A path that does not pass through all frames has not had all their best scores taken out.
    lattice, emissions = _emitted(request, problem, relative=False)
    topology = log_emissions.topology_of(lattice)._replace(begins_anywhere=begin, ends_anywhere=end)
    return _summed(emissions, topology, lattice, request)


_wildcard = {
    (begin, end): functools.partial(_between, begin=begin, end=end) for begin in (False, True) for end in (False, True)
}


def star_ctc_loss(
    log_probs: ArrayLike,
    targets: ArrayLike,
    input_lengths: ArrayLike,
    target_lengths: ArrayLike,
    *,
    penalty: float,
    **common: Unpack[Common],
) -> Float[Array, "..."]:
    """STC, star temporal classification: any number of labels may be missing from the target, anywhere.

    Between two labels, before the first and behind the last stands a star: any labels but the one that comes
    next, in any number of frames.

    Args:
        log_probs: Normalised, (T, N, C), or (T, C) for one sequence.
        targets: As for `jaxctc.ctc_loss`, and so are the lengths; they are what is known of the true labels.
        input_lengths: Frames of each sequence.
        target_lengths: Labels of each target.
        penalty: Nats that each frame of a star costs; minus the logarithm of the paper's token insertion penalty.
            Large at first, so that the model learns from the labels there are, and smaller later.
        **common: See `Common`.

    Returns:
        The loss in nats.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A shape, a length, a label, `blank` or `reduction` is illegal.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxctc import variants
        >>> log_probs = jnp.log(jnp.array([[0.2, 0.5, 0.3], [0.2, 0.5, 0.3]]))
        >>> loss = variants.star_ctc_loss(log_probs, jnp.array([1]), 2, 1, penalty=0.0)
        >>> round(float(loss), 4)  # blank or 2, then 1; or 1, then blank, 1 or 2: -log(0.5 * 0.5 + 0.5 * 1.0)
        0.2877

    Reference:
        Pratap, Hannun, Synnaeve and Collobert, "Star Temporal Classification: Sequence Classification with
        Partially Labeled Data", NeurIPS 2022. A label takes one frame, as in the authors' graph: its repetitions
        are the star's.
    """
    return _evaluate(_starred, (penalty,), log_probs, targets, input_lengths, target_lengths, **common)


def _starred(request: Request, problem: Problem, penalty: Array) -> Float[Array, " N"]:
    lattice = lattices.build(problem, request)
    feasible = lattice.input_lengths >= lattice.target_lengths  # no label needs a blank before it
    log_probs = log_emissions.log_probs(problem.scores, lattice, request)
    log_probs = jnp.where(feasible[None, :, None], log_probs, 0)
    emissions = log_emissions.build(log_probs, lattice, request, feasible=feasible)
    blank, label = emissions.states
    star = _all_but_one(log_probs, lattice, request) - emissions.peak[:, :, None] - penalty
    # Blank and star lead to and come from the same states: together they are one.
    either = logaddexp(jnp.broadcast_to(blank, star.shape), jnp.maximum(star, LOG_ZERO))
    topology = log_emissions.topology_of(lattice)
    topology = topology._replace(skip=jnp.ones_like(topology.skip), self_loop_score=LOG_ZERO)
    return _summed(emissions._replace(states=LogStates(either, label)), topology, lattice, request, feasible)


def _all_but_one(log_probs: Float[Array, "T N C"], lattice: Lattice, request: Request) -> Float[Array, "T N W"]:
    """The log probability of any label but that of each column; of any at all where a column has none."""
    is_blank = (row_of_indices(log_probs.shape[2]) == request.blank)[None]
    labels = jnp.where(is_blank, LOG_ZERO, log_probs)
    peak = jax.lax.stop_gradient(labels.max(axis=2, keepdims=True))
    p = jnp.where(is_blank, 0, jnp.exp(labels - peak))
    # Those before a class and those behind it: taking one from the sum of all would leave nothing but rounding.
    nothing = jnp.zeros_like(p[:, :, :1])
    before = jnp.concatenate([nothing, jnp.cumsum(p, axis=2)[:, :, :-1]], axis=2)
    behind = jnp.concatenate([jnp.flip(jnp.cumsum(jnp.flip(p, 2), axis=2), 2)[:, :, 1:], nothing], axis=2)
    others = jnp.take_along_axis(before + behind, lattice.labels[None], axis=2, mode="promise_in_bounds")
    any_at_all = others > 0
    return jnp.where(any_at_all, jnp.log(jnp.where(any_at_all, others, 1)) + peak, LOG_ZERO)


def _live(problem: Problem, request: Request) -> Bool[Array, "A B"]:
    lattice = lattices.build(problem, request)
    return frames_first(frame_mask(lattice.input_lengths, frames_of(problem.scores, request)), request)


def _emitted(request: Request, problem: Problem, *, relative: bool = True) -> tuple[Lattice, Emissions]:
    lattice = lattices.build(problem, request)
    log_probs = log_emissions.log_probs(problem.scores, lattice, request)
    return lattice, log_emissions.build(log_probs, lattice, request, relative=relative)


def _summed(
    emissions: Emissions,
    topology: Topology,
    lattice: Lattice,
    request: Request,
    feasible: Bool[Array, " N"] | None = None,
) -> Float[Array, " N"]:
    if request.implementation == "pallas":
        raise ValueError("implementation is 'pallas', but these paths are not those of ctc_loss, and have no kernel.")
    value = recursion.log_likelihood(emissions.states, topology)
    lost = ~(lattice.feasible if feasible is None else feasible) | (value < LOG_ZERO / 2)
    loss = jnp.where(lost, jnp.inf, -(value + emissions.peak.sum(axis=0)))
    # A product, so that the gradient is NaN as well.
    return loss * jnp.where(lattice.legal, 1, jnp.nan)


def _evaluate(
    function: Losses,
    parameters: tuple[float, ...],
    log_probs: ArrayLike,
    targets: ArrayLike,
    input_lengths: ArrayLike,
    target_lengths: ArrayLike,
    *,
    blank: int = 0,
    reduction: Reduction = "mean",
    zero_infinity: bool = False,
    batch_first: bool = False,
    max_target_length: int | None = None,
    implementation: Implementation | None = None,
) -> jax.Array:
    checks.reduction(reduction)
    checks.implementation(implementation)
    zero_infinity = checks.flag("zero_infinity", zero_infinity)
    problem, request, batched = canonical_batch(
        "log_probs", log_probs, targets, input_lengths, target_lengths, blank, batch_first, max_target_length
    )
    request = request._replace(implementation=implementation)
    dtype = accumulation_dtype(problem.scores.dtype)
    numbers = tuple(jnp.asarray(x).astype(dtype) for x in parameters)
    loss = _reduced(function, problem, numbers, request, reduction, zero_infinity)
    return loss if batched else loss.reshape(())


@functools.partial(jax.jit, static_argnames=("function", "request", "reduction", "zero_infinity"))
def _reduced(
    function: Losses,
    problem: Problem,
    parameters: tuple[Array, ...],
    request: Request,
    reduction: Reduction,
    zero_infinity: bool,
) -> Float[Array, "..."]:
    return reduce(function(request, problem, *parameters), problem.target_lengths, reduction, zero_infinity)
