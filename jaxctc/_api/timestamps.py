"""Find the frames of decoded labels, and those of words."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from jaxctc._api.alignment import TokenSpan, forced_align, merge_tokens
from jaxctc._api.beam_search import Beams
from jaxctc._api.decoding import Decoded
from jaxctc._api.label_names import LabelNames, names_by_class
from jaxctc._types import FloatsLike, IntegersLike


@dataclass(frozen=True)
class WordSpan:
    """Hold the frames of one word."""

    word: str
    start: int
    """Its first frame."""
    end: int
    """The frame after its last."""
    score: float
    """The mean score of the frames of its labels."""

    def __len__(self) -> int:
        """Return the number of frames."""
        return self.end - self.start


def decoded_spans(
    log_probs: FloatsLike,
    decoded: Decoded | Beams,
    input_lengths: IntegersLike,
    blank: int = 0,
    *,
    batch_first: bool = False,
) -> list[TokenSpan] | list[list[TokenSpan]]:
    """Return the frames of decoded labels: the spans on the best of all paths that spell them.

    It aligns the labels by `forced_align` and merges the alignment by `merge_tokens`. For the labels of `greedy_decode`
    that path is the best of all paths.

    Args:
        log_probs: The log probabilities that were decoded, (T, N, C), or (T, C) for one sequence.
        decoded: What `greedy_decode` or `beam_search_decode` returned for them. Of several labellings of a beam the
            first is taken, which is the most probable one.
        input_lengths: Frames of each sequence: (N,), a sequence of ints, or one int for all.
        blank: Index of the blank class.
        batch_first: `log_probs` is (N, T, C).

    Returns:
        A list of `TokenSpan` for each sequence, in the order of time; for one sequence its list alone. A sequence that
        could not be decoded, because of a NaN, has no spans.

    Raises:
        TypeError: An argument is of the wrong type, or is traced: spans are made of values.
        ValueError: A shape, a length or `blank` is illegal, or the labels do not belong to these scores.

    Example:
        >>> import jax, jax.numpy as jnp, jaxctc
        >>> path = jnp.array([0, 1, 1, 0, 1, 2])  # 0 is the blank
        >>> log_probs = jax.nn.log_softmax(9.0 * jax.nn.one_hot(path, 3))
        >>> beams = jaxctc.beam_search_decode(log_probs, 6)
        >>> [(span.token, span.start, span.end) for span in jaxctc.decoded_spans(log_probs, beams, 6)]
        [(1, 1, 3), (1, 4, 5), (2, 5, 6)]
    """
    if not isinstance(decoded, Decoded | Beams):
        module = type(decoded).__module__.split(".")[0]
        remedy = " For the bridge's results there is bridge.decoded_spans." if module == "bridge" else ""
        raise TypeError(
            f"decoded must be what jaxctc.greedy_decode or jaxctc.beam_search_decode returns; got {module}."
            f"{type(decoded).__name__}.{remedy}"
        )
    if any(isinstance(x, jax.core.Tracer) for x in decoded):
        raise TypeError("decoded is traced: spans are made of values. Call decoded_spans outside of jax.jit.")
    labels, lengths = np.asarray(decoded.labels), np.asarray(decoded.lengths)
    if isinstance(decoded, Beams):
        labels, lengths = labels[..., 0, :], lengths[..., 0]
    # No wider than it has to be, which the alignment pays for, and of few widths, each of which it is compiled for.
    width = 1 << int(lengths.max(initial=1) - 1).bit_length()
    shape = np.shape(log_probs)
    if labels.ndim == 2 and len(shape) == 3 and shape[0 if batch_first else 1] != len(labels):
        layout, other = ("(N, T, C)", "False") if batch_first else ("(T, N, C)", "True")
        raise ValueError(
            f"log_probs has the shape {shape}, {layout}, and decoded is of {len(labels)} sequences. They must belong "
            f"together; for the other layout pass batch_first={other}."
        )
    found = forced_align(log_probs, labels[..., :width], input_lengths, lengths, blank, batch_first=batch_first)
    return merge_tokens(*found, blank)


def merge_words(spans: Sequence[TokenSpan], label_names: LabelNames, separator: str = " ") -> list[WordSpan]:
    """Return the words that the spans of labels spell, and their frames.

    A word begins behind each `separator`, whether that is a label of its own, such as " " or "|", or stands in the name
    of one, such as the "▁" of SentencePiece in "▁the".

    Args:
        spans: The spans of one sequence's labels, as `merge_tokens` and `decoded_spans` return them.
        label_names: The name of each class, in a sequence or a mapping, or a tokenizer's vocabulary, which is a mapping
            from name to class.
        separator: The text between two words; it belongs to none.

    Returns:
        A list of `WordSpan`, in the order of time. A word's frames reach from those of its first label to those of its
        last; its score is the mean over the frames of its labels.

    Raises:
        TypeError: A span is no `TokenSpan`, a name is no name, or `separator` is not a string.
        ValueError: A label has no name, or `separator` is empty.

    Example:
        >>> import jaxctc
        >>> names = ["-", " ", "a", "m", "I"]
        >>> spans = [jaxctc.TokenSpan(token, 2 * t, 2 * t + 1, -0.5) for t, token in enumerate([4, 1, 2, 3])]
        >>> for word in jaxctc.merge_words(spans, names):
        ...     print(word.word, word.start, word.end, word.score)
        I 0 1 -0.5
        am 4 7 -0.5
    """
    if not isinstance(separator, str):
        raise TypeError(f"separator must be a string; got {separator!r} of type {type(separator).__name__}.")
    if not separator:
        raise ValueError("separator is empty: it must be the text between two words, for instance a space.")
    names = names_by_class(label_names)
    for i, span in enumerate(spans):
        if not hasattr(span, "token"):
            raise TypeError(
                f"spans[{i}] is of type {type(span).__name__}: it must be a TokenSpan. Pass the spans of one sequence; "
                "of a batch, call merge_words for each."
            )
        if span.token not in names:
            raise ValueError(f"spans[{i}].token is {span.token}, which label_names has no name for.")
    return [_word(pieces) for pieces in _words(spans, names, separator)]


def _words(spans: Sequence[TokenSpan], names: dict[int, str], separator: str) -> Iterator[list[tuple[str, TokenSpan]]]:
    """Yield the pieces of each word, and the spans that they are of."""
    pieces: list[tuple[str, TokenSpan]] = []
    for span in spans:
        first, *others = names[span.token].split(separator)
        if first:
            pieces.append((first, span))
        for piece in others:
            if pieces:
                yield pieces
            pieces = [(piece, span)] if piece else []
    if pieces:
        yield pieces


def _word(pieces: list[tuple[str, TokenSpan]]) -> WordSpan:
    frames = sum(len(span) for _, span in pieces)
    score = sum(span.score * len(span) for _, span in pieces) / frames
    return WordSpan("".join(piece for piece, _ in pieces), pieces[0][1].start, pieces[-1][1].end, score)
