r"""Connectionist temporal classification for JAX.

A path has one class for each frame. It spells a target of L labels if merging its repeats and then removing its blanks
gives the target. Such paths run through 2 L + 1 states, blank and label in turn, numbered from 0 (the first blank) to
2 L (the last blank). The emission of a state is the log probability of its class in a frame. The forward variable
:math:`\alpha_t(s)` is the log probability of all beginnings of paths that are in state s at frame t:

.. math::

    \alpha_t(s) = \log p_t(\text{class of } s) + \begin{cases}
        \alpha_{t-1}(s) \oplus \alpha_{t-1}(s-1) \oplus \alpha_{t-1}(s-2) & \text{if the blank may be skipped} \\
        \alpha_{t-1}(s) \oplus \alpha_{t-1}(s-1) & \text{else}
    \end{cases}

where :math:`\oplus` adds probabilities that are stored as logarithms. The blank between two labels may be skipped if
they differ. The loss is :math:`-\log Z = -(\alpha_T(2 L) \oplus \alpha_T(2 L - 1))`.

The backward variable :math:`\beta_t(s)` is the log probability of all ends of paths, after frame t, that are in state s
at frame t. The sum of :math:`\exp(\alpha_t(s) + \beta_t(s) - \log Z)` over the states of one class is the posterior of
that class at frame t, and minus the derivative of the loss with respect to the class's log probability.

Here alpha runs from the first frame and beta from the last frame at the same time, as numbers of a mantissa and an
exponent each. The two are joined in the middle of the input, which gives the likelihood. From there a backward pass in
each direction computes the posterior, and so the gradient.
"""

from jaxctc import compat as compat
from jaxctc import variants as variants
from jaxctc._api.alignment import Alignment as Alignment
from jaxctc._api.alignment import TokenSpan as TokenSpan
from jaxctc._api.alignment import forced_align as forced_align
from jaxctc._api.alignment import merge_tokens as merge_tokens
from jaxctc._api.batch_check import check_batch as check_batch
from jaxctc._api.beam_search import Beams as Beams
from jaxctc._api.decoding import Decoded as Decoded
from jaxctc._api.decoding import beam_search_decode as beam_search_decode
from jaxctc._api.decoding import greedy_decode as greedy_decode
from jaxctc._api.losses import ctc_loss as ctc_loss
from jaxctc._api.losses import ctc_loss_with_logits as ctc_loss_with_logits
from jaxctc._api.padding import PaddedBatch as PaddedBatch
from jaxctc._api.padding import pad_to_sizes as pad_to_sizes
from jaxctc._api.plot import plot_alignment as plot_alignment
from jaxctc._api.posteriors import Posteriors as Posteriors
from jaxctc._api.posteriors import Statistics as Statistics
from jaxctc._api.posteriors import ctc_posteriors as ctc_posteriors
from jaxctc._api.posteriors import ctc_statistics as ctc_statistics
from jaxctc._api.timestamps import WordSpan as WordSpan
from jaxctc._api.timestamps import decoded_spans as decoded_spans
from jaxctc._api.timestamps import merge_words as merge_words
from jaxctc._inputs.default_implementation import set_implementation as set_implementation

# The package of this name, which also runs as a command, is replaced by its function.
from jaxctc.diagnose import Diagnosis as Diagnosis
from jaxctc.diagnose import Finding as Finding
from jaxctc.diagnose import diagnose as diagnose

__version__ = "0.1.0"
__all__ = [
    "Alignment",
    "Beams",
    "Decoded",
    "Diagnosis",
    "Finding",
    "PaddedBatch",
    "Posteriors",
    "Statistics",
    "TokenSpan",
    "WordSpan",
    "beam_search_decode",
    "check_batch",
    "compat",
    "ctc_loss",
    "ctc_loss_with_logits",
    "ctc_posteriors",
    "ctc_statistics",
    "decoded_spans",
    "diagnose",
    "forced_align",
    "greedy_decode",
    "merge_tokens",
    "merge_words",
    "pad_to_sizes",
    "plot_alignment",
    "set_implementation",
    "variants",
]
