"""Side by side with torch.nn.functional.ctc_loss: values, gradients, shapes, types."""

import functools

import numpy as np
import pytest
import torch
from torch.nn import functional

import bridge

T, N, C, S = 9, 4, 8, 3
TARGETS = torch.tensor([[1, 2, 2], [3, 1, -100], [4, 10**9, 0], [0, 0, 0]])
INPUT_LENGTHS = torch.tensor([9, 7, 1, 5])
TARGET_LENGTHS = torch.tensor([3, 2, 1, 0])
END_TO_END = torch.tensor([1, 2, 2, 3, 1, 4])


@pytest.fixture(params=[False, True], ids=["all classes", "own classes"])
def either_way(request):
    """Both ways in which JAX can be given a batch: the classes are twice as many as the targets and the blank, unless
    the targets are padded.
    """
    with bridge.set_sizes(bridge.Sizes(labels=(3,)) if request.param else bridge.Sizes()):
        yield


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


def poisoned(value, *index) -> torch.Tensor:
    scores = log_probs()
    scores[index] = value
    return scores


def row(scores=None, targets=TARGETS, frames=INPUT_LENGTHS, labels=TARGET_LENGTHS, **options):
    """One call, as a function of nothing but the row: the default is the batch above, in float64."""
    return (log_probs() if scores is None else scores, targets, frames, labels), options


def expanded(**options):
    return row(None, torch.tensor([1, 2]).expand(N, 2), [9, 9, 8, 7], [2, 2, 1, 0], **options)


def one_sequence(shape, convert, **options):
    return row(log_probs()[:, 0], TARGETS[0].reshape(shape), convert(T), convert(S), **options)


def rotated(blank):
    return (TARGETS.clamp(0, 4) + blank) % C


REDUCTIONS = ("none", "mean", "sum")
INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
NO_LABELS = torch.zeros(N, dtype=torch.long)
TOO_SHORT = torch.tensor([3, 7, 0, 5])  # too few frames for a repeat, and none at all

SAME = {
    **{
        f"{str(dtype)[6:]}, {form}, {reduction}": row(log_probs(dtype), targets, reduction=reduction)
        for dtype in (torch.float64, torch.float32)
        for form, targets in (("padded", TARGETS), ("end to end", END_TO_END))
        for reduction in REDUCTIONS
    },
    **{
        f"infeasible, {reduction}, zero_infinity={zero}": row(frames=TOO_SHORT, reduction=reduction, zero_infinity=zero)
        for reduction in REDUCTIONS
        for zero in (False, True)
    },
    **{f"labels {dtype}": row(targets=END_TO_END.to(dtype)) for dtype in INTEGERS},
    **{f"lengths {d}": row(frames=INPUT_LENGTHS.to(d), labels=TARGET_LENGTHS.to(d)) for d in INTEGERS},
    **{f"labels {dtype}": row(targets=END_TO_END.to(dtype)) for dtype in (torch.float16, torch.float32, torch.float64)},
    "lengths as lists": row(frames=INPUT_LENGTHS.tolist(), labels=TARGET_LENGTHS.tolist()),
    "lengths as tuples": row(frames=tuple(INPUT_LENGTHS.tolist()), labels=tuple(TARGET_LENGTHS.tolist())),
    "lengths as lists of tensors": row(frames=list(INPUT_LENGTHS), labels=list(TARGET_LENGTHS)),
    "lengths (N, 1)": row(frames=INPUT_LENGTHS[:, None], labels=TARGET_LENGTHS[:, None]),
    "lengths strided": row(frames=INPUT_LENGTHS.repeat_interleave(2)[::2], labels=TARGET_LENGTHS.expand(2, N)[1]),
    **{f"blank {blank}": row(targets=rotated(blank), blank=blank) for blank in (1, C - 1)},
    **{
        f"one sequence, targets {shape}, lengths {kind}, {reduction}": one_sequence(shape, convert, reduction=reduction)
        for shape in ((S,), (1, S))
        for kind, convert in (("()", torch.tensor), ("(1,)", lambda n: torch.tensor([n])), ("tuple", lambda n: (n,)))
        for reduction in REDUCTIONS
    },
    "one sequence, infeasible": row(log_probs()[:, 0], TARGETS[0], (3,), (3,)),
    "targets (N, 0)": row(targets=torch.zeros(N, 0, dtype=torch.long), labels=NO_LABELS),
    "targets (0,)": row(targets=torch.tensor([]), labels=NO_LABELS),
    "no labels, and slots for them": row(labels=NO_LABELS),
    "no frames and no labels": row(frames=NO_LABELS, labels=NO_LABELS),
    "no frames": row(frames=NO_LABELS, zero_infinity=True),
    "one class": row(torch.zeros(4, 2, 1), torch.zeros(2, 0, dtype=torch.long), [4, 3], [0, 0]),
    "one frame": row(log_probs()[:1], torch.tensor([[1], [2], [3], [4]]), [1] * N, [1] * N),
    "expanded targets": expanded(),
    "transposed targets": row(targets=TARGETS.t().contiguous().t()),
    "strided targets": row(targets=TARGETS.repeat_interleave(2, dim=1)[:, ::2]),
    "offset targets": row(targets=torch.cat([TARGETS, TARGETS])[N:]),
    "negative padding": row(targets=torch.where(TARGETS == 0, -1, TARGETS)),
    "NaN in padded frames": row(poisoned(torch.nan, slice(7, None), 1), reduction="none"),
    "+inf in padded frames": row(poisoned(torch.inf, slice(7, None), 1), reduction="none"),
    "-inf on the only path": row(poisoned(-torch.inf, 0, 2), zero_infinity=True),
    "scores that are no distribution": row(log_probs() * 2 - 1),
    "very confident": row(log_probs() * 50),
}


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("name", SAME)
def test_the_same_as_torch(name):
    args, options = SAME[name]
    (their_loss, their_gradient), (our_loss, our_gradient) = both(*args, **options)
    torch.testing.assert_close(our_loss, their_loss, equal_nan=True)  # the type and the shape too
    torch.testing.assert_close(our_gradient, their_gradient, equal_nan=True)


BAD = {
    "input length beyond T": row(frames=torch.tensor([10, 7, 1, 5])),
    "input length negative": row(frames=torch.tensor([-1, 7, 1, 5])),
    "target length beyond S": row(labels=torch.tensor([4, 2, 1, 0])),
    "target length negative": row(labels=torch.tensor([-1, 2, 1, 0])),
    "end to end, too short": row(targets=END_TO_END[:-1]),
    "end to end, too long": row(targets=TARGETS.flatten()),
    "wrong number of input lengths": row(frames=torch.tensor([9, 7, 1])),
    "wrong number of target lengths": row(labels=torch.tensor([3, 2, 1])),
    "targets of another batch": row(targets=TARGETS[:2]),
    "targets 0-D": row(targets=TARGETS[0, 0]),
    "targets 3-D": row(targets=TARGETS[None]),
    "log_probs 1-D": row(log_probs()[0, 0]),
    "log_probs 4-D": row(log_probs()[None]),
    "no sequence": row(log_probs()[:, :0], TARGETS[:0], [], []),
    "no frame": row(log_probs()[:0], frames=NO_LABELS),
    "no class": row(log_probs()[..., :0]),
    "blank = C": row(blank=C),
    "blank negative": row(blank=-1),
    "blank a float": row(blank=0.0),
    "blank a string": row(blank="0"),
    "lengths of floats": row(frames=INPUT_LENGTHS.double(), labels=TARGET_LENGTHS.double()),
    "lengths of bools": row(frames=INPUT_LENGTHS.bool(), labels=TARGET_LENGTHS.bool()),
    "zero_infinity an int": row(zero_infinity=1),
    "zero_infinity a string": row(zero_infinity="yes"),
    "reduction unknown": row(reduction="max"),
    "reduction None": row(reduction=None),
    "integer log_probs": row(log_probs().long()),
    "complex log_probs": row(log_probs().cfloat()),
    "log_probs no tensor": row(log_probs().tolist()),
    "targets no tensor": row(targets=None),
    "one sequence, padded target": row(log_probs()[:, 1], TARGETS[1], (7,), (2,)),
}


def exception_of(function, args, options):
    with pytest.raises(Exception) as raised:  # noqa: PT011, which one is the question
        function(*args, **options)
    return raised.type


@pytest.mark.parametrize("name", BAD)
def test_the_same_exception_as_torch(name):
    args, options = BAD[name]
    assert exception_of(bridge.ctc_loss, args, options) is exception_of(functional.ctc_loss, args, options)


# Where we differ on purpose: the call, why, and what torch 2.13 does. None: it reads out of bounds, so that
# calling it in a test is not safe.
DIFFERENT = {
    "label beyond C": (row(targets=rotated(1) + 4), RuntimeError, "torch reads out of bounds", None),
    "label negative": (row(targets=TARGETS - 2), RuntimeError, "torch reads out of bounds", None),
    "label equal to the blank": (
        row(targets=END_TO_END - 1),
        RuntimeError,
        "the number that torch gives has no meaning",
        torch.float64,
    ),
    "targets of bools": (
        row(targets=END_TO_END.bool()),
        TypeError,
        "torch counts every label as 1",
        torch.float64,
    ),
    "targets of fractions": (
        row(targets=END_TO_END + 0.5),
        RuntimeError,
        "torch truncates them without a word",
        torch.float64,
    ),
    "numpy lengths": (
        row(frames=INPUT_LENGTHS.numpy(), labels=TARGET_LENGTHS.numpy()),
        torch.float64,
        "there is no doubt what is meant",
        TypeError,
    ),
    "numpy lengths, uint8": (
        row(frames=INPUT_LENGTHS.numpy().astype(np.uint8), labels=TARGET_LENGTHS.numpy().astype(np.uint8)),
        torch.float64,
        "there is no doubt what is meant",
        TypeError,
    ),
    "one int for all": (
        row(frames=T, targets=TARGETS[:, :1].clamp(1, 4), labels=1),
        torch.float64,
        "there is no doubt what is meant",
        TypeError,
    ),
    "a tensor and a list": (
        row(frames=INPUT_LENGTHS, labels=TARGET_LENGTHS.tolist()),
        torch.float64,
        "there is no doubt what is meant",
        TypeError,
    ),
    "float16": (row(log_probs(torch.float16)), torch.float32, "JAX computes it in float32", NotImplementedError),
    "bfloat16": (row(log_probs(torch.bfloat16)), torch.float32, "JAX computes it in float32", NotImplementedError),
}


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("name", DIFFERENT)
def test_different_on_purpose(name):
    (args, options), ours, _, theirs = DIFFERENT[name]
    for function, outcome in ((bridge.ctc_loss, ours), (functional.ctc_loss, theirs)):
        if outcome is None:
            continue
        if isinstance(outcome, torch.dtype):
            assert function(*args, **options).dtype == outcome
        else:
            assert exception_of(function, args, options) is outcome


@pytest.mark.parametrize("name", ["numpy lengths", "one int for all", "a tensor and a list"])
def test_what_torch_does_not_take_means_what_it_says(name):
    (scores, targets, frames, labels), _ = DIFFERENT[name][0]
    frames, labels = (torch.as_tensor(x).expand(N) for x in (frames, labels))
    expected = functional.ctc_loss(scores, targets, frames, labels)
    torch.testing.assert_close(bridge.ctc_loss(*DIFFERENT[name][0][0]), expected)


@pytest.mark.usefixtures("either_way")
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


@pytest.mark.usefixtures("either_way")
def test_the_gradient_of_padded_frames_is_zero():
    _, (_, gradient) = both(poisoned(torch.nan, slice(7, None), 1), TARGETS, INPUT_LENGTHS, TARGET_LENGTHS)
    assert (gradient[7:, 1] == 0).all()


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_on_a_used_class_stays_in_its_row(value):
    scores = log_probs()
    scores[2, 0, 1] = value
    (_, theirs), (loss, ours) = both(scores, TARGETS, INPUT_LENGTHS, TARGET_LENGTHS, reduction="none")
    assert loss[0].isnan()
    assert not loss[1:].isnan().any()
    assert ours[:, 0].isnan().all()
    torch.testing.assert_close(ours[:, 1:], theirs[:, 1:])


@pytest.mark.usefixtures("either_way")
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


@pytest.mark.parametrize(("zero_infinity", "frames"), [(False, INPUT_LENGTHS), (True, TOO_SHORT)])
def test_reductions_that_pytorch_lacks(zero_infinity, frames):
    """They are made of PyTorch's losses, in every way in which a call can go."""
    lattice, counts = (TARGETS, frames, TARGET_LENGTHS), torch.as_tensor(TARGET_LENGTHS)
    made = {"batchmean": lambda losses: losses.mean(), "mean_volume": lambda losses: losses.sum() / counts.sum()}

    def ours(x, reduction):
        return bridge.ctc_loss(x, *lattice, reduction=reduction, zero_infinity=zero_infinity)

    for reduction, of_losses in made.items():
        leaf = log_probs().requires_grad_()
        options = {"reduction": "none", "zero_infinity": zero_infinity}
        want = of_losses(torch.nn.functional.ctc_loss(leaf, *lattice, **options))
        (slope,) = torch.autograd.grad(want, leaf)
        (gradient,) = torch.autograd.grad(ours(leaf, reduction), leaf)
        functional = torch.func.grad(lambda x, reduction=reduction: ours(x, reduction))(leaf.detach())
        with torch.no_grad():
            torch.testing.assert_close(ours(leaf, reduction), want)
        torch.testing.assert_close(ours(leaf, reduction), want)
        torch.testing.assert_close(gradient, slope)
        torch.testing.assert_close(functional, slope)
    short = torch.zeros(len(TARGET_LENGTHS), dtype=torch.int64)
    empty = bridge.ctc_loss(log_probs(), TARGETS, INPUT_LENGTHS, short, reduction="mean_volume")
    torch.testing.assert_close(empty, bridge.ctc_loss(log_probs(), TARGETS, INPUT_LENGTHS, short, reduction="sum"))


def test_pytorch_s_old_name_of_the_mean():
    lattice = TARGETS, INPUT_LENGTHS, TARGET_LENGTHS
    old, warning = (
        {"reduction": "elementwise_mean"},
        r"^reduction='elementwise_mean' is deprecated.* use reduction='mean'",
    )
    functions = functional.ctc_loss, bridge.ctc_loss, bridge.ctc_loss_with_logits
    for function in (*(functools.partial(x, **old) for x in functions), bridge.CTCLoss(**old)):
        with pytest.warns(UserWarning, match=warning):
            loss = function(log_probs(), *lattice)
        torch.testing.assert_close(loss, functional.ctc_loss(log_probs(), *lattice))


def test_module_is_the_function():
    options = {"blank": 1, "reduction": "sum", "zero_infinity": True}
    targets = (TARGETS.clamp(0, 4) + 1) % C
    args = log_probs(), targets, INPUT_LENGTHS, TARGET_LENGTHS
    torch.testing.assert_close(bridge.CTCLoss(**options)(*args), torch.nn.CTCLoss(**options)(*args))
    assert isinstance(bridge.CTCLoss(), torch.nn.CTCLoss)
    assert repr(bridge.CTCLoss(2, "sum")) == (
        "CTCLoss(blank=2, reduction='sum', zero_infinity=False, normalized=True, batch_first=False)"
    )


@pytest.mark.parametrize("function", [bridge.ctc_loss, bridge.ctc_loss_with_logits])
def test_an_explicit_implementation_runs_or_raises(function):
    """However the loss is called: a kernel is not for the CPU."""
    args = TARGETS, INPUT_LENGTHS, TARGET_LENGTHS
    scores = log_probs()
    torch.testing.assert_close(function(scores, *args, implementation="xla"), function(scores, *args))
    scores = scores.float()  # in float64 there is no kernel anywhere

    def asked(scores):
        return function(scores, *args, implementation="pallas")

    for call in (asked, torch.func.grad(asked), lambda x: asked(x.requires_grad_())):
        with pytest.raises(ValueError, match=r"not for the platform cpu. Leave it to None"):
            call(scores.clone())
    with pytest.raises(ValueError, match=r"must be one of 'reference', 'xla', 'pallas', or None; got 'cuda'"):
        function(scores, *args, implementation="cuda")
    module = bridge.CTCLoss(implementation="pallas")
    assert "implementation='pallas'" in repr(module)
    with pytest.raises(ValueError, match=r"not for the platform cpu"):
        module(scores, *args)
    with pytest.raises(ValueError, match=r"not for the platform cpu"):
        bridge.warmup([(3, 1, 24, 1)], implementation="pallas")


# Each row compiles four programs.
@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize(
    ("either_way", "dtype", "normalized"),
    [
        pytest.param(own, dtype, normalized, marks=[] if quick else pytest.mark.full, id=f"{own}-{dtype}-{normalized}")
        for own in (False, True)
        for dtype in (torch.float32, torch.float64)
        for normalized in (True, False, None)  # None: of logits, which are never reduced to a sequence's own classes
        if not (own and normalized is None)
        for quick in [(dtype == torch.float64) != own or (not own and normalized is None)]
    ],
    indirect=["either_way"],
)
def test_the_reference_agrees_with_the_default(dtype, normalized):
    """Value, gradient and second derivative, an infeasible row's among them."""
    frames = torch.tensor([9, 7, 1, 5])
    targets = torch.tensor([[1, 2, 2], [3, 1, 0], [4, 1, 0], [0, 0, 0]])
    counts = torch.tensor([3, 2, 2, 0])  # two labels do not fit into one frame
    scores = log_probs(dtype)
    options = {} if normalized is None else {"normalized": normalized}
    function = bridge.ctc_loss_with_logits if normalized is None else bridge.ctc_loss

    def derivatives(implementation):
        leaf = scores.clone().requires_grad_()
        loss = function(leaf, targets, frames, counts, 0, "none", implementation=implementation, **options)
        weights = torch.tensor([1.0, 0.5, 2.0, -3.0], dtype=dtype)
        (plain,) = torch.autograd.grad(loss, leaf, weights, retain_graph=True)
        (first,) = torch.autograd.grad(loss, leaf, weights, create_graph=True)
        (second,) = torch.autograd.grad(first[:, [0, 1, 3]].square().sum(), leaf)
        return loss.detach(), plain, first.detach(), second[:, [0, 1, 3]]

    found, expected = derivatives("reference"), derivatives(None)
    assert [(x.dtype, x.shape) for x in found] == [(x.dtype, x.shape) for x in expected]
    torch.testing.assert_close(found, expected, equal_nan=True)
    assert found[0].isinf().tolist() == [False, False, True, False]


def test_the_module_for_logits():
    args = torch.randn(*log_probs().shape), TARGETS, INPUT_LENGTHS, TARGET_LENGTHS
    module = bridge.CTCWithLogitsLoss(0, "none", zero_infinity=True)
    torch.testing.assert_close(module(*args), bridge.ctc_loss_with_logits(*args, 0, "none", zero_infinity=True))
    assert repr(module) == "CTCWithLogitsLoss(blank=0, reduction='none', zero_infinity=True, batch_first=False)"
    turned = bridge.CTCWithLogitsLoss(reduction="sum", batch_first=True, implementation="reference")
    assert "implementation='reference'" in repr(turned)
    expected = bridge.ctc_loss_with_logits(*args, reduction="sum")
    torch.testing.assert_close(turned(args[0].transpose(0, 1), *args[1:]), expected)


def test_the_module_runs_the_reference():
    args = log_probs(), TARGETS, INPUT_LENGTHS, TARGET_LENGTHS
    module = bridge.CTCLoss(implementation="reference")
    assert "implementation='reference'" in repr(module)
    torch.testing.assert_close(module(*args), bridge.CTCLoss()(*args))


# Where we differ on purpose.


@pytest.mark.parametrize(
    ("dtype", "function"),
    [
        (torch.float16, bridge.ctc_loss),
        (torch.bfloat16, bridge.ctc_loss_with_logits),
        pytest.param(torch.float16, bridge.ctc_loss_with_logits, marks=pytest.mark.full),
        pytest.param(torch.bfloat16, bridge.ctc_loss, marks=pytest.mark.full),
    ],
)
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


@pytest.mark.usefixtures("either_way")
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


@pytest.mark.usefixtures("either_way")
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
