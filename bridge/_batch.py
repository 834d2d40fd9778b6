"""Check the values of a batch, and divide and pad it into the blocks that programs are compiled for.

Tensors have the shapes of `_arguments.Call`: scores (T, N, C), or (N, T, C) with `batch_first`; targets (N, S) or end
to end; lengths (N,). T', R and S' are the padded sizes of `_sizes`.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from bridge import _memory, _sizes, _threads, _vocabulary
from bridge._dlpack import to_numpy
from jaxctc._inputs import advice, checks
from jaxctc._inputs.checks import Form
from jaxctc._inputs.default_implementation import served_by
from jaxctc._types import Request

_INT32 = torch.iinfo(torch.int32)

AnyArray = TypeVar("AnyArray", np.ndarray, Tensor)

Tensors: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]
"""Scores, targets, input lengths and target lengths of one call, in this order."""


class Spec(NamedTuple):
    """Describe a call by everything about it that is no tensor and that the programs depend on."""

    blank: int
    from_logits: bool
    batch_first: bool
    normalized: bool
    """Give PyTorch's gradient rather than the true derivative."""
    implementation: str | None = None

    @property
    def scores_name(self) -> str:
        """The name that error messages give the scores."""
        return "logits" if self.from_logits else "log_probs"

    @property
    def request(self) -> Request:
        """The part of the description that the core takes."""
        asked, prefers_kernels = served_by(self.implementation)
        return Request(
            self.blank, self.from_logits, self.batch_first, implementation=asked, prefers_kernels=prefers_kernels
        )


class Block(NamedTuple):
    """Describe R sequences of a batch, of which the first `rows` are real and the others padding.

    R is the same in all blocks, except that without padding (`set_sizes(None)`) the last block may have fewer.
    """

    first: int
    rows: int
    labels: np.ndarray | Tensor
    """(R, S') int32; a tensor if the targets are on a GPU."""
    classes: Tensor | None
    """(rows, K): the classes that the labels index, if the batch is compact (see `_vocabulary`); else None."""
    lengths: np.ndarray
    """(R, 2): frames and labels of each sequence; 0 and 0 for padded rows."""


class Batch:
    """Hold everything about a batch but its scores, and say how to pad these.

    The lengths are always checked, as in PyTorch; the labels are unless they are on a GPU.

    A batch is compact if JAX is given only the classes that each sequence uses (see `_vocabulary`). It can be compact
    on the CPU only, where the time goes into reading and writing memory.
    """

    def __init__(
        self,
        scores: Tensor,
        targets: Tensor,
        input_lengths: Tensor,
        target_lengths: Tensor,
        spec: Spec,
        *,
        may_be_compact: bool = True,
    ) -> None:
        self.device = scores.device
        self.on_cpu = scores.device.type == "cpu"
        self.large = scores.numel() >= _threads.SMALL
        self.request = spec.request
        self.sequences, self.frames, classes = scores.shape if spec.batch_first else _swap(scores.shape)
        self._class_count = self._padded_class_count = classes
        frames, counts = (x.detach().cpu().numpy() for x in (input_lengths, target_lengths))
        try:
            self._check_lengths(frames, counts, targets, spec.scores_name)
            # Sums and products of lengths in a narrow type would wrap around.
            frames, counts = frames.astype(np.int64), counts.astype(np.int64)
            self.target_lengths = counts
            longest = int(counts.max(initial=0))
            sizes = _sizes.current()
            if sizes is None:
                width = longest if targets.ndim == 1 else targets.shape[1]
                self._frames, self.total_rows = self.frames, self.sequences
                self._rows = _sizes.unpadded_rows(self.frames, self.sequences, width, not self.on_cpu)
            else:
                self._frames, self._rows, width = sizes.fit(
                    self.frames, self.sequences, longest, not self.on_cpu, classes
                )
                self.total_rows = -(-self.sequences // self._rows) * self._rows
                self._padded_class_count = sizes.fit_classes(width, classes)
            self.labels = self._padded_labels(targets.detach(), counts, longest, width, classes)
        except ValueError as error:  # PyTorch raises RuntimeError for illegal values
            raise RuntimeError(str(error)) from None
        many = _sizes.many(self.labels.shape[1], classes)
        self.compact = may_be_compact and self.on_cpu and many
        padded = self._frames, self._rows, self._padded_class_count
        self.whole = self.on_cpu and not self.compact
        self.exact = not self.compact and padded == (self.frames, self.sequences, classes)
        self.lengths = np.zeros((self.total_rows, 2), np.int32)
        self.lengths[: self.sequences, 0] = frames
        self.lengths[: self.sequences, 1] = counts
        if self.compact:
            assert isinstance(self.labels, np.ndarray)
            self._classes, self.labels = _vocabulary.build(self.labels, self.lengths[:, 1], spec.blank)
            self.request = self.request._replace(blank=0)

    def blocks(self) -> Iterator[Block]:
        for first in range(0, self.sequences, self._rows):
            rows = slice(first, first + self._rows)
            real = min(self._rows, self.sequences - first)
            classes = self._classes[first : first + real] if self.compact else None
            yield Block(first, real, self.labels[rows], classes, self.lengths[rows])

    def part(self, x: AnyArray, block: Block) -> AnyArray:
        """Return a block's sequences of something that has the shape of the scores."""
        rows = slice(block.first, block.first + block.rows)
        return x[rows] if self.request.batch_first else x[:, rows]

    def pad(self, x: Tensor, block: Block, tail: float | None = -np.inf) -> Tensor:
        """Return that part as (T', R, C'), or (R, T', C'), or with the classes of the vocabulary if compact.

        The classes beyond C are filled with `tail`; if it is None, the last axis is no axis of classes, and stays as it
        is. All other padding is arbitrary.
        """
        part, rows = self.part(x, block), len(block.lengths)
        shape = (rows, self._frames) if self.request.batch_first else (self._frames, rows)
        if block.classes is not None:
            of_logits = self.request.from_logits
            dtype = torch.promote_types(x.dtype, torch.float32) if of_logits else x.dtype
            padded = _memory.empty((*shape, block.classes.shape[1] + of_logits), x, dtype)
            gather = _vocabulary.gather_logits if of_logits else _vocabulary.gather_log_probs
            gather(self.frames_first(part), block.classes, self.frames_first(self.crop(padded, block)))
            return padded
        width = x.shape[2] if tail is None else self._padded_class_count
        if part.shape == (*shape, width):
            return part.contiguous()
        padded = _memory.empty((*shape, width), x)
        if self.on_cpu:  # by numpy, whose operations take a fraction of the time to start
            self._fill(to_numpy(padded), to_numpy(part), block, tail)
        else:
            self._fill(padded, part, block, tail)
        return padded

    def _fill(self, padded: AnyArray, part: AnyArray, block: Block, tail: float | None) -> None:
        target = self.crop(padded, block)
        target[:, :, : part.shape[2]] = part
        if tail is not None:
            target[:, :, part.shape[2] :] = tail

    def to_classes(self, labels: Tensor) -> Tensor:
        """Return the classes of labels (N, T) of a program, which numbers those of a compact batch anew; -1 stays."""
        if not self.compact:
            return labels
        found = self._classes[: self.sequences].gather(1, labels.clamp(min=0).long()).to(labels.dtype)
        return torch.where(labels < 0, labels, found)

    def frames_first(self, x: Tensor) -> Tensor:
        return x.transpose(0, 1) if self.request.batch_first else x

    def frame_mask(self) -> Tensor:
        """Return which frames are within each sequence's length, (T, N)."""
        return torch.from_numpy(np.arange(self.frames)[:, None] < self.lengths[: self.sequences, 0])

    def crop(self, padded: AnyArray, block: Block) -> AnyArray:
        """Return the real frames and sequences of something that has the shape of what `pad` returns."""
        if self.request.batch_first:
            return padded[: block.rows, : self.frames]
        return padded[: self.frames, : block.rows]

    def real_classes(self, padded: AnyArray, block: Block) -> AnyArray:
        """Return the real frames, sequences and classes of a block that has all classes."""
        return self.crop(padded, block)[:, :, : self._class_count]

    def assemble(self, padded: Sequence[Tensor], *, of_classes: bool = True) -> Tensor:
        """Join the blocks of a padded tensor to one for the batch; if nothing was padded, return the block itself.

        Its last axis has the classes, or else something that is not padded.
        """
        if self.exact:
            return padded[0]
        sizes = (self.sequences, self.frames) if self.request.batch_first else (self.frames, self.sequences)
        out = _memory.empty((*sizes, self._class_count if of_classes else padded[0].shape[2]), padded[0])
        crop = self.real_classes if of_classes else self.crop

        def write(part: tuple[Block, Tensor]) -> None:
            block, piece = part
            self.part(out, block).copy_(crop(piece, block))

        _threads.side_by_side(write, zip(self.blocks(), padded, strict=True), self.on_cpu and self.large)
        return out

    def _check_lengths(self, frames: np.ndarray, counts: np.ndarray, targets: Tensor, name: str) -> None:
        stop, end_to_end = targets.shape[-1], targets.ndim == 1

        def slots() -> str:
            if end_to_end:
                return f"targets holds {checks.plural(stop, 'label')} end to end"
            return f"targets has S = {checks.plural(stop, 'slot')}"

        def explain_frames() -> tuple[str, str]:
            return f"{name} has T = {checks.plural(self.frames, 'frame')}", (
                "An input length counts the frames that the model gives for a sequence, after any subsampling."
                + advice.order_of_axes(name, None, self.frames < frames.max() <= self.sequences)
            )

        def explain_labels() -> tuple[str, str]:
            fits = bool(counts.max() <= self.frames and frames.max() <= stop)
            return slots(), "A target length counts the labels of a target, without its padding." + (
                advice.swapped_lengths(fits)
            )

        checks.length_values("input_lengths", frames, self.frames, explain_frames, True)
        checks.length_values("target_lengths", counts, stop, explain_labels, True)
        if end_to_end and counts.sum() != stop:
            raise ValueError(
                f"{slots()}, but target_lengths sum to {counts.sum()}: the two must be equal. "
                "Padded targets must be two-dimensional, of shape (N, S)."
            )

    def _padded_labels(
        self, targets: Tensor, counts: np.ndarray, longest: int, width: int, classes: int
    ) -> np.ndarray | Tensor:
        """Return the labels as (N', S'), N' the rows of all blocks, padded with 0."""
        shape = self.total_rows, width
        inside = np.arange(longest) < counts[:, None]
        if targets.device.type == "cpu" or self.on_cpu:
            values = targets.cpu().numpy()
            if targets.ndim == 1:
                padded = np.zeros(inside.shape, values.dtype)
                padded[inside] = values
            else:
                padded = values[:, :longest]
            form = Form.END_TO_END if targets.ndim == 1 else Form.PADDED
            checks.label_values(padded, counts, self.request.blank, classes, form)
            labels = np.zeros(shape, np.int32)
            labels[: self.sequences, :longest] = padded
            return labels
        # JAX uses int32 labels. Clamped, and not wrapped around, a label that does not fit stays illegal.
        targets = targets.to(self.device).long().clamp(_INT32.min, _INT32.max).to(torch.int32)
        if self._padded_class_count > classes:  # a label that is no class must not become a padded one
            targets = targets.masked_fill(targets >= classes, _INT32.max)
        made = targets.new_zeros(shape)
        if targets.ndim == 1:  # by index: with a mask PyTorch would have to wait for the device to count it
            row, column = (torch.from_numpy(x).to(targets.device, non_blocking=True) for x in np.nonzero(inside))
            made[row, column] = targets
        else:
            made[: self.sequences, :longest] = targets[:, :longest]
        return made


def _swap(shape: torch.Size) -> tuple[int, int, int]:
    frames, sequences, classes = shape
    return sequences, frames, classes
