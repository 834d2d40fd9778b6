"""Take the two directions of all sequences as R = 2 N rows: those of each sequence one after the other.

Of an inner loop within an axis of size 2, LLVM makes two copies; of rows it makes none. A TPU would copy the scores.
"""

from jaxtyping import Array, Shaped

from jaxctc._forward_backward.scaled import Scaled
from jaxctc._forward_backward.scaled_emissions import ScaledEmissions
from jaxctc._lattice.frame_map import Index


def in_rows(x: Shaped[Array, "N 2 ..."]) -> Shaped[Array, "R ..."]:
    return x.reshape(2 * x.shape[0], *x.shape[2:])


def by_direction(x: Shaped[Array, "R ..."]) -> Shaped[Array, "N 2 ..."]:
    return x.reshape(x.shape[0] // 2, 2, *x.shape[1:])


def emissions_in_rows(emissions: ScaledEmissions) -> ScaledEmissions:
    """Return the emissions with what the loops read of them in rows."""
    scores, recompute = emissions.scores, emissions.recompute_scores

    def recomputed(first: Index, size: int) -> Shaped[Array, "R K W"]:
        assert recompute is not None
        return in_rows(recompute(first, size))

    return emissions._replace(
        scores=None if scores is None else in_rows(scores),
        blank=Scaled(*map(in_rows, emissions.blank)),
        skip=in_rows(emissions.skip),
        recompute_scores=None if recompute is None else recomputed,
    )
