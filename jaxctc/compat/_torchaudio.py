"""Provide the alignment of torchaudio."""

import contextlib
from collections.abc import Iterator

from jaxctc._api import alignment
from jaxctc._api.alignment import Alignment
from jaxctc._inputs import checks
from jaxctc._inputs.checks import Form
from jaxctc._types import FloatsLike, IntegersLike
from jaxctc.compat._arguments import three_axes, two_axes


def torchaudio_forced_align(
    log_probs: FloatsLike,
    targets: IntegersLike,
    input_lengths: IntegersLike | None = None,
    target_lengths: IntegersLike | None = None,
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
        ValueError: A label is no class, or is the blank.
        RuntimeError: A type, a shape, a length or `blank` is illegal, or a target needs more frames than there are.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxctc import compat
        >>> log_probs = jnp.log(jnp.array([[[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]]]))
        >>> labels, scores = compat.torchaudio_forced_align(log_probs, jnp.array([[1, 2]]))
        >>> labels.tolist()
        [[0, 1, 2]]
    """
    with _torchaudio_exceptions():
        scores = three_axes("log_probs", log_probs)
        sequences, most, classes = scores.shape
        labels = two_axes("targets", checks.integers("targets", targets, "labels, an array"), sequences)
        blank = checks.blank(blank, classes)
        frames = checks.lengths("input_lengths", most if input_lengths is None else input_lengths, sequences, "T")
        counts = labels.shape[1] if target_lengths is None else target_lengths
        counts = checks.lengths("target_lengths", counts, sequences, "S")
    of_labels, of_counts = checks.host_values(labels), checks.host_values(counts)
    if of_labels is not None and of_counts is not None:
        checks.label_values(of_labels, of_counts, blank, classes, Form.PADDED)
    with _torchaudio_exceptions():
        return alignment.forced_align(scores, labels, frames, counts, blank, batch_first=True)


@contextlib.contextmanager
def _torchaudio_exceptions() -> Iterator[None]:
    """Raise RuntimeError, as torchaudio does, for every illegal argument but labels."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if type(error) not in (TypeError, ValueError):  # JAX's own, about what is traced
            raise
        raise RuntimeError(str(error)) from None
