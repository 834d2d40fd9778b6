"""Provide the loss and the decoders of TensorFlow."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from jaxctc._inputs import checks
from jaxctc._inputs.checks import Names
from jaxctc._sizes import Size
from jaxctc._types import ArrayLike
from jaxctc.compat import _decoding
from jaxctc.compat._arguments import canonical_logits, three_axes, whole_numbers
from jaxctc.compat._losses import compiled_losses


def tensorflow_ctc_loss(
    labels: ArrayLike,
    logits: ArrayLike,
    label_length: ArrayLike | None,
    logit_length: ArrayLike,
    logits_time_major: bool = True,
    unique: Any = None,
    blank_index: int | None = None,
    name: str | None = None,
) -> Float[Array, " N"]:
    """Return the losses of `tf.nn.ctc_loss`.

    Args:
        labels: Labels, integers or whole numbers in floats, (N, S), padded with anything. Or a ``tf.SparseTensor``, or
            anything else with its `indices`, `values` and `dense_shape`, whose values can be read: under `jax.jit` pass
            dense labels. The values of a row, in the order of their columns, are its target.
        logits: Unnormalized scores, floating point, (T, N, C).
        label_length: Labels of each target, within [0, S]: (N,). Sparse labels have their own lengths: pass None.
        logit_length: Frames of each sequence, within [0, T]: (N,).
        logits_time_major: False: `logits` is (N, T, C).
        unique: What ``tf.nn.ctc_unique_labels(labels)`` returns, or None. It is a hint for TensorFlow's program on a
            TPU, which changes no loss; here it is not read.
        blank_index: Index of the blank class, within [-C, C), where -1 is the last one; None is 0, and is illegal with
            sparse labels, as in TensorFlow.
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
    del unique
    batch_first = not checks.flag("logits_time_major", logits_time_major)
    names = Names("labels", "logit_length", "label_length", "blank_index", "logits")
    scores = three_axes("logits", logits)
    if all(hasattr(labels, part) for part in ("indices", "values", "dense_shape")):
        if blank_index is None:
            raise ValueError("blank_index is None: with sparse labels, say which class is the blank, as in TensorFlow.")
        if label_length is not None:
            raise ValueError("label_length must be None with sparse labels, which have their own lengths.")
        labels, label_length = _dense(labels, scores.shape[0 if batch_first else 1])
    blank = 0 if blank_index is None else blank_index
    batch = canonical_logits(scores, labels, logit_length, label_length, blank, batch_first, names)
    with jax.named_scope(name or "ctc_loss_dense"):
        return compiled_losses(*batch)


def tensorflow_ctc_greedy_decoder(
    inputs: ArrayLike, sequence_length: ArrayLike, merge_repeated: bool = True, blank_index: int | None = None
) -> tuple[list[Int[Array, "N T"]], Float[Array, "N 1"]]:
    """Return what `tf.nn.ctc_greedy_decoder` returns, but labels that are dense.

    Args:
        inputs: Logits, floating point, (T, N, C).
        sequence_length: Frames of each sequence, within [0, T]: (N,).
        merge_repeated: False: every frame that is not blank is a label.
        blank_index: Index of the blank class, within [-C, C), where -1 is the last one; None: the last one.

    Returns:
        A list of one array of labels, (N, T) and int32, which are -1 after each sequence's last, as
        ``tf.sparse.to_dense(decoded[0], default_value=-1)`` would have it; and minus the sum of the frames' best
        logits, (N, 1). An illegal length under `jax.jit` makes that NaN.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A shape, a length or `blank_index` is illegal.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxctc import compat
        >>> logits = jax.nn.one_hot(jnp.array([[2], [0], [0], [2], [1]]), 3)  # the last class is the blank
        >>> (labels,), scores = compat.tensorflow_ctc_greedy_decoder(logits, [5])
        >>> labels.tolist(), scores.tolist()
        ([[0, 1, -1, -1, -1]], [[-5.0]])
    """
    names = Names(input_lengths="sequence_length", blank="blank_index", scores="inputs")
    labels, scores = _decoding.greedy(inputs, sequence_length, blank_index, merge_repeated, False, names)
    return [labels], scores


def tensorflow_ctc_beam_search_decoder(
    inputs: ArrayLike, sequence_length: ArrayLike, beam_width: int = 100, top_paths: int = 1
) -> tuple[list[Int[Array, "N T"]], Float[Array, "N paths"]]:
    """Return what `tf.nn.ctc_beam_search_decoder` returns, but labels that are dense. The blank is the last class.

    A beam that drops prefixes may keep other ones than TensorFlow's, and the order of equally probable ones may differ.

    Args:
        inputs: Logits, floating point, (T, N, C).
        sequence_length: Frames of each sequence, within [0, T]: (N,).
        beam_width: The number of prefixes that the search keeps, at least 1.
        top_paths: The number of labellings to return, within [1, `beam_width`].

    Returns:
        A list of `top_paths` arrays of labels, best first, each (N, T) and int32, which are -1 after each sequence's
        last, as ``tf.sparse.to_dense(decoded[j], default_value=-1)`` would have it; and their log probabilities,
        (N, paths). Where there are fewer labellings they are -inf, without labels; TensorFlow raises. A NaN in a
        sequence, or an illegal length under `jax.jit`, makes them NaN.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A shape, a length, `beam_width` or `top_paths` is illegal.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxctc import compat
        >>> logits = jnp.log(jnp.array([[[0.4, 0.6]], [[0.4, 0.6]]]))  # the last class is the blank
        >>> decoded, log_probs = compat.tensorflow_ctc_beam_search_decoder(logits, [2], top_paths=2)
        >>> [labels.tolist() for labels in decoded], (100 * jnp.exp(log_probs)).round().tolist()
        ([[[0, -1]], [[-1, -1]]], [[64.0, 36.0]])
    """
    names = Names(input_lengths="sequence_length", scores="inputs")
    labels, scores = _decoding.beam_search(inputs, sequence_length, None, beam_width, top_paths, False, names)
    return list(labels), scores


def _dense(labels: Any, sequences: Size) -> tuple[np.ndarray, np.ndarray]:
    """Return sparse labels as padded ones, and their lengths."""
    try:
        indices, values, shape = (np.asarray(x) for x in (labels.indices, labels.values, labels.dense_shape))
    except jax.errors.TracerArrayConversionError:
        raise TypeError(
            "labels are sparse and traced: the width of what they become must be known. Pass dense labels, "
            "for instance those of tf.sparse.to_dense(labels), with label_length."
        ) from None
    if indices.shape != (len(values), 2) or shape.tolist()[:1] != [sequences]:
        raise ValueError(
            f"labels must have indices (count, 2), values (count,) and a dense_shape of ({sequences}, S), as there are "
            f"N = {sequences} sequences; got {indices.shape}, {values.shape} and {tuple(shape.tolist())}."
        )
    rows, columns = checks.integers("labels.indices", indices, "indices, an array").T
    if ((indices < 0) | (indices >= shape)).any():
        raise ValueError(f"labels.indices must lie within dense_shape, {tuple(shape.tolist())}.")
    order = np.lexsort((columns, rows))
    counts = np.bincount(rows, minlength=sequences)
    padded = np.zeros((sequences, int(counts.max(initial=0))), np.int64)
    padded[np.arange(padded.shape[1]) < counts[:, None]] = whole_numbers("labels.values", values, "labels, an array")[
        order
    ]
    return padded, counts
