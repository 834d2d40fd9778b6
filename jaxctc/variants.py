r"""CTC losses with other weights, other paths, or an added term: each from its paper.

All take what `jaxctc.ctc_loss` takes, and a few keywords of their own, and return what it returns: the same
shapes, dtypes, reductions, infinities and errors. With :math:`L` the CTC loss:

| function | loss |
| --- | --- |
| `prior_ctc_loss` | CTC of :math:`p_t(k) / p(k)^\alpha`: no class is preferred for being frequent |
| `entropy_ctc_loss` | :math:`L - w H` with the entropy of the paths: their distribution stays broad |
| `focal_ctc_loss` | :math:`\alpha (1 - e^{-L})^\gamma L`: hard sequences count for more |
| `smoothed_ctc_loss` | :math:`(1 - w) L + w \sum_t KL(u \| p_t)`: label smoothing |
| `delay_penalised_ctc_loss` | CTC of paths weighted by how early their labels begin |
| `wildcard_ctc_loss` | CTC of paths that spell the target in some stretch of the input |
| `star_ctc_loss` | CTC of paths that may have further labels between those of the target |

Gradients are the true derivatives. The entropy and the last three losses take a few times as long as `ctc_loss`.
"""

from typing import Unpack

from jaxtyping import Array, Float

from jaxctc._api.variant_call import Common, evaluate
from jaxctc._autodiff import variant_losses
from jaxctc._inputs import checks
from jaxctc._inputs.arguments import canonical_frames, canonical_scores
from jaxctc._types import FloatsLike, IntegersLike

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


def label_priors(
    log_probs: FloatsLike, input_lengths: IntegersLike, *, batch_first: bool = False
) -> Float[Array, " C"]:
    """Return the logarithm of the mean probability of each class over all frames, for `prior_ctc_loss`.

    Args:
        log_probs: Normalized log probabilities, (T, N, C), or (T, C) for one sequence; best those of a whole epoch.
        input_lengths: Frames of each sequence: (N,), a sequence of ints, or one int.
        batch_first: `log_probs` is (N, T, C).

    Returns:
        The log priors, (C,), without a derivative: they are held fixed, as in the papers.

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
    scores, request, batched = canonical_scores(log_probs, 0, batch_first)
    frames = canonical_frames(input_lengths, scores, request, batched)
    return variant_losses.label_priors(scores, frames, request)


def prior_ctc_loss(
    log_probs: FloatsLike,
    targets: IntegersLike,
    input_lengths: IntegersLike,
    target_lengths: IntegersLike,
    *,
    log_priors: FloatsLike,
    scale: float = 0.3,
    **common: Unpack[Common],
) -> Float[Array, "..."]:
    """Return the CTC loss of probabilities that are divided by their classes' priors: less peaky, better aligned.

    The blank is frequent, so that plain training lets it win more frames with every step. Divided by its own
    frequency it has no such advantage.

    Args:
        log_probs: Normalized log probabilities, (T, N, C), or (T, C) for one sequence.
        targets: Labels, in any form that `jaxctc.ctc_loss` takes.
        input_lengths: Frames of each sequence.
        target_lengths: Labels of each target.
        log_priors: (C,), such as `label_priors` of the epoch before; held fixed, without a derivative. Where it is
            -inf, as for a class that was never seen, the score stays unchanged.
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
        >>> problem = log_probs, jnp.array([1, 2]), 4, 2
        >>> loss = variants.prior_ctc_loss(*problem, log_priors=priors, scale=1.0, reduction="sum")
        >>> round(float(loss), 4)  # 15 paths of weight 1: -log(15)
        -2.7081

    Reference:
        Zeyer, Schlüter and Ney, "Why does CTC result in peaky behavior?", 2021; Huang et al., "Less Peaky and More
        Accurate CTC Forced Alignment by Label Priors", ICASSP 2024. The priors are the mean over an epoch and held
        fixed, as in the latter; the former also considers softmax averages over a batch.
    """
    scores = checks.scores("log_probs", log_probs)
    priors = checks.device_numbers(log_priors)
    if priors.shape != scores.shape[-1:]:
        raise ValueError(
            f"log_priors has shape {priors.shape}, but there are C = {scores.shape[-1]} classes: it must have shape "
            f"({scores.shape[-1]},), one a class, the blank included."
        )
    scores = variant_losses.over_priors(scores, priors, scale)
    return evaluate(variant_losses.plain, (), scores, targets, input_lengths, target_lengths, **common)


def entropy_ctc_loss(
    log_probs: FloatsLike,
    targets: IntegersLike,
    input_lengths: IntegersLike,
    target_lengths: IntegersLike,
    *,
    weight: float,
    **common: Unpack[Common],
) -> Float[Array, "..."]:
    """Return EnCTC: the CTC loss less `weight` times the entropy of the paths of the target.

    It rewards a model that leaves open where the labels lie, against the overconfident alignments that plain CTC
    leads to.

    Args:
        log_probs: Normalized log probabilities, (T, N, C), or (T, C) for one sequence.
        targets: Labels, in any form that `jaxctc.ctc_loss` takes.
        input_lengths: Frames of each sequence.
        target_lengths: Labels of each target.
        weight: The factor of the entropy. The paper calls it beta.
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
        The entropy is that of the normalized distribution over the paths of the target, as there.
    """
    return evaluate(variant_losses.entropy, (weight,), log_probs, targets, input_lengths, target_lengths, **common)


def focal_ctc_loss(
    log_probs: FloatsLike,
    targets: IntegersLike,
    input_lengths: IntegersLike,
    target_lengths: IntegersLike,
    *,
    gamma: float,
    alpha: float = 1.0,
    **common: Unpack[Common],
) -> Float[Array, "..."]:
    r"""Return focal CTC, :math:`\alpha (1 - p)^\gamma L` with :math:`p = e^{-L}` the probability of the target.

    Sequences that the model already reads well count for less.

    Args:
        log_probs: Normalized log probabilities, (T, N, C), or (T, C) for one sequence.
        targets: Labels, in any form that `jaxctc.ctc_loss` takes.
        input_lengths: Frames of each sequence.
        target_lengths: Labels of each target.
        gamma: How much less, at least 0; 0 gives `alpha` times `ctc_loss`.
        alpha: A factor.
        **common: See `Common`.

    Returns:
        The loss in nats; 0 where p is 1 or, for scores that are no distribution, more.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A shape, a length, a label, `blank` or `reduction` is illegal, or `gamma` is negative.

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
    return evaluate(variant_losses.focal, (gamma, alpha), log_probs, targets, input_lengths, target_lengths, **common)


def smoothed_ctc_loss(
    log_probs: FloatsLike,
    targets: IntegersLike,
    input_lengths: IntegersLike,
    target_lengths: IntegersLike,
    *,
    weight: float,
    **common: Unpack[Common],
) -> Float[Array, "..."]:
    r"""Return CTC with label smoothing, :math:`(1 - w) L + w \sum_t KL(u \| p_t)` with u uniform over the classes.

    Args:
        log_probs: Normalized log probabilities, (T, N, C), or (T, C) for one sequence. A score of -inf makes the
            loss infinite.
        targets: Labels, in any form that `jaxctc.ctc_loss` takes.
        input_lengths: Frames of each sequence.
        target_lengths: Labels of each target.
        weight: The factor w of the divergence, within [0, 1].
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
    return evaluate(variant_losses.smoothed, (weight,), log_probs, targets, input_lengths, target_lengths, **common)


def delay_penalised_ctc_loss(
    log_probs: FloatsLike,
    targets: IntegersLike,
    input_lengths: IntegersLike,
    target_lengths: IntegersLike,
    *,
    penalty: float,
    **common: Unpack[Common],
) -> Float[Array, "..."]:
    """Return CTC of paths that are weighted by how early their labels begin, for streaming models.

    The first frame t of each label adds ``penalty * ((T - 1) / 2 - t)`` to the score of a path, with T the
    sequence's own length.

    Args:
        log_probs: Normalized log probabilities, (T, N, C), or (T, C) for one sequence.
        targets: Labels, in any form that `jaxctc.ctc_loss` takes.
        input_lengths: Frames of each sequence.
        target_lengths: Labels of each target.
        penalty: Nats for each label and frame; 0 gives `ctc_loss`. The papers' lambda, there 0.001 to 0.02.
        **common: See `Common`.

    Returns:
        The loss in nats, which may be negative: the weights are no distribution.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A shape, a length, a label, `blank`, `reduction` or `implementation` is illegal.

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
    return evaluate(variant_losses.delayed, (penalty,), log_probs, targets, input_lengths, target_lengths, **common)


def wildcard_ctc_loss(
    log_probs: FloatsLike,
    targets: IntegersLike,
    input_lengths: IntegersLike,
    target_lengths: IntegersLike,
    *,
    begin: bool = True,
    end: bool = True,
    **common: Unpack[Common],
) -> Float[Array, "..."]:
    """Return W-CTC: paths spell the target in some stretch of the input, and what surrounds the stretch is free.

    It is for targets that are cut off, with words missing at the beginning or the end of a transcript. A wildcard
    stands before and after the target, and has the probability 1 in every frame.

    Args:
        log_probs: Normalized log probabilities, (T, N, C), or (T, C) for one sequence.
        targets: Labels, in any form that `jaxctc.ctc_loss` takes.
        input_lengths: Frames of each sequence.
        target_lengths: Labels of each target.
        begin: There is a wildcard before the target.
        end: There is a wildcard after the target.
        **common: See `Common`.

    Returns:
        The loss in nats, minus the logarithm of the sum of the likelihoods of all stretches of at least one frame;
        it may be negative, for stretches overlap.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A shape, a length, a label, `blank`, `reduction` or `implementation` is illegal.

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
    function = variant_losses.wildcard(checks.flag("begin", begin), checks.flag("end", end))
    return evaluate(function, (), log_probs, targets, input_lengths, target_lengths, **common)


def star_ctc_loss(
    log_probs: FloatsLike,
    targets: IntegersLike,
    input_lengths: IntegersLike,
    target_lengths: IntegersLike,
    *,
    penalty: float,
    **common: Unpack[Common],
) -> Float[Array, "..."]:
    """Return STC, star temporal classification: any number of labels may be missing from the target, anywhere.

    Between two labels, before the first and after the last stands a star: any labels but the one that comes
    next, in any number of frames.

    Args:
        log_probs: Normalized log probabilities, (T, N, C), or (T, C) for one sequence.
        targets: The labels that are known, in any form that `jaxctc.ctc_loss` takes.
        input_lengths: Frames of each sequence.
        target_lengths: Labels of each target.
        penalty: Nats that each frame of a star costs; minus the logarithm of the paper's token insertion penalty.
            Large at first, so that the model learns from the labels there are, and smaller later.
        **common: See `Common`.

    Returns:
        The loss in nats.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A shape, a length, a label, `blank`, `reduction` or `implementation` is illegal.

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
    return evaluate(variant_losses.star, (penalty,), log_probs, targets, input_lengths, target_lengths, **common)
