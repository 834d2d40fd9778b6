"""The implementations, each called as its own users call it.

A peer prepares a job on a batch, once, and gives a function of no arguments that does it and waits until it is done.
The losses stay one a sequence and the gradient is that of their sum: what there is to compare.

Each gets the layout that its signature asks for, so that none pays for a transposition: optax and Keras take the batch
first. They and TensorFlow have no loss of log probabilities; they get those as logits, and normalize them once more.
"""

import enum
import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks._machine import threads
from benchmarks._shapes import BLANK, Batch


class Job(enum.StrEnum):
    LOSS = "loss"
    GRADIENT = "loss and gradient"
    BRIDGE = "bridge"

    @property
    def title(self) -> str:
        return {
            Job.LOSS: "Loss only, from log_probs",
            Job.GRADIENT: "Loss and gradient, from logits",
            Job.BRIDGE: "Called from PyTorch: loss and gradient, from log_probs",
        }[self]

    def scores(self, batch: Batch) -> np.ndarray:
        return batch.logits if self is Job.GRADIENT else batch.log_probs


class Result(NamedTuple):
    """In the peer's own arrays: losses (N,), and the gradient of their sum where the job has one."""

    losses: Any
    gradient: Any = None


Call = Callable[[], Result]


class Peer(NamedTuple):
    name: str
    package: str
    jobs: tuple[Job, ...]
    prepare: Callable[[Job, Batch], Call]
    restore: Callable[[np.ndarray], np.ndarray] = np.asarray
    """From the peer's layout of a gradient to (T, N, C), the blank first."""
    takes: Callable[[Batch], bool] = lambda _: True
    """Whether it is for this batch, on this device."""

    def numpy(self, result: Result) -> Result:
        """The result in numpy's arrays and in our layout."""
        losses, gradient = (x.cpu() if type(x).__module__ == "torch" else x for x in result)
        return Result(np.asarray(losses), None if gradient is None else self.restore(np.asarray(gradient)))


def _swapped(scores: np.ndarray) -> np.ndarray:
    """The batch first, or second again."""
    return np.ascontiguousarray(scores.swapaxes(0, 1))


def installed(job: Job) -> list[Peer]:
    """Returns ours first, then the other implementations that this machine has."""
    return [peer for peer in PEERS if job in peer.jobs and importlib.util.find_spec(peer.package)]


def on_gpu() -> bool:
    return jax.default_backend() == "gpu"


def _kernels_apply() -> bool:
    """Returns whether our kernels support the GPU of this machine."""
    if not on_gpu():
        return False
    from jaxctc._kernels import gpu

    return gpu.objection(np.dtype(np.float32)) is None


def _implementation() -> str | None:
    """Returns which of our implementations is meant for this machine."""
    return "pallas" if _kernels_apply() else None


# JAX


def _jitted(losses: Callable[..., jax.Array], job: Job, *arguments: np.ndarray) -> Call:
    """`losses` of `arguments`, the scores first."""

    def total(*arguments: jax.Array) -> tuple[jax.Array, jax.Array]:
        each = losses(*arguments)
        return each.sum(), each

    def with_gradient(*arguments: jax.Array) -> Result:
        gradient, each = jax.grad(total, has_aux=True)(*arguments)
        return Result(each, gradient)

    function = jax.jit(with_gradient if job is Job.GRADIENT else lambda *arguments: Result(losses(*arguments)))
    arguments = jax.device_put(arguments)
    return lambda: jax.block_until_ready(function(*arguments))


def _jaxctc(job: Job, batch: Batch) -> Call:
    return _by_jax(job, batch, _implementation())


def _xla(job: Job, batch: Batch) -> Call:
    return _by_jax(job, batch, "xla")


def _by_jax(job: Job, batch: Batch, implementation: str | None) -> Call:
    import jaxctc

    losses = jaxctc.ctc_loss_with_logits if job is Job.GRADIENT else jaxctc.ctc_loss
    return _jitted(
        functools.partial(losses, blank=BLANK, reduction="none", implementation=implementation),
        job,
        job.scores(batch),
        batch.targets,
        batch.input_lengths,
        batch.target_lengths,
    )


def _optax(job: Job, batch: Batch) -> Call:
    import optax

    def paddings(lengths: np.ndarray, most: int) -> np.ndarray:
        return (np.arange(most) >= lengths[:, None]).astype(np.float32)

    return _jitted(
        functools.partial(optax.ctc_loss, blank_id=BLANK),
        job,
        _swapped(job.scores(batch)),
        paddings(batch.input_lengths, batch.shape.T),
        batch.targets,
        paddings(batch.target_lengths, batch.shape.S),
    )


def _keras(job: Job, batch: Batch) -> Call:
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    def losses(scores, targets, target_lengths, input_lengths):
        return keras.ops.ctc_loss(targets, scores, target_lengths, input_lengths, mask_index=BLANK)

    return _jitted(
        losses,
        job,
        _swapped(job.scores(batch)),
        batch.targets,
        batch.target_lengths,
        batch.input_lengths,
    )


# PyTorch


def _eager(losses: Callable[..., Any], job: Job, batch: Batch, device: str, *others: Any) -> Call:
    """`losses` of the scores on `device` and of `others`, as tensors that need a gradient where the job has one."""
    import torch

    torch.set_num_threads(threads())
    scores = torch.from_numpy(job.scores(batch)).to(device)

    def call() -> Result:
        leaf = scores.detach().requires_grad_(job is not Job.LOSS)
        each = losses(leaf.log_softmax(-1) if job is Job.GRADIENT else leaf, *others, blank=BLANK, reduction="none")
        if job is not Job.LOSS:
            each.sum().backward()
        if device == "cuda":
            torch.cuda.synchronize()
        return Result(each.detach(), leaf.grad)

    return call


def _torch(job: Job, batch: Batch) -> Call:
    import torch

    return _padded(torch.nn.functional.ctc_loss, job, batch)


def _bridge(job: Job, batch: Batch) -> Call:
    """Turns padding off on a GPU, as docs/pytorch.md recommends for batches of one shape: padding would copy them."""
    import bridge

    call = _with_sizes(job, batch)
    if not on_gpu():
        return call

    def unpadded() -> Result:
        with bridge.set_sizes(None):
            return call()

    return unpadded


def _with_sizes(job: Job, batch: Batch) -> Call:
    import bridge

    return _padded(functools.partial(bridge.ctc_loss, implementation=_implementation()), job, batch)


def _program(_: Job, batch: Batch) -> Call:
    """Calls the program that the bridge calls, with JAX's arrays: the difference is the time of the bridge itself."""
    from bridge import _programs
    from jaxctc._types import Request

    request = Request(BLANK, implementation=_implementation())
    scores, labels = jax.device_put((batch.log_probs, batch.targets))
    weights = np.ones((2, batch.shape.N), np.float32)
    lengths = np.stack([batch.input_lengths, batch.target_lengths], axis=1)
    program = _programs._losses_and_gradient["cuda" if on_gpu() else "cpu"]
    function = functools.partial(program, request, True, weights, scores, labels, lengths)
    return lambda: Result(*jax.block_until_ready(function()))


def _padded(losses: Callable[..., Any], job: Job, batch: Batch) -> Call:
    """With 64-bit labels on the scores' device and lengths on the host, which suits PyTorch's own kernels best."""
    import torch

    device = "cuda" if on_gpu() else "cpu"
    lengths = (torch.from_numpy(lengths).long() for lengths in (batch.input_lengths, batch.target_lengths))
    return _eager(losses, job, batch, device, torch.from_numpy(batch.targets).long().to(device), *lengths)


def _cudnn(job: Job, batch: Batch) -> Call:
    """Passes what PyTorch hands on to cuDNN: 32-bit labels end to end, and everything but the scores on the host."""
    import torch

    targets = batch.targets[np.arange(batch.shape.S) < batch.target_lengths[:, None]]
    others = [torch.from_numpy(x) for x in (targets, batch.input_lengths, batch.target_lengths)]
    return _eager(torch.nn.functional.ctc_loss, job, batch, "cuda", *others)


def _cudnn_takes(batch: Batch) -> bool:
    return on_gpu() and batch.shape.S < 256 and bool((batch.input_lengths == batch.shape.T).all())


# TensorFlow


def _tensorflow(job: Job, batch: Batch) -> Call:
    """With sparse labels and the blank last, its compiled kernel; dense ones take S times as long."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads())
    tf.config.threading.set_inter_op_parallelism_threads(threads())
    scores = tf.constant(np.roll(job.scores(batch), -1, axis=2))
    rows, columns = live = np.nonzero(np.arange(batch.shape.S) < batch.target_lengths[:, None])
    labels = tf.SparseTensor(np.stack(live, axis=1), batch.targets[rows, columns] - 1, batch.targets.shape)
    lengths = tf.constant(batch.input_lengths)

    @tf.function
    def function(scores, labels, lengths):
        with tf.GradientTape() as tape:
            tape.watch(scores)
            losses = tf.nn.ctc_loss(labels, scores, None, lengths, blank_index=-1)
        return Result(losses, tape.gradient(losses, scores) if job is Job.GRADIENT else None)

    def call() -> Result:
        result = function(scores, labels, lengths)
        tf.test.experimental.sync_devices()
        return result

    return call


_BOTH = (Job.LOSS, Job.GRADIENT)
PEERS = (
    Peer("jaxctc", "jaxctc", _BOTH, _jaxctc),
    Peer("bridge", "torch", (Job.BRIDGE,), _bridge),
    Peer("jaxctc xla", "jaxctc", _BOTH, _xla, takes=lambda _: _kernels_apply()),
    Peer("bridge, padded", "torch", (Job.BRIDGE,), _with_sizes, takes=lambda _: on_gpu()),
    Peer("JAX call", "torch", (Job.BRIDGE,), _program, takes=lambda _: on_gpu()),
    Peer("torch", "torch", (*_BOTH, Job.BRIDGE), _torch),
    Peer("torch cuDNN", "torch", (*_BOTH, Job.BRIDGE), _cudnn, takes=_cudnn_takes),
    Peer("optax", "optax", _BOTH, _optax, _swapped),
    Peer("Keras on jax", "keras", _BOTH, _keras, _swapped),
    Peer("TensorFlow", "tensorflow", _BOTH, _tensorflow, lambda gradient: np.roll(gradient, 1, axis=2)),
)
OURS = ("jaxctc", "bridge")
