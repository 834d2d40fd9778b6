"""The few shapes that batches are padded to, so that XLA compiles a few programs and not one a batch.

A program is compiled for T' frames, R sequences and S' labels, and serves every batch that fits:

- T is padded to the next of a few sizes. Padded frames are beyond every input length: not computed.
- The sequences are cut into blocks of R rows, and the last block is filled up with empty sequences: the
  number of sequences is no part of the program at all. On a CPU a few small blocks also run faster than
  one large one, whose working set leaves the cache. On a GPU, where sequences side by side cost little and
  blocks one after the other cost their launches, there is one block, of one of a few sizes.
- S, the longest target of the batch, is padded to the next of a few sizes.

C, the types, and what is asked for (a loss, a gradient) are never changed.
"""

import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

from jaxctc._inputs import checks


class Sizes(NamedTuple):
    """The sizes that batches are padded to; see `set_sizes`.

    Beyond its largest size an axis goes on by doubling.

    Args:
        frames: Sizes for T, ascending.
        labels: Sizes for the longest target of a batch, ascending. Two less than a multiple of 8 wastes nothing:
            the lattice has two columns more.
        sequences: Sequences in a block; None chooses for the device: 16 on the CPU, or 8 from 64 labels on and
            4 from 256; on a GPU 32, or by doubling as many as hold the batch.

    Raises:
        TypeError, ValueError: When set, as `set_sizes` says.

    Example:
        >>> import bridge
        >>> bridge.Sizes(frames=(400, 800, 1600), labels=(50, 100), sequences=32).frames
        (400, 800, 1600)
    """

    frames: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    labels: tuple[int, ...] = (30, 62, 94, 126, 190, 254, 318, 382, 446, 510, 638, 766, 894, 1022)
    sequences: int | None = None

    def fit(self, frames: int, sequences: int, labels: int, accelerated: bool) -> tuple[int, int, int]:
        """T', R and S' for a batch of so many frames, sequences and labels."""
        labels = _next(labels, self.labels)
        rows = self.sequences
        if rows is None:
            rows = _next(sequences, (32,)) if accelerated else 16 if labels < 64 else 8 if labels < 256 else 4
        return _next(frames, self.frames), rows, labels


def _next(x: int, sizes: tuple[int, ...]) -> int:
    for size in sizes:
        if x <= size:
            return size
    size = sizes[-1]
    while size < x:
        size *= 2
    return size


_current: Sizes | None = Sizes()


def current() -> Sizes | None:
    """What `set_sizes` has set; None leaves every shape as it is."""
    return _current


class set_sizes:  # noqa: N801, a function to its users, as torch.set_grad_enabled is
    """Chooses the sizes that batches are padded to, for the whole process; None switches padding off.

    Takes effect at once; in a ``with`` statement, until its end. The default is ``Sizes()``. With None
    every new shape (T, N, C, S) is compiled anew, half a second or more, and runs without any padding:
    the right choice where all batches have the same shape.

    Args:
        sizes: The sizes, or None.

    Raises:
        TypeError: `sizes` is neither `Sizes` nor None, or holds something that is no int.
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
    frames, labels = (_ascending(name, getattr(sizes, name)) for name in ("frames", "labels"))
    sequences = sizes.sequences
    if sequences is not None:
        sequences = _ascending("sequences", (sequences,))[0]
    return Sizes(frames, labels, sequences)


def _ascending(name: str, values: Iterable[Any]) -> tuple[int, ...]:
    made = tuple(checks.integer(f"Sizes.{name}", value, "one or more sizes") for value in values)
    if not made or made[0] < 1 or any(a >= b for a, b in itertools.pairwise(made)):
        raise ValueError(f"Sizes.{name} is {made}: sizes must be at least 1, at least one of them, in ascending order.")
    return made
