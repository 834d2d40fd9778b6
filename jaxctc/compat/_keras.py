"""Provide the losses and the decoding of Keras."""

import numpy as np
from jaxtyping import Array, Float, Int

from jaxctc._inputs import checks
from jaxctc._inputs.checks import Names
from jaxctc._types import ArrayLike
from jaxctc.compat import _decoding
from jaxctc.compat._arguments import canonical_logits, three_axes, two_axes
from jaxctc.compat._losses import compiled_losses


def keras_ctc_loss(
    target: ArrayLike, output: ArrayLike, target_length: ArrayLike, output_length: ArrayLike, mask_index: int = 0
) -> Float[Array, " N"]:
    """Return the losses of `keras.ops.ctc_loss`.

    Lengths beyond the arrays raise; Keras cuts them off.

    Args:
        target: Labels, integers or whole numbers in floats, (N, S), padded with anything.
        output: Logits, floating point, (N, T, C). This function normalizes them, as Keras does.
        target_length: Labels of each target, within [0, S]: (N,).
        output_length: Frames of each sequence, within [0, T]: (N,).
        mask_index: Index of the blank class, within [-C, C), where -1 is the last one.

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
    names = Names("target", "output_length", "target_length", "mask_index", "output")
    return compiled_losses(*canonical_logits(output, target, output_length, target_length, mask_index, True, names))


def keras_ctc(y_true: ArrayLike, y_pred: ArrayLike) -> Float[Array, " N"]:
    """Return the losses of `keras.losses.ctc`, which a model on Keras's JAX backend can be compiled with.

    As in Keras the blank is class 0, a target ends where its row is 0, and every sequence has all T frames. Zeros that
    other labels follow raise, or give the loss NaN under `jax.jit`; Keras takes them for blanks in the target. So do
    labels of -1, which Keras takes for a label of probability 1: pad with 0.

    Where a target cannot be spelled its loss is +inf, and so is the loss that Keras prints, while the gradient stays
    finite: a target needs no more frames than T, with one more for each label that is equal to the one before it.

    Args:
        y_true: Labels, integers or whole numbers in floats, (N, S), padded with 0.
        y_pred: Logits, floating point, (N, T, C).

    Returns:
        The losses, (N,), whose mean Keras takes.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A shape or a label is illegal.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxctc import compat
        >>> loss = compat.keras_ctc(jnp.array([[1.0, 2.0, 0.0]]), jnp.zeros((1, 4, 3)))
        >>> round(float(loss[0]), 4)  # 15 of the 81 paths
        1.6864
        >>> # model.compile(optimizer="adam", loss=compat.keras_ctc)
    """
    scores = three_axes("y_pred", y_pred)
    labels = two_axes("y_true", y_true, scores.shape[0])
    values = checks.host_values(labels)
    label = (labels if values is None else values) != 0
    if values is not None:
        for row, position in np.argwhere(label[:, 1:] & ~label[:, :-1])[:1]:
            raise ValueError(
                f"y_true[{row}, {position}] is 0, before the label y_true[{row}, {position + 1}]: 0 is the blank and "
                "the padding, which must come last. Number the labels from 1."
            )
    counts = label.sum(axis=1, dtype=np.int32)  # a zero before a label is among the first of so many: illegal as well
    names = Names("y_true", "the length of y_pred", "the number of labels in y_true", "the blank", "y_pred")
    return compiled_losses(*canonical_logits(scores, labels, scores.shape[1], counts, 0, True, names))


def keras_ctc_decode(
    inputs: ArrayLike,
    sequence_lengths: ArrayLike,
    strategy: str = "greedy",
    beam_width: int = 100,
    top_paths: int = 1,
    merge_repeated: bool = True,
    mask_index: int | None = 0,
) -> tuple[Int[Array, "paths N T"], Float[Array, "N paths"]]:
    """Return what `keras.ops.ctc_decode` returns: labels and their scores.

    A beam that drops prefixes may keep other ones than Keras's, and the order of equally probable ones may differ. A
    sequence without frames has no label; on its JAX backend Keras reads a first frame. The search merges repeats
    whatever `merge_repeated` is, and the best path is one whatever `beam_width` and `top_paths` are, as in Keras.

    Args:
        inputs: Logits, floating point, (N, T, C).
        sequence_lengths: Frames of each sequence, within [0, T]: (N,).
        strategy: ``"greedy"`` (the best class of each frame) or ``"beam_search"``.
        beam_width: The number of prefixes that the search keeps, at least 1.
        top_paths: The number of labellings that the search returns, within [1, `beam_width`].
        merge_repeated: False: with ``"greedy"``, every frame that is not blank is a label.
        mask_index: Index of the blank class, within [-C, C), where -1 is the last one; None: the last one.

    Returns:
        Labels, (paths, N, T) and int32, which are -1 after each sequence's last; and scores, (N, paths). With
        ``"greedy"`` there is one path, and its score is minus the sum of the frames' best logits. With
        ``"beam_search"`` scores are log probabilities, best first, and -inf, without labels, where there are fewer
        labellings. A NaN in a sequence, or an illegal length under `jax.jit`, makes its scores NaN.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A shape, a length, `strategy`, `beam_width`, `top_paths` or `mask_index` is illegal.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxctc import compat
        >>> logits = 9.0 * jax.nn.one_hot(jnp.array([[0, 1, 1, 0, 1, 2]]), 3)
        >>> labels, scores = compat.keras_ctc_decode(logits, [6])
        >>> labels[0, 0].tolist(), scores.tolist()
        ([1, 1, 2, -1, -1, -1], [[-54.0]])
        >>> compat.keras_ctc_decode(logits, [6], "beam_search", top_paths=2)[0][:, 0, :4].tolist()
        [[1, 1, 2, -1], [1, 2, -1, -1]]
    """
    names = Names(input_lengths="sequence_lengths", blank="mask_index", scores="inputs")
    if strategy == "greedy":
        labels, scores = _decoding.greedy(inputs, sequence_lengths, mask_index, merge_repeated, True, names)
        return labels[None], scores
    if strategy == "beam_search":
        return _decoding.beam_search(inputs, sequence_lengths, mask_index, beam_width, top_paths, True, names)
    raise ValueError(f"strategy must be 'greedy' or 'beam_search'; got {strategy!r}.")
