"""What `jax.export` makes of every public function with symbolic sizes: one program, here called at two sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from public_functions import FUNCTIONS, WITH_GRADIENT, every, problem, result_and_gradient

import jaxctc
from jaxctc import compat


def exported(function, *constraints, scores=("t", "b", "c")):
    """Export a function of a batch's four arrays, with four symbolic sizes unless `scores` has numbers."""
    names = [x for x in (*scores, "s") if isinstance(x, str)]
    symbols = dict(zip(names, export.symbolic_shape(",".join(names), constraints=constraints), strict=True))
    frames, sequences, classes = (symbols.get(x, x) for x in scores)
    shapes = (frames, sequences, classes), (sequences, symbols["s"]), (sequences,), (sequences,)
    dtypes = jnp.float32, jnp.int32, jnp.int32, jnp.int32
    return export.export(jax.jit(function))(*map(jax.ShapeDtypeStruct, shapes, dtypes)).call


def batches():
    """Return one batch with more label slots than frames, and one of several segments with many classes."""
    scores, targets, *lengths = problem()
    return [scores, jnp.pad(targets, ((0, 0), (0, 7))), *lengths], problem(frames=150, sequences=3, classes=40)


def assert_equal(call, function, *arguments):
    found, want = call(*arguments), function(*arguments)
    assert jax.tree.structure(found) == jax.tree.structure(want)
    for x, y in zip(*map(jax.tree.leaves, (found, want)), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


# That decoder counts its blank from the last class, which a symbolic C does not have (docs/scaling.md).
@every(
    sorted(FUNCTIONS.keys() - {"tensorflow_ctc_beam_search_decoder"}),
    "ctc_loss_with_logits",
    "forced_align",
    "greedy_decode",
)
def test_one_program_serves_every_size(name):
    """Of the function and, where it has one, its gradient."""

    function = jax.jit(result_and_gradient(FUNCTIONS[name]) if name in WITH_GRADIENT else FUNCTIONS[name])
    call = exported(function)
    # Every size that the library chooses by is another one in these two batches.
    few, many = batches()
    for arguments in [few, many] if name in jaxctc.__all__ else [many]:
        assert_equal(call, function, *arguments)


_gradient = jax.grad(functools.partial(jaxctc.ctc_loss_with_logits, reduction="sum"))


@pytest.mark.full
@pytest.mark.parametrize(
    ("function", "constraints", "scores"),
    [
        (functools.partial(jaxctc.ctc_loss_with_logits, sequences_at_once=2), (), ("t", "b", "c")),
        (functools.partial(jaxctc.ctc_loss_with_logits, implementation="reference"), (), ("t", "b", "c")),
        (functools.partial(jaxctc.ctc_loss, max_target_length=2, reduction="none"), (), ("t", "b", "c")),
        (lambda x, y, *_: jaxctc.ctc_loss(x, y, x.shape[0], np.array([2, 1, 0])), (), ("t", 3, "c")),
        (lambda x, *rest: jax.jvp(lambda x: _gradient(x, *rest), (x,), (x,))[1], (), ("t", "b", "c")),
        (_gradient, ("b <= 3", "t <= 150"), ("t", "b", 40)),  # there is room to store all scores
        (_gradient, (), (150, "b", 40)),
        (_gradient, (), ("t", 3, 40)),
        (lambda x, *rest: compat.tensorflow_ctc_greedy_decoder(x, rest[1]), (), ("t", "b", 40)),
    ],
)
def test_options_and_fewer_symbolic_sizes(function, constraints, scores):
    assert_equal(exported(function, *constraints, scores=scores), function, *batches()[1])


def test_an_illegal_length_or_label_is_nan_where_no_number_can_be_checked_against():
    scores, targets, input_lengths, target_lengths = batches()[1]
    call = exported(functools.partial(jaxctc.ctc_loss, reduction="none"))
    wrong = targets.at[1, 0].set(40), input_lengths.at[0].set(151), target_lengths.at[0].set(3)
    for row, batch in (
        (1, (wrong[0], input_lengths, target_lengths)),
        (0, (targets, wrong[1], target_lengths)),
        (0, (targets, input_lengths, wrong[2])),
    ):
        assert np.isnan(call(scores, *batch)).tolist() == [i == row for i in range(3)]


def test_a_blank_that_may_be_no_class_raises_until_a_constraint_says_that_it_is_one():
    function = functools.partial(jaxctc.greedy_decode, blank=3)
    with pytest.raises(ValueError, match=r"^blank is 3, but C = c is symbolic.*constraints=\['c >= 4'\]"):
        exported(lambda scores, _, lengths, __: function(scores, lengths))
    exported(lambda scores, _, lengths, __: function(scores, lengths), "c >= 4")
    with pytest.raises(ValueError, match=r"^blank_index is -1, which counts from the last class, but C = c"):
        exported(lambda scores, _, lengths, __: compat.tensorflow_ctc_greedy_decoder(scores, lengths))


def test_a_kernel_is_not_made_for_symbolic_sizes():
    with pytest.raises(ValueError, match=r"^implementation is 'pallas'.*sizes are symbolic"):
        exported(functools.partial(jaxctc.ctc_loss, implementation="pallas"))
