"""Where JAX is given no classes but a sequence's own: against PyTorch in float64, and piece by piece."""

import numpy as np
import pytest
import torch
from torch.nn import functional

import bridge
from bridge import _programs, _vocabulary

T, N, C, S = 21, 5, 40, 6
SIZES = bridge.Sizes(frames=(24,), labels=(8,), sequences=2)


def problem(blank=0, dtype=torch.float64, seed=0, classes=C):
    generator = torch.Generator().manual_seed(seed)
    scores = (torch.randn(T, N, classes, dtype=torch.float64, generator=generator) * 3).log_softmax(2).to(dtype)
    targets = torch.randint(1, classes, (N, S), generator=generator)
    targets[:, 2] = targets[:, 0]  # a label twice, with another between
    targets[0, 1] = targets[0, 0]
    targets = (targets + blank) % classes
    targets[2, 4:], targets[3] = -7, 10**9
    return scores, targets, torch.tensor([T, 13, 17, 9, 20]), torch.tensor([S, S, 4, 0, S])


def logits_problem(*arguments, **options):
    """No distributions: each frame has another offset."""
    scores, *rest = problem(*arguments, **options)
    return scores + torch.linspace(-50, 50, T, dtype=scores.dtype)[:, None, None], *rest


def with_all_classes_or_few(function, scores, *rest, case="", **options):
    """Assert that loss and gradient are the same; targets that are padded to so many labels are given all classes."""
    results = []
    for sizes in (SIZES, SIZES._replace(labels=(30,))):
        leaf = scores.clone().requires_grad_()
        with bridge.set_sizes(sizes):
            loss = function(leaf, *rest, **options)
        loss.backward(torch.linspace(0, 2, N, dtype=loss.dtype) if loss.ndim else None)
        results.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(*results, equal_nan=True, msg=lambda text: f"{case} {options}: {text}")


@pytest.fixture
def gathered(monkeypatch):
    """The shapes that JAX was given."""
    shapes = []
    original = _programs.to_jax

    def noted(tensor):
        shapes.append(tuple(tensor.shape))
        return original(tensor)

    monkeypatch.setattr(_programs, "to_jax", noted)
    with bridge.set_sizes(SIZES):
        yield shapes


@pytest.mark.parametrize(
    ("classes", "blank"),
    # The gradient is written in pieces: in one, of ten frames, and of one frame each.
    [(C, 0), (C, 17), (C, C - 1), (12_000, 17), (140_000, 139_999)],
)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("logits", [False, True])
def test_against_pytorch(gathered, logits, classes, blank, batch_first):
    scores, targets, *lengths = (logits_problem if logits else problem)(blank, classes=classes)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0], dtype=torch.float64)
    theirs, ours = (scores.clone().requires_grad_() for _ in range(2))
    log_probs = theirs.log_softmax(2) if logits else theirs
    expected = functional.ctc_loss(log_probs, targets, *lengths, blank, "none")
    turned = ours.transpose(0, 1).contiguous() if batch_first else ours
    function = bridge.ctc_loss_with_logits if logits else bridge.ctc_loss
    loss = function(turned, targets, *lengths, blank, "none", batch_first=batch_first)
    torch.testing.assert_close(loss, expected)
    expected.backward(weights)
    loss.backward(weights)
    torch.testing.assert_close(ours.grad, theirs.grad)
    width = 10 if logits else 9  # of logits, one class stands for all others
    assert set(gathered) == {(2, 24, width) if batch_first else (24, 2, width)}


@pytest.mark.parametrize(
    ("dtype", "normalized"),
    [
        (torch.float32, False),
        (torch.bfloat16, True),
        (torch.float16, False),
        pytest.param(torch.float32, True, marks=pytest.mark.full),
        pytest.param(torch.bfloat16, False, marks=pytest.mark.full),
        pytest.param(torch.float16, True, marks=pytest.mark.full),
    ],
)
def test_narrow_types(gathered, dtype, normalized):
    scores, *lattice = problem(dtype=dtype)
    narrow, wide = scores.clone().requires_grad_(), scores.double().requires_grad_()
    for leaf in (narrow, wide):
        bridge.ctc_loss(leaf, *lattice, reduction="sum", normalized=normalized).backward()
    assert narrow.grad.dtype == dtype
    assert gathered
    torch.testing.assert_close(narrow.grad.double(), wide.grad, rtol=0, atol=max(torch.finfo(dtype).eps, 1e-6))


def test_the_same_with_all_classes(gathered):
    """Infeasible rows and NaN included, with every option."""
    scores, targets, _, counts = problem()
    scores[3, 1, targets[1, 0]] = torch.nan
    frames = torch.tensor([T, 13, 2, 9, 0])
    for options in (
        {"normalized": normalized, "zero_infinity": zero, "reduction": reduction}
        for normalized in (False, True)
        for zero in (False, True)
        for reduction in ("none", "sum", "mean")
    ):
        with_all_classes_or_few(bridge.ctc_loss, scores, targets, frames, counts, **options)
    assert {shape[2] for shape in gathered} == {9, 64}  # all classes are padded to one of the sizes


def test_the_program_knows_no_number_of_classes(gathered):
    scores, *rest = problem()
    wider = torch.cat([scores, torch.full((T, N, 60), -torch.inf, dtype=scores.dtype)], dim=2)
    torch.testing.assert_close(bridge.ctc_loss(wider, *rest), bridge.ctc_loss(scores, *rest))
    assert set(gathered) == {(24, 2, 9)}


def test_labels_are_numbered_anew():
    labels = np.array([[7, 3, 7, 5, 0], [9, 9, 0, 0, 0], [0, 0, 0, 0, 0]], np.int32)
    counts = np.array([4, 2, 0])
    classes, numbered = _vocabulary.build(labels, counts, blank=2)
    assert classes.tolist() == [[2, 3, 5, 7, 2, 2], [2, 9, 2, 2, 2, 2], [2] * 6]
    assert numbered.tolist() == [[3, 1, 3, 2, 0], [1, 1, 0, 0, 0], [0] * 5]


def test_the_same_bits_every_time(gathered):
    scores, *rest = problem(dtype=torch.float32)

    def gradient():
        leaf = scores.clone().requires_grad_()
        bridge.ctc_loss(leaf, *rest, reduction="sum").backward()
        return leaf.grad

    first = gradient()
    assert all(torch.equal(gradient(), first) for _ in range(5))
    assert {shape[2] for shape in gathered} == {9}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_logits_of_narrow_types(gathered, dtype):
    scores, *lattice = problem(dtype=dtype)
    narrow, wide = scores.clone().requires_grad_(), scores.double().requires_grad_()
    losses = [bridge.ctc_loss_with_logits(leaf, *lattice, reduction="sum") for leaf in (narrow, wide)]
    torch.testing.assert_close(losses[0].double(), losses[1], rtol=1e-6, atol=0)
    for loss in losses:
        loss.backward()
    assert narrow.grad.dtype == dtype
    assert gathered
    torch.testing.assert_close(narrow.grad.double(), wide.grad, rtol=0, atol=max(torch.finfo(dtype).eps, 1e-6))


def test_logits_the_same_with_all_classes(gathered):
    """Scores that are no numbers, or impossible, in frames that count and in others, and infeasible rows."""
    scores, targets, _, counts = logits_problem()
    frames = torch.tensor([T, 13, 2, 9, 0])
    other = next(c for c in range(1, C) if c not in targets[:2])
    scores[13:, 1], scores[20, 3, other], scores[10, 4] = torch.nan, torch.inf, -torch.inf  # padding
    scores[5, 0] = torch.where(torch.isin(torch.arange(C), targets[0]), scores[5, 0], -torch.inf)
    changes = {
        "as it is": lambda x: x,
        "NaN in a label": lambda x: x[3, 1].index_fill_(0, targets[1, 0], torch.nan),
        "NaN in another class": lambda x: x[3, 1].index_fill_(0, torch.tensor(other), torch.nan),
        "+inf in another class": lambda x: x[3, 1].index_fill_(0, torch.tensor(other), torch.inf),
        "-inf in another class": lambda x: x[3, 1].index_fill_(0, torch.tensor(other), -torch.inf),
        "-inf in all classes": lambda x: x[3, 1].fill_(-torch.inf),
    }
    for case, change in changes.items():
        changed = scores.clone()
        change(changed)
        for reduction in ("none", "mean"):
            for zero in (False, True):
                options = {"reduction": reduction, "zero_infinity": zero}
                problem_of_case = changed, targets, frames, counts
                with_all_classes_or_few(bridge.ctc_loss_with_logits, *problem_of_case, case=case, **options)
    assert {shape[2] for shape in gathered} == {10, 64}


@pytest.mark.parametrize(("gap", "offset"), [(15.0, 0), (15.0, -10_000), (8.0, 1000), (8.0, -10_000)])
def test_logits_keep_their_digits(gathered, gap, offset):
    """A path that is likely or nearly certain, in float32 with a large offset, against float64 of the same numbers."""
    scores, targets, _, counts = problem(dtype=torch.float32)
    path = torch.zeros(T, N, dtype=torch.long)
    for n in range(N):
        for s in range(int(counts[n])):
            path[3 * s + 1, n] = targets[n, s]
    scores = (scores.scatter(2, path[..., None], gap) + offset).requires_grad_()
    wide = scores.detach().double().requires_grad_()
    lengths = [T] * N
    loss = bridge.ctc_loss_with_logits(scores, targets, lengths, counts, reduction="none")
    expected = functional.ctc_loss(wide.log_softmax(2), targets, torch.tensor(lengths), counts, reduction="none")
    assert 1e-3 < expected.max() < 3 if gap == 8 else expected.max() < 1e-4
    # The sum of a likelihood of nearly one and of what other paths add to it is rounded.
    torch.testing.assert_close(loss.double(), expected, rtol=5e-6, atol=3e-7)
    loss.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(scores.grad.double(), wide.grad, rtol=1e-5, atol=1e-9)
    assert gathered


@pytest.mark.parametrize("others", [-1000.0, 1e37])
def test_a_frame_that_rules_out_blank_and_label_is_infeasible_wherever_its_other_logits_are(others):
    logits = torch.full((1, 1, 3), others)
    logits[..., [0, 2]] = -torch.inf
    logits.requires_grad_()
    loss = bridge.ctc_loss_with_logits(logits, torch.tensor([[2]]), [1], [1], reduction="none")
    loss.backward()
    assert loss.item() == torch.inf
    assert torch.equal(logits.grad, torch.zeros_like(logits))
