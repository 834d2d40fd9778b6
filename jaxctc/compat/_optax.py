"""Provide the losses of optax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxctc._autodiff.loss_rule import losses
from jaxctc._inputs import checks
from jaxctc._inputs.checks import Names
from jaxctc._lattice import lattices
from jaxctc._reference.forward_variables import forward_variables
from jaxctc._sizes import Size
from jaxctc._types import ArrayLike, Problem, Request
from jaxctc.compat._arguments import canonical_logits, three_axes, two_axes


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

    Padded frames may stand anywhere, as with optax, and are ignored.

    Shapes: B sequences, T frames, K classes with the blank, N labels of the longest target.

    Args:
        logits: Unnormalized scores, floating point, (B, T, K).
        logit_paddings: (B, T), 1 where a frame is padding and 0 elsewhere, of any dtype.
        labels: Labels, integers or whole numbers in floats, (B, N), padded with anything.
        label_paddings: (B, N), 0 for each label of a target, then 1.
        blank_id: Index of the blank class, within [-K, K), where -1 is the last one.

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
    return _losses(*_padded(logits, logit_paddings, labels, label_paddings, blank_id))


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
    problem, frame_mask, request = _padded(logits, logit_paddings, labels, label_paddings, blank_id)
    return _losses(problem, frame_mask, request), *forward_variables(request, problem, jnp.asarray(frame_mask))


def _padded(
    logits: ArrayLike, logit_paddings: ArrayLike, labels: ArrayLike, label_paddings: ArrayLike, blank_id: int
) -> tuple[Problem, ArrayLike, Request]:
    """Return the problem, the mask of the frames that are not padding, wherever they stand, and the request."""
    scores = three_axes("logits", logits)
    labels = two_axes("labels", labels, scores.shape[0])
    frame_mask, frames = _unpadded("logit_paddings", logit_paddings, scores.shape[:2], "logits", anywhere=True)
    _, counts = _unpadded("label_paddings", label_paddings, labels.shape, "labels", anywhere=False)
    names = Names("labels", "the length by logit_paddings", "the length by label_paddings", "blank_id", "logits")
    problem, request = canonical_logits(scores, labels, frames, counts, blank_id, True, names)
    return problem, frame_mask, request


def _unpadded(
    name: str, paddings: ArrayLike, shape: tuple[Size, ...], of: str, *, anywhere: bool
) -> tuple[ArrayLike, ArrayLike]:
    """Return the mask of what is not padding, and its count in each sequence; the count is -1 for an illegal row."""
    made = checks.as_array(name, paddings, "an array of 0 and 1")
    if made.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, as {of} has on its first two axes; got {made.shape}.")
    values = checks.host_values(made)
    padding = (made if values is None else values).astype(np.float32)
    wrong = (padding != 0) & (padding != 1)
    mask = padding == 0
    resumed = _resumed(mask)
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


def _resumed(mask: Bool[Array | np.ndarray, "N T"]) -> Bool[Array | np.ndarray, "N T-1"]:
    """Return where a position is no padding though the one before it is."""
    return mask[:, 1:] & ~mask[:, :-1]


def _losses(problem: Problem, frame_mask: ArrayLike, request: Request) -> Float[Array, " N"]:
    values = checks.host_values(frame_mask)
    is_last = values is not None and not _resumed(values).any()
    if request.frame_axis is not None and not is_last:  # each device has its own frames
        scores = lattices.padding_last(problem.scores, jnp.asarray(frame_mask), request)
        problem, is_last = problem._replace(scores=scores), True
    return _compiled(problem, None if is_last else jnp.asarray(frame_mask), request)


@functools.partial(jax.jit, static_argnames="request")
def _compiled(problem: Problem, frame_mask: Bool[Array, "N T"] | None, request: Request) -> Float[Array, " N"]:
    return losses(request, *problem, frame_mask=frame_mask)
