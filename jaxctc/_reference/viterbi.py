"""The best path of each target: the recursion with the maximum for its sum, and the way back.

What each state came from is kept in two bits, of K frames at a time. Before every K frames the states
themselves are kept; the way back walks those frames once more. So nothing is given up for long inputs, no
path is out of reach, but up to twice the time; and scores are fetched frame by frame, so that nothing is as
large as all states at all frames.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, UInt8

from jaxctc._lattice.lattices import Lattice
from jaxctc._reference import recursion
from jaxctc._reference.log_emissions import topology_of
from jaxctc._reference.recursion import LogStates, Topology, from_left
from jaxctc._types import LOG_ZERO, Request

_SMALL = 1 << 24
"""Bytes of moves that are kept rather than found again."""


def best_path(
    log_probs: Float[Array, "T N C"], lattice: Lattice, request: Request
) -> tuple[Int[Array, "T N"], Float[Array, " N"]]:
    """The state of each frame, 2 s for blank s and 2 s + 1 for label s, and the score of the whole path.

    Of equal ways into a state the one that stays is taken, then the one from the state before; of equal ends the
    last label. Frames beyond a sequence's length repeat its last state.
    """
    frames, sequences, classes = log_probs.shape
    topology = topology_of(lattice)
    size = _size(frames, sequences * lattice.labels.shape[1])
    count = -(-frames // size)
    time = jnp.arange(count * size, dtype=jnp.int32).reshape(count, size)
    padded = jnp.pad(log_probs, ((0, count * size - frames), (0, 0), (0, 0)))
    segments = time, padded.reshape(count, size, sequences, classes)

    def frame(carry, now):
        states, score = carry
        t, row = now
        label = jnp.take_along_axis(row, lattice.labels, axis=1, mode="promise_in_bounds")
        blank = row[:, request.blank, None]
        # Without each frame's best score sums stay small, and float32 tells one path from another.
        peak = jnp.maximum(label.max(axis=1, keepdims=True), blank)
        frame_mask = (t < topology.input_lengths)[:, None]
        after = recursion.step(jnp.maximum, states, LogStates(blank - peak, label - peak), topology)
        after = LogStates(*(jnp.where(frame_mask, x, y) for x, y in zip(after, states, strict=True)))
        backpointers = jnp.where(frame_mask, _backpointers(states, topology), jnp.uint8(0))
        return (after, score + jnp.where(frame_mask, peak, 0)[:, 0]), _pack(backpointers)

    def back(state, backpointers):
        return state - _read(backpointers, state), state

    def trace(state, backpointers):
        return lax.scan(back, state, backpointers, reverse=True)

    begin = recursion.start(topology, log_probs.dtype), jnp.zeros(sequences, log_probs.dtype)
    if count == 1:
        (states, score), backpointers = lax.scan(frame, begin, (time[0], padded))
        _, path = trace(_end(states, topology), backpointers)
    else:

        def ahead(carry, segment):
            after, _ = lax.scan(lambda carry, now: (frame(carry, now)[0], None), carry, segment)
            return after, carry

        def again(state, segment):
            carry, *rows = segment
            _, backpointers = lax.scan(frame, carry, tuple(rows))
            return trace(state, backpointers)

        (states, score), kept = lax.scan(ahead, begin, segments)
        _, path = lax.scan(again, _end(states, topology), (kept, *segments), reverse=True)
    return path.reshape(count * size, sequences)[:frames], score + recursion.last(jnp.maximum, states, topology)


def _size(frames: int, columns: int) -> int:
    """Frames whose moves are kept at once: the moves of so many take as much memory as the states before each."""
    if frames * columns <= 2 * _SMALL:
        return max(frames, 1)
    return int(4 * frames**0.5)


def _backpointers(states: LogStates, topology: Topology) -> UInt8[Array, "N W"]:
    """How many states back each one's best predecessor lies: of blank s in the lower two bits, of label s above."""
    stepped = from_left(states.label) > states.blank
    skipped = topology.skip & stepped
    left = jnp.where(skipped, from_left(states.label), states.blank) > states.label
    of_label = jnp.where(left, jnp.where(skipped, 2, 1), 0)
    return jnp.where(stepped, 4 * of_label + 1, 4 * of_label).astype(jnp.uint8)


def _pack(backpointers: UInt8[Array, "N W"]) -> UInt8[Array, "N half"]:
    half = backpointers.shape[1] // 2
    return backpointers[:, :half] | (backpointers[:, half:] << jnp.uint8(4))


def _read(packed: UInt8[Array, "N half"], state: Int[Array, " N"]) -> Int[Array, " N"]:
    half = packed.shape[1]
    column = state // 2
    byte = jnp.take_along_axis(packed, (column % half)[:, None], axis=1, mode="promise_in_bounds")[:, 0]
    return (byte.astype(jnp.int32) >> (4 * (column // half) + 2 * (state % 2))) & 3


def _end(states: LogStates, topology: Topology) -> Int[Array, " N"]:
    """The better one of the last blank and the last label."""
    last = topology.target_lengths[:, None]
    blank = jnp.take_along_axis(states.blank, last, axis=1)
    label = jnp.take_along_axis(from_left(states.label), last, axis=1)
    state = jnp.where((blank > label) | (last == 0), 2 * last, 2 * last - 1)
    return state[:, 0]


def impossible(score: Float[Array, " N"]) -> Array:
    """No path, or none but through scores of -inf."""
    return score < LOG_ZERO / 2
