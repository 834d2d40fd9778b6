"""Test the bridge on a GPU, side by side with PyTorch's own kernels."""

import pytest
import torch
from torch.nn import functional

import bridge
from bridge import _programs

pytestmark = pytest.mark.gpu

DEVICE = "cuda:0"
T, N, C, S = 50, 6, 12, 10


def problem(device=DEVICE, dtype=torch.float32, frames=T):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(frames, N, C, generator=generator, dtype=torch.float64).log_softmax(2)
    targets = torch.randint(1, C, (N, S), generator=generator)
    input_lengths = torch.tensor([frames, frames - 3, frames, 7, frames, frames])
    return scores.to(device, dtype), targets, input_lengths, torch.tensor([S, 4, 1, S, 0, 9])


def value_and_gradient(function, scores, *rest, **options):
    leaf = scores.detach().clone().requires_grad_()
    loss = function(leaf, *rest, **options)
    loss.backward(torch.linspace(0.5, 2, loss.numel(), dtype=loss.dtype, device=loss.device).reshape(loss.shape))
    return loss.detach(), leaf.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("where", ["cpu", DEVICE])
@pytest.mark.parametrize("form", ["padded", "end to end"])
def test_parity_with_the_native_kernel(dtype, reduction, where, form):
    scores, targets, *lengths = problem(dtype=dtype)
    if form == "end to end":
        targets = torch.cat([row[:n] for row, n in zip(targets, lengths[1], strict=True)])
    rest = [x.to(where) for x in (targets, *lengths)]
    tolerance = {"rtol": 1e-5, "atol": 1e-3} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
    for zero_infinity in (False, True):
        options = {"reduction": reduction, "zero_infinity": zero_infinity}
        theirs = value_and_gradient(functional.ctc_loss, scores, *rest, **options)
        ours = value_and_gradient(bridge.ctc_loss, scores, *rest, **options)
        torch.testing.assert_close(ours, theirs, equal_nan=True, **tolerance)


def test_parity_with_cudnn():
    """cuDNN takes float32, blank 0, int32 on the host, end to end; all inputs of full length."""
    if not torch.backends.cudnn.is_available():
        pytest.skip("this PyTorch has no cuDNN")
    scores, targets, _, _ = problem()
    rest = targets.flatten().int(), torch.full((N,), T, dtype=torch.int32), torch.full((N,), S, dtype=torch.int32)
    leaf = scores.clone().requires_grad_()
    with torch.backends.cudnn.flags(enabled=True, deterministic=True):
        theirs = torch._cudnn_ctc_loss(leaf, *rest, 0, deterministic=True, zero_infinity=False)[0]
        theirs.sum().backward()
    ours = value_and_gradient(bridge.ctc_loss, scores, *rest, reduction="sum")
    torch.testing.assert_close(ours[0], theirs.sum().detach(), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(ours[1] / 0.5, leaf.grad, rtol=1e-3, atol=1e-3)


def test_nothing_is_copied_where_the_shape_is_a_size(monkeypatch):
    over, back = [], []

    def to_jax(tensor, real=_programs.to_jax):
        array = real(tensor)
        over.append((tensor.data_ptr(), getattr(array, "unsafe_buffer_pointer", lambda: None)()))
        return array

    def to_torch(array, real=_programs.to_torch):
        pointer = array.unsafe_buffer_pointer()
        tensor = real(array)
        back.append((pointer, tensor.data_ptr()))
        return tensor

    monkeypatch.setattr(_programs, "to_jax", to_jax)
    monkeypatch.setattr(_programs, "to_torch", to_torch)
    leaf, *rest = problem()
    leaf.requires_grad_()
    with bridge.set_sizes(None):
        bridge.ctc_loss(leaf, *rest).backward()
    assert over == [(leaf.data_ptr(),) * 2]
    assert back
    assert all(a == b for a, b in back)


def test_a_result_is_right_on_another_stream_at_once():
    """It is produced on one stream and used on the next, with long work queued before: no event may be missing."""
    scores, *rest = problem()
    expected = value_and_gradient(bridge.ctc_loss, scores, *rest)
    for _ in range(20):
        first, second = torch.cuda.Stream(), torch.cuda.Stream()
        first.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(first):
            slow = torch.randn(2000, 2000, device=DEVICE)
            for _ in range(5):
                slow = slow @ slow * 0.01
            late = scores + 0 * slow[0, 0].nan_to_num(0, 0, 0)
            loss, gradient = value_and_gradient(bridge.ctc_loss, late, *rest)
        second.wait_stream(first)
        with torch.cuda.stream(second):
            seen = loss.clone(), gradient.clone()
        second.synchronize()
        torch.testing.assert_close(seen, expected)


def test_an_input_overwritten_at_once_does_not_change_the_result():
    scores, *rest = problem()
    expected = value_and_gradient(bridge.ctc_loss, scores, *rest)[0]
    for _ in range(20):
        mine = scores.clone()
        loss = bridge.ctc_loss(mine, *rest)
        mine.fill_(-1e3)
        torch.testing.assert_close(loss / 1, expected)


def test_a_second_device():
    if torch.cuda.device_count() < 2:
        pytest.skip("this machine has one GPU")
    on_first = value_and_gradient(bridge.ctc_loss, *problem("cuda:0"))
    on_second = value_and_gradient(bridge.ctc_loss, *problem("cuda:1"))
    assert on_second[1].device == torch.device("cuda:1")
    torch.testing.assert_close([x.cpu() for x in on_second], [x.cpu() for x in on_first])


@pytest.mark.parametrize("shape", [(T, N), (64, 40)])
def test_the_same_bits_every_time(shape):
    scores = torch.randn(*shape, C, device=DEVICE)
    targets = torch.randint(1, C, (shape[1], S))
    torch.use_deterministic_algorithms(True)
    try:
        first, *others = (
            value_and_gradient(bridge.ctc_loss_with_logits, scores, targets, shape[0], S) for _ in range(10)
        )
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for again in others for a, b in zip(first, again, strict=True))


def test_an_illegal_label_on_the_gpu_is_a_nan_in_its_row():
    """Checking labels there would cost a synchronization."""
    scores, targets, *lengths = problem()
    targets = targets.to(DEVICE)
    targets[0, 0] = C
    loss, gradient = value_and_gradient(bridge.ctc_loss, scores, targets, *lengths, reduction="none")
    assert loss.isnan().tolist() == [True] + [False] * (N - 1)
    assert gradient[:, 0].isnan().all()
    assert not gradient[:, 1].isnan().any()


def test_autocast():
    features = torch.randn(T, N, 8, device=DEVICE)
    weight = torch.randn(8, C, device=DEVICE, requires_grad=True)
    _, *rest = problem()
    with torch.autocast("cuda", torch.float16):
        narrow = features @ weight
        ours = bridge.ctc_loss(narrow.log_softmax(2), *rest, zero_infinity=True)
        theirs = functional.ctc_loss(narrow.log_softmax(2), *rest, zero_infinity=True)
    assert (narrow.dtype, ours.dtype) == (torch.float16, torch.float32)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    (gradient,) = torch.autograd.grad(ours, weight)
    assert gradient.isfinite().all()


def test_alignment_posteriors_and_decoding():
    """The results are those on the CPU, and stay on the GPU."""
    scores, targets, frames, counts = problem()
    frames[3] = T  # nothing infeasible
    lattice = targets, frames, counts
    for function, rest in (
        (bridge.forced_align, lattice),
        (bridge.ctc_posteriors, lattice),
        (bridge.greedy_decode, (frames,)),
    ):
        for ours, want in zip(function(scores, *rest), function(scores.cpu(), *rest), strict=True):
            assert ours.device == torch.device(DEVICE)
            torch.testing.assert_close(ours.cpu(), want, rtol=1e-5, atol=1e-5)
    gradients = []
    for where in (DEVICE, "cpu"):
        leaf = scores.to(where, copy=True).requires_grad_()
        bridge.ctc_posteriors(leaf, *lattice).states[:, :, 1].sum().backward()
        gradients.append(leaf.grad.cpu())
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
