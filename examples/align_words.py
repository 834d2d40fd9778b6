"""Prints when each word of an utterance was spoken, from the emission of a CTC acoustic model and the transcript.

    python examples/align_words.py --data EMISSION.npz [--picture PATH]

EMISSION holds `logits`, (T, C), `labels`, the C names of the classes, of which the last is the blank, and `text`.
"""

import argparse
from pathlib import Path

import jax
import numpy as np

import jaxctc

SECONDS_PER_FRAME = 0.02


def main() -> None:
    """Prints a line a word, and draws the picture if it is asked to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="an .npz file: see the top of this file")
    parser.add_argument("--picture", type=Path, help="where to draw scores, posteriors and spans")
    options = parser.parse_args()

    emission = np.load(options.data)
    names, text = emission["labels"].tolist(), str(emission["text"])
    log_probs, blank = jax.nn.log_softmax(emission["logits"]), len(names) - 1
    problem = log_probs, np.array([names.index(c) for c in text]), len(log_probs), len(text), blank

    labels, scores = jaxctc.forced_align(*problem)
    spans = jaxctc.merge_tokens(labels, scores, blank)
    print(f"{'word':<12}{'from':>7}{'to':>7}  confidence")
    for word in jaxctc.merge_words(spans, names):
        start, end = word.start * SECONDS_PER_FRAME, word.end * SECONDS_PER_FRAME
        print(f"{word.word:<12}{start:6.2f}s{end:6.2f}s  {np.exp(word.score):.2f}")
    if options.picture:
        figure = jaxctc.plot_alignment(
            log_probs,
            spans,
            posteriors=jaxctc.ctc_posteriors(*problem).classes,
            label_names=names,
            blank=blank,
            seconds_per_frame=SECONDS_PER_FRAME,
            title=f"“{text}”",
        )
        figure.savefig(options.picture, dpi=100)
        print(f"Drawn: {options.picture}")


if __name__ == "__main__":
    main()
