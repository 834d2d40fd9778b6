"""Shapes checked, promotions strict: what a user may switch on must not break the library."""

import collections
import contextlib
import gc
import importlib.util
import itertools
import os
from pathlib import Path

import compiler

os.environ.update(compiler.environment())

import jax
import pytest
from jaxtyping import install_import_hook

# The modules that hold arrays; what the public functions accept and raise is theirs to say.
SHAPED = [
    f"jaxctc.{name}"
    for name in (
        "_autodiff",
        "_forward_backward",
        "_kernels.step",
        "_kernels.tpu",
        "_kernels.tpu_layout",
        "_kernels.tpu_passes",
        "_lattice",
        "_parallel",
        "_reference",
    )
]
# A GPU machine has what it has: there, beartype may be missing.
checked = importlib.util.find_spec("beartype") is not None
with install_import_hook(SHAPED, "beartype.beartype") if checked else contextlib.nullcontext():
    import jaxctc  # noqa: F401

jax.config.update("jax_num_cpu_devices", 8)  # virtual ones, for what is sharded
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# What JAX traces stays, and looking through it for garbage, again and again, takes a twentieth of the time.
gc.set_threshold(100_000, 50, 100)

# What `make test` leaves to `make test-all`, and why: whole files, or those of their tests that are named.
FULL = {
    "kernels, interpreted on a CPU, or lowered and compiled for a machine that need not be there": [
        "test_tpu_kernel.py",
        "test_gpu_kernel.py",
        "test_products.py",
        "test_implementation.py::test_a_kernel_runs_where_it_is_asked_for",
        "test_implementation.py::test_a_kernel_for_gpus_reads_the_scores_where_they_are",
        "test_implementation.py::test_a_gpu_gathers_again_what_it_would_have_to_keep",
        "test_implementation.py::test_columns_of_one_label_are_added_up_by_tensor_cores_to_the_last_digit",
        "test_implementation.py::test_the_loops_run_everywhere_else",
        "test_implementation.py::test_a_kernel_runs_within_shard_map",
        "test_implementation.py::test_a_proven_kernel_runs_unasked_where_it_can",
        "test_implementation.py::test_a_chosen_implementation_is_program_for_program_what_its_name_gives",
        "test_implementation.py::test_a_default_is_program_for_program_what_its_name_gives",
        "test_implementation.py::test_one_program_for_several_platforms",
        "test_implementation.py::test_the_second_derivative_is_that_of_the_recursion",
        "test_implementation.py::test_losses_that_come_of_the_loss_take_its_kernels",
        "test_implementation.py::test_posteriors_take_what_kernels_leave",
    ],
    "how programs are made: what they keep in memory, compute, say between devices, and how many there are": [
        "test_both_ends.py::test_long_recordings_take_little_memory",
        "test_posteriors.py::test_what_is_not_used_is_not_computed",
        "test_export.py",
        "test_slices.py",
        "bridge/test_sizes.py::test_the_first_pass_of_an_aligner_compiles_a_handful",
        "bridge/test_sizes.py::test_warmup_compiles_what_it_is_asked_for",
        "bridge/test_sizes.py::test_without_sizes_every_shape_is_compiled",
    ],
    "several devices": ["test_frames.py", "test_sharding.py", "test_public_functions.py::test_axes_may_be_explicit"],
    "the same answers, asked for on another way or in other types": [
        "test_against_torch.py::test_drawn_cases",
        "test_arguments.py::test_targets_end_to_end",
        "test_both_ends.py::test_agrees_where_states_are_walked_again",
        "test_gpu_loops.py",
        "test_public_functions.py::test_debug_nans_reports_nothing_without_jit",
        "test_variants.py::test_infeasible_and_invalid_rows_touch_no_others",
        "test_variants.py::test_layouts_and_reductions",
        "bridge/test_alignment.py",
        "bridge/test_derivatives.py::test_gradgradcheck",
        "bridge/test_half_precision.py::test_padded_frames_are_0_whatever_the_cotangent",
        "bridge/test_half_precision.py::test_a_scaled_gradient_is_narrowed_once",
        "bridge/test_half_precision.py::test_second_derivatives",
        "bridge/test_numbers.py",
        "bridge/test_parity.py::test_an_explicit_implementation_runs_or_raises",
        "bridge/test_parity.py::test_the_reference_agrees_with_the_default",
        "bridge/test_sizes.py::test_padded_classes_have_probability_zero",
        "bridge/test_threads.py",
        "bridge/test_upstream.py",
        "bridge/test_vocabulary.py::test_against_pytorch",
    ],
    "processes of their own, each of which imports and compiles everything again": [
        "test_distributed.py",
        "test_package.py::test_the_core_imports_nothing_that_it_can_do_without",
        "bridge/test_machinery.py::test_distributed_data_parallel",
        "bridge/test_processes.py",
        "test_diagnose.py::test_the_function_and_the_command_have_one_name",
    ],
    "trainings": [
        "test_diagnose.py::test_handwritten_lines_early_and_late",
        "test_diagnose.py::test_spoken_digits_before_and_after_the_first_steps",
    ],
    "other libraries' signatures, samples and compilers": [
        "test_compat.py",
        "test_compat_decoding.py",
        "bridge/test_torch_samples.py",
        "bridge/test_half_precision.py::test_the_same_when_traced",
    ],
    "what the pages and docstrings say, run as a reader would": [
        "bridge/test_readme.py",
        "test_docs.py::test_the_code_of_every_page_runs",
        "test_package.py::test_examples_in_docstrings",
        "test_diagnose.py::test_the_page_s_example_prints_what_it_says",
    ],
    "the benchmarks' own tests": ["test_benchmarks.py"],
    "pictures": [
        "test_plot.py::test_the_three_panels_share_one_axis_of_time",
        "test_plot.py::test_the_bars_have_the_frames_and_the_confidence_of_the_spans",
        "test_plot.py::test_an_alignment_from_end_to_end",
        "test_plot.py::test_scores_are_drawn_without_spans",
        "test_plot.py::test_a_hundred_names_do_not_overlap",
        "test_plot.py::test_the_work_for_one_more_span_does_not_grow",
    ],
    "memory, of programs that are compiled as for users": ["test_bfloat16.py::test_no_copy_of_the_scores"],
}

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture
def x64():
    """Float64 for one test; the others run with JAX's default."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def shared_data() -> Path:
    """Real inputs beside the checkout, which not everybody has."""
    if not SHARED.is_dir():
        pytest.skip("the shared data directory is not beside this checkout")
    return SHARED


def pytest_collection_modifyitems(items):
    """Marks as `full` what is in the table, which may name nothing that is not there."""
    here = Path(__file__).parent
    tests = collections.defaultdict(set)
    for name in itertools.chain.from_iterable(FULL.values()):
        file, _, test = name.partition("::")
        tests[file].add(test)
        if not (here / file).exists():
            raise pytest.UsageError(f"{__file__} names {file}, which does not exist")
    for item in items:
        file = item.path.relative_to(here).as_posix()
        if missing := [test for test in tests[file] if test and not hasattr(item.module, test)]:
            raise pytest.UsageError(f"{__file__} names tests that {file} does not have: {missing}")
        if tests[file] & {"", item.originalname}:
            item.add_marker(pytest.mark.full)


def pytest_runtest_teardown(item, nextitem):
    """Drop what JAX has traced and compiled when a file ends: that of all files together takes many gigabytes."""
    if nextitem is None or nextitem.path != item.path:
        jax.clear_caches()
