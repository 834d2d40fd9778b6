"""Times, taken in turns."""

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping

# A shorter turn would measure the clock and the caches more than the work.
_TURN = 0.010
# Before its turn a peer runs untimed: threads of the previous one may still spin, and caches are not its own.
_SETTLE = 0.005


def interleave(calls: Mapping[str, Callable[[], object]], seconds: float, rounds: int) -> dict[str, list[float]]:
    """Seconds a call, by peer and round: at least so many rounds, and more until `seconds` have passed.

    A round gives every peer one turn, in an order drawn anew. The peers of one round shared the machine's mood, so
    that ratios are taken within rounds.
    """
    for call in calls.values():
        call()
        call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    if not calls:
        return taken
    order = list(calls)
    shuffle = random.Random(0).shuffle
    end = time.perf_counter() + seconds
    gc.collect()
    gc.disable()
    try:
        while len(taken[order[0]]) < rounds or time.perf_counter() < end:
            shuffle(order)
            for name in order:
                _repeat(calls[name], _SETTLE)
                taken[name].append(statistics.median(_repeat(calls[name], _TURN)))
    finally:
        gc.enable()
    return taken


def _repeat(call: Callable[[], object], seconds: float) -> list[float]:
    """The time of each call, as many as fit in `seconds` and at least one."""
    times: list[float] = []
    while sum(times) < seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times
