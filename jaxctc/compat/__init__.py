"""CTC with the signatures of other libraries: their names, their order of arguments, their shapes.

To move to this library, change the import. Each docstring says how its function differs from the original.

| function | instead of |
| --- | --- |
| `optax_ctc_loss` | `optax.losses.ctc_loss` |
| `optax_ctc_loss_with_forward_probs` | `optax.losses.ctc_loss_with_forward_probs` |
| `keras_ctc_loss` | `keras.ops.ctc_loss` |
| `keras_ctc` | `keras.losses.ctc`, for ``model.compile(loss=...)`` |
| `keras_ctc_decode` | `keras.ops.ctc_decode` |
| `tensorflow_ctc_loss` | `tf.nn.ctc_loss` with dense or sparse labels |
| `tensorflow_ctc_greedy_decoder` | `tf.nn.ctc_greedy_decoder` |
| `tensorflow_ctc_beam_search_decoder` | `tf.nn.ctc_beam_search_decoder` |
| `torchaudio_forced_align` | `torchaudio.functional.forced_align` |

All losses take logits and return one loss a sequence, in float64 for float64 and in float32 otherwise. A target that no
path spells has the loss +inf and the gradient 0. The originals give it a finite loss, about 1e5 in optax and Keras and
700 in TensorFlow, and the gradient of paths that do not spell it.

Labels and lengths may be floats that hold whole numbers: Keras hands labels on as float32. An illegal length or label
raises where its value can be read, and makes the loss of its sequence NaN under `jax.jit`. A label that is equal to the
blank is illegal: no path spells a blank. The originals take it and return a number that means nothing, and random
labels in tests of theirs often hold it: draw them from the other classes. The index of the blank may be negative, and
then counts from the last class, -1; the exception is torchaudio, which does not take one.
"""

from jaxctc.compat._keras import keras_ctc as keras_ctc
from jaxctc.compat._keras import keras_ctc_decode as keras_ctc_decode
from jaxctc.compat._keras import keras_ctc_loss as keras_ctc_loss
from jaxctc.compat._optax import optax_ctc_loss as optax_ctc_loss
from jaxctc.compat._optax import optax_ctc_loss_with_forward_probs as optax_ctc_loss_with_forward_probs
from jaxctc.compat._tensorflow import tensorflow_ctc_beam_search_decoder as tensorflow_ctc_beam_search_decoder
from jaxctc.compat._tensorflow import tensorflow_ctc_greedy_decoder as tensorflow_ctc_greedy_decoder
from jaxctc.compat._tensorflow import tensorflow_ctc_loss as tensorflow_ctc_loss
from jaxctc.compat._torchaudio import torchaudio_forced_align as torchaudio_forced_align

__all__ = [
    "keras_ctc",
    "keras_ctc_decode",
    "keras_ctc_loss",
    "optax_ctc_loss",
    "optax_ctc_loss_with_forward_probs",
    "tensorflow_ctc_beam_search_decoder",
    "tensorflow_ctc_greedy_decoder",
    "tensorflow_ctc_loss",
    "torchaudio_forced_align",
]
