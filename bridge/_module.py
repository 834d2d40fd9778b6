"""Provide the losses as modules."""

import torch
from torch import Tensor, nn

from bridge import _script  # noqa: F401, registers the operators that scripted modules call
from bridge._functional import ctc_loss, ctc_loss_with_logits
from jaxctc._types import Implementation


class CTCLoss(nn.CTCLoss):
    """Compute what `torch.nn.CTCLoss` computes, by JAX. It is one, for `isinstance`.

    Args:
        blank: Index of the blank class.
        reduction: ``"none"``, ``"mean"``, ``"sum"``, ``"batchmean"`` or ``"mean_volume"``, as for `ctc_loss`.
        zero_infinity: Count infinite losses, and their gradient, as 0.
        normalized: Selects the gradient: PyTorch's own (True) or the true derivative (False); see `ctc_loss`.
        batch_first: `log_probs` is (N, T, C).
        implementation: ``"reference"``, ``"xla"``, ``"pallas"`` or None, as for `ctc_loss`.

    Shapes:
        Those of `ctc_loss`: scores (T, N, C) or (T, C), targets (N, S), (S,) or end to end, lengths (N,) or ();
        the loss is (N,) or () with ``reduction="none"``, () otherwise.

    Raises:
        RuntimeError: When called, if a value or a shape is illegal, as `ctc_loss` does.
        ValueError: When called, if `reduction` is unknown.

    Example:
        >>> import torch, bridge
        >>> loss = bridge.CTCLoss(zero_infinity=True)
        >>> log_probs = torch.zeros(4, 1, 3).log_softmax(2)
        >>> round(loss(log_probs, torch.tensor([[1, 2]]), [4], [2]).item(), 4)
        0.8432
    """

    reduction: str

    def __init__(
        self,
        blank: int = 0,
        reduction: str = "mean",
        zero_infinity: bool = False,
        *,
        normalized: bool = True,
        batch_first: bool = False,
        implementation: Implementation | None = None,
    ) -> None:
        super().__init__(blank, reduction, zero_infinity)
        self.normalized = normalized
        self.batch_first = batch_first
        self.implementation = implementation

    def forward(self, log_probs: Tensor, targets: Tensor, input_lengths: Tensor, target_lengths: Tensor) -> Tensor:
        """Return the loss; shapes are those of `ctc_loss`, and, unless the module is scripted, the types as well."""
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return torch.ops.jaxctc.ctc_loss(
                log_probs,
                targets,
                input_lengths,
                target_lengths,
                self.blank,
                self.reduction,
                self.zero_infinity,
                self.normalized,
                self.batch_first,
                self.implementation,
            )
        return ctc_loss(
            log_probs,
            targets,
            input_lengths,
            target_lengths,
            self.blank,
            self.reduction,
            self.zero_infinity,
            normalized=self.normalized,
            batch_first=self.batch_first,
            implementation=self.implementation,
        )

    def extra_repr(self) -> str:
        """Return what `print` shows between the parentheses."""
        return _settings(self, "blank", "reduction", "zero_infinity", "normalized", "batch_first")


class CTCWithLogitsLoss(nn.Module):
    """Compute `ctc_loss_with_logits` as a module: `CTCLoss` for logits, with the log-softmax included.

    Args:
        blank: Index of the blank class.
        reduction: ``"none"``, ``"mean"``, ``"sum"``, ``"batchmean"`` or ``"mean_volume"``, as for `ctc_loss`.
        zero_infinity: Count infinite losses as 0.
        batch_first: `logits` is (N, T, C).
        implementation: ``"reference"``, ``"xla"``, ``"pallas"`` or None, as for `ctc_loss`.

    Shapes:
        Those of `ctc_loss_with_logits`: logits (T, N, C) or (T, C), targets (N, S), (S,) or end to end, lengths (N,) or
        (); the loss is (N,) or () with ``reduction="none"``, () otherwise.

    Raises:
        RuntimeError: When called, if a value or a shape is illegal, as `ctc_loss_with_logits` does.
        ValueError: When called, if `reduction` is unknown.

    Example:
        >>> import torch, bridge
        >>> loss = bridge.CTCWithLogitsLoss(zero_infinity=True)
        >>> round(loss(torch.zeros(4, 1, 3), torch.tensor([[1, 2]]), [4], [2]).item(), 4)
        0.8432
    """

    def __init__(
        self,
        blank: int = 0,
        reduction: str = "mean",
        zero_infinity: bool = False,
        *,
        batch_first: bool = False,
        implementation: Implementation | None = None,
    ) -> None:
        super().__init__()
        self.blank = blank
        self.reduction = reduction
        self.zero_infinity = zero_infinity
        self.batch_first = batch_first
        self.implementation = implementation

    def forward(self, logits: Tensor, targets: Tensor, input_lengths: Tensor, target_lengths: Tensor) -> Tensor:
        """Return the loss; shapes, and unless the module is scripted types, are those of `ctc_loss_with_logits`."""
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return torch.ops.jaxctc.ctc_loss_with_logits(
                logits,
                targets,
                input_lengths,
                target_lengths,
                self.blank,
                self.reduction,
                self.zero_infinity,
                self.batch_first,
                self.implementation,
            )
        return ctc_loss_with_logits(
            logits,
            targets,
            input_lengths,
            target_lengths,
            self.blank,
            self.reduction,
            self.zero_infinity,
            batch_first=self.batch_first,
            implementation=self.implementation,
        )

    def extra_repr(self) -> str:
        """Return what `print` shows between the parentheses."""
        return _settings(self, "blank", "reduction", "zero_infinity", "batch_first")


def _settings(module: nn.Module, *names: str) -> str:
    """Return these attributes of a module as `name=value`, and its implementation if one was asked for."""
    shown = [*names, *["implementation"] * bool(module.implementation)]
    return ", ".join(f"{name}={getattr(module, name)!r}" for name in shown)
