"""Find out what is wrong with a batch of tensors."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import torch
from torch import Tensor

from bridge import _fork
from jaxctc.diagnose import Diagnosis
from jaxctc.diagnose import diagnose as _diagnose


def diagnose(
    log_probs: Tensor,
    targets: Any,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    *,
    batch_first: bool = False,
    labels: Sequence[str] | None = None,
    from_logits: bool = False,
) -> Diagnosis:
    """Return what is wrong with a batch, what to do about it, and a table of its sequences, as `jaxctc.diagnose` does.

    It takes whatever `ctc_loss` takes, legal or not, and does not raise on a bad batch. Print the result. JAX computes
    the numbers from copies on the CPU; nothing reaches autograd.

    Args:
        log_probs: The scores, (T, N, C), or (T, C) for one sequence; of any type, on any device.
        targets: Labels, (N, S) or end to end.
        input_lengths: Frames of each sequence.
        target_lengths: Labels of each target.
        blank: Index of the blank class.
        batch_first: `log_probs` is (N, T, C).
        labels: The names of the classes, the blank included, in which best paths and targets are shown.
        from_logits: The scores are those of `ctc_loss_with_logits`.

    Returns:
        `jaxctc.Diagnosis`: see `jaxctc.diagnose`.

    Raises:
        TypeError: A tensor has no values to look at: it is on the meta device, or a transform of `torch.func` or
            `torch.export` traces it.
        RuntimeError: The process was forked after JAX had started, and JAX would wait for ever.

    Example:
        >>> import torch, bridge
        >>> log_probs = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0)).log_softmax(2)
        >>> found = bridge.diagnose(log_probs, torch.tensor([[1, 2], [1, 1]]), [4, 2], [2, 2])
        >>> found.codes, found.findings[0].rows, found.ok
        (('infeasible',), (1,), False)
    """
    _fork.check()
    return _diagnose(
        *(_numpy(x) for x in (log_probs, targets, input_lengths, target_lengths, blank)),
        batch_first=batch_first,
        labels=labels,
        from_logits=from_logits,
    )


def _numpy(x: Any) -> Any:
    """Return the values of a tensor, or of tensors in a list; whatever else is the diagnosis' own affair."""
    if isinstance(x, list | tuple):
        return [_numpy(item) for item in x]
    if not isinstance(x, Tensor):
        return x
    try:
        made = x.detach().cpu()
        made = made.dequantize() if made.is_quantized else made
        made = made if made.layout == torch.strided else made.to_dense()
        made = made.resolve_conj().resolve_neg().contiguous()
        if made.dtype == torch.bfloat16:
            return made.view(torch.int16).numpy().view(jnp.bfloat16.dtype)
        # numpy has no other small types.
        return (made.float() if made.is_floating_point() and made.element_size() == 1 else made).numpy()
    except (RuntimeError, NotImplementedError) as error:
        raise TypeError(
            "diagnose looks at values, and a tensor has none: it is on the meta device, or traced. Call it outside of "
            "transforms and compilers, with the tensors that the traced function receives."
        ) from error
