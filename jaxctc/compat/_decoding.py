"""Decode a batch of logits, in the words of the library that the caller comes from."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxctc._api.decoding import beam_search_decode, best_paths
from jaxctc._inputs import checks
from jaxctc._inputs.arguments import canonical_frames, canonical_scores
from jaxctc._inputs.checks import Names
from jaxctc._lattice.lattices import accumulation_dtype
from jaxctc._types import ArrayLike, Request
from jaxctc.compat._arguments import blank_index, three_axes, whole_numbers


def greedy(
    logits: ArrayLike, lengths: ArrayLike, blank: int | None, merge_repeated: bool, batch_first: bool, names: Names
) -> tuple[Int[Array, "N T"], Float[Array, "N 1"]]:
    """Return the labels of the best paths, -1 after the last, and minus the sums of the best logits."""
    merge_repeated = checks.flag("merge_repeated", merge_repeated)
    scores, counts, request = _canonical(logits, lengths, blank, batch_first, names)
    found = best_paths(scores, counts, request, merge_repeated)
    return found.labels, 0 - found.log_probs[:, None]  # 0 minus 0 is 0, where -0 would be a negative zero


def beam_search(
    logits: ArrayLike,
    lengths: ArrayLike,
    blank: int | None,
    beam_width: int,
    top_paths: int,
    batch_first: bool,
    names: Names,
) -> tuple[Int[Array, "paths N T"], Float[Array, "N paths"]]:
    """Return the most probable labellings, -1 after the last label, and their log probabilities, best first."""
    width = checks.integer("beam_width", beam_width, "the number of prefixes to keep")
    paths = checks.integer("top_paths", top_paths, "the number of labellings to return")
    if not 1 <= paths <= width:
        raise ValueError(f"top_paths is {paths}: it must lie in [1, beam_width] = [1, {width}].")
    scores, counts, request = _canonical(logits, lengths, blank, batch_first, names)
    log_probs = jax.nn.log_softmax(scores.astype(accumulation_dtype(scores.dtype)))
    beams = beam_search_decode(log_probs, counts, request.blank, beam_width=width, batch_first=batch_first)
    return jnp.moveaxis(beams.labels[:, :paths], 1, 0), beams.log_probs[:, :paths]


def _canonical(
    logits: ArrayLike, lengths: ArrayLike, blank: int | None, batch_first: bool, names: Names
) -> tuple[jax.Array, jax.Array, Request]:
    """Return the scores, their lengths and the request; a blank of None is the last class."""
    scores = three_axes(names.scores, logits)
    blank = blank_index(names.blank, -1 if blank is None else blank, scores.shape[2])
    scores, request, batched = canonical_scores(scores, blank, batch_first, names)
    lengths = whole_numbers(names.input_lengths, lengths, "an int or an array")
    return scores, canonical_frames(lengths, scores, request, batched, names), request
