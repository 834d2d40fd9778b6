"""Provide the losses as operators that TorchScript calls, in `torch.ops.jaxctc`.

TorchScript cannot compile the bridge's own functions, but it calls any operator. These have no derivative of their own:
they run the bridge's functions, whose graph PyTorch records.
"""

import torch
from torch import Tensor

from bridge._functional import ctc_loss, ctc_loss_with_logits

_ARGUMENTS = "Tensor targets, Tensor input_lengths, Tensor target_lengths, int blank, str reduction, bool zero_infinity"
_OPTIONS = "bool batch_first, str? implementation"


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
        reduction,
        zero_infinity,
        normalized=normalized,
        batch_first=batch_first,
        implementation=implementation,  # type: ignore[arg-type] # TorchScript has no literal types
    )


def _ctc_loss_with_logits(
    logits: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    blank: int,
    reduction: str,
    zero_infinity: bool,
    batch_first: bool,
    implementation: str | None,
) -> Tensor:
    return ctc_loss_with_logits(
        logits,
        targets,
        input_lengths,
        target_lengths,
        blank,
        reduction,
        zero_infinity,
        batch_first=batch_first,
        implementation=implementation,  # type: ignore[arg-type]
    )


_library = torch.library.Library("jaxctc", "FRAGMENT")
_library.define(f"ctc_loss(Tensor log_probs, {_ARGUMENTS}, bool normalized, {_OPTIONS}) -> Tensor")
_library.define(f"ctc_loss_with_logits(Tensor logits, {_ARGUMENTS}, {_OPTIONS}) -> Tensor")
_library.impl("ctc_loss", _ctc_loss, "CompositeImplicitAutograd")
_library.impl("ctc_loss_with_logits", _ctc_loss_with_logits, "CompositeImplicitAutograd")
