"""Count how many programs 2,000 batches of random shapes compile, and how much of the computation is padding.

Run it with JAX_PLATFORMS=cpu python benchmarks/recompilation.py [batches].

Every batch runs forward and backward. Compilations are counted by JAX itself. A lattice cell is one state
of one sequence at one frame; the frames computed are those of the longest input, whatever T is padded to.
"""

import random
import sys
import time

import jax
import torch

import bridge

CLASSES = 32


def main(batches: int = 2000) -> None:
    """Measures and prints."""
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(seconds) if event.endswith("backend_compile_duration") else None
    )
    sizes, generator = bridge.Sizes(), random.Random(0)
    computed = needed = ratios = 0
    started = time.perf_counter()
    for batch in range(1, batches + 1):
        frames, sequences, labels = (generator.randint(*span) for span in ((50, 1500), (1, 64), (1, 200)))
        targets = torch.randint(1, CLASSES, (sequences, labels))
        leaf = torch.zeros(frames, sequences, CLASSES, requires_grad=True)
        bridge.ctc_loss(leaf, targets, [frames] * sequences, [labels] * sequences).backward()
        _, rows, columns = sizes.fit(frames, sequences, labels, accelerated=False)
        cells = frames * -(-sequences // rows) * rows * (2 * columns + 1)
        useful = frames * sequences * (2 * labels + 1)
        computed, needed, ratios = computed + cells, needed + useful, ratios + cells / useful
        if batch % 100 == 0 or batch == batches:
            print(
                f"{batch:5} batches  {len(compiled):3} compilations ({sum(compiled):.1f} s)  "
                f"{computed / needed:.3f} cells computed for one needed (a batch in the mean {ratios / batch:.2f})  "
                f"{time.perf_counter() - started:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
