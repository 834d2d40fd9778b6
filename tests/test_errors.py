"""Every message names the argument, the value, the legal range and the remedy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import jaxctc

SCORES = np.zeros((5, 2, 4), np.float32)
BATCH_FIRST = np.zeros((2, 5, 4), np.float32)
TARGETS = np.array([[1, 2], [3, 3]])
LEGAL = {"scores": SCORES, "targets": TARGETS, "input_lengths": [5, 5], "target_lengths": [2, 2]}


class Tracked(np.ndarray):
    """Stands for a PyTorch tensor."""

    requires_grad = True


ILLEGAL = [
    ({"input_lengths": [6, 1]}, ValueError, r"input_lengths\[0\] is 6, .* T = 5 frames: .* \[0, 5\]"),
    ({"input_lengths": [1, -1]}, ValueError, r"input_lengths\[1\] is -1, .* \[0, 5\]"),
    ({"target_lengths": [2, 3]}, ValueError, r"target_lengths\[1\] is 3, .* S = 2 slots: .* \[0, 2\]"),
    ({"input_lengths": [2, 2], "target_lengths": [5, 5]}, ValueError, r"S = 2 .* and target_lengths swapped\?"),
    ({"max_target_length": 1}, ValueError, r"target_lengths\[0\] is 2, but max_target_length is 1"),
    ({"max_target_length": -1}, ValueError, r"max_target_length is -1: it must be at least 0"),
    ({"input_lengths": [1, 2, 3]}, ValueError, r"input_lengths has shape \(3,\), .* N = 2 .* \(2,\)"),
    ({"input_lengths": [5.0, 4.0]}, TypeError, r"float64. Convert it with input_lengths.astype\(jnp.int32\)\.$"),
    ({"input_lengths": [1.0, 0.9]}, TypeError, r"0.9, a length relative to T: .*jnp.round\(input_lengths \* T\)"),
    ({"target_lengths": [1.0, 0.5]}, TypeError, r"0.5, a length relative to S: .*jnp.round\(target_lengths \* S\)"),
    ({"input_lengths": [5.0, 3.5]}, TypeError, r"It holds 3.5, which is no whole number"),
    ({"input_lengths": np.ones((2, 5), bool)}, TypeError, r"a mask, .* are input_lengths.sum\(axis=-1\)"),
    ({"input_lengths": np.tri(2, 5, 3, int)}, ValueError, r"For a mask, .* input_lengths.sum\(axis=-1\)"),
    ({"input_lengths": np.eye(6, dtype=int)[[5, 3]]}, ValueError, r"For one-hot .* input_lengths.argmax\(axis=-1\)"),
    ({"scores": BATCH_FIRST}, ValueError, r"targets must .* is \(N, T, C\), pass batch_first=True"),
    ({"scores": BATCH_FIRST, "targets": [1, 2, 3, 3]}, ValueError, r"input_lengths has .* pass batch_first=True"),
    (
        {"scores": BATCH_FIRST, "targets": [1, 2, 3, 3], "input_lengths": 5},
        ValueError,
        r"is 5, .* pass batch_first=True",
    ),
    ({"batch_first": True}, ValueError, r"targets must .* for \(T, N, C\) leave batch_first out"),
    ({"targets": ["ab", "c"]}, TypeError, r"targets must be labels, an array, got list of str"),
    ({"targets": [jnp.array([1, 2]), jnp.array([3])]}, ValueError, r"targets is ragged.* np.concatenate\(targets\)"),
    ({"targets": np.ones((2, 2), bool)}, TypeError, r"targets must be .* got bool. .* targets.argmax\(axis=-1\)"),
    ({"input_lengths": [1.0, 2]}, TypeError, r"input_lengths must be .* integer type, got float64"),
    ({"target_lengths": None}, TypeError, r"target_lengths must be .* got NoneType"),
    ({"blank": 4}, ValueError, r"blank is 4, .* C = 4 classes: .* \[0, 4\)"),
    ({"blank": -1}, ValueError, r"blank is -1, .* \[0, 4\).* C - 1"),
    ({"blank": 1.5}, TypeError, r"blank must be .* int; got 1.5"),
    ({"reduction": "max"}, ValueError, r"reduction must be one of 'none', .*, 'mean_volume'; got 'max'"),
    ({"zero_infinity": 1}, TypeError, r"zero_infinity must be True or False, .* got 1"),
    ({"batch_first": "yes"}, TypeError, r"batch_first must be True or False, .* 'yes'"),
    ({"targets": TARGETS[:1]}, ValueError, r"targets must have shape \(N, S\) with N = 2.* got \(1, 2\)"),
    ({"targets": [[1, 2], [3]]}, ValueError, r"targets is ragged"),
    ({"targets": [1, 2, 3]}, ValueError, r"targets holds 3 labels .* sum to 4"),
    ({"targets": TARGETS + 0.5}, TypeError, r"targets must be .* integer type, got float64. It holds 1.5"),
    ({"targets": TARGETS - 1}, ValueError, r"targets\[0, 0\] is 0, which is the blank"),
    ({"targets": TARGETS + 1}, ValueError, r"targets\[1, 0\] is 4, .* \[0, 4\)"),
    ({"targets": [1, 2, 3, 9]}, ValueError, r"targets\[3\] \(label 1 of sequence 1\) is 9"),
    ({"scores": SCORES.astype(int)}, TypeError, r"(log_probs|logits) must be of a floating-point type"),
    ({"scores": SCORES[0, 0]}, ValueError, r"must have shape \(T, N, C\).* got \(4,\)"),
    ({"scores": SCORES[..., :0]}, ValueError, r"has no classes"),
    ({"scores": SCORES[:, 0]}, ValueError, r"targets must have shape \(S,\) for one sequence"),
]


@pytest.mark.parametrize("function", [jaxctc.ctc_loss, jaxctc.ctc_loss_with_logits])
@pytest.mark.parametrize(
    ("change", "exception", "message"), ILLEGAL, ids=[f"{next(iter(c))} {m[:24]}" for c, _, m in ILLEGAL]
)
def test_illegal_argument(function, change, exception, message):
    arguments = LEGAL | change
    with pytest.raises(exception, match=message):
        function(arguments.pop("scores"), **arguments)


def test_a_tensor_that_requires_a_gradient_is_sent_to_the_bridge():
    arguments = LEGAL | {"scores": SCORES.view(Tracked)}
    with pytest.warns(
        UserWarning, match=r"^log_probs is a PyTorch tensor .* the package bridge, .* log_probs.detach\("
    ):
        loss = jaxctc.ctc_loss(arguments.pop("scores"), **arguments)
    assert jnp.isfinite(loss)


@pytest.mark.parametrize(
    ("row", "value", "message"),
    [
        (1, np.array([5, 6]), r"input_lengths\[1\] is 6: .* \[0, 5\]"),
        (2, np.array([-1, 2]), r"target_lengths\[0\] is -1: .* \[0, 2\]"),
        (0, np.array([[1, 2], [3, 7]]), r"label 1 of sequence 1 is 7: .* \[0, 4\)"),
        (None, None, None),
    ],
)
def test_check_batch_names_the_row_under_jit(row, value, message):
    problem = [TARGETS, np.array([5, 5]), np.array([2, 2])]
    if row is not None:
        problem[row] = value

    def loss(*problem):
        jaxctc.check_batch(SCORES, *problem)
        return jaxctc.ctc_loss(SCORES, *problem)

    error, result = jax.jit(checkify.checkify(loss))(*problem)
    if message is None:
        assert error.get() is None
        assert jnp.isfinite(result)
    else:
        assert jnp.isnan(result)
        with pytest.raises(checkify.JaxRuntimeError, match=message):
            error.throw()
