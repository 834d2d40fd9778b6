"""`torch.nn.functional.ctc_loss`'s own signature, computed by jaxctc on the tensor's own device.

Tensors cross to JAX and back by DLPack, without a copy.
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError(
        'bridge needs PyTorch. Install it, or install this library with it: pip install "jaxctc[torch]".'
    ) from error

from bridge._functional import ctc_loss as ctc_loss
from bridge._functional import ctc_loss_with_logits as ctc_loss_with_logits
from bridge._module import CTCLoss as CTCLoss

__all__ = ["CTCLoss", "ctc_loss", "ctc_loss_with_logits"]
