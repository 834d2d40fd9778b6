"""What crosses, how, and who may write where afterwards."""

import timeit

import jax
import numpy as np
import pytest
import torch

import bridge
from bridge import _dlpack, _programs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tensor_is_shared_and_not_copied(dtype):
    tensor = torch.zeros(1 << 24, dtype=dtype)
    assert _dlpack.to_jax(tensor).ctypes.data == tensor.data_ptr()


def test_a_program_takes_the_host_s_memory_as_it_is():
    """It does not tell its pointers, but copying 64 MB would take a hundred times as long."""
    tensor = torch.zeros(1 << 24)
    first = jax.jit(lambda x: x[0])
    first(_dlpack.to_jax(tensor)).block_until_ready()
    shared = min(timeit.repeat(lambda: first(_dlpack.to_jax(tensor)).block_until_ready(), number=1, repeat=20))
    copied = min(timeit.repeat(tensor.clone, number=1, repeat=5))
    assert shared < copied / 4


def test_zeros_of_autograd_s_have_no_memory_to_share():
    assert _dlpack.to_jax(torch._efficientzerotensor((2, 3))).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_an_array_is_shared_and_not_copied():
    array = jax.numpy.arange(64.0)
    pointer = array.unsafe_buffer_pointer()
    assert _dlpack.to_torch(array).data_ptr() == pointer


@pytest.fixture
def crossings(monkeypatch):
    """The pointers of all that goes over and comes back."""
    seen = {"over": [], "back": []}

    def to_jax(tensor, real=_dlpack.to_jax):
        seen["over"].append(tensor.data_ptr())
        return real(tensor)

    def to_torch(array, real=_dlpack.to_torch):
        made = real(array)
        seen["back"].append(made.data_ptr())
        return made

    monkeypatch.setattr(_programs, "to_jax", to_jax)
    monkeypatch.setattr(_programs, "to_torch", to_torch)
    return seen


@pytest.mark.parametrize(
    ("shape", "batch_first", "sizes"),
    [((64, 16, 8), False, bridge.Sizes()), ((16, 64, 8), True, bridge.Sizes()), ((20, 3, 5), False, None)],
    ids=["a size", "a size, batch first", "no padding"],
)
def test_no_copy_where_the_shape_is_a_size(crossings, shape, batch_first, sizes):
    leaf = torch.zeros(shape, requires_grad=True)
    frames, sequences = (shape[1], shape[0]) if batch_first else shape[:2]
    targets = torch.ones(sequences, 2, dtype=torch.long)
    with bridge.set_sizes(sizes):
        loss = bridge.ctc_loss(leaf, targets, [frames] * sequences, [2] * sequences, batch_first=batch_first)
        loss.backward()
    assert crossings["over"] == [leaf.data_ptr()]
    assert leaf.grad.data_ptr() == crossings["back"][-1]


def test_blocks_of_a_batch_that_is_batch_first_are_shared(crossings):
    scores = torch.zeros(32, 64, 8)
    bridge.ctc_loss(scores, torch.ones(32, 2, dtype=torch.long), [64] * 32, [2] * 32, batch_first=True)
    assert crossings["over"] == [scores.data_ptr(), scores[16:].data_ptr()]


def test_a_gradient_asked_for_twice_is_the_caller_s_each_time():
    leaf = torch.zeros(64, 16, 5, requires_grad=True)
    loss = bridge.ctc_loss(leaf, torch.ones(16, 2, dtype=torch.long), [64] * 16, [2] * 16)
    (first,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    kept = first.clone()
    first.zero_()
    (second,) = torch.autograd.grad(loss, leaf)
    assert torch.equal(second, kept)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_type_crosses_as_itself(dtype):
    tensor = torch.linspace(-1, 1, 32, dtype=dtype).reshape(4, 8)
    with _dlpack.jax_context(tensor):
        array = jax.numpy.asarray(_dlpack.to_jax(tensor))
        assert array.dtype.name == str(dtype).removeprefix("torch.")
        back = _dlpack.to_torch(array + 0)
    assert back.dtype == dtype
    torch.testing.assert_close(back, tensor, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_nothing_to_share(dtype):
    tensor = torch.zeros(3, 0, dtype=dtype)
    with _dlpack.jax_context(tensor):
        assert _dlpack.to_torch(jax.numpy.asarray(_dlpack.to_jax(tensor))).shape == (3, 0)
        assert _dlpack.to_torch(jax.numpy.asarray(_dlpack.to_jax(tensor))).dtype == dtype


def test_the_caller_s_own_settings_stay_as_they_are():
    x64 = jax.config.jax_enable_x64
    loss = bridge.ctc_loss(torch.zeros(3, 1, 2, dtype=torch.float64), torch.ones(1, 1, dtype=torch.long), [3], [1])
    assert loss.dtype == torch.float64
    assert jax.config.jax_enable_x64 == x64
    assert jax.numpy.zeros(1).dtype == (np.float64 if x64 else np.float32)


def test_float64_is_not_narrowed_on_the_way():
    scores = torch.full((1, 1, 2), -1 / 3, dtype=torch.float64)
    loss = bridge.ctc_loss(scores, torch.ones(1, 1, dtype=torch.long), [1], [1])
    assert loss.item() == 1 / 3


def test_results_belong_to_the_caller():
    """An in-place change of one result reaches neither the input nor a later result."""
    scores = torch.randn(6, 2, 3).log_softmax(2).requires_grad_()
    problem = torch.tensor([[1], [2]]), [6, 6], [1, 1]
    before = scores.detach().clone()
    loss = bridge.ctc_loss(scores, *problem, reduction="none")
    kept = loss.detach().clone()
    loss.sum().backward()
    with torch.no_grad():
        loss += 1
        scores.grad.zero_()
    torch.testing.assert_close(scores.detach(), before, rtol=0, atol=0)
    torch.testing.assert_close(bridge.ctc_loss(scores, *problem, reduction="none"), kept, rtol=0, atol=0)


def test_an_input_changed_after_the_call_does_not_change_the_result():
    """JAX computes asynchronously; the result must be complete before the caller can touch the input."""
    scores = torch.randn(64, 8, 16).log_softmax(2)
    problem = torch.ones(8, 4, dtype=torch.long), [64] * 8, [4] * 8
    expected = bridge.ctc_loss(scores.clone(), *problem, reduction="none")
    for _ in range(30):
        mine = scores.clone()
        loss = bridge.ctc_loss(mine, *problem, reduction="none")
        mine.fill_(-1e3)
        assert torch.equal(loss, expected)


def test_a_device_that_jax_lacks():
    if any(device.platform == "gpu" for device in jax.devices()):
        pytest.skip("this JAX has a GPU backend")
    with pytest.raises(RuntimeError, match=r"on cuda:0, but this JAX has no cuda backend.*jax\[cuda1\d\].*\.cpu\(\)"):
        _dlpack._device(torch.device("cuda:0"))


def test_a_device_that_the_bridge_does_not_know():
    with pytest.raises(RuntimeError, match=r"on mps: .* CPU and CUDA.*\.cpu\(\)"):
        _dlpack._device(torch.device("mps"))
