"""Few programs for many shapes, without waste, and the same results."""

import random

import jax
import jax.numpy as jnp
import pytest
import torch

import bridge
from bridge import _programs, _sizes

RANDOM = random.Random(0)
SHAPES = [(RANDOM.randint(50, 1500), RANDOM.randint(1, 64), RANDOM.randint(1, 200)) for _ in range(2000)]


def test_two_thousand_shapes_make_few_programs_with_little_waste():
    """The arithmetic alone; benchmarks/recompilation.py runs them."""
    sizes = bridge.Sizes()
    programs, computed, needed = set(), 0, 0
    for frames, sequences, labels in SHAPES:
        program = sizes.fit(frames, sequences, labels, accelerated=False)
        programs.add(program)
        computed += frames * -(-sequences // program[1]) * program[1] * (2 * program[2] + 1)
        needed += frames * sequences * (2 * labels + 1)
    assert len(programs) < 40
    assert computed < 1.5 * needed


def problem(frames, sequences, labels, classes=5):
    generator = torch.Generator().manual_seed(frames + sequences)
    scores = torch.randn(frames, sequences, classes, generator=generator).log_softmax(2)
    targets = torch.arange(sequences * labels).reshape(sequences, labels) % (classes - 1) + 1
    return scores, targets, [frames - n % 3 for n in range(sequences)], [labels - n % 2 for n in range(sequences)]


def value_and_gradient(scores, *rest, **options):
    leaf = scores.clone().requires_grad_()
    loss = bridge.ctc_loss(leaf, *rest, **options)
    loss.sum().backward()
    return loss.detach(), leaf.grad


@pytest.mark.parametrize("sequences", [1, pytest.param(16, marks=pytest.mark.full), 21])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_padding_changes_no_result(sequences, batch_first, reduction):
    scores, *rest = problem(12, sequences, 4)
    scores = scores.transpose(0, 1).contiguous() if batch_first else scores
    padded = value_and_gradient(scores, *rest, reduction=reduction, batch_first=batch_first)
    with bridge.set_sizes(None):
        exact = value_and_gradient(scores, *rest, reduction=reduction, batch_first=batch_first)
    torch.testing.assert_close(padded, exact)


def test_what_stands_in_the_padding_does_not_matter():
    """With deterministic algorithms, PyTorch fills what is not initialised with NaN."""
    scores, *rest = problem(12, 21, 4)

    def derivatives():
        leaf = scores.clone().requires_grad_()
        loss = bridge.ctc_loss(leaf, *rest)
        (first,) = torch.autograd.grad(loss, leaf, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), leaf)
        return loss.detach(), value_and_gradient(scores, *rest)[1], first.detach(), second

    expected = derivatives()
    torch.use_deterministic_algorithms(True)
    try:
        torch.testing.assert_close(derivatives(), expected, rtol=0, atol=0)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.fixture
def compilations():
    """How many programs have been compiled since."""
    _programs._losses_and_gradient["cpu"].clear_cache()
    return _programs._losses_and_gradient["cpu"]._cache_size


def test_many_shapes_share_a_program(compilations):
    for shape in ((33, 5, 20), (50, 1, 1), (64, 40, 30), (41, 17, 12)):
        value_and_gradient(*problem(*shape, classes=21))
    assert compilations() == 1


def test_the_first_pass_of_an_aligner_compiles_a_handful(compilations):
    """One utterance at a time, whose target is 1 to K among C = K + 1 classes."""
    pairs = [(20 + 5 * i, 130 + 16 * (i % 7)) for i in range(24)]
    for labels, frames in pairs:
        scores = torch.zeros(frames, 1, labels + 1).log_softmax(2)
        value_and_gradient(scores, torch.arange(1, labels + 1)[None], [frames], [labels])
    assert max(labels for labels, _ in pairs) == 135
    assert compilations() <= 6


@pytest.mark.parametrize("logits", [False, True])
def test_padded_classes_have_probability_zero(logits):
    """Of 13 classes, which are padded to 16."""
    loss = bridge.ctc_loss_with_logits if logits else bridge.ctc_loss
    scores, *rest = problem(64, 16, 4, classes=13)
    scores = scores.double()
    results = []
    for sizes in (bridge.Sizes(), bridge.Sizes(classes=(13,)), None):
        with bridge.set_sizes(sizes):
            leaf = scores.clone().requires_grad_()
            value = loss(leaf, *rest, reduction="none")
            (first,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
            (second,) = torch.autograd.grad(first.square().sum(), leaf)
            found = [value.detach(), first.detach(), second]
            if not logits:
                found += [*bridge.ctc_posteriors(scores, *rest), *bridge.forced_align(scores, *rest)]
            results.append(found)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])


@pytest.mark.parametrize("sequences", [1, 3, 4])
def test_few_sequences_with_many_classes_are_not_padded_to_many(sequences):
    """JAX is given as many rows as there are, or one more, and an alignment the classes of its targets alone."""
    assert bridge.Sizes().fit(3000, sequences, 40, False, classes=5000)[1] == {1: 1, 3: 4, 4: 4}[sequences]
    assert bridge.Sizes().fit(3000, sequences, 40, False, classes=100)[1] == 8
    assert bridge.Sizes().fit(3000, 5, 40, False, classes=5000)[1] == 8


def test_without_sizes_every_shape_is_compiled(compilations):
    with bridge.set_sizes(None):
        for frames in (5, 6):
            value_and_gradient(*problem(frames, 1, 1, classes=22))
    assert compilations() == 2


def test_warmup_compiles_ahead(compilations):
    bridge.warmup([(50, 3, 23, 20)])
    assert compilations() == 1
    value_and_gradient(*problem(60, 20, 3, classes=23))
    assert compilations() == 1


@pytest.mark.parametrize(
    "options",
    [
        {"logits": True},
        {"batch_first": True},
        {"dtype": torch.float64},
        {"blank": 1},
        {"implementation": "reference"},
    ],
)
def test_warmup_compiles_what_it_is_asked_for(compilations, options):
    bridge.warmup([(3, 1, 24, 1)], **options)
    assert compilations() == 1


def test_warmup_for_the_loss_alone(compilations):
    before = _programs._losses["cpu"]._cache_size()
    bridge.warmup([(3, 1, 25, 1)], gradient=False)
    assert (_programs._losses["cpu"]._cache_size() - before, compilations()) == (1, 0)


def test_sizes_of_one_s_own():
    sizes = bridge.Sizes(frames=(100, 150), labels=(7,), sequences=3)
    assert sizes.fit(100, 9, 7, accelerated=False) == (100, 3, 7)
    assert sizes.fit(101, 9, 8, accelerated=True) == (150, 3, 14)
    assert sizes.fit(601, 9, 29, accelerated=True) == (1200, 3, 56)


@pytest.mark.parametrize(("sequences", "rows"), [(1, 32), (32, 32), (33, 64), (200, 256)])
def test_a_batch_on_a_gpu_is_one_block(sequences, rows):
    assert bridge.Sizes().fit(50, sequences, 30, accelerated=True) == (64, rows, 30)


def test_set_sizes_holds_until_the_end_of_the_block():
    default = _sizes.current()
    with bridge.set_sizes(None):
        assert _sizes.current() is None
        with bridge.set_sizes(bridge.Sizes(sequences=2)):
            assert _sizes.current().sequences == 2
        assert _sizes.current() is None
    assert _sizes.current() is default


@pytest.mark.parametrize(
    ("sizes", "exception", "message"),
    [
        (64, TypeError, r"sizes must be bridge.Sizes\(...\), or None .* got 64"),
        (bridge.Sizes(frames=()), ValueError, r"Sizes.frames is \(\): .* at least one"),
        (bridge.Sizes(labels=(4, 4)), ValueError, r"Sizes.labels is \(4, 4\): .* ascending"),
        (bridge.Sizes(classes=(0,)), ValueError, r"Sizes.classes is \(0,\): .* at least 1"),
        (bridge.Sizes(sequences=0), ValueError, r"Sizes.sequences is \(0,\): .* at least 1"),
        (bridge.Sizes(frames=(1.5,)), TypeError, r"Sizes.frames must be .* got 1.5"),
    ],
)
def test_illegal_sizes(sizes, exception, message):
    default = _sizes.current()
    with pytest.raises(exception, match=message):
        bridge.set_sizes(sizes)
    assert _sizes.current() is default


def test_the_user_s_level_of_optimization_counts():
    level = "xla_backend_optimization_level"
    assert _programs._options_on_cpu("--xla_dump_to=/tmp").get(level) == 1
    assert level not in _programs._options_on_cpu(f"--{level}=0")
    for flags in ("", f"--{level}=3"):
        assert "xla_disable_hlo_passes" in _programs._options_on_cpu(flags)
        compiled = jax.jit(jnp.sin, compiler_options=_programs._options_on_cpu(flags))
        assert float(compiled(0.0)) == 0
