"""CTC with the signatures of other libraries: their names, their order of arguments, their shapes.

To move to this library, change the import. Each docstring says how its function differs from the original.

| function | instead of |
| --- | --- |
| `optax_ctc_loss` | `optax.losses.ctc_loss` |
| `optax_ctc_loss_with_forward_probs` | `optax.losses.ctc_loss_with_forward_probs` |
| `keras_ctc_loss` | `keras.ops.ctc_loss` |
| `tensorflow_ctc_loss` | `tf.nn.ctc_loss` with dense labels |
| `torchaudio_forced_align` | `torchaudio.functional.forced_align` |

All losses take logits and return one loss a sequence, in float64 for float64 and in float32 otherwise. A target that no
path spells has the loss +inf and the gradient 0. The originals give it a finite loss, about 1e5 in optax and Keras and
700 in TensorFlow, and the gradient of paths that do not spell it. An illegal length or label raises where its value
can be read, and makes the loss of its sequence NaN under `jax.jit`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxctc._api import alignment
from jaxctc._api.alignment import Alignment
from jaxctc._autodiff.loss_rule import losses
from jaxctc._inputs import checks
from jaxctc._inputs.arguments import canonical_batch
from jaxctc._inputs.checks import Names
from jaxctc._reference.forward_variables import forward_variables, padding_last
from jaxctc._types import ArrayLike, Problem, Request

__all__ = [
    "keras_ctc_loss",
    "optax_ctc_loss",
    "optax_ctc_loss_with_forward_probs",
    "tensorflow_ctc_loss",
    "torchaudio_forced_align",
]


def optax_ctc_loss(
    logits: ArrayLike,
    logit_paddings: ArrayLike,
    labels: ArrayLike,
    label_paddings: ArrayLike,
    *,
    blank_id: int = 0,
) -> Float[Array, " B"]:
    """Return the losses of `optax.losses.ctc_loss`.

    The loss of an infeasible target is +inf, and its gradient 0. In optax it is about 1e5: there `log_epsilon`, which
    this function does not take, is the finite score of a path that breaks a rule of CTC.

    Padded frames may stand anywhere, as with optax, and are ignored. Where they do not come last, they are moved there,
    which takes a copy of the logits.

    Shapes: B sequences, T frames, K classes with the blank, N labels of the longest target.

    Args:
        logits: Unnormalized scores, floating point, (B, T, K).
        logit_paddings: (B, T), 1 where a frame is padding and 0 elsewhere, of any dtype.
        labels: Labels of any integer dtype, (B, N), padded with anything.
        label_paddings: (B, N), 0 for each label of a target, then 1.
        blank_id: Index of the blank class, within [0, K).

    Returns:
        The losses, (B,).

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A shape, a padding, a label or `blank_id` is illegal.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxctc import compat
        >>> logits, labels = jnp.zeros((1, 4, 3)), jnp.array([[1, 2]])
        >>> loss = compat.optax_ctc_loss(logits, jnp.zeros((1, 4)), labels, jnp.zeros((1, 2)))
        >>> round(float(loss[0]), 4)  # 15 of the 81 paths
        1.6864
    """
    return _optax(*_padded(logits, logit_paddings, labels, label_paddings, blank_id))


def optax_ctc_loss_with_forward_probs(
    logits: ArrayLike,
    logit_paddings: ArrayLike,
    labels: ArrayLike,
    label_paddings: ArrayLike,
    *,
    blank_id: int = 0,
) -> tuple[Float[Array, " B"], Float[Array, "T B blanks"], Float[Array, "T B labels"]]:
    """Return what `optax.losses.ctc_loss_with_forward_probs` returns: losses and forward variables.

    Args:
        logits: Unnormalized scores, floating point, (B, T, K).
        logit_paddings: (B, T), 1 where a frame is padding and 0 elsewhere.
        labels: Labels, (B, N), padded with anything.
        label_paddings: (B, N), 0 for each label of a target, then 1.
        blank_id: Index of the blank class.

    Returns:
        The losses, (B,); alpha of the blank after n labels, (T, B, N + 1), and of label n, (T, B, N), at each frame.
        As with optax, padded frames repeat the frame before them, the last frame of the blank after n labels includes
        label n - 1, and states beyond a target's own labels are those of its padding. A padding label that is no class
        counts as the blank; optax gives it the probability 1. Probability zero is -inf.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A shape, a padding, a label or `blank_id` is illegal.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxctc import compat
        >>> loss, blank, label = compat.optax_ctc_loss_with_forward_probs(
        ...     jnp.zeros((1, 2, 3)), jnp.zeros((1, 2)), jnp.array([[1]]), jnp.zeros((1, 1))
        ... )
        >>> (9 * jnp.exp(label[:, 0, 0])).round(2).tolist()  # 1/3, then 2/9: the paths 1 1 and blank 1
        [3.0, 2.0]
    """
    padded = _padded(logits, logit_paddings, labels, label_paddings, blank_id)
    return _optax(*padded), *forward_variables(*padded)


def keras_ctc_loss(
    target: ArrayLike, output: ArrayLike, target_length: ArrayLike, output_length: ArrayLike, mask_index: int = 0
) -> Float[Array, " N"]:
    """Return the losses of `keras.ops.ctc_loss`.

    Lengths beyond the arrays raise; Keras cuts them off.

    Args:
        target: Labels of any integer dtype, (N, S), padded with anything.
        output: Logits, floating point, (N, T, C). This function normalizes them, as Keras does.
        target_length: Labels of each target, within [0, S]: (N,).
        output_length: Frames of each sequence, within [0, T]: (N,).
        mask_index: Index of the blank class, within [0, C).

    Returns:
        The losses, (N,).

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A shape, a length, a label or `mask_index` is illegal.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxctc import compat
        >>> loss = compat.keras_ctc_loss(jnp.array([[1, 2]]), jnp.zeros((1, 4, 3)), [2], [4])
        >>> round(float(loss[0]), 4)  # 15 of the 81 paths
        1.6864
    """
    names = Names("target", "output_length", "target_length", "mask_index")
    return _losses(*_batch("output", output, target, output_length, target_length, mask_index, True, names))


def tensorflow_ctc_loss(
    labels: ArrayLike,
    logits: ArrayLike,
    label_length: ArrayLike,
    logit_length: ArrayLike,
    logits_time_major: bool = True,
    *,
    blank_index: int | None = None,
    name: str | None = None,
) -> Float[Array, " N"]:
    """Return the losses of `tf.nn.ctc_loss` with dense labels.

    There is no `unique`: in TensorFlow it changes the speed on a TPU, and here it would change nothing.

    Args:
        labels: Labels of any integer dtype, (N, S), padded with anything; no ``SparseTensor``.
        logits: Unnormalized scores, floating point, (T, N, C).
        label_length: Labels of each target, within [0, S]: (N,).
        logit_length: Frames of each sequence, within [0, T]: (N,).
        logits_time_major: False: `logits` is (N, T, C).
        blank_index: Index of the blank class, within [-C, C), where -1 is the last one; None is 0.
        name: The name of the operations in profiles (`jax.named_scope`); None is "ctc_loss_dense".

    Returns:
        The losses, (N,); in float32 for half-precision logits too.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A shape, a length, a label or `blank_index` is illegal.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxctc import compat
        >>> loss = compat.tensorflow_ctc_loss(jnp.array([[0, 1]]), jnp.zeros((4, 1, 3)), [2], [4], blank_index=-1)
        >>> round(float(loss[0]), 4)  # 15 of the 81 paths
        1.6864
    """
    batch_first = not checks.flag("logits_time_major", logits_time_major)
    names = Names("labels", "logit_length", "label_length", "blank_index")
    scores = _three_axes("logits", logits)
    blank = 0 if blank_index is None else checks.integer("blank_index", blank_index, "the index of the blank class")
    classes = scores.shape[2]
    if not -classes <= blank < classes:
        raise ValueError(
            f"blank_index is {blank}, but there are C = {classes} classes: it must lie in [-{classes}, {classes}), "
            "where -1 is the last class."
        )
    problem, request = _batch("logits", scores, labels, logit_length, label_length, blank % classes, batch_first, names)
    with jax.named_scope(name or "ctc_loss_dense"):
        return _losses(problem, request)


def torchaudio_forced_align(
    log_probs: ArrayLike,
    targets: ArrayLike,
    input_lengths: ArrayLike | None = None,
    target_lengths: ArrayLike | None = None,
    blank: int = 0,
) -> Alignment:
    """Return what `torchaudio.functional.forced_align` returns, for any number of sequences: torchaudio takes one.

    It calls `jaxctc.forced_align`. Where several paths are best it may take another one than torchaudio, which in one
    case leaves the best path: see there.

    Args:
        log_probs: Log probabilities, floating point, (N, T, C).
        targets: Labels of any integer dtype, (N, S), padded with anything, the blank included.
        input_lengths: Frames of each sequence, within [0, T]: (N,); None: T.
        target_lengths: Labels of each target, within [0, S]: (N,); None: S.
        blank: Index of the blank class, within [0, C).

    Returns:
        `Alignment`: labels, (N, T), and their scores, (N, T). Beyond a sequence's length they are the blank and 0.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A shape, a length, a label or `blank` is illegal, or a target needs more frames than there are.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxctc import compat
        >>> log_probs = jnp.log(jnp.array([[[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]]]))
        >>> labels, scores = compat.torchaudio_forced_align(log_probs, jnp.array([[1, 2]]))
        >>> labels.tolist()
        [[0, 1, 2]]
    """
    scores = _three_axes("log_probs", log_probs)
    labels = _two_axes("targets", targets, scores.shape[0])
    frames = scores.shape[1] if input_lengths is None else input_lengths
    counts = labels.shape[1] if target_lengths is None else target_lengths
    return alignment.forced_align(scores, labels, frames, counts, blank, batch_first=True)


# Checks, in the words of the library that the caller comes from


def _three_axes(name: str, x: ArrayLike) -> jax.Array:
    made = checks.scores(name, x)
    if made.ndim != 3:
        raise ValueError(
            f"{name} must have three axes, sequences, frames and classes; got the shape {made.shape}. One sequence "
            f"needs an axis of its own, for instance {name}[None]."
        )
    return made


def _two_axes(name: str, x: ArrayLike, sequences: int) -> ArrayLike:
    made = checks.integers(name, x, "labels, an array")
    if made.ndim != 2 or made.shape[0] != sequences:
        raise ValueError(
            f"{name} must have shape ({sequences}, S), one row of labels a sequence, padded to one length; "
            f"got {tuple(made.shape)}."
        )
    return made


def _batch(
    name: str,
    scores: ArrayLike,
    labels: ArrayLike,
    input_lengths: ArrayLike,
    target_lengths: ArrayLike,
    blank: int,
    batch_first: bool,
    names: Names,
) -> tuple[Problem, Request]:
    """Return the problem and the request of a batch of logits."""
    scores = _three_axes(name, scores)
    labels = _two_axes(names.targets, labels, scores.shape[0 if batch_first else 1])
    problem, request, _ = canonical_batch(
        scores,
        labels,
        input_lengths,
        target_lengths,
        blank,
        from_logits=True,
        batch_first=batch_first,
        names=names._replace(scores=name),
    )
    return problem, request


def _padded(
    logits: ArrayLike, logit_paddings: ArrayLike, labels: ArrayLike, label_paddings: ArrayLike, blank_id: int
) -> tuple[Problem, ArrayLike, Request]:
    """Return the problem, whose frames have not been moved yet, the mask of those that are not padding, the request."""
    scores = _three_axes("logits", logits)
    labels = _two_axes("labels", labels, scores.shape[0])
    frame_mask, frames = _unpadded("logit_paddings", logit_paddings, scores.shape[:2], "logits", anywhere=True)
    _, counts = _unpadded("label_paddings", label_paddings, labels.shape, "labels", anywhere=False)
    names = Names("labels", "the length by logit_paddings", "the length by label_paddings", "blank_id")
    problem, request = _batch("logits", scores, labels, frames, counts, blank_id, True, names)
    return problem, frame_mask, request


def _unpadded(
    name: str, paddings: ArrayLike, shape: tuple[int, ...], of: str, *, anywhere: bool
) -> tuple[ArrayLike, ArrayLike]:
    """Return the mask of what is not padding, and its count in each sequence; the count is -1 for an illegal row."""
    made = checks.as_array(name, paddings, "an array of 0 and 1")
    if made.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, as {of} has on its first two axes; got {made.shape}.")
    values = checks.host_values(made)
    padding = (made if values is None else values).astype(np.float32)
    wrong = (padding != 0) & (padding != 1)
    resumed = (padding[:, 1:] == 0) & (padding[:, :-1] != 0)
    mask = padding == 0
    if values is None:
        legal = ~wrong.any(axis=1) & (anywhere | ~resumed.any(axis=1))
        return mask, jnp.where(legal, mask.sum(axis=1, dtype=jnp.int32), -1)
    for row, position in np.argwhere(wrong):
        raise ValueError(
            f"{name}[{row}, {position}] is {values[row, position]}: it must be 0, or 1 where {of} is padding."
        )
    for row, position in np.argwhere(resumed):
        if not anywhere:
            raise ValueError(
                f"{name}[{row}] is 0 at {position + 1}, behind a 1: padding must come last, so that the labels of a "
                "target stand together. Move it there."
            )
    return mask, mask.sum(axis=1)


# Computations


@functools.partial(jax.jit, static_argnames="request")
def _losses(problem: Problem, request: Request) -> Float[Array, " N"]:
    return losses(request, *problem)


@functools.partial(jax.jit, static_argnames="request")
def _optax(problem: Problem, frame_mask: Bool[Array, "N T"], request: Request) -> Float[Array, " N"]:
    return losses(request, *padding_last(problem, frame_mask))
