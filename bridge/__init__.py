"""Compute CTC losses of PyTorch tensors by jaxctc, with `torch.nn.functional.ctc_loss`'s signature.

JAX computes on the tensor's own device. CPU tensors go to JAX as numpy views of their memory, CUDA tensors by DLPack.
JAX compiles a program for every shape, so that batches are padded to a few shapes first (see `set_sizes`). A batch
that is contiguous and has one of these shapes is shared with JAX; any other batch is copied.
"""

from importlib.util import find_spec as _find_spec

if _find_spec("torch") is None:
    raise ImportError("bridge needs PyTorch. Install it: pip install torch.")

from bridge._alignment import Alignment as Alignment
from bridge._alignment import Beams as Beams
from bridge._alignment import Decoded as Decoded
from bridge._alignment import Posteriors as Posteriors
from bridge._alignment import beam_search_decode as beam_search_decode
from bridge._alignment import ctc_posteriors as ctc_posteriors
from bridge._alignment import decoded_spans as decoded_spans
from bridge._alignment import forced_align as forced_align
from bridge._alignment import greedy_decode as greedy_decode
from bridge._diagnosis import diagnose as diagnose
from bridge._functional import ctc_loss as ctc_loss
from bridge._functional import ctc_loss_with_logits as ctc_loss_with_logits
from bridge._module import CTCLoss as CTCLoss
from bridge._module import CTCWithLogitsLoss as CTCWithLogitsLoss
from bridge._sizes import Sizes as Sizes
from bridge._sizes import set_sizes as set_sizes
from bridge._warmup import warmup as warmup
from jaxctc import __version__ as __version__

__all__ = [
    "Alignment",
    "Beams",
    "CTCLoss",
    "CTCWithLogitsLoss",
    "Decoded",
    "Posteriors",
    "Sizes",
    "beam_search_decode",
    "ctc_loss",
    "ctc_loss_with_logits",
    "ctc_posteriors",
    "decoded_spans",
    "diagnose",
    "forced_align",
    "greedy_decode",
    "set_sizes",
    "warmup",
]
