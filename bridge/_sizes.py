"""Choose the few shapes that batches are padded to, so that XLA compiles a few programs and not one for each batch.

A program is compiled for T' frames, R sequences and S' labels, and serves every batch that fits:

- T is padded to the next of a few sizes. Padded frames lie beyond every input length and are not computed.
- The sequences are divided into blocks of R rows, and the last block is filled with empty sequences, so that
  a program does not depend on the number of sequences. On a CPU blocks are computed side by side (see `_threads`), and
  the working set of a small block fits in the cache. On a GPU more sequences in a block cost little, and
  every block costs its launches: there is one block, of one of a few sizes.
- S, the longest target of the batch, is padded to the next of a few sizes.
- C is padded to the next of a few sizes, with classes of probability zero. If there are many classes, a program is
  given those that the targets use (see `_vocabulary`), or C stays as it is.

The dtypes are never changed, nor is what a program computes (a loss, or a gradient as well).
"""

from typing import Any, NamedTuple

from jaxctc._api.padding import FRAMES, LABELS, ascending, next_size


class Sizes(NamedTuple):
    """Hold the sizes that batches are padded to; see `set_sizes`.

    Beyond the largest size of an axis, its sizes double.

    Args:
        frames: Sizes for T, ascending.
        labels: Sizes for the longest target of a batch, ascending. Use multiples of 8, minus 2: the lattice has two
            columns more, and pads them to a multiple of 8.
        sequences: Sequences in a block. None chooses for the device: on the CPU 8, or 2 from 256 labels on, or 16 for
            less than 64 labels and up to 128 frames, or 1, 2 or 4 for as few sequences with many classes; on a GPU 32,
            doubled until one block holds the batch.
        classes: Sizes for C, ascending, for batches whose classes are not many: fewer than two for each label of the
            padded target and the blank. Choose multiples of 32, or the labels plus 2, so that targets as long as C need
            no more programs than their lengths do.

    Raises:
        TypeError, ValueError: `set_sizes` raises them for illegal sizes.

    Example:
        >>> import bridge
        >>> bridge.Sizes(frames=(400, 800, 1600), labels=(50, 100), sequences=32).frames
        (400, 800, 1600)
    """

    frames: tuple[int, ...] = FRAMES
    labels: tuple[int, ...] = LABELS
    sequences: int | None = None
    classes: tuple[int, ...] = (8, 16, 32, 64, 96, 128, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024)

    def fit(
        self, frames: int, sequences: int, labels: int, accelerated: bool, classes: int = 0
    ) -> tuple[int, int, int]:
        """Return T', R and S' for a batch of this many frames, sequences, labels and classes."""
        frames, labels = next_size(frames, self.frames), next_size(labels, self.labels)
        rows = self.sequences
        if rows is None and accelerated:
            rows = next_size(sequences, (32,))
        elif rows is None:
            rows = rows_at_once(frames, labels)
            if sequences <= 4 and many(labels, classes):
                # Where a row has much to read, an empty one costs too much.
                rows = min(rows, next_size(sequences, (1, 2, 4)))
        return frames, rows, labels

    def fit_classes(self, labels: int, classes: int) -> int:
        """Return C' for a batch of this many classes, whose targets are padded to this many labels."""
        return classes if many(labels, classes) else next_size(classes, self.classes)


def rows_at_once(frames: int, labels: int) -> int:
    """Return how many sequences are to be in a block on a CPU.

    Blocks are computed side by side: there should be several. The fewer states a step has, the more of its time is
    that of its call, and of few frames the call of the program is much.
    """
    if labels >= 256:
        return 2
    return 16 if labels < 64 and frames <= 128 else 8


def unpadded_rows(frames: int, sequences: int, labels: int, accelerated: bool) -> int:
    """Return how many sequences are to be in a block if none is padded; the last block has what is left."""
    sequences = max(sequences, 1)
    blocks = 1 if accelerated else -(-sequences // rows_at_once(frames, labels))
    return -(-sequences // blocks)


def many(labels: int, classes: int) -> bool:
    """Return whether there are so many classes that it is faster to gather those of the labels, and of the blank."""
    return 2 * (1 + labels) <= classes


_current: Sizes | None = Sizes()


def current() -> Sizes | None:
    """Return the sizes that `set_sizes` has set; None leaves every shape as it is."""
    return _current


class set_sizes:  # noqa: N801, users call it like a function, as they do torch.set_grad_enabled
    """Choose the sizes that batches are padded to, for the whole process; None switches padding off.

    The call takes effect at once; as a ``with`` statement, until the end of its block. The default is ``Sizes()``.
    With None every new shape (T, N, C, S) is compiled, which takes half a second or more, and runs without padding:
    the right choice if all batches have the same shape.

    Args:
        sizes: The sizes, or None.

    Raises:
        TypeError: `sizes` is neither `Sizes` nor None, or holds something other than ints.
        ValueError: A size is not positive, or they do not ascend.

    Example:
        >>> import bridge, torch
        >>> with bridge.set_sizes(None):
        ...     loss = bridge.ctc_loss(torch.zeros(4, 1, 3), torch.tensor([[1, 2]]), [4], [2])
        >>> previous = bridge.set_sizes(bridge.Sizes(frames=(100, 1000)))
        >>> _ = bridge.set_sizes(bridge.Sizes())  # the default again
    """

    def __init__(self, sizes: Sizes | None) -> None:
        global _current
        checked = sizes if sizes is None else _checked(sizes)
        self._previous, _current = _current, checked

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: Any) -> None:
        global _current  # noqa: PLW0603
        _current = self._previous


def _checked(sizes: Any) -> Sizes:
    if not isinstance(sizes, Sizes):
        raise TypeError(
            f"sizes must be bridge.Sizes(...), or None for no padding; got {sizes!r} of type {type(sizes).__name__}."
        )
    frames, labels, classes = (
        ascending(f"Sizes.{name}", getattr(sizes, name)) for name in ("frames", "labels", "classes")
    )
    sequences = sizes.sequences
    if sequences is not None:
        sequences = ascending("Sizes.sequences", (sequences,))[0]
    return Sizes(frames, labels, sequences, classes)
