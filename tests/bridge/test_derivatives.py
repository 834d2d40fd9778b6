"""First and second derivatives through PyTorch's own checkers and transforms."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import bridge

T, N, C = 5, 3, 4
TARGETS = torch.tensor([[1, 1], [3, 2], [2, 2]])
INPUT_LENGTHS = [5, 3, 4]
TARGET_LENGTHS = [2, 2, 1]


@pytest.fixture(autouse=True)
def _small_sizes():
    """The checkers call the loss some hundred times: with a little padding, not with much."""
    with bridge.set_sizes(bridge.Sizes(frames=(8,), labels=(4,), sequences=4)):
        yield


@pytest.fixture
def scores() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(T, N, C, dtype=torch.float64, generator=generator, requires_grad=True)


def loss(scores, **options):
    return bridge.ctc_loss(scores, TARGETS, INPUT_LENGTHS, TARGET_LENGTHS, **options)


ROADS = {
    "leaf, true derivative": lambda x: loss(x, normalized=False),
    "behind log_softmax": lambda x: loss(x.log_softmax(2)),
    "behind log_softmax, true derivative": lambda x: loss(x.log_softmax(2), normalized=False),
    "batch first": lambda x: loss(x.transpose(0, 1), normalized=False, batch_first=True, reduction="sum"),
    "logits": lambda x: bridge.ctc_loss_with_logits(x, TARGETS, INPUT_LENGTHS, TARGET_LENGTHS, reduction="none"),
}
IN_EVERY_ELEMENT = ("leaf, true derivative", "logits")
"""The others differ from these in what PyTorch itself does; one random direction shows that."""


@pytest.mark.parametrize("road", ROADS)
# PyTorch's own forward mode warns about torch.jit when it is first used.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_gradcheck(road, scores):
    assert gradcheck(ROADS[road], (scores,), check_forward_ad=True, fast_mode=road not in IN_EVERY_ELEMENT)


@pytest.mark.parametrize("road", ROADS)
def test_gradgradcheck(road, scores):
    assert gradgradcheck(ROADS[road], (scores,), fast_mode=road not in IN_EVERY_ELEMENT)


def test_gradgradcheck_with_an_infeasible_row(scores):
    def masked(x):
        losses = bridge.ctc_loss(x, TARGETS, [2, 3, 4], TARGET_LENGTHS, zero_infinity=True, normalized=False)
        return losses.sum()

    assert gradcheck(masked, (scores,))
    assert gradgradcheck(masked, (scores,))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum", "batchmean", "mean_volume"])
@pytest.mark.parametrize("zero_infinity", [False, True])
@pytest.mark.parametrize("normalized", [False, True])
def test_the_gradient_is_the_same_with_its_graph(reduction, zero_infinity, normalized, scores):
    """With create_graph it takes another way; one row is infeasible."""
    options = {"reduction": reduction, "zero_infinity": zero_infinity, "normalized": normalized}
    losses = bridge.ctc_loss(scores, TARGETS, [2, 3, 4], TARGET_LENGTHS, **options)
    weights = torch.linspace(0.5, 2, losses.numel(), dtype=losses.dtype).reshape(losses.shape)
    (alone,) = torch.autograd.grad(losses, scores, weights, retain_graph=True)
    (with_graph,) = torch.autograd.grad(losses, scores, weights, create_graph=True)
    torch.testing.assert_close(with_graph.detach(), alone, equal_nan=True)


def test_gradient_of_scores_that_are_no_distribution(scores):
    """pytorch/pytorch#52241, #127608, #181534: torch's own gradient is wrong there."""
    leaf = (scores.detach() * 3 + 1).requires_grad_()
    assert gradcheck(lambda x: loss(x, normalized=False), (leaf,))
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        gradcheck(lambda x: torch.nn.functional.ctc_loss(x, TARGETS, INPUT_LENGTHS, TARGET_LENGTHS), (leaf,))


def test_derivatives_of_the_cotangent(scores):
    """The gradient is linear in the incoming one, and that derivative is there too."""
    weights = torch.tensor([0.3, -2.0, 0.7], dtype=torch.float64, requires_grad=True)

    def gradient(weights, x):
        return torch.autograd.grad(loss(x, reduction="none", normalized=False) @ weights, x, create_graph=True)[0]

    assert gradcheck(gradient, (weights, scores))


def test_a_third_derivative_says_that_it_is_missing(scores):
    (first,) = torch.autograd.grad(loss(scores), scores, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), scores, create_graph=True)
    with pytest.raises(RuntimeError, match="no third derivative"):
        torch.autograd.grad(second.sum(), scores)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_function_transforms(scores):
    x = scores.detach()
    road = ROADS["logits"]

    def total(y):
        return road(y).sum()

    (expected,) = torch.autograd.grad(total(scores), scores, create_graph=True)
    torch.testing.assert_close(torch.func.grad(total)(x), expected.detach())
    _, pull_back = torch.func.vjp(road, x)
    torch.testing.assert_close(pull_back(torch.ones(N, dtype=x.dtype))[0], expected.detach())
    direction = torch.ones_like(x).cumsum(0)
    value, tangent = torch.func.jvp(total, (x,), (direction,))
    torch.testing.assert_close(tangent, (expected.detach() * direction).sum())
    torch.testing.assert_close(value, total(x))
    hessian = torch.autograd.functional.hessian(total, x)
    torch.testing.assert_close(torch.func.hessian(total)(x), hessian)


@pytest.mark.parametrize("axis", [0, 1, 3])
def test_vmap_over_scores(axis):
    many = torch.randn(6, T, N, C, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    road = ROADS["logits"]
    expected = torch.stack([road(x) for x in many])
    gradients = torch.stack([torch.func.grad(lambda x: road(x).sum())(x) for x in many])
    moved = many.movedim(0, axis)
    torch.testing.assert_close(torch.vmap(road, axis)(moved), expected)
    torch.testing.assert_close(torch.vmap(torch.func.grad(lambda x: road(x).sum()), axis)(moved), gradients)


def test_vmap_over_everything():
    many = torch.randn(2, T, N, C, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).log_softmax(3)
    targets = torch.stack([TARGETS, TARGETS.flip(0)])
    frames, labels = torch.tensor([[5, 4, 3], [3, 5, 5]]), torch.tensor([[2, 2, 1], [0, 1, 2]])

    def one(x, *lattice):
        return bridge.ctc_loss(x, *lattice, reduction="none")

    batch = many, targets, frames, labels
    expected = torch.stack([one(*row) for row in zip(*batch, strict=True)])
    torch.testing.assert_close(torch.vmap(one)(*batch), expected)


def test_per_sample_gradients():
    """vmap(grad) over the sequences of one batch, each on its own."""
    x = torch.randn(T, N, C, dtype=torch.float64, generator=torch.Generator().manual_seed(5))

    def one(x, targets, frames, labels):
        return bridge.ctc_loss_with_logits(x[:, None], targets[None], frames[None], labels[None], reduction="sum")

    lattice = TARGETS, torch.tensor(INPUT_LENGTHS), torch.tensor(TARGET_LENGTHS)
    each = torch.vmap(torch.func.grad(one), in_dims=(1, 0, 0, 0), out_dims=1)(x, *lattice)
    whole = torch.func.grad(lambda x: bridge.ctc_loss_with_logits(x, *lattice, reduction="sum"))(x)
    torch.testing.assert_close(each, whole)
