"""Time the bridge beside PyTorch's own loss, on the example of PyTorch's documentation: forward and backward.

Run it with JAX_PLATFORMS=cpu python benchmarks/overhead.py.

Both take turns, so that other work of the machine slows both; medians, in microseconds.
"""

import time
from collections import defaultdict
from statistics import median

import torch
from torch.nn import functional

import bridge
from bridge import _programs

T, N, C, S = 50, 16, 20, 30
ROUNDS = 500


def main() -> None:
    """Measures and prints."""
    torch.manual_seed(0)
    scores = torch.randn(T, N, C).log_softmax(2).detach().requires_grad_()
    targets = torch.randint(1, C, (N, S))
    lengths = torch.full((N,), T), torch.randint(10, S + 1, (N,))
    programs, answers = _programs._losses_and_gradient, {}
    real = programs["cpu"]

    def step(function):
        function(scores, targets, *lengths).backward()
        scores.grad = None

    def without_the_core():
        """Does all of the bridge's own work; JAX's result is prepared."""
        programs["cpu"] = lambda *_: answers["kept"]
        try:
            step(bridge.ctc_loss)
        finally:
            programs["cpu"] = real

    def keep(*arguments):
        answers["kept"] = real(*arguments)
        return answers["kept"]

    programs["cpu"] = keep
    step(bridge.ctc_loss)
    programs["cpu"] = real
    roads = {
        "torch": lambda: step(functional.ctc_loss),
        "bridge": lambda: step(bridge.ctc_loss),
        "bridge, the core's answer given": without_the_core,
    }
    times = defaultdict(list)
    for _ in range(ROUNDS):
        for name, road in roads.items():
            started = time.perf_counter()
            road()
            times[name].append(time.perf_counter() - started)
    for name, measured in times.items():
        ratio = median(a / b for a, b in zip(measured, times["torch"], strict=True))
        print(f"{name:32} {median(measured) * 1e6:7.0f} us   {ratio:.2f} of torch")


if __name__ == "__main__":
    main()
