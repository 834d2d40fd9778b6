"""Evaluate a loss function of `variant_losses` on a caller's arguments: checks, canonical batch, reduction."""

from typing import TypedDict

import jax

from jaxctc._api.reduction import reduced
from jaxctc._autodiff.variant_losses import Losses
from jaxctc._inputs import checks
from jaxctc._inputs.arguments import canonical_batch
from jaxctc._lattice.lattices import accumulation_dtype
from jaxctc._types import FloatsLike, Implementation, IntegersLike, Reduction


class Common(TypedDict, total=False):
    """Hold the keywords that every loss of `jaxctc.variants` takes, with their meaning for `jaxctc.ctc_loss`."""

    blank: int
    """Index of the blank class; 0 unless given."""
    reduction: Reduction
    """``"mean"`` unless given."""
    zero_infinity: bool
    """Count infinite losses as 0; False unless given."""
    batch_first: bool
    """`log_probs` is (N, T, C); False unless given."""
    max_target_length: int | None
    """A bound on the target lengths, known when tracing; None unless given."""
    implementation: Implementation | None
    """``"reference"``, ``"xla"`` or ``"pallas"``; None, the default, leaves the choice to the library. The delay,
    wildcard and star losses go through the plain recursion whatever is asked, and raise on ``"pallas"``."""


def evaluate(
    function: Losses,
    parameters: tuple[float, ...],
    log_probs: FloatsLike,
    targets: IntegersLike,
    input_lengths: IntegersLike,
    target_lengths: IntegersLike,
    *,
    blank: int = 0,
    reduction: Reduction = "mean",
    zero_infinity: bool = False,
    batch_first: bool = False,
    max_target_length: int | None = None,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Return the reduced losses that a function of `variant_losses` gives for a caller's arguments."""
    batch = canonical_batch(
        log_probs,
        targets,
        input_lengths,
        target_lengths,
        blank,
        batch_first=batch_first,
        max_target_length=max_target_length,
        implementation=implementation,
    )
    dtype = accumulation_dtype(batch[0].scores.dtype)
    numbers = tuple(checks.device_numbers(x).astype(dtype) for x in parameters)
    return reduced(function, numbers, batch, reduction, zero_infinity)
