"""PyTorch in float64, for large batches. The other oracles are those of `jaxctc._tools.conformance.oracle`."""

from typing import Any

import numpy as np


def torch_float64(
    log_probs: np.ndarray, targets: Any, input_lengths: Any, target_lengths: Any, blank: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Losses (N,) and posteriors (T, N, C) by PyTorch in double; its gradient is exp(log_probs) minus those."""
    import torch

    leaf = torch.tensor(np.asarray(log_probs, np.float64), requires_grad=True)
    arguments = [torch.as_tensor(np.array(x)) for x in (targets, input_lengths, target_lengths)]
    loss = torch.nn.functional.ctc_loss(leaf, *arguments, blank=blank, reduction="none")
    loss.sum().backward()
    live = np.arange(leaf.shape[0])[:, None] < np.asarray(input_lengths)[None]
    posterior = np.where(live[:, :, None], leaf.detach().exp().numpy() - leaf.grad.numpy(), 0)
    return loss.detach().numpy(), posterior
