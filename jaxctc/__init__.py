r"""Connectionist temporal classification for JAX.

A target of L labels is spelled by every path, one class a frame, that gives it once repeats are merged
and blanks removed. The paths run through 2 L + 1 states, blank s and label s in turn. With
:math:`b_t(s)` and :math:`l_t(s)` the log probability of all beginnings of paths that end in them at
frame t, and :math:`\oplus` the logaddexp,

.. math::

    u_t(s) &= b_{t-1}(s) \oplus l_{t-1}(s - 1) \\
    w_t(s) &= u_t(s) \text{ if label } s \ne \text{label } s - 1 \text{, else } b_{t-1}(s) \\
    b_t(s) &= u_t(s) + \log p_t(\text{blank}) \\
    l_t(s) &= (l_{t-1}(s) \oplus w_t(s)) + \log p_t(\text{label } s)

and the loss is :math:`-(b_T(L) \oplus l_T(L - 1))`. Here the recursion starts from both ends of the
input at once, in numbers of a mantissa and an exponent each, and what it learns where the two meet flows
back outward as probabilities, which is the gradient.
"""

from jaxctc import compat as compat
from jaxctc import variants as variants
from jaxctc._api.alignment import Alignment as Alignment
from jaxctc._api.alignment import TokenSpan as TokenSpan
from jaxctc._api.alignment import forced_align as forced_align
from jaxctc._api.alignment import merge_tokens as merge_tokens
from jaxctc._api.batch_check import check_batch as check_batch
from jaxctc._api.decoding import Beams as Beams
from jaxctc._api.decoding import Decoded as Decoded
from jaxctc._api.decoding import beam_search_decode as beam_search_decode
from jaxctc._api.decoding import greedy_decode as greedy_decode
from jaxctc._api.losses import ctc_loss as ctc_loss
from jaxctc._api.losses import ctc_loss_with_logits as ctc_loss_with_logits
from jaxctc._api.plot import plot_alignment as plot_alignment
from jaxctc._api.posteriors import Posteriors as Posteriors
from jaxctc._api.posteriors import Statistics as Statistics
from jaxctc._api.posteriors import ctc_posteriors as ctc_posteriors
from jaxctc._api.posteriors import ctc_statistics as ctc_statistics

__version__ = "0.1.0"
__all__ = [
    "Alignment",
    "Beams",
    "Decoded",
    "Posteriors",
    "Statistics",
    "TokenSpan",
    "beam_search_decode",
    "check_batch",
    "compat",
    "ctc_loss",
    "ctc_loss_with_logits",
    "ctc_posteriors",
    "ctc_statistics",
    "forced_align",
    "greedy_decode",
    "merge_tokens",
    "plot_alignment",
    "variants",
]
