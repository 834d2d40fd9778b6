"""Define the programs that JAX compiles, and run them on the blocks of a batch."""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor

from bridge import _memory, _threads
from bridge._batch import Batch, Block
from bridge._dlpack import jax_context, to_jax, to_torch
from jaxctc._api.alignment import align
from jaxctc._api.beam_search import ScoreFunction
from jaxctc._api.decoding import beam_search_decode
from jaxctc._autodiff.loss_rule import losses as core_losses
from jaxctc._autodiff.loss_rule import losses_and_gradient as core_losses_and_gradient
from jaxctc._autodiff.posterior_rule import posteriors as core_posteriors
from jaxctc._lattice.lattices import accumulation_dtype, frame_mask, frames_first, frames_of
from jaxctc._lattice.outcome import nan_where
from jaxctc._types import Problem, Request

Result = TypeVar("Result")


def losses(batch: Batch, scores: Tensor) -> Tensor:
    """Return the losses, (N,)."""

    def call(block: Block) -> tuple[Any, ...]:
        return _losses, batch.request, to_jax(batch.pad(scores, block))

    def finish(_: Block, loss: jax.Array) -> jax.Array:
        return loss.block_until_ready() if batch.on_cpu else loss

    return _joined_losses(batch, _run_and(finish, batch, scores, call))


def losses_and_gradient(
    batch: Batch, scores: Tensor, normalized: bool, weights: np.ndarray
) -> tuple[Tensor, list[Tensor]]:
    """Return the losses, (N,), and the gradients of each loss with respect to its own scores.

    There is one tensor of gradients, of the shape of the scores, if `batch.whole`; else one for each block, padded. For
    a compact batch the gradients are those of its vocabulary, without the exp(scores) that `normalized` adds. Gradients
    have the dtype of the losses, and those of finite losses are multiplied by `weights[0]`, those of infinite losses by
    `weights[1]`, (N,).
    """
    normalized = normalized and not batch.compact
    padded_weights = np.zeros((2, batch.total_rows), weights.dtype)
    padded_weights[:, : batch.sequences] = weights
    copied = batch.whole and not batch.exact
    whole = _memory.empty(scores.shape, scores, getattr(torch, precision(scores))) if copied else None

    def call(block: Block) -> tuple[Any, ...]:
        own = padded_weights[:, block.first : block.first + len(block.lengths)]
        return _losses_and_gradient, batch.request, normalized, own, to_jax(batch.pad(scores, block))

    def finish(block: Block, loss: jax.Array, gradient: jax.Array) -> tuple[jax.Array, Tensor]:
        if whole is None:
            return loss, to_torch(gradient)
        batch.part(whole.numpy(), block)[:] = batch.real_classes(np.asarray(gradient), block)
        return loss, whole

    value, gradients = zip(*_run_and(finish, batch, scores, call), strict=True)
    return _joined_losses(batch, value), list(gradients[:1] if batch.whole else gradients)


def hessian_product(batch: Batch, scores: Tensor, normalized: bool, direction: Tensor) -> Tensor:
    """Return each loss's matrix of second derivatives times its own part of `direction`.

    The product has the shape of the scores and the dtype of the losses; `direction` may have the dtype of either.
    """

    def call(block: Block) -> tuple[Any, ...]:
        along, padded = (to_jax(batch.pad(x, block, tail)) for x, tail in ((direction, 0.0), (scores, -np.inf)))
        return _hessian_product, batch.request, normalized, along, padded

    return batch.assemble([product for (product,) in _run(batch, scores, call)])


def aligned(batch: Batch, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the labels of the best path of each target and their scores, each (N, T)."""
    found = _run(batch, scores, lambda block: (_aligned, batch.request, to_jax(batch.pad(scores, block))))
    labels, values = (_joined(batch, list(pieces))[:, : batch.frames] for pieces in zip(*found, strict=True))
    return batch.to_classes(labels), values


def beams(
    batch: Batch, scores: Tensor, width: int, score_function: ScoreFunction | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best labellings: labels (N, K, T), lengths (N, K) and log probabilities (N, K)."""

    def call(block: Block) -> tuple[Any, ...]:
        # A score function returns as many scores as there are classes: these are not padded.
        return _beams, batch.request, width, score_function, to_jax(batch.pad(scores, block, None))

    found = _run(batch, scores, call)
    labels, lengths, log_probs = (_joined(batch, list(pieces)) for pieces in zip(*found, strict=True))
    return labels[:, :, : batch.frames], lengths, log_probs


def posteriors(batch: Batch, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the posteriors of the 2 S' + 1 states and of the classes."""
    found = _run(batch, scores, lambda block: (_posteriors, batch.request, to_jax(batch.pad(scores, block))))
    states, classes = zip(*found, strict=True)
    return batch.assemble(states, of_classes=False), batch.assemble(classes)


def posteriors_pulled_back(batch: Batch, scores: Tensor, states: Tensor, classes: Tensor) -> Tensor:
    """Return the cotangent of the scores, given those of the posteriors of states and classes."""

    def call(block: Block) -> tuple[Any, ...]:
        tails = (states, None), (classes, 0.0), (scores, -np.inf)
        return _posteriors_pulled_back, batch.request, *(to_jax(batch.pad(x, block, tail)) for x, tail in tails)

    return batch.assemble([gradient for (gradient,) in _run(batch, scores, call)])


def precision(scores: Tensor) -> str:
    """Return numpy's name of the dtype that the losses are computed in."""
    return "float64" if scores.dtype == torch.float64 else "float32"


def _run(batch: Batch, scores: Tensor, call: Callable[[Block], tuple[Any, ...]]) -> list[tuple[Tensor, ...]]:
    """Return the results of the program of every block."""
    return _run_and(lambda _, *results: tuple(map(to_torch, results)), batch, scores, call)


def _run_and(
    finish: Callable[..., Result], batch: Batch, scores: Tensor, call: Callable[[Block], tuple[Any, ...]]
) -> list[Result]:
    """Return for every block what `finish` makes of the block and the results of its program.

    On the CPU blocks are computed side by side. `finish` waits for the results, so that each thread has one program.
    """

    def run(block: Block) -> Result:
        with jax_context(scores):
            program, *arguments = call(block)
            labels = block.labels if isinstance(block.labels, np.ndarray) else to_jax(block.labels)
            return finish(block, *program[scores.device.type](*arguments, labels, block.lengths))

    blocks = list(batch.blocks())
    worthwhile = batch.on_cpu and (len(blocks) > 1 or (batch.large and not batch.exact))
    return _threads.side_by_side(run, blocks, worthwhile)


def _joined_losses(batch: Batch, pieces: Sequence[jax.Array]) -> Tensor:
    if not batch.on_cpu:
        return _joined(batch, list(map(to_torch, pieces)))
    # Only the last block has rows that are none.
    return torch.from_numpy(np.concatenate([np.asarray(piece) for piece in pieces])[: batch.sequences])


def _joined(batch: Batch, pieces: list[Tensor]) -> Tensor:
    if len(pieces) == 1 and batch.total_rows == batch.sequences:
        return pieces[0]
    return torch.cat([piece[: block.rows] for block, piece in zip(batch.blocks(), pieces, strict=True)])


_Program: TypeAlias = dict[str, Callable[..., tuple[jax.Array, ...]]]
"""What JAX compiles of one function, by the type of PyTorch's device."""

# XLA would divide the larger steps of a loop among threads, and wait for each of them at every turn. The blocks occupy
# the cores already.
_WITHOUT_XLA_S_THREADS = {"xla_disable_hlo_passes": "cpu-parallel-task-assigner"}
_LEVEL = "xla_backend_optimization_level"


def _options_on_cpu(xla_flags: str) -> dict[str, str | int]:
    """Return the options that XLA compiles with; an optimization level that the user's `XLA_FLAGS` set is kept."""
    if _LEVEL in xla_flags:
        return {**_WITHOUT_XLA_S_THREADS}
    # LLVM then unrolls fewer loops: compiling takes a fifth less, and the program is as fast as with the default of 3.
    return {**_WITHOUT_XLA_S_THREADS, _LEVEL: 1}


def _program(*static: int) -> Callable[[Callable[..., tuple[jax.Array, ...]]], _Program]:
    """Return a decorator that has JAX compile a function; the arguments at `static` are no arrays."""

    def compiled(function: Callable[..., tuple[jax.Array, ...]]) -> _Program:
        compiler_options = {"cpu": _options_on_cpu(os.environ.get("XLA_FLAGS", "")), "cuda": None}
        return {
            device: jax.jit(function, static_argnums=static, compiler_options=options)
            for device, options in compiler_options.items()
        }

    return compiled


def _split(lengths: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the frames and the labels of each sequence, and the longest input, beyond which nothing is computed."""
    return lengths[:, 0], lengths[:, 1], lengths[:, 0].max()


@_program(0)
def _losses(request: Request, scores: jax.Array, labels: jax.Array, lengths: jax.Array) -> tuple[jax.Array]:
    return (core_losses(request, scores, labels, *_split(lengths)),)


@_program(0, 1)
def _losses_and_gradient(
    request: Request, normalized: bool, weights: jax.Array, *problem: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return _gradient_of(request, normalized, weights, *problem)


@_program(0, 1)
def _hessian_product(
    request: Request, normalized: bool, direction: jax.Array, scores: jax.Array, *rest: jax.Array
) -> tuple[jax.Array]:
    dtype = accumulation_dtype(scores.dtype)
    weights = jnp.ones((2, rest[0].shape[0]), dtype)

    def gradient(scores: jax.Array) -> jax.Array:
        return _gradient_of(request, normalized, weights, scores, *rest)[1]

    return (jax.jvp(gradient, (scores.astype(dtype),), (direction.astype(dtype),))[1],)


def _gradient_of(
    request: Request,
    normalized: bool,
    weights: jax.Array,
    scores: jax.Array,
    labels: jax.Array,
    lengths: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    value, gradient, _ = core_losses_and_gradient(request, scores, labels, *_split(lengths))
    finite, infinite = weights
    by_row = frames_first(finite[None], request)[:, :, None]
    if not normalized or request.from_logits:
        return value, gradient * by_row
    # PyTorch's gradient adds exp(log_probs). The backward pass of a log-softmax removes that term again.
    within = frame_mask(lengths[:, 0], frames_of(scores, request))
    infeasible = jnp.isposinf(value)
    nan = frames_first(within & (infeasible & (infinite != 0))[None], request)[:, :, None]
    feasible = frames_first(within & ~infeasible[None], request)[:, :, None]
    # Elsewhere the gradient stays as it is: an illegal row is NaN in all its frames.
    gradient = jnp.where(feasible, jnp.exp(scores.astype(gradient.dtype)) + gradient, gradient) * by_row
    return value, nan_where(nan, gradient)


def _problem(scores: jax.Array, labels: jax.Array, lengths: jax.Array) -> Problem:
    return Problem(scores, labels, lengths[:, 0], lengths[:, 1])


@_program(0)
def _aligned(request: Request, *problem: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(align(request, *_problem(*problem)))


@_program(0, 1, 2)
def _beams(
    request: Request,
    width: int,
    score_function: ScoreFunction | None,
    scores: jax.Array,
    _: jax.Array,
    lengths: jax.Array,
) -> tuple[jax.Array, ...]:
    search = functools.partial(beam_search_decode, beam_width=width, score_function=score_function)
    return tuple(search(scores, lengths[:, 0], request.blank, batch_first=request.batch_first))


@_program(0)
def _posteriors(request: Request, *problem: jax.Array) -> tuple[jax.Array, ...]:
    return core_posteriors(request, *_problem(*problem))


@_program(0)
def _posteriors_pulled_back(
    request: Request, states: jax.Array, classes: jax.Array, scores: jax.Array, *rest: jax.Array
) -> tuple[jax.Array, ...]:
    _, pull_back = jax.vjp(lambda scores: core_posteriors(request, *_problem(scores, *rest)), scores)
    return pull_back((states, classes))
