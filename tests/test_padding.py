"""Batches padded to a few sizes: the same losses and gradients, and errors that say what is wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxctc

RANDOM = np.random.default_rng(0)
FRAMES, LABELS, C = [17, 9, 30], [4, 0, 7], 6
INPUTS = [RANDOM.normal(size=(frames, C)).astype(np.float32) for frames in FRAMES]
TARGETS = [RANDOM.integers(1, C, labels) for labels in LABELS]


def together(arrays, axis):
    """One array, padded to the longest with what must not matter."""
    longest = max(map(len, arrays))
    return np.stack(
        [np.pad(x, [(0, longest - len(x))] + [(0, 0)] * (x.ndim - 1), constant_values=1) for x in arrays], axis
    )


@jax.jit
def loss_and_gradient(inputs, *rest):
    return jax.value_and_grad(lambda x: jaxctc.ctc_loss_with_logits(x, *rest, reduction="sum"))(inputs)


@pytest.mark.parametrize("lists", [True, False])
def test_losses_and_gradients_stay_the_same(lists):
    value, gradient = loss_and_gradient(together(INPUTS, 1), together(TARGETS, 0), np.array(FRAMES), np.array(LABELS))
    batch = (INPUTS, TARGETS) if lists else (together(INPUTS, 1), together(TARGETS, 0), FRAMES, LABELS)
    padded = jaxctc.pad_to_sizes(*batch, frames=(8, 40), labels=(5, 10), sequences=(2, 5))
    assert [x.shape for x in padded] == [(40, 5, C), (5, 10), (5,), (5,)]
    assert [x.dtype.name for x in padded] == ["float32", "int64", "int32", "int32"]
    assert all(isinstance(x, np.ndarray) for x in padded)
    found, slope = loss_and_gradient(*padded)
    np.testing.assert_allclose(found, value, rtol=1e-6)
    np.testing.assert_allclose(slope[:30, :3], gradient, atol=1e-6)
    assert not slope[30:].any()
    assert not slope[:, 3:].any()


def test_the_batch_may_come_first_and_be_on_a_device():
    inputs = jnp.asarray(together(INPUTS, 0), jnp.bfloat16)
    padded = jaxctc.pad_to_sizes(inputs, jnp.asarray(together(TARGETS, 0)), np.array(FRAMES), LABELS, batch_first=True)
    assert padded.inputs.shape == (3, 64, C)
    assert padded.targets.shape == (3, 30)
    assert isinstance(padded.inputs, jax.Array)
    assert isinstance(padded.targets, jax.Array)
    assert padded.inputs.dtype == jnp.bfloat16
    by_list = jaxctc.pad_to_sizes(INPUTS, TARGETS, batch_first=True)
    assert by_list.inputs.shape == (3, 64, C)
    np.testing.assert_array_equal(by_list.inputs[0, :17], INPUTS[0])
    np.testing.assert_array_equal(by_list.targets[2, :7], TARGETS[2])


def test_lengths_are_whole_unless_they_are_given():
    padded = jaxctc.pad_to_sizes(np.zeros((10, 2, 3)), np.ones((2, 4), int))
    assert padded.input_lengths.tolist() == [10, 10]
    assert padded.target_lengths.tolist() == [4, 4]
    assert jaxctc.pad_to_sizes(INPUTS, TARGETS, FRAMES, LABELS).input_lengths.tolist() == FRAMES


def test_sizes_double_beyond_the_largest():
    padded = jaxctc.pad_to_sizes(np.zeros((101, 1, 2)), np.ones((1, 3), int), frames=(30, 50), labels=(1,))
    assert padded.inputs.shape == (200, 1, 2)
    assert padded.targets.shape == (1, 4)


def test_few_shapes_for_many_batches():
    shapes = set()
    for _ in range(300):
        frames, labels = RANDOM.integers(1, 2049), RANDOM.integers(1, 255)
        padded = jaxctc.pad_to_sizes(np.zeros((frames, 2, 1), bool), np.zeros((2, labels), bool))
        shapes.add((padded.inputs.shape, padded.targets.shape))
        assert padded.inputs.shape[0] >= frames
        assert padded.targets.shape[1] >= labels
    assert len(shapes) <= 36


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((INPUTS, TARGETS[:2]), {}, "are of 3, 2, 3, 2 sequences: the numbers must be equal"),
        ((together(INPUTS, 1), TARGETS, FRAMES[:2]), {}, "are of 3, 3, 2, 3 sequences"),
        ((INPUTS, TARGETS, [1, 2, 3]), {}, r"lengths \[17, 9, 30\], and input_lengths is \[1, 2, 3\]: leave"),
        (([np.zeros((3, 2)), np.zeros((4, 3))], [[1], [1]]), {}, r"shapes \(3, 2\), \(4, 3\): only the first axis"),
        ((np.zeros((4, 1, 3)), np.array([1, 2])), {}, "end to end, give a list of one array each"),
        ((INPUTS, np.zeros((3, 4, 1), int)), {}, r"targets have the shape \(3, 4, 1\): they must be \(N, S\)"),
        ((INPUTS, TARGETS), {"frames": (20, 10)}, r"frames is \(20, 10\): sizes must be at least 1"),
        ((INPUTS, TARGETS), {"labels": ()}, r"labels is \(\): sizes must be"),
        ((INPUTS, TARGETS), {"sequences": (0, 4)}, r"sequences is \(0, 4\)"),
    ],
)
def test_errors(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        jaxctc.pad_to_sizes(*arguments, **options)


def test_a_size_is_a_whole_number():
    with pytest.raises(TypeError, match=r"frames must be one or more sizes, a Python int; got 1\.5"):
        jaxctc.pad_to_sizes(INPUTS, TARGETS, frames=(1.5,))
