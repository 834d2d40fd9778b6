"""Pad batches to a few sizes, so that a program is compiled for few shapes and not for each batch."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxctc._inputs import checks
from jaxctc._types import ArrayLike, IntegersLike

_Array: TypeAlias = np.ndarray | jax.Array

FRAMES = (64, 128, 256, 512, 1024, 2048)
"""The sizes of T."""
LABELS = (30, 62, 94, 126, 190, 254, 318, 382, 446, 510, 638, 766, 894, 1022)
"""The sizes of S: the lattice has two columns more, and rounds them up to whole eights."""


class PaddedBatch(NamedTuple):
    """A batch whose sizes are among a few, in the order in which the losses take it."""

    inputs: _Array
    """(T', N', ...), or (N', T', ...) with `batch_first`; 0 in the padding."""
    targets: _Array
    """(N', S'); 0 in the padding."""
    input_lengths: _Array
    """(N',); 0 for sequences that are padding."""
    target_lengths: _Array
    """(N',); 0 for sequences that are padding."""


def pad_to_sizes(
    inputs: ArrayLike | Sequence[ArrayLike],
    targets: IntegersLike | Sequence[IntegersLike],
    input_lengths: IntegersLike | None = None,
    target_lengths: IntegersLike | None = None,
    *,
    frames: Sequence[int] = FRAMES,
    labels: Sequence[int] = LABELS,
    sequences: Sequence[int] | None = None,
    batch_first: bool = False,
) -> PaddedBatch:
    """Return a batch whose T, S and, if asked for, N are padded to the next of a few sizes.

    `jax.jit` compiles a program for every shape that it meets. With the default sizes, inputs of up to 2,048 frames and
    targets of up to 254 labels meet 36 shapes at most, for each size of C. Losses and gradients stay the same, as
    all padding lies beyond the lengths. The price is the work on padding: closer sizes cost less of it, and more
    compiling. Call it where batches are made, before `jax.jit`.

    Args:
        inputs: (T, N, ...), or (N, T, ...) with `batch_first`: scores, or the features that a model makes scores of; or
            a list of N arrays (T, ...) of different lengths.
        targets: (N, S), or a list of N targets of different lengths.
        input_lengths: Frames of each sequence. None: those of the list, or T.
        target_lengths: Labels of each target. None: those of the list, or S.
        frames: Sizes of T, ascending: by default 64, 128, 256, 512, 1,024 and 2,048. Beyond the largest, sizes double.
        labels: Sizes of S, likewise: by default 30, 62, 94, 126, 190, 254 and so on, by 64 and then by 128, to 1,022.
        sequences: Sizes of N, likewise; None leaves N as it is. Sequences that are added have no frame, no label and a
            loss of 0: with them, use ``reduction="sum"`` and divide by your own count, for ``"mean"`` counts them.
        batch_first: `inputs` is, and will be, (N, T, ...).

    Returns:
        The padded batch: numpy arrays, or JAX arrays of what was one. Lengths are int32, dtypes else stay. The input
        lengths are those of `inputs`: if a model makes fewer frames of these, compute them from its input lengths as it
        does, for instance ``-(-batch.input_lengths // 4)`` behind two layers of stride 2.

    Raises:
        TypeError: A size is no whole number.
        ValueError: The arguments have different numbers of sequences, a list of arrays comes with lengths of its own,
            or sizes are not positive and ascending.

    Example:
        >>> import numpy as np, jaxctc
        >>> batch = jaxctc.pad_to_sizes([np.zeros((50, 20)), np.zeros((70, 20))], [[1, 2, 3], [4]])
        >>> batch.inputs.shape, batch.targets.shape, batch.input_lengths.tolist(), batch.target_lengths.tolist()
        ((128, 2, 20), (2, 30), [50, 70], [3, 1])
        >>> float(jaxctc.ctc_loss_with_logits(*batch)) > 0
        True
    """
    sizes = {"frames": frames, "labels": labels, **({} if sequences is None else {"sequences": sequences})}
    checked = {name: ascending(name, values) for name, values in sizes.items()}
    rows, time = (0, 1) if batch_first else (1, 0)
    scores, frame_counts = _one_array("inputs", inputs, "input_lengths", input_lengths, time)
    classes, label_counts = _one_array("targets", targets, "target_lengths", target_lengths, 1)
    if classes.ndim != 2:
        raise ValueError(f"targets have the shape {classes.shape}: they must be (N, S).")
    counts = scores.shape[rows], len(classes), len(frame_counts), len(label_counts)
    if len(set(counts)) > 1:
        names = "inputs, targets, input_lengths and target_lengths"
        raise ValueError(f"{names} are of {', '.join(map(str, counts))} sequences: the numbers must be equal.")
    count = counts[0] if sequences is None else next_size(counts[0], checked["sequences"])
    return PaddedBatch(
        _padded(scores, {rows: count, time: next_size(scores.shape[time], checked["frames"])}),
        _padded(classes, {0: count, 1: next_size(classes.shape[1], checked["labels"])}),
        _padded(frame_counts, {0: count}),
        _padded(label_counts, {0: count}),
    )


def next_size(x: int, sizes: Sequence[int]) -> int:
    """Return the smallest of the ascending sizes that is at least `x`; beyond the largest, sizes double."""
    for size in sizes:
        if x <= size:
            return size
    size = sizes[-1]
    while size < x:
        size *= 2
    return size


def ascending(name: str, values: Sequence[Any]) -> tuple[int, ...]:
    """Return the sizes as a tuple of ints, or raise if they are not positive and ascending."""
    found = tuple(checks.integer(name, value, "one or more sizes") for value in values)
    if not found or found[0] < 1 or any(a >= b for a, b in itertools.pairwise(found)):
        raise ValueError(f"{name} is {found}: sizes must be at least 1, at least one of them, in ascending order.")
    return found


def _one_array(name: str, values: Any, lengths_name: str, lengths: Any, axis: int) -> tuple[_Array, _Array]:
    """Return one array, with its axis of frames or labels at `axis`, and the lengths."""
    array: _Array
    if isinstance(values, list | tuple) and values and np.ndim(values[0]) > 0:
        arrays = [np.asarray(x) for x in values]
        own = [len(x) for x in arrays]
        if lengths is not None and len(set(own)) > 1 and not np.array_equal(lengths, own):
            raise ValueError(
                f"{name} is a list of arrays of the lengths {own}, and {lengths_name} is {lengths}: leave "
                f"{lengths_name} out, or give {name} as one array."
            )
        if len({x.shape[1:] for x in arrays}) > 1:
            shapes = ", ".join(str(x.shape) for x in arrays)
            raise ValueError(f"{name} is a list of arrays of the shapes {shapes}: only the first axis may differ.")
        together = np.zeros((len(arrays), max(own), *arrays[0].shape[1:]), np.result_type(*arrays))
        for row, x in zip(together, arrays, strict=True):
            row[: len(x)] = x
        array, lengths = np.moveaxis(together, 1, axis), own if lengths is None else lengths
    else:
        array = values if isinstance(values, jax.Array) else np.asarray(values)
        if array.ndim < 2:
            raise ValueError(
                f"{name} has the shape {array.shape}, and needs an axis of sequences and one along them. For sequences "
                f"of different lengths, or end to end, give a list of one array each."
            )
        if lengths is None:
            lengths = np.full(array.shape[1 - axis], array.shape[axis])
    lengths = lengths if isinstance(lengths, jax.Array) else np.asarray(lengths)
    return array, lengths.astype(np.int32)


def _padded(x: _Array, sizes: dict[int, int]) -> _Array:
    """Return the array with these axes padded to these sizes by zeros."""
    added = [(0, sizes.get(axis, size) - size) for axis, size in enumerate(x.shape)]
    return jnp.pad(x, added) if isinstance(x, jax.Array) else np.pad(x, added)
