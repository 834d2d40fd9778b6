"""Lengths and labels of every integer type, in every kind of array, and under every default device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import bridge
import jaxctc

T, N, C, S = 140, 16, 6, 50
GENERATOR = np.random.default_rng(0)
SCORES = np.log(GENERATOR.dirichlet(np.ones(C), (T, N))).astype(np.float32)
LABELS = GENERATOR.integers(1, C, (N, S))
FRAMES, COUNTS = np.full(N, 120), np.where(np.arange(N) == 3, 40, S)  # 50 times 16 does not fit in int8 or uint8
END_TO_END = np.concatenate([row[:count] for row, count in zip(LABELS, COUNTS, strict=True)])

UNSIGNED = (torch.uint8, torch.uint16, torch.uint32, torch.uint64)
INTEGERS = (torch.int8, torch.int16, torch.int32, *UNSIGNED)


def value_and_gradient(targets, frames, counts, create_graph=False):
    leaf = torch.from_numpy(SCORES).clone().requires_grad_()
    loss = bridge.ctc_loss(leaf, targets, frames, counts)
    (gradient,) = torch.autograd.grad(loss, leaf, create_graph=create_graph)
    return loss.detach(), gradient.detach()


def test_lengths_and_labels_of_every_integer_type():
    for targets in (torch.from_numpy(LABELS), torch.from_numpy(END_TO_END)):
        expected = value_and_gradient(targets, FRAMES.tolist(), COUNTS.tolist())
        torch.testing.assert_close(
            expected[0],
            torch.nn.functional.ctc_loss(
                torch.from_numpy(SCORES), targets, torch.from_numpy(FRAMES), torch.from_numpy(COUNTS)
            ),
        )
        for dtype in INTEGERS:
            narrow = [torch.from_numpy(x).to(dtype) for x in (FRAMES, COUNTS)]
            for lengths in (narrow, [x.numpy() for x in narrow]):
                for create_graph in (False, True):
                    found = value_and_gradient(targets.to(dtype), *lengths, create_graph)
                    torch.testing.assert_close(found, expected, msg=lambda text, dtype=dtype: f"{dtype}: {text}")


def test_the_core_adds_lengths_of_every_integer_type():
    def narrow(dtype):
        return [x.astype(dtype) for x in (END_TO_END, FRAMES, COUNTS)]

    expected = jaxctc.ctc_loss(SCORES, END_TO_END, FRAMES, COUNTS)
    labels = jaxctc.forced_align(SCORES, END_TO_END, FRAMES, COUNTS).labels
    for dtype in ("int8", "uint8", "uint16", "uint32", "uint64"):
        np.testing.assert_allclose(jaxctc.ctc_loss(SCORES, *narrow(dtype)), expected, rtol=1e-5, err_msg=dtype)
        np.testing.assert_array_equal(jaxctc.forced_align(SCORES, *narrow(dtype)).labels, labels, dtype)
    for dtype in ("int8", "uint8", "uint64"):
        with jax.enable_x64(dtype == "uint64"):
            traced = jax.jit(jaxctc.ctc_loss)(SCORES, *map(jnp.asarray, narrow(dtype)))
        np.testing.assert_allclose(traced, expected, rtol=1e-5, err_msg=dtype)


def test_a_length_that_int64_does_not_hold_is_reported():
    with pytest.raises(RuntimeError, match=r"input_lengths\[0\] is 9223372036854775807, but .* T = 140 frames"):
        value_and_gradient(LABELS, np.full(N, 2**63 + 5, np.uint64), COUNTS)


def read_only(x):
    x = x.copy()
    x.setflags(write=False)
    return x


ARRAYS = {
    "read-only": read_only,
    "reversed": lambda x: x[..., ::-1].copy()[..., ::-1],
    "big-endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "Fortran": np.asfortranarray,
    "a list of arrays": list,
    "a JAX array": jnp.asarray,
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_of_every_kind(kind):
    made = [ARRAYS[kind](x) for x in (LABELS, FRAMES, COUNTS)]
    expected = value_and_gradient(torch.from_numpy(LABELS), FRAMES.tolist(), COUNTS.tolist())
    torch.testing.assert_close(value_and_gradient(*made), expected)
    scores = ARRAYS[kind](SCORES) if kind != "a list of arrays" else SCORES
    np.testing.assert_allclose(jaxctc.ctc_loss(scores, *made), expected[0], rtol=1e-5)


def test_an_array_that_changes_later_does_not_change_the_gradient():
    targets = LABELS.copy()
    leaf = torch.from_numpy(SCORES).clone().requires_grad_()
    loss = bridge.ctc_loss(leaf, targets, FRAMES, COUNTS)
    targets[:] = 1
    (found,) = torch.autograd.grad(loss, leaf, create_graph=True)
    torch.testing.assert_close(found.detach(), value_and_gradient(LABELS, FRAMES, COUNTS)[1])


def negated(x):
    """Return a view whose numbers are those of x, but stored with the other sign."""
    view = torch._neg_view(-x)
    assert view.is_neg()
    assert view.is_contiguous()
    return view


@pytest.mark.parametrize("classes", [C, 120], ids=["all classes", "the vocabulary's classes"])
def test_scores_with_the_negative_bit(classes):
    scores = torch.randn(T, N, classes, generator=torch.Generator().manual_seed(0)).log_softmax(2)
    batch = torch.from_numpy(LABELS), FRAMES, COUNTS
    with bridge.set_sizes(None):  # without the padding that copies
        for function in (bridge.ctc_loss, bridge.ctc_loss_with_logits, bridge.forced_align):
            torch.testing.assert_close(function(negated(scores), *batch), function(scores, *batch))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_spans_of_an_alignment_of_every_dtype(dtype):
    scores = (
        torch.tensor([[0.75, 0.125, 0.125], [0.25, 0.5, 0.25], [0.25, 0.5, 0.25], [0.25, 0.25, 0.5]]).log().to(dtype)
    )
    labels, values = bridge.forced_align(scores.requires_grad_(), torch.tensor([1, 2]), 4, 2)
    spans = jaxctc.merge_tokens(labels, values)
    assert [(span.token, span.start, span.end) for span in spans] == [(1, 1, 3), (2, 3, 4)]
    assert [span.score for span in spans] == [values[1].item(), values[3].item()]
    # All else that takes a tensor's numbers: losses of the core, and the parameters of the variants.
    arguments = np.array([1, 2]), 4, 2
    right = jaxctc.ctc_loss(scores.detach().double().numpy(), *arguments)
    with pytest.warns(UserWarning, match=r"requires a gradient.*the package bridge"):
        found = jaxctc.ctc_loss(scores, *arguments)
    scores = scores.detach()
    np.testing.assert_allclose(found, right, rtol=1e-6)
    priors = torch.zeros(3, dtype=dtype)
    primed = jaxctc.variants.prior_ctc_loss(scores, *arguments, log_priors=priors, reduction="sum")
    np.testing.assert_allclose(primed, jaxctc.ctc_loss(scores, *arguments, reduction="sum"), rtol=1e-6)


@pytest.mark.parametrize("as_default", [False, True])
def test_numbers_stay_on_the_cpu_whatever_the_default_device(as_default):
    scores = torch.zeros(4, 1, 3)
    log_probs = scores.log_softmax(2)

    def checks():
        for targets in ([[1, 2]], ((1, 2),), np.array([[1, 2]])):
            leaf = scores.detach().requires_grad_()
            losses = bridge.ctc_loss(log_probs, targets, (4,), [2]), bridge.ctc_loss_with_logits(leaf, targets, 4, 2)
            assert [round(x.item(), 4) for x in losses] == [0.8432] * 2
            losses[1].backward()
            assert leaf.grad.isfinite().all()
        aligned = bridge.forced_align(log_probs, [[1, 2]], [4], [2])
        assert [span.token for span in jaxctc.merge_tokens(*aligned)[0]] == [1, 2]
        assert bridge.greedy_decode(log_probs, [4]).lengths.tolist() == [0]
        assert bridge.ctc_posteriors(log_probs, [1, 2], [4], [2]).classes.device.type == "cpu"
        bridge.warmup([(4, 1, 3, 2)], device="cpu")

    if not as_default:
        with torch.device("meta"):
            checks()
        return
    previous = torch.get_default_device()
    torch.set_default_device("meta")
    try:
        checks()
    finally:
        torch.set_default_device(previous)
