"""`torch.nn.functional.ctc_loss`'s own signature, computed by jaxctc on the tensor's own device.

Tensors cross to JAX and back without a copy, padded to a few shapes so that JAX compiles few programs:
see `set_sizes`.
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError(
        'bridge needs PyTorch. Install it, or install this library with it: pip install "jaxctc[torch]".'
    ) from error

from bridge._alignment import Alignment as Alignment
from bridge._alignment import Decoded as Decoded
from bridge._alignment import Posteriors as Posteriors
from bridge._alignment import ctc_posteriors as ctc_posteriors
from bridge._alignment import forced_align as forced_align
from bridge._alignment import greedy_decode as greedy_decode
from bridge._functional import ctc_loss as ctc_loss
from bridge._functional import ctc_loss_with_logits as ctc_loss_with_logits
from bridge._module import CTCLoss as CTCLoss
from bridge._sizes import Sizes as Sizes
from bridge._sizes import set_sizes as set_sizes
from bridge._warmup import warmup as warmup

__all__ = [
    "Alignment",
    "CTCLoss",
    "Decoded",
    "Posteriors",
    "Sizes",
    "ctc_loss",
    "ctc_loss_with_logits",
    "ctc_posteriors",
    "forced_align",
    "greedy_decode",
    "set_sizes",
    "warmup",
]
