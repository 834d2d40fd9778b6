"""Every statement of the README's table, and the README's own snippets."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch.nn import functional

import bridge
import jaxctc

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


@jax.jit
def optax_loss(logits, labels, frame_padding=None, label_padding=None):
    """Optax wants (N, T, C) and masks of what is padding."""
    sequences, frames, _ = logits.shape
    frame_padding = jnp.zeros((sequences, frames)) if frame_padding is None else frame_padding
    label_padding = jnp.zeros(labels.shape) if label_padding is None else label_padding
    # Its own code promotes ranks and types.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        return optax.ctc_loss(logits, frame_padding, labels, label_padding)


@jax.jit
def optax_gradient(logits, labels):
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        return jax.grad(lambda x: optax_loss(x, labels).sum())(logits)


def torch_gradient(scores, *problem):
    leaf = scores.clone().requires_grad_()
    functional.ctc_loss(leaf, *problem, reduction="sum").backward()
    return leaf.grad


def gradient(scores, *problem):
    return jax.grad(jaxctc.ctc_loss)(jnp.asarray(scores.numpy()), *problem, reduction="sum")


ZEROS = torch.zeros(4, 1, 3)
ONE = [[1]], [4], [1]
TORCH_ONE = torch.tensor([[1]]), [4], [1]
CLAIMS = {}


def claim(row):
    """Registers a test under the first column of its row."""

    def register(test):
        CLAIMS[row] = test
        return test

    return register


@claim("gradient of scores that are no distribution")
def _():
    posterior = -gradient(ZEROS, *ONE)
    np.testing.assert_allclose(posterior.sum(axis=2), 1, atol=1e-6)
    np.testing.assert_allclose(torch_gradient(ZEROS, *TORCH_ONE), 1 - posterior, atol=1e-6)


@claim("target that cannot be spelled")
def _():
    too_long = np.array([[1, 2, 1, 2, 1]])
    assert jnp.isinf(jaxctc.ctc_loss(jnp.zeros((4, 1, 3)), too_long, [4], [5]))
    assert (gradient(ZEROS, too_long, [4], [5]) == 0).all()
    assert torch_gradient(ZEROS, torch.tensor(too_long), [4], [5]).isnan().all()
    assert 9e4 < optax_loss(jnp.zeros((1, 4, 3)), jnp.asarray(too_long))[0] < 1.1e5
    assert jnp.abs(optax_gradient(jnp.zeros((1, 4, 3)), jnp.asarray(too_long))).max() > 0.1


@claim("`-inf` score")
def _():
    masked = ZEROS.clone()
    masked[1, 0, 2] = -torch.inf
    assert jnp.isfinite(gradient(masked, *ONE)).all()
    assert torch_gradient(masked, *TORCH_ONE).isnan().any()
    assert jnp.isnan(optax_loss(jnp.asarray(masked.numpy()).swapaxes(0, 1), jnp.array([[1]]))).all()


@claim("NaN in padded frames")
def _():
    padded = ZEROS.clone()
    padded[3] = torch.nan
    expected = functional.ctc_loss(ZEROS[:3], torch.tensor([[1]]), [3], [1])
    torch.testing.assert_close(functional.ctc_loss(padded, torch.tensor([[1]]), [3], [1]), expected)
    np.testing.assert_allclose(jaxctc.ctc_loss(padded.numpy(), [[1]], [3], [1]), expected, rtol=1e-6)
    frame_padding = jnp.array([[0, 0, 0, 1.0]])
    assert jnp.isnan(optax_loss(jnp.asarray(padded.numpy()).swapaxes(0, 1), jnp.array([[1]]), frame_padding)).all()


@claim("label out of range")
def _():
    with pytest.raises(ValueError, match=r"targets\[0, 0\] is 7"):
        jaxctc.ctc_loss(ZEROS.numpy(), [[7]], [4], [1])
    with pytest.raises(RuntimeError, match=r"targets\[0, 0\] is 7"):
        bridge.ctc_loss(ZEROS, torch.tensor([[7]]), [4], [1])
    assert jnp.isnan(jax.jit(lambda targets: jaxctc.ctc_loss(ZEROS.numpy(), targets, *ONE[1:]))(jnp.array([[7]])))
    assert optax_loss(jnp.zeros((1, 4, 3)), jnp.array([[7]]))[0] < 0
    # torch's own is not called: it reads out of bounds, and may take the process with it.


@claim("loss of a very confident model")
def _():
    classes = np.random.default_rng(0).integers(0, 4, (64, 200))
    logits = (np.eye(4)[classes] * 30).astype(np.float32)
    spelled = [[int(k) for k, before in zip(row, [-1, *row], strict=False) if k not in (before, 0)] for row in classes]
    lengths = [len(labels) for labels in spelled]
    targets = np.array([labels + [0] * (max(lengths) - len(labels)) for labels in spelled])
    label_padding = jnp.asarray(np.arange(max(lengths))[None] >= np.array(lengths)[:, None], jnp.float32)
    assert optax_loss(jnp.asarray(logits), jnp.asarray(targets), None, label_padding).min() < 0
    ours = jaxctc.ctc_loss_with_logits(logits, targets, 200, lengths, reduction="none", batch_first=True)
    assert ours.min() >= 0
    log_probs = torch.from_numpy(logits).log_softmax(2).transpose(0, 1)
    theirs = functional.ctc_loss(log_probs, torch.tensor(targets), [200] * 64, lengths, reduction="none")
    assert theirs.min() >= 0


@claim("bfloat16 on the CPU")
def _():
    scores = torch.randn(30, 2, 10, generator=torch.Generator().manual_seed(0)).mul(4).bfloat16()
    targets, lengths = np.array([[1, 2, 3], [4, 4, 5]]), ([30, 30], [3, 3])

    loss = functools.partial(jaxctc.ctc_loss_with_logits, reduction="sum")
    gradient_of_ours = jax.jit(jax.grad(lambda x: loss(x, targets, *lengths)))

    def ours(dtype):
        return gradient_of_ours(jnp.asarray(scores.float().numpy(), dtype)).astype(jnp.float32)

    np.testing.assert_allclose(ours(jnp.bfloat16), ours(jnp.float32), atol=4e-3)  # half a unit in the last place
    with pytest.raises(NotImplementedError):
        functional.ctc_loss(scores.log_softmax(2), torch.tensor(targets), *lengths)
    narrow = jnp.asarray(scores.float().numpy()).swapaxes(0, 1)
    theirs = optax_gradient(narrow.astype(jnp.bfloat16), jnp.asarray(targets)).astype(jnp.float32)
    assert jnp.abs(theirs - optax_gradient(narrow, jnp.asarray(targets))).max() > 1e-2


@claim("float32 gradient at T = 2000")
def _():
    frames, labels = 2000, 200
    logits = torch.randn(frames, 1, 32, generator=torch.Generator().manual_seed(0)) * 2
    targets = torch.arange(labels)[None] % 31 + 1

    def theirs(dtype):
        leaf = logits.to(dtype).requires_grad_()
        functional.ctc_loss(leaf.log_softmax(2), targets, [frames], [labels], reduction="sum").backward()
        return leaf.grad.double().numpy()

    exact = theirs(torch.float64)
    loss = functools.partial(jaxctc.ctc_loss_with_logits, reduction="sum")
    ours = jax.jit(jax.grad(lambda x: loss(x, targets.numpy(), [frames], [labels])))(logits.numpy())
    optax_s = optax_gradient(jnp.asarray(logits.numpy()).swapaxes(0, 1), jnp.asarray(targets.numpy()))
    assert np.abs(np.asarray(ours, np.float64) - exact).max() < 1e-5
    assert np.abs(theirs(torch.float32) - exact).max() > 3e-3
    assert np.abs(np.asarray(optax_s, np.float64).swapaxes(0, 1) - exact).max() > 3e-3


@claim("second derivative")
def _():
    leaf = ZEROS.clone().requires_grad_()
    for loss, works in ((bridge.ctc_loss, True), (functional.ctc_loss, False)):
        (first,) = torch.autograd.grad(loss(leaf, *TORCH_ONE), leaf, create_graph=True)
        if works:
            assert torch.autograd.grad(first.square().sum(), leaf)[0].abs().sum() > 0
        else:
            with pytest.raises(RuntimeError, match="derivative"):
                torch.autograd.grad(first.square().sum(), leaf)
    ours = jax.jit(jax.hessian(lambda x: jaxctc.ctc_loss(x, *ONE)))
    assert ours(jnp.zeros((4, 1, 3))).shape == (4, 1, 3) * 2
    optax_s = jax.jit(jax.hessian(lambda x: optax_loss(x, jnp.array([[1]])).sum()))
    assert optax_s(jnp.zeros((1, 4, 3))).shape == (1, 4, 3) * 2


@claim("forward mode")
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def _():
    ones = torch.ones_like(ZEROS)
    _, tangent = torch.func.jvp(lambda x: bridge.ctc_loss(x, *TORCH_ONE, normalized=False), (ZEROS,), (ones,))
    torch.testing.assert_close(tangent, torch.tensor(-4.0))
    with pytest.raises(NotImplementedError):
        torch.func.jvp(lambda x: functional.ctc_loss(x, *TORCH_ONE), (ZEROS,), (ones,))
    array = jnp.zeros((4, 1, 3))
    _, ours = jax.jvp(lambda x: jaxctc.ctc_loss(x, *ONE), (array,), (array + 1,))
    np.testing.assert_allclose(ours, -4, rtol=1e-6)
    array = jnp.zeros((1, 4, 3))
    assert jax.jvp(lambda x: optax_loss(x, jnp.array([[1]])), (array,), (array + 1,))[1].shape == (1,)


@pytest.mark.parametrize("row", CLAIMS)
# The oldest forward mode of PyTorch warns about torch.jit when it is first used.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_statement(row):
    CLAIMS[row]()


def test_every_row_of_the_table_is_tested():
    table = README.split("## How it differs")[1].split("\n## ")[0]
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")]
    assert rows[2:] == list(CLAIMS)


@pytest.mark.parametrize("number", range(5))
def test_snippets_run(number):
    """Each of them on its own, as a reader would paste it."""
    snippet = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)[number]
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # as JAX comes
        exec(snippet, {})
