"""Count the errors between what was read and what was to be read."""

from collections.abc import Sequence

import numpy as np


def edit_distance(found: Sequence[int], truth: Sequence[int] | np.ndarray) -> int:
    """Return the fewest insertions, deletions and substitutions that turn one into the other."""
    truth = np.asarray(truth)
    places = np.arange(len(truth) + 1)
    before = places
    for k, label in enumerate(found, 1):
        after = np.append(k, np.minimum(before[1:] + 1, before[:-1] + (truth != label)))
        # Insertions run along the row: the least of all ways to come from the left.
        before = np.minimum.accumulate(after - places) + places
    return int(before[-1])
