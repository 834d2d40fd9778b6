"""Compare every function with its oracle: the number of cases, and the largest difference.

    JAX_PLATFORMS=cpu python -m benchmarks.agreement [--seeds 20]

The oracles are those of the conformance kit, sums over every path there is, in float64.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def main() -> None:
    """Prints the table as Markdown."""
    import jax

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=20, help="batches of each kind")
    seeds = range(parser.parse_args().seeds)
    print("| function | against | cases | largest difference |\n| --- | --- | --- | --- |")
    with jax.enable_x64(True):
        for name, oracle, found in (*_alignments(seeds), *_posteriors(seeds), *_variants(seeds), *_decoding(seeds)):
            cases, largest = np.array(list(found)).T
            print(f"| `{name}` | {oracle} | {cases.sum():.0f} | {largest.max():.1g} |", flush=True)


def _difference(x: np.ndarray, y: np.ndarray) -> float:
    """The largest, where infinities and NaN are in the same places; else infinite."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if not (np.array_equal(np.isnan(x), np.isnan(y)) and np.array_equal(x[np.isinf(x)], y[np.isinf(y)])):
        return np.inf
    return float(np.abs(np.where(np.isfinite(x), x - np.where(np.isfinite(y), y, 0), 0)).max(initial=0))


Found = Iterator[tuple[int, float]]


def _alignments(seeds: range) -> Iterator[tuple[str, str, Found]]:
    import test_alignment as tests

    import jaxctc
    from jaxctc._tools.conformance.oracle import paths_by_target

    def scores_of_best() -> Found:
        for seed in seeds:
            scores, targets, frames, counts = tests.batch(seed)
            scores = scores.astype(np.float64)
            _, found = jaxctc.forced_align(scores, targets, frames, counts)
            best = []
            for n, (t, c) in enumerate(zip(frames, counts, strict=True)):
                paths = paths_by_target(int(t), tests.C, 0)[tuple(targets[n, :c].tolist())]
                best.append(scores[np.arange(t), n, paths].sum(axis=1).max())
            yield len(best), _difference(found.sum(axis=1), best)

    yield "forced_align", "the best of every path", scores_of_best()


def _posteriors(seeds: range) -> Iterator[tuple[str, str, Found]]:
    import test_posteriors as tests

    import jaxctc

    problems = [tests.batch(seed) for seed in seeds]
    wanted = [tests.by_every_path(problem) for problem in problems]

    def compare(pick: str) -> Found:
        for problem, (states, classes, entropy, ratio) in zip(problems, wanted, strict=True):
            posteriors = jaxctc.ctc_posteriors(*problem, tests.BLANK)
            statistics = jaxctc.ctc_statistics(*problem, tests.BLANK)
            found = {**posteriors._asdict(), **statistics._asdict()}[pick]
            want = {
                "states": states,
                "classes": classes,
                "entropy": entropy,
                "frames": states[:, :, 1::2].sum(axis=0),
                "log_likelihood_ratio": ratio,
            }[pick]
            yield tests.N, _difference(found, want)

    for pick in ("states", "classes"):
        yield f"ctc_posteriors().{pick}", "every path", compare(pick)
    for pick in ("entropy", "frames", "log_likelihood_ratio"):
        yield f"ctc_statistics().{pick}", "every path", compare(pick)


def _variants(seeds: range) -> Iterator[tuple[str, str, Found]]:
    import test_variants as tests

    def compare(name: str) -> Found:
        loss, oracle = tests.LOSSES[name]
        for seed in seeds:
            log_probs, targets, frames, counts = problem = tests.batch(seed)
            want = [
                oracle(log_probs[:t, n], tuple(targets[n, :c].tolist()), 0)
                for n, (t, c) in enumerate(zip(frames, counts, strict=True))
            ]
            yield tests.N, _difference(loss(*problem, reduction="none"), want)

    for name in tests.LOSSES:
        yield f"variants: {name}", "every path, weighted as in the paper", compare(name)


def _decoding(seeds: range) -> Iterator[tuple[str, str, Found]]:
    import jaxctc
    from jaxctc._tools.conformance.oracle import paths_by_target

    frames, classes = 5, 3

    def compare(best_path: bool) -> Found:
        for seed in seeds:
            scores = np.log(np.random.default_rng(seed).dirichlet(np.ones(classes), (frames, 16)))
            found = jaxctc.beam_search_decode(scores, frames, beam_width=64)
            greedy = jaxctc.greedy_decode(scores, frames)
            worst = 0.0
            for n in range(scores.shape[1]):
                spelled = {
                    target: scores[np.arange(frames), n, paths].sum(axis=1)
                    for target, paths in paths_by_target(frames, classes, 0).items()
                }
                if best_path:
                    target = max(spelled, key=lambda target: spelled[target].max())
                    same = greedy.labels[n, : greedy.lengths[n]].tolist() == list(target)
                    worst = max(worst, abs(float(greedy.log_probs[n]) - spelled[target].max()) if same else np.inf)
                    continue
                for k in range(len(spelled)):
                    target = tuple(found.labels[n, k, : found.lengths[n, k]].tolist())
                    total = np.log(np.exp(spelled.pop(target)).sum()) if target in spelled else np.inf
                    worst = max(worst, abs(float(found.log_probs[n, k]) - total))
            yield scores.shape[1], worst

    yield "greedy_decode", "the best of every path", compare(True)
    yield "beam_search_decode", "every path of every target", compare(False)


if __name__ == "__main__":
    main()
