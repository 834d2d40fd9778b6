"""Define the public losses."""

from jaxtyping import Array, Float

from jaxctc._api.reduction import reduced
from jaxctc._autodiff.loss_rule import losses
from jaxctc._inputs.arguments import canonical_batch
from jaxctc._inputs.checks import LOG_PROBS, LOGITS
from jaxctc._types import FloatsLike, Implementation, IntegersLike, Problem, Reduction, Request


def ctc_loss(
    log_probs: FloatsLike,
    targets: IntegersLike,
    input_lengths: IntegersLike,
    target_lengths: IntegersLike,
    blank: int = 0,
    reduction: Reduction = "mean",
    zero_infinity: bool = False,
    *,
    batch_first: bool = False,
    max_target_length: int | None = None,
    sequences_at_once: int | None = None,
    frame_axis: str | None = None,
    implementation: Implementation | None = None,
) -> Float[Array, "..."]:
    r"""Connectionist temporal classification loss of log probabilities.

    The loss of a sequence is

    .. math:: -\log \sum_{\pi \in \mathcal{B}^{-1}(y)} \prod_t p_t(\pi_t)

    over all paths :math:`\pi` of one class a frame that spell the target :math:`y` once repeats are
    merged and blanks removed. Its gradient with respect to `log_probs` is the true derivative: minus
    the posterior probability of each class at each frame. (PyTorch's is that plus
    ``exp(log_probs)``, which agrees only behind a log-softmax.)

    Shapes: T frames, N sequences, C classes with the blank, S labels of the longest target.

    Args:
        log_probs: Natural logarithms of class probabilities, floating point, (T, N, C), or (T, C) for
            one sequence. They need not be normalized. ``-inf`` and huge finite masks are legal. float64
            is computed in float64; float32, bfloat16 and float16 in float32.
        targets: Labels, of any integer type: (N, S), padded with anything; or one-dimensional, all
            targets end to end, ``sum(target_lengths)`` long; or (S,) for one sequence.
        input_lengths: Frames of each sequence, within [0, T]: (N,), a sequence of ints, or one int for all.
        target_lengths: Labels of each target, within [0, S]; the same forms.
        blank: Index of the blank class, within [0, C).
        reduction: ``"none"`` gives one loss a sequence; ``"mean"`` divides each by
            max(target_length, 1) and takes the mean over the batch; ``"sum"`` adds them; ``"batchmean"`` takes
            their mean; ``"mean_volume"`` divides their sum by that of the target lengths, as NeMo does.
        zero_infinity: Count infinite losses as 0. Their gradient is 0 either way.
        batch_first: `log_probs` is (N, T, C).
        max_target_length: A bound on the target lengths, known when tracing. Under `jax.jit` it says how
            wide to pad end-to-end targets whose lengths are traced, which otherwise take min(len(targets), T).
        sequences_at_once: Work on so many sequences of the batch at a time rather than on all: less memory, the same
            result.
        frame_axis: The axis of the mesh over whose devices the frames are sharded, where `jax.set_mesh` has
            set one. Each device then works on its own frames; without it XLA gathers them. T must be a multiple
            of four times the devices. Not needed where axes are explicit.
        implementation: ``"reference"``, the recursion as a textbook has it, to debug and to believe; ``"xla"``, the
            fast form of it as loops, which runs everywhere; ``"pallas"``, kernels for TPUs and NVIDIA GPUs, which have
            run on neither yet; None chooses, at present ``"xla"``. Derivatives above the first are those of the plain
            recursion. On TPUs sharded sequences need explicit axes or `jax.shard_map`: XLA cannot divide a kernel
            there.

    Returns:
        The loss in nats, float64 for float64 scores and float32 otherwise: (N,) with
        ``reduction="none"``, else (). One sequence gives () throughout. A target that no path spells has
        the loss +inf and the gradient 0. A NaN or +inf score that counts makes the loss and gradient of its
        sequence NaN, and so does an illegal length or label that could not be checked beforehand
        (under `jax.jit`, or on an accelerator; `check_batch` names the culprit there).

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A shape, a length, a label, `blank` or `reduction` is illegal; or `implementation` is not for this.

    Example:
        >>> import jax, jax.numpy as jnp, jaxctc
        >>> log_probs = jax.nn.log_softmax(jnp.zeros((4, 1, 3)))
        >>> loss = jaxctc.ctc_loss(log_probs, jnp.array([[1, 2]]), [4], [2])
        >>> round(float(loss), 4)  # 15 of the 81 paths, -log(15 / 81) / 2
        0.8432

    Reference:
        Graves, Fernandez, Gomez and Schmidhuber, "Connectionist Temporal Classification: Labelling
        Unsegmented Sequence Data with Recurrent Neural Networks", ICML 2006: equations 3, 8 and 12
        are the loss, 14 and 15 its derivative.
    """
    batch = canonical_batch(
        log_probs,
        targets,
        input_lengths,
        target_lengths,
        blank,
        from_logits=False,
        batch_first=batch_first,
        max_target_length=max_target_length,
        implementation=implementation,
        sequences_at_once=sequences_at_once,
        frame_axis=frame_axis,
        names=LOG_PROBS,
    )
    return reduced(_losses, (), batch, reduction, zero_infinity)


def ctc_loss_with_logits(
    logits: FloatsLike,
    targets: IntegersLike,
    input_lengths: IntegersLike,
    target_lengths: IntegersLike,
    blank: int = 0,
    reduction: Reduction = "mean",
    zero_infinity: bool = False,
    *,
    batch_first: bool = False,
    max_target_length: int | None = None,
    sequences_at_once: int | None = None,
    frame_axis: str | None = None,
    implementation: Implementation | None = None,
) -> Float[Array, "..."]:
    """Connectionist temporal classification loss of logits: `ctc_loss` of their log-softmax, fused.

    The fast road for training, and the accurate one: the loss is never negative, however confident the
    model, and the gradient, softmax minus posterior, is written in one go.

    Args:
        logits: Unnormalized scores, floating point, (T, N, C), or (T, C) for one sequence. A live frame
            that is ``-inf`` throughout makes the loss infinite; a NaN anywhere in a live frame makes it NaN.
        targets: As for `ctc_loss`, and so are all the others.
        input_lengths: Frames of each sequence.
        target_lengths: Labels of each target.
        blank: Index of the blank class.
        reduction: ``"none"``, ``"mean"``, ``"sum"``, ``"batchmean"`` or ``"mean_volume"``.
        zero_infinity: Count infinite losses as 0.
        batch_first: `logits` is (N, T, C).
        max_target_length: A bound on the target lengths, known when tracing.
        sequences_at_once: How many sequences to work on at a time.
        frame_axis: The axis of the mesh that the frames are sharded over.
        implementation: ``"reference"``, ``"xla"``, ``"pallas"`` or None.

    Returns:
        The loss in nats, as `ctc_loss` does.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A shape, a length, a label, `blank` or `reduction` is illegal.

    Example:
        >>> import jax, jax.numpy as jnp, jaxctc
        >>> logits = jnp.zeros((4, 1, 3))
        >>> loss, gradient = jax.value_and_grad(jaxctc.ctc_loss_with_logits)(
        ...     logits, jnp.array([[1, 2]]), [4], [2], reduction="sum"
        ... )
        >>> round(float(loss), 4), gradient.shape
        (1.6864, (4, 1, 3))

    Reference:
        Graves et al., ICML 2006: equation 16 is the derivative with respect to the logits.
    """
    batch = canonical_batch(
        logits,
        targets,
        input_lengths,
        target_lengths,
        blank,
        from_logits=True,
        batch_first=batch_first,
        max_target_length=max_target_length,
        implementation=implementation,
        sequences_at_once=sequences_at_once,
        frame_axis=frame_axis,
        names=LOGITS,
    )
    return reduced(_losses, (), batch, reduction, zero_infinity)


def _losses(request: Request, problem: Problem) -> Float[Array, " N"]:
    return losses(request, *problem)
