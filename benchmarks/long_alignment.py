"""Align a recording of 100,000 frames and 20,000 labels, and measure time and memory.

python -m benchmarks.long_alignment [--frames 100000] [--labels 20000] [--classes 29]
"""

import argparse
import resource
import time

import jax
import numpy as np


def main() -> None:
    """One line, once the result has been found to spell the target."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, value in (("frames", 100_000), ("labels", 20_000), ("classes", 29)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()

    import jaxctc

    rng = np.random.default_rng(0)
    log_probs = jax.nn.log_softmax(rng.normal(size=(options.frames, options.classes)).astype(np.float32))
    target = rng.integers(1, options.classes, options.labels)
    problem = jax.block_until_ready(log_probs), target, options.frames, options.labels
    before = _peak()
    jax.block_until_ready(jaxctc.forced_align(*problem))  # compiles
    start = time.perf_counter()
    labels, scores = jax.block_until_ready(jaxctc.forced_align(*problem))
    seconds = time.perf_counter() - start
    above = _peak() - before
    assert [span.token for span in jaxctc.merge_tokens(labels, scores)] == target.tolist()
    print(
        f"{options.frames} frames, {options.labels} labels, {options.classes} classes: {seconds:.1f} s; "
        f"{above / 1e6:.0f} MB above the {before / 1e6:.0f} MB that the process had before, compiling included"
    )


def _peak() -> int:
    """Bytes, resident at most so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
