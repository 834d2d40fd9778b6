"""Provide the loss as an operator that TorchScript calls, as `torch.ops.jaxctc.ctc_loss`.

TorchScript cannot compile the bridge's own functions, but it calls any operator. This one has no derivative of its own:
it runs `bridge.ctc_loss`, whose graph PyTorch records.
"""

import torch
from torch import Tensor

from bridge._functional import ctc_loss

_SCHEMA = (
    "ctc_loss(Tensor log_probs, Tensor targets, Tensor input_lengths, Tensor target_lengths, int blank, "
    "str reduction, bool zero_infinity, bool normalized, bool batch_first, str? implementation) -> Tensor"
)


def _ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    blank: int,
    reduction: str,
    zero_infinity: bool,
    normalized: bool,
    batch_first: bool,
    implementation: str | None,
) -> Tensor:
    return ctc_loss(
        log_probs,
        targets,
        input_lengths,
        target_lengths,
        blank,
        reduction,  # TorchScript has no literal types
        zero_infinity,
        normalized=normalized,
        batch_first=batch_first,
        implementation=implementation,  # type: ignore[arg-type]
    )


_library = torch.library.Library("jaxctc", "FRAGMENT")
_library.define(_SCHEMA)
_library.impl("ctc_loss", _ctc_loss, "CompositeImplicitAutograd")
