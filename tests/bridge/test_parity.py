"""Side by side with torch.nn.functional.ctc_loss: values, gradients, shapes, types."""

import numpy as np
import pytest
import torch
from torch.nn import functional

import bridge

T, N, C, S = 9, 4, 5, 3
TARGETS = torch.tensor([[1, 2, 2], [3, 1, -100], [4, 10**9, 0], [0, 0, 0]])
INPUT_LENGTHS = torch.tensor([9, 7, 1, 5])
TARGET_LENGTHS = torch.tensor([3, 2, 1, 0])
END_TO_END = torch.tensor([1, 2, 2, 3, 1, 4])


def log_probs(dtype=torch.float64, seed=0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(T, N, C, generator=generator, dtype=torch.float64) * 2
    return scores.log_softmax(2).to(dtype)


def both(scores: torch.Tensor, *args, **options):
    """(loss, gradient on the leaf) of torch, and of the bridge; the cotangent is not all ones."""
    results = []
    for function in (functional.ctc_loss, bridge.ctc_loss):
        leaf = scores.detach().clone().requires_grad_()
        loss = function(leaf, *args, **options)
        weights = torch.linspace(0.5, 2, loss.numel(), dtype=loss.dtype).reshape(loss.shape)
        loss.backward(weights)
        results.append((loss.detach(), leaf.grad))
    return results


def assert_same(scores: torch.Tensor, *args, **options) -> None:
    (their_loss, their_gradient), (our_loss, our_gradient) = both(scores, *args, **options)
    torch.testing.assert_close(our_loss, their_loss, equal_nan=True)
    torch.testing.assert_close(our_gradient, their_gradient, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("targets", [TARGETS, END_TO_END], ids=["padded", "end to end"])
def test_value_and_gradient_on_a_leaf(dtype, reduction, targets):
    assert_same(log_probs(dtype), targets, INPUT_LENGTHS, TARGET_LENGTHS, reduction=reduction)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("zero_infinity", [False, True])
def test_infeasible_rows(reduction, zero_infinity):
    lengths = torch.tensor([3, 7, 0, 5])  # too few frames for a repeat, and none at all
    assert_same(log_probs(), TARGETS, lengths, TARGET_LENGTHS, reduction=reduction, zero_infinity=zero_infinity)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64])
def test_every_integer_type_of_targets_and_lengths(dtype):
    assert_same(log_probs(), END_TO_END.to(dtype), INPUT_LENGTHS.to(dtype), TARGET_LENGTHS.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_targets_that_are_whole_floating_point_numbers(dtype):
    ours = bridge.ctc_loss(log_probs(), END_TO_END.to(dtype), INPUT_LENGTHS, TARGET_LENGTHS)
    theirs = functional.ctc_loss(log_probs(), END_TO_END, INPUT_LENGTHS, TARGET_LENGTHS)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "convert",
    [
        list,
        tuple,
        lambda x: [torch.tensor(item) for item in x.tolist()],
        lambda x: x[:, None],
        lambda x: x.numpy(),
        lambda x: x.numpy().astype(np.uint8),
    ],
    ids=["list", "tuple", "0-d tensors", "(N, 1)", "numpy", "numpy uint8"],
)
def test_forms_of_lengths(convert):
    lengths = [
        convert(x) if convert not in (list, tuple) else convert(x.tolist()) for x in (INPUT_LENGTHS, TARGET_LENGTHS)
    ]
    ours = bridge.ctc_loss(log_probs(), TARGETS, *lengths)
    theirs = functional.ctc_loss(log_probs(), TARGETS, INPUT_LENGTHS, TARGET_LENGTHS)
    torch.testing.assert_close(ours, theirs)


def test_one_int_for_all_lengths():
    targets = TARGETS[:, :1].clamp(1, 4)
    ours = bridge.ctc_loss(log_probs(), targets, T, 1)
    torch.testing.assert_close(ours, functional.ctc_loss(log_probs(), targets, [T] * N, [1] * N))


@pytest.mark.parametrize("blank", range(C))
def test_any_blank(blank):
    targets = (TARGETS.clamp(0, 4) + blank) % C
    assert_same(log_probs(), targets, INPUT_LENGTHS, TARGET_LENGTHS, blank=blank)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("shape", [(S,), (1, S)])
@pytest.mark.parametrize("convert", [torch.tensor, lambda n: torch.tensor([n]), lambda n: (n,)])
def test_one_sequence(reduction, shape, convert):
    assert_same(log_probs()[:, 0], TARGETS[0].reshape(shape), convert(T), convert(S), reduction=reduction)


@pytest.mark.parametrize("targets", [torch.zeros(N, 0, dtype=torch.long), torch.tensor([])], ids=["(N, 0)", "(0,)"])
def test_no_labels_at_all(targets):
    lengths = torch.zeros(N, dtype=torch.long)
    assert_same(log_probs(), targets, INPUT_LENGTHS, lengths)


def test_one_class():
    assert_same(torch.zeros(4, 2, 1), torch.zeros(2, 0, dtype=torch.long), [4, 3], [0, 0])


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
        lambda x: torch.stack([x, x], dim=3)[..., 1],
        lambda x: torch.cat([x, x])[T:],
        lambda x: x.flip(0).flip(0)[:, :, :],
        lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].reshape(x.shape),
        lambda x: x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    ],
    ids=["batch first in memory", "strided", "offset", "flipped twice", "unaligned", "permuted"],
)
def test_views(view):
    reference = log_probs()
    leaf = reference.clone().requires_grad_()
    loss = bridge.ctc_loss(view(leaf), TARGETS, INPUT_LENGTHS, TARGET_LENGTHS)
    loss.backward()
    (theirs, gradient), _ = both(reference, TARGETS, INPUT_LENGTHS, TARGET_LENGTHS)
    torch.testing.assert_close(loss.detach(), theirs)
    torch.testing.assert_close(leaf.grad, gradient * 2)  # `both` weighs a single loss by 0.5


def test_expanded_targets():
    targets = torch.tensor([1, 2]).expand(N, 2)
    assert_same(log_probs(), targets, [9, 9, 8, 7], [2, 2, 1, 0])


def test_nan_in_padding_changes_nothing():
    scores = log_probs()
    scores[7:, 1] = torch.nan
    assert_same(scores, TARGETS, INPUT_LENGTHS, TARGET_LENGTHS, reduction="none")
    gradient = both(scores, TARGETS, INPUT_LENGTHS, TARGET_LENGTHS)[1][1]
    assert (gradient[7:, 1] == 0).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_on_a_used_class_stays_in_its_row(value):
    scores = log_probs()
    scores[2, 0, 1] = value
    (_, theirs), (loss, ours) = both(scores, TARGETS, INPUT_LENGTHS, TARGET_LENGTHS, reduction="none")
    assert loss[0].isnan()
    assert not loss[1:].isnan().any()
    assert ours[:, 0].isnan().all()
    torch.testing.assert_close(ours[:, 1:], theirs[:, 1:])


def test_nan_on_an_unused_class_leaves_the_loss_alone():
    scores = log_probs()
    expected = functional.ctc_loss(scores, TARGETS, INPUT_LENGTHS, TARGET_LENGTHS)
    scores[2, 0, 4] = torch.nan
    torch.testing.assert_close(bridge.ctc_loss(scores, TARGETS, INPUT_LENGTHS, TARGET_LENGTHS), expected)


def test_no_gradient_asked_for():
    scores = log_probs()
    with torch.no_grad():
        a = bridge.ctc_loss(scores.clone().requires_grad_(), TARGETS, INPUT_LENGTHS, TARGET_LENGTHS)
    with torch.inference_mode():
        b = bridge.ctc_loss(scores.clone(), TARGETS, INPUT_LENGTHS, TARGET_LENGTHS)
    c = bridge.ctc_loss(scores, TARGETS, INPUT_LENGTHS, TARGET_LENGTHS)
    expected = functional.ctc_loss(scores, TARGETS, INPUT_LENGTHS, TARGET_LENGTHS)
    for loss in (a, b, c):
        assert not loss.requires_grad
        torch.testing.assert_close(loss.clone(), expected)


def test_logits_behind_the_fused_softmax():
    logits = torch.randn(T, N, C, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 4
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    a = bridge.ctc_loss_with_logits(ours, TARGETS, INPUT_LENGTHS, TARGET_LENGTHS)
    b = functional.ctc_loss(theirs.log_softmax(2), TARGETS, INPUT_LENGTHS, TARGET_LENGTHS)
    torch.testing.assert_close(a, b)
    torch.autograd.backward([a, b])
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("function", [bridge.ctc_loss, bridge.ctc_loss_with_logits])
@pytest.mark.parametrize("single", [False, True])
def test_batch_first(function, single):
    scores = log_probs()[:, 0] if single else log_probs()
    problem = (TARGETS[0], T, S) if single else (TARGETS, INPUT_LENGTHS, TARGET_LENGTHS)
    a, b = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    first = function(a, *problem)
    second = function(b if single else b.transpose(0, 1), *problem, batch_first=True)
    torch.autograd.backward([first, second])
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(a.grad, b.grad)


def test_module_is_the_function():
    options = {"blank": 1, "reduction": "sum", "zero_infinity": True}
    targets = (TARGETS.clamp(0, 4) + 1) % C
    args = log_probs(), targets, INPUT_LENGTHS, TARGET_LENGTHS
    torch.testing.assert_close(bridge.CTCLoss(**options)(*args), torch.nn.CTCLoss(**options)(*args))
    assert repr(bridge.CTCLoss(2, "sum")) == (
        "CTCLoss(blank=2, reduction='sum', zero_infinity=False, normalized=True, batch_first=False)"
    )


# Where we differ on purpose.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("function", [bridge.ctc_loss, bridge.ctc_loss_with_logits])
def test_half_precision_works_on_the_cpu(dtype, function):
    scores = log_probs(dtype).requires_grad_()
    loss = function(scores, TARGETS, INPUT_LENGTHS, TARGET_LENGTHS)
    loss.backward()
    wide = scores.detach().double().requires_grad_()
    expected = function(wide, TARGETS, INPUT_LENGTHS, TARGET_LENGTHS)
    expected.backward()
    assert (loss.dtype, scores.grad.dtype) == (torch.float32, dtype)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores.grad.double(), wide.grad, rtol=0, atol=torch.finfo(dtype).eps)


@pytest.mark.parametrize("normalized", [True, False])
def test_a_cotangent_of_zero_masks_an_infeasible_row(normalized):
    scores = log_probs().requires_grad_()
    lengths = torch.tensor([3, 7, 1, 5])
    loss = bridge.ctc_loss(scores, TARGETS, lengths, TARGET_LENGTHS, reduction="none", normalized=normalized)
    assert loss.isinf().tolist() == [True, False, False, False]
    (unmasked,) = torch.autograd.grad(loss, scores, torch.ones_like(loss), retain_graph=True)
    expected = torch.full((3, C), torch.nan if normalized else 0.0, dtype=torch.float64)
    torch.testing.assert_close(unmasked[:3, 0], expected, equal_nan=True)
    (masked,) = torch.autograd.grad(loss, scores, torch.tensor([0.0, 1, 1, 1], dtype=torch.float64))
    assert (masked[:, 0] == 0).all()
    torch.testing.assert_close(masked[:, 1:], unmasked[:, 1:])


def test_masked_classes_have_a_finite_gradient():
    """torch: NaN at the masked entries, and through log_softmax in the whole frame."""
    logits = torch.randn(T, N, C, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(T, N, C, dtype=torch.bool)
    mask[2, :, 4] = mask[1, 0, 1] = True
    leaf = logits.masked_fill(mask, -torch.inf).requires_grad_()
    loss = bridge.ctc_loss(leaf.log_softmax(2), TARGETS, [9, 7, 4, 5], TARGET_LENGTHS, reduction="sum")
    loss.backward()
    assert loss.isfinite()
    assert leaf.grad.isfinite().all()
    assert (leaf.grad[mask] == 0).all()
