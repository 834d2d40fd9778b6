"""Call an implementation in the form that its framework gives it, and hand its results back as numpy arrays."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from jaxctc._tools.conformance.case import Case

CONVENTIONS = ("log_probs", "logits", "torch")
"""What a gradient is taken with respect to (see `Case.gradient`)."""


class Signature(Protocol):
    """How an implementation is called."""

    convention: str
    """The gradient that such a function returns, if the caller does not say another. "logits": it takes logits."""
    reduces: bool
    """Whether it takes `reduction`, `zero_infinity` and targets end to end; else it returns one loss a sequence."""
    lengths: bool
    """Whether it takes lengths, which may be illegal; else it takes masks."""
    strided: bool
    """Whether its arrays can be views of other arrays, with strides of their own."""

    def loss(self, function: Callable[..., Any], case: Case, device: str | None) -> np.ndarray:
        """Return the loss, of which no gradient is asked."""

    def call(self, function: Callable[..., Any], case: Case, device: str | None) -> tuple[np.ndarray, np.ndarray]:
        """Return the loss, and the gradient of its sum, (T, N, C)."""

    def hessian_product(self, function: Callable[..., Any], case: Case, device: str | None) -> np.ndarray:
        """Return the second derivative of the loss times the case's direction, (T, N, C)."""

    def directional(self, function: Callable[..., Any], case: Case, device: str | None) -> np.ndarray:
        """Return the derivative of the sum of the losses along the case's direction, by forward mode."""


def padded_targets(case: Case) -> np.ndarray:
    return case.targets.astype(np.int32)


class Torch:
    """``torch.nn.functional.ctc_loss(log_probs, targets, input_lengths, target_lengths, blank, reduction, ...)``."""

    convention, reduces, lengths, strided = "torch", True, True, True

    def loss(self, function: Callable[..., Any], case: Case, device: str | None) -> np.ndarray:
        return _of_tensor(self._loss(function, case)(self._scores(case, device)))

    def call(self, function: Callable[..., Any], case: Case, device: str | None) -> tuple[np.ndarray, np.ndarray]:
        leaf = self._scores(case, device).requires_grad_()
        loss = self._loss(function, case)(leaf)
        loss.sum().backward()
        return _of_tensor(loss), _of_tensor(leaf.grad)

    def hessian_product(self, function: Callable[..., Any], case: Case, device: str | None) -> np.ndarray:
        import torch

        leaf = self._scores(case, device).requires_grad_()
        (gradient,) = torch.autograd.grad(self._loss(function, case)(leaf).sum(), leaf, create_graph=True)
        direction = torch.tensor(case.direction, dtype=leaf.dtype, device=leaf.device)
        return _of_tensor(torch.autograd.grad((gradient * direction).sum(), leaf)[0])

    def directional(self, function: Callable[..., Any], case: Case, device: str | None) -> np.ndarray:
        import torch

        scores = self._scores(case, device)
        direction = torch.tensor(case.direction, dtype=scores.dtype, device=scores.device)
        loss = self._loss(function, case)
        return _of_tensor(torch.func.jvp(lambda x: loss(x).sum(), (scores,), (direction,))[1])

    def _scores(self, case: Case, device: str | None) -> Any:
        import torch

        scores = torch.tensor(case.scores, dtype=getattr(torch, case.dtype), device=device)
        return scores if case.contiguous else scores.transpose(0, 1).contiguous().transpose(0, 1)

    def _loss(self, function: Callable[..., Any], case: Case) -> Callable[[Any], Any]:
        import torch

        targets, *lengths = (torch.tensor(x) for x in (case.targets, case.input_lengths, case.target_lengths))
        options = {"blank": case.blank, "reduction": case.reduction, "zero_infinity": case.zero_infinity}
        return lambda scores: function(scores, targets.to(scores.device), *lengths, **options)


class Jaxctc:
    """``jaxctc.ctc_loss(log_probs, targets, input_lengths, target_lengths, blank, reduction, zero_infinity)``."""

    convention, reduces, lengths, strided = "log_probs", True, True, False

    def _loss(self, function: Callable[..., Any], case: Case) -> Callable[[Any], Any]:
        options = {"blank": case.blank, "reduction": case.reduction, "zero_infinity": case.zero_infinity}
        rest = case.targets, case.input_lengths, case.target_lengths
        return lambda scores: function(scores, *rest, **options)

    def loss(self, function: Callable[..., Any], case: Case, device: str | None) -> np.ndarray:
        with _jax(case, device):
            return _of_array(self._loss(function, case)(self._scores(case)))

    def call(self, function: Callable[..., Any], case: Case, device: str | None) -> tuple[np.ndarray, np.ndarray]:
        import jax

        with _jax(case, device):
            loss, pull_back = jax.vjp(self._loss(function, case), self._scores(case))
            (gradient,) = pull_back(np.ones(loss.shape, loss.dtype))
            return _of_array(loss), self._frames_first(_of_array(gradient))

    def hessian_product(self, function: Callable[..., Any], case: Case, device: str | None) -> np.ndarray:
        import jax

        with _jax(case, device):
            scores, loss = self._scores(case), self._loss(function, case)
            gradient = jax.grad(lambda x: loss(x).sum())
            return self._frames_first(_of_array(jax.jvp(gradient, (scores,), (self._direction(case),))[1]))

    def directional(self, function: Callable[..., Any], case: Case, device: str | None) -> np.ndarray:
        import jax

        with _jax(case, device):
            loss, scores = self._loss(function, case), self._scores(case)
            return _of_array(jax.jvp(lambda x: loss(x).sum(), (scores,), (self._direction(case),))[1])

    def _scores(self, case: Case) -> Any:
        return self._array(case, case.scores)

    def _direction(self, case: Case) -> Any:
        return self._array(case, case.direction)

    def _array(self, case: Case, x: np.ndarray) -> Any:
        import jax.numpy as jnp

        # numpy rounds: JAX would compile that for each shape.
        return jnp.asarray(self._frames_first(x).astype(jnp.dtype(case.dtype)))

    def _frames_first(self, x: np.ndarray) -> np.ndarray:
        """Swap the first two axes where the function takes the batch first."""
        return x


class _BatchFirst(Jaxctc):
    convention, reduces, lengths, strided = "logits", False, True, False

    def _frames_first(self, x: np.ndarray) -> np.ndarray:
        return x.swapaxes(0, 1)


class Optax(_BatchFirst):
    """``optax.ctc_loss(logits, logit_paddings, labels, label_paddings, blank_id)``."""

    lengths = False

    def _loss(self, function: Callable[..., Any], case: Case) -> Callable[[Any], Any]:
        import jax.numpy as jnp

        sizes = (len(case.scores), case.input_lengths), (case.targets.shape[1], case.target_lengths)
        frames, labels = (jnp.asarray(np.arange(size) >= n[:, None], jnp.float32) for size, n in sizes)
        targets = jnp.asarray(padded_targets(case))
        return lambda logits: function(logits, frames, targets, labels, blank_id=case.blank)


class Keras(_BatchFirst):
    """``keras.ops.ctc_loss(target, output, target_length, output_length, mask_index)``, on Keras's JAX backend."""

    def _loss(self, function: Callable[..., Any], case: Case) -> Callable[[Any], Any]:
        targets = padded_targets(case)
        counts, lengths = case.target_lengths.astype(np.int32), case.input_lengths.astype(np.int32)
        return lambda logits: function(targets, logits, counts, lengths, mask_index=case.blank)


class TensorFlow:
    """``tf.nn.ctc_loss(labels, logits, label_length, logit_length, logits_time_major=True, blank_index=...)``."""

    convention, reduces, lengths, strided = "logits", False, True, False

    def loss(self, function: Callable[..., Any], case: Case, device: str | None) -> np.ndarray:
        import tensorflow as tf

        with tf.device(device):
            return self._loss(function, case, tf.constant(case.scores, case.dtype)).numpy().astype(np.float64)

    def call(self, function: Callable[..., Any], case: Case, device: str | None) -> tuple[np.ndarray, np.ndarray]:
        import tensorflow as tf

        with tf.device(device):
            logits = tf.constant(case.scores, case.dtype)
            with tf.GradientTape() as tape:
                tape.watch(logits)
                loss = self._loss(function, case, logits)
            return loss.numpy().astype(np.float64), tape.gradient(loss, logits).numpy().astype(np.float64)

    def hessian_product(self, function: Callable[..., Any], case: Case, device: str | None) -> np.ndarray:
        import tensorflow as tf

        with tf.device(device):
            logits, direction = (tf.constant(x, case.dtype) for x in (case.scores, case.direction))
            with tf.GradientTape() as outer:
                outer.watch(logits)
                with tf.GradientTape() as inner:
                    inner.watch(logits)
                    loss = self._loss(function, case, logits)
                along = tf.reduce_sum(inner.gradient(loss, logits) * direction)
            return outer.gradient(along, logits).numpy().astype(np.float64)

    def directional(self, function: Callable[..., Any], case: Case, device: str | None) -> np.ndarray:
        import tensorflow as tf

        with tf.device(device):
            logits, direction = (tf.constant(x, case.dtype) for x in (case.scores, case.direction))
            with tf.autodiff.ForwardAccumulator(logits, direction) as forward:
                total = tf.reduce_sum(self._loss(function, case, logits))
            return forward.jvp(total).numpy().astype(np.float64)

    def _loss(self, function: Callable[..., Any], case: Case, logits: Any) -> Any:
        lengths = case.target_lengths.astype(np.int32), case.input_lengths.astype(np.int32)
        labels = padded_targets(case)
        return function(labels, logits, *lengths, logits_time_major=True, blank_index=case.blank)


SIGNATURES: dict[str, Signature] = {
    "torch": Torch(),
    "jaxctc": Jaxctc(),
    "optax": Optax(),
    "keras": Keras(),
    "tensorflow": TensorFlow(),
}


def _of_tensor(x: Any) -> np.ndarray:
    return x.detach().cpu().double().numpy()


def _of_array(x: Any) -> np.ndarray:
    return np.asarray(x).astype(np.float64)


@contextlib.contextmanager
def _jax(case: Case, device: str | None) -> Iterator[None]:
    import jax

    with jax.enable_x64(case.dtype == "float64"), jax.default_device(_jax_device(device)):
        yield


def _jax_device(device: str | None) -> Any:
    import jax

    return jax.local_devices(backend=device)[0] if device else None
