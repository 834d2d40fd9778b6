"""Find the best path of each target: the recursion with the maximum as its sum, then a trace through backpointers.

A backpointer says, in two bits for each state, how many states back the best predecessor lies. For short inputs all
backpointers are stored. For long ones the frames are cut into segments: the recursion stores alpha before each segment,
and the trace recomputes the backpointers of one segment at a time. The search stays exact, takes up to twice the time,
and memory grows with the square root of T. Emissions are gathered frame by frame, so that no array holds all states of
all frames.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt8

from jaxctc._lattice import indexing
from jaxctc._lattice.lattices import Lattice, accumulation_dtype, frames_of
from jaxctc._mesh import varying_like
from jaxctc._reference import recursion
from jaxctc._reference.log_emissions import topology_of
from jaxctc._reference.recursion import LogStates, Topology, from_left
from jaxctc._sizes import Size, is_at_most, is_known
from jaxctc._types import LOG_ZERO, Request

_STORED_BYTES = 1 << 24
"""Up to so many bytes the backpointers of all frames are stored."""
_OF_UNKNOWN = 64
"""The frames of a segment where the number of frames is symbolic: 4 sqrt(T) of 256 frames."""


def best_path(
    log_probs: Float[Array, "A B C"], lattice: Lattice, request: Request, segment_frames: int | None = None
) -> tuple[Int[Array, "T N"], Float[Array, " N"]]:
    """Return the state of each frame, 2 s for blank s and 2 s + 1 for label s, and the score of the whole path.

    Among equally good predecessors of a state the state itself is taken, then the nearest one; among equally good ends
    the last label. Frames beyond a sequence's length repeat its last state. `segment_frames` is the number of frames
    whose backpointers are stored at once; None chooses it.
    """
    frames, dtype = frames_of(log_probs, request), accumulation_dtype(log_probs.dtype)
    sequences, columns = lattice.labels.shape
    topology = topology_of(lattice)
    size = segment_frames or segment_size(frames, sequences * columns)
    count = -(-frames // size)
    segments = jnp.arange(count * size, dtype=jnp.int32).reshape(count, size)

    classes = jnp.pad(lattice.labels, ((0, 0), (1, 0)), constant_values=request.blank)

    def emitted(t, frame_mask):
        # A scan over the scores themselves would need a copy of them: padded, and with the frames first.
        def take(log_probs, t, classes):
            row = lax.dynamic_index_in_dim(log_probs, t, 1 if request.batch_first else 0, keepdims=False)
            # What XLA fuses with a gather is no longer done eight at a time.
            return lax.optimization_barrier(jnp.take_along_axis(row, classes, axis=1, mode="promise_in_bounds"))

        found = indexing.taken(take, log_probs, jnp.minimum(t, frames - 1), classes)
        found = jnp.where(frame_mask, found.astype(dtype), 0)
        found = jnp.maximum(found, LOG_ZERO)
        return found[:, :1], found[:, 1:]

    def frame(carry, t):
        alpha, score = carry
        frame_mask = (t < topology.input_lengths)[:, None]
        blank, label = emitted(t, frame_mask)
        # Relative to each frame's best emission sums stay small, and float32 tells one path from another.
        peak = jnp.maximum(label.max(axis=1, keepdims=True), blank)
        after = recursion.step(jnp.maximum, alpha, LogStates(blank - peak, label - peak), topology)
        after = LogStates(*(jnp.where(frame_mask, x, y) for x, y in zip(after, alpha, strict=True)))
        backpointers = jnp.where(frame_mask, _backpointers(alpha, topology), jnp.uint8(0))
        return (after, score + jnp.where(frame_mask, peak, 0)[:, 0]), _pack(backpointers)

    def back(state, backpointers):
        return state - _read(backpointers, state), state

    def trace(state, backpointers):
        return lax.scan(back, state, backpointers, reverse=True)

    initial = recursion.initial_states(topology, dtype), jnp.zeros(sequences, dtype)
    initial = varying_like((log_probs, lattice), initial)
    if frames == 0:
        return jnp.zeros((0, sequences), jnp.int32), recursion.last(jnp.maximum, initial[0], topology)
    if count == 1:
        (alpha, score), backpointers = lax.scan(frame, initial, segments[0])
        _, path = trace(_end(alpha, topology), backpointers)
    else:

        def advance(carry, segment):
            after, _ = lax.scan(lambda carry, now: (frame(carry, now)[0], None), carry, segment)
            return after, carry

        def recompute_and_trace(state, segment):
            carry, time = segment
            _, backpointers = lax.scan(frame, carry, time)
            return trace(state, backpointers)

        (alpha, score), stored = lax.scan(advance, initial, segments)
        _, path = lax.scan(recompute_and_trace, _end(alpha, topology), (stored, segments), reverse=True)
    return path.reshape(count * size, sequences)[:frames], score + recursion.last(jnp.maximum, alpha, topology)


def segment_size(frames: Size, columns: Size) -> int:
    """Return the number of frames whose backpointers are stored at once: all, or 4 sqrt(T).

    A frame's backpointers take half a byte a column, its alpha 8 bytes. With 4 sqrt(T) frames in a segment the stored
    backpointers take as much memory as the stored alphas.
    """
    if is_known(frames) and is_at_most(frames * columns, 2 * _STORED_BYTES):
        return max(frames, 1)
    return int(4 * frames**0.5) if is_known(frames) else _OF_UNKNOWN


def _backpointers(alpha: LogStates, topology: Topology) -> UInt8[Array, "N W"]:
    """Return the backpointers of one frame: that of blank s in the two low bits, that of label s above them."""
    stepped = from_left(alpha.label) > alpha.blank
    skipped = topology.skip & stepped
    left = jnp.where(skipped, from_left(alpha.label), alpha.blank) > alpha.label
    into_label = jnp.where(left, jnp.where(skipped, 2, 1), 0)
    return jnp.where(stepped, 4 * into_label + 1, 4 * into_label).astype(jnp.uint8)


def _pack(backpointers: UInt8[Array, "N W"]) -> UInt8[Array, "N half"]:
    half = backpointers.shape[1] // 2
    return backpointers[:, :half] | (backpointers[:, half:] << jnp.uint8(4))


def _read(packed: UInt8[Array, "N half"], state: Int[Array, " N"]) -> Int[Array, " N"]:
    half = packed.shape[1]
    column = state // 2
    byte = jnp.take_along_axis(packed, (column % half)[:, None], axis=1, mode="promise_in_bounds")[:, 0]
    return (byte.astype(jnp.int32) >> (4 * (column // half) + 2 * (state % 2))) & 3


def _end(alpha: LogStates, topology: Topology) -> Int[Array, " N"]:
    """Return the better one of the last blank and the last label."""
    last = topology.target_lengths[:, None]
    blank = jnp.take_along_axis(alpha.blank, last, axis=1)
    label = jnp.take_along_axis(from_left(alpha.label), last, axis=1)
    state = jnp.where((blank > label) | (last == 0), 2 * last, 2 * last - 1)
    return state[:, 0]


def zero_probability(score: Float[Array, " N"]) -> Bool[Array, " N"]:
    """Return whether there is no path, or none that avoids scores of -inf."""
    return score < LOG_ZERO / 2
