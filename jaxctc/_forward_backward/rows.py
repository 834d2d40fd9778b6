"""Take the two directions of all sequences as R = 2 N rows: those of each sequence one after the other.

Of an inner loop within an axis of size 2, LLVM makes two copies; of rows it makes none. A TPU would copy the scores,
and where they are recomputed, a CPU would not compute them in the place of what was gathered for them.
"""

from jaxtyping import Array, Shaped

from jaxctc._forward_backward.scaled import Scaled
from jaxctc._forward_backward.scaled_emissions import ScaledEmissions


def in_rows(x: Shaped[Array, "N 2 ..."]) -> Shaped[Array, "R ..."]:
    return x.reshape(2 * x.shape[0], *x.shape[2:])


def by_direction(x: Shaped[Array, "R ..."]) -> Shaped[Array, "N 2 ..."]:
    return x.reshape(x.shape[0] // 2, 2, *x.shape[1:])


def emissions_in_rows(emissions: ScaledEmissions) -> ScaledEmissions:
    """Return the emissions with what the loops and the join read of them in rows; the loops need stored scores."""
    return emissions._replace(
        scores=None if emissions.scores is None else in_rows(emissions.scores),
        blank=Scaled(*map(in_rows, emissions.blank)),
        skip=in_rows(emissions.skip),
    )
