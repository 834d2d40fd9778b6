"""What `jaxctc.diagnose` finds: in a batch for every code, and in healthy ones nothing that is not true."""

import functools
import itertools
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import batches
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxctc
from jaxctc._tools.conformance import oracle
from jaxctc.diagnose import Row
from jaxctc.diagnose.__main__ import main
from jaxctc.diagnose._catalogue import CODES, GROUPS
from jaxctc.diagnose._edit_distance import edit_distance

ROOT = Path(__file__).parents[1]
PACKAGE = Path(jaxctc.__file__).parents[1]
"""Where it is imported from: a checkout, or a wheel."""
BROKEN = {name: (codes.split(), arguments) for name, codes, arguments in batches.broken()}


@pytest.mark.parametrize("name", BROKEN)
def test_it_finds_what_is_wrong_and_nothing_else(name):
    codes, arguments = BROKEN[name]
    found = jaxctc.diagnose(**arguments)
    assert sorted(found.codes) == sorted(codes)
    assert found.ok == all(CODES[code].severity == "note" for code in codes)
    for finding in found.findings:
        assert f"{finding.severity.upper()}: {finding.code}. " in str(found)
        assert (finding.severity, finding.what) == CODES[finding.code][:2]
        assert finding.remedy.startswith(CODES[finding.code].remedy)
        assert finding.evidence
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["findings"][0]["code"] == found.codes[0]


def test_every_code_has_a_batch_that_has_it():
    assert {code for codes, _ in BROKEN.values() for code in codes} == set(CODES)


HEALTHY = {
    "as it is": {},
    "batch first": {"log_probs": batches.healthy()["log_probs"].swapaxes(0, 1), "batch_first": True},
    "labels end to end": {
        "targets": np.concatenate(
            [t[:n] for t, n in zip(*(batches.healthy()[k] for k in ("targets", "target_lengths")), strict=True)]
        )
    },
    "jax arrays and lists": {
        "log_probs": jnp.asarray(batches.healthy()["log_probs"]),
        "input_lengths": batches.healthy()["input_lengths"].tolist(),
    },
    "bfloat16": {"log_probs": jnp.asarray(batches.healthy()["log_probs"], jnp.bfloat16)},
    "float16": {"log_probs": batches.healthy()["log_probs"].astype(np.float16)},
    "float64": {"log_probs": batches.healthy()["log_probs"].astype(np.float64)},
    "one sequence": {
        "log_probs": batches.healthy()["log_probs"][:, 0], "targets": [3, 3, 2, 2], "input_lengths": 24,
        "target_lengths": 4,
    },
    "logits that are called logits": {"log_probs": batches.healthy()["log_probs"] * 2 + 3, "from_logits": True},
    "a class that no target uses, masked": {
        "log_probs": np.where(np.arange(batches.C) == 7, -np.inf, batches.healthy()["log_probs"]),
        "targets": np.minimum(batches.healthy()["targets"], 6),
    },
    "another blank": batches.with_blank(5),
    "logits with an offset": {"log_probs": batches.healthy()["log_probs"] + 100, "from_logits": True},
    "the same blank in most frames, the last ones too": batches.without_padding(batches.healthy()["targets"], noise=0),
    "a legal 0 at the end of most targets, and within others": batches.without_padding(
        np.array([[1, 2, 3, 0, 0]] * 4 + [[1, 0, 2, 0, 3]] * 2), blank=7
    ),
    "float16, a class masked": {
        "log_probs": np.where(np.arange(batches.C) == 7, -np.inf, batches.healthy()["log_probs"]).astype(np.float16),
        "targets": np.minimum(batches.healthy()["targets"], 6),
    },
    "many labels": batches.many_labels(np.arange(1, batches.C)),
    "a legal 0 at the end of a few targets": batches.edited(
        "targets", batches.put(slice(None, 2), slice(3, None), value=0), batches.with_blank(7)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HEALTHY)
def test_nothing_is_wrong_with_a_healthy_batch(name):
    found = jaxctc.diagnose(**batches.changed(**HEALTHY[name]))
    assert found.codes == ()
    assert found.ok
    assert "Nothing is wrong with it." in str(found)


def test_a_young_model_is_not_taken_for_a_softmax_too_many():
    """Weak logits and a little more for the blank: read as probabilities they would add up to 1."""
    weak = np.random.default_rng(0).normal(size=(batches.T, batches.N, batches.C)) * 0.01
    weak[:, :, 0] += 0.7
    assert jaxctc.diagnose(**batches.changed(log_probs=weak, from_logits=True)).codes == ("all-blank",)


def test_classes_on_the_axis_of_the_frames_are_pointed_at():
    """(N, C, T) passed as (N, T, C): 32 classes, 8 frames."""
    batch = batches.changed(targets=np.full((batches.N, 1), 30), target_lengths=1, input_lengths=[8, 8, 8, 8, 8, 7])
    scores = np.full((batches.N, 32, 8), -np.log(32))
    (finding, *_) = jaxctc.diagnose(**{**batch, "log_probs": scores, "batch_first": True}).findings
    assert (finding.code, "classes and frames are swapped" in finding.remedy) == ("label-range", True)


def test_the_evidence_is_in_numbers():
    def evidence(name):
        (finding,) = jaxctc.diagnose(**BROKEN[name][1]).findings
        return finding.rows, finding.evidence, finding.remedy

    rows, numbers, remedy = evidence("too few frames for a repeat")
    assert (rows, numbers) == ((0,), {"frames": [4], "frames_needed": [5], "labels": [4], "repeats": [1]})
    assert "Row 0 has 4 frames and needs 5. Enough would be to subsample by 1 instead of 2, or by 3 in" in remedy
    rows, numbers, remedy = evidence("lengths in samples")
    assert (rows, numbers["factor"]) == (tuple(range(6)), 160)
    assert remedy.endswith("divided by 160, they are 24, 22, 19, 24, 21, 16.")
    remedy = evidence("lengths before subsampling, T is padded")[2]
    assert remedy.endswith("by more if T is padded. Divided by 4, for instance, they are 24, 22, 19, 24, 21, 16.")
    rows, numbers, _ = evidence("targets in another order")
    assert numbers["spells_the_target_of_row"] == [(n + 1) % 6 for n in rows]
    assert evidence("lengths divided twice")[1]["with_all_frames"] == [0] * 6
    assert evidence("the blank of another model")[2].endswith("It seems to be 7.")
    assert evidence("a masked label")[1]["classes_masked_in_every_frame"] == [3]
    assert evidence("NaN")[:2] == ((1,), {"scores": [8], "first_frame_of_the_first_row": 2, "its_classes": [*range(8)]})
    assert evidence("a mask as lengths")[1]["sums"] == batches.healthy()["input_lengths"].tolist()
    assert evidence("padded with -1")[1]["without_padding"] == [4, 3, 4, 3]
    assert evidence("log(softmax + 1e-7)")[1]["logarithm_of"] == 1e-7
    assert evidence("every length is T")[:2] == (
        (2, 4, 5), {"input_length": 24, "frames_before_the_end": [19, 21, 16]},
    )  # fmt: skip


def test_the_table_is_the_oracle_s():
    batch = batches.healthy()
    found = jaxctc.diagnose(**batch, labels=batches.NAMES)
    for n, row in enumerate(found.rows):
        frames, labels = batch["input_lengths"][n], batch["targets"][n, : batch["target_lengths"][n]].tolist()
        assert row[:4] == (
            frames,
            len(labels),
            len(labels) + sum(a == b for a, b in itertools.pairwise(labels)),
            True,
        )
        assert row.target == "".join(batches.NAMES[k] for k in labels) == row.reading


def test_the_table_is_the_same_for_another_blank():
    for row, other in zip(
        *(jaxctc.diagnose(**b).rows for b in (batches.healthy(), batches.with_blank(5))), strict=True
    ):
        np.testing.assert_allclose(row[4:9], other[4:9], rtol=1e-5)


def test_losses_and_entropies_are_those_of_every_path():
    rng, sequences, classes = np.random.default_rng(0), batches.N, batches.C
    scores = batches.log_softmax(rng.normal(size=(5, sequences, classes))).astype(np.float32)
    targets = np.array([[1, 2], [1, 1], [2, 0], [3, 4], [7, 7], [5, 0]])
    frames, counts = [5, 4, 3, 2, 5, 4], [2, 2, 1, 2, 2, 0]
    found = jaxctc.diagnose(scores, targets, frames, counts)
    for n, row in enumerate(found.rows):
        target = tuple(targets[n, : counts[n]].tolist())
        paths = oracle.paths_by_target(frames[n], classes, 0)[target]
        of_paths = scores[np.arange(frames[n]), n, paths].astype(float).sum(axis=1)
        loss, _ = oracle.by_enumeration(scores[: frames[n], n], target, 0)
        entropy = -(np.exp(of_paths + loss) * (of_paths + loss)).sum()
        np.testing.assert_allclose([row.loss, row.entropy], [loss, entropy], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(row.uniform_loss, frames[n] * math.log(classes) - math.log(len(paths)), atol=1e-12)


def test_what_no_batch_has_does_not_raise():
    nothing = [None, "", [], {}, object(), np.zeros(()), np.zeros((2, 0)), [[1], [2, 3]], 1e300, -1, True, b"x", 2**80]
    batch = batches.healthy()
    one = {**batch, "log_probs": batch["log_probs"][:, 0], "targets": [3], "input_lengths": 24, "target_lengths": 1}
    for arguments, name, value in itertools.product((batch, one), batch, nothing):
        found = jaxctc.diagnose(**{**arguments, name: value})
        assert isinstance(str(found), str)
        json.dumps(found.as_dict(), allow_nan=False)
    for fill in (np.nan, np.inf, -np.inf, -1e30, 1e30):
        found = jaxctc.diagnose(
            **batches.changed(log_probs=np.full((batches.T, batches.N, batches.C), fill, np.float32))
        )
        assert not found.ok
        json.dumps(found.as_dict(), allow_nan=False)


def test_a_traced_argument_is_an_error_that_says_what_to_do():
    with pytest.raises(TypeError, match=r"Call it outside of jax\.jit"):
        jax.jit(lambda x: jaxctc.diagnose(**batches.changed(log_probs=x)).ok)(batches.healthy()["log_probs"])


def test_the_longer_report_names_the_rows_of_findings():
    found = jaxctc.diagnose(**batches.edited("input_lengths", batches.put(5, value=2)))
    findings = tuple(f._replace(rows=(5, 11, 17, 23, 29)) for f in found.findings)
    report = str(jaxctc.Diagnosis(findings, found.rows * 5, found.shape, found.blank))
    assert "rows      5, 11, 17, 23, 29" in report
    assert re.search(r"^ 29 .* no ", report, re.MULTILINE)
    assert report.endswith("... and 18 more rows.")


@pytest.mark.parametrize(
    ("a", "b", "distance"), [([], [], 0), ([1, 2], [], 2), ([1, 2, 3], [1, 3], 1), ([2, 1], [1, 2], 2)]
)
def test_edit_distance(a, b, distance):
    assert edit_distance(a, b) == edit_distance(b, a) == distance


def saved(path, **arguments):
    np.savez(path, **arguments)
    return str(path)


def test_the_command_says_by_its_exit_whether_something_is_wrong(tmp_path, capsys):
    healthy, names = batches.healthy(), {"labels": np.array(batches.NAMES)}
    assert main([saved(tmp_path / "a.npz", **healthy, **names)]) == 0
    assert "Nothing is wrong with it." in capsys.readouterr().out
    half = {**healthy, "log_probs": np.asarray(jnp.asarray(healthy["log_probs"], jnp.bfloat16))}
    assert main([saved(tmp_path / "b.npz", **half)]) == 0  # numpy's files forget the name of the type
    capsys.readouterr()
    assert main([saved(tmp_path / "c.npz", **BROKEN["too few frames"][1]), "--json"]) == 1
    read = json.loads(capsys.readouterr().out)
    assert (read["ok"], read["findings"][0]["code"], read["rows"][3]["loss"]) == (False, "infeasible", "inf")
    logits = {**healthy, "logits": healthy["log_probs"] * 2}
    del logits["log_probs"]
    assert main([saved(tmp_path / "d.npz", **logits)]) == 0
    assert main([saved(tmp_path / "e.npz", **batches.with_blank(3)), "--blank", "0"]) == 1
    capsys.readouterr()
    del healthy["targets"]
    assert main([saved(tmp_path / "f.npz", **healthy)]) == 2
    assert "it lacks targets" in capsys.readouterr().err
    assert main([str(tmp_path / "none.npz")]) == 2
    assert "none.npz" in capsys.readouterr().err


def test_the_function_and_the_command_have_one_name(tmp_path):
    """In a process of its own, in every order of imports, and without a warning that a module was there before."""
    code = """
import jaxctc
function = jaxctc.diagnose
import jaxctc.diagnose
import importlib
importlib.import_module("jaxctc.diagnose")
import jaxctc.diagnose as another
from jaxctc import diagnose
from jaxctc.diagnose import diagnose as last
assert function is jaxctc.diagnose is another is diagnose is last and callable(function)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=PACKAGE)
    path = saved(tmp_path / "a.npz", **BROKEN["NaN"][1])
    command = [sys.executable, "-W", "error", "-m", "jaxctc.diagnose", path]
    done = subprocess.run(command, check=False, cwd=PACKAGE, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")
    assert "ERROR: nan. " in done.stdout


def test_rich_prints_the_same_text():
    rich = pytest.importorskip("rich.console")
    found = jaxctc.diagnose(**BROKEN["NaN"][1])
    console = rich.Console(soft_wrap=True, highlight=False, force_terminal=True, color_system="standard")
    with console.capture() as capture:
        console.print(found)
    assert "\x1b[1;31mERROR: nan." in capture.get()
    assert re.sub(r"\x1b\[[\d;]*m", "", capture.get()).rstrip() == str(found)


def tables():
    """The tables of `docs/diagnosis.md`."""
    for group, entries in GROUPS.items():
        yield (
            f"## {group}\n\n| code | severity | what it means | what to do |\n| --- | --- | --- | --- |\n"
            + "\n".join(
                f"| `{code}` | {entry.severity} | {entry.meaning} | {entry.remedy}"
                + (f" [Seen here]({entry.source})" if entry.source else "")
                + " |"
                for code, entry in entries.items()
            )
        )


PAGE = ROOT / "docs" / "diagnosis.md"


@pytest.mark.skipif(not PAGE.exists(), reason="the docs are not beside the tests")
def test_the_page_lists_every_code():
    page = PAGE.read_text(encoding="utf-8")
    for table in tables():
        assert table in page
    # The list of symptoms names codes that exist.
    symptoms = page.split("## Symptoms")[1].split("\n## ")[0]
    assert set(re.findall(r"`([a-z-]+)`", symptoms)) <= set(CODES)
    assert set(re.findall(r"`([a-z-]+)`", symptoms))


@pytest.mark.skipif(not PAGE.exists(), reason="the docs are not beside the tests")
def test_the_page_s_example_prints_what_it_says(capsys):
    page = PAGE.read_text(encoding="utf-8")
    code, printed = re.search(r"```python\n(.*?)```\s+```text\n(.*?)```", page, re.DOTALL).groups()
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        exec(code, {})
    assert capsys.readouterr().out == printed
    columns = page.split("## The table")[1]
    assert all(f"`{name}`" in columns for name in Row._fields)


def test_an_utterance_of_librispeech(shared_data):
    """A trained model, and very confident."""
    emission = np.load(shared_data / "libri_emission.npz")
    names, text = emission["labels"].tolist(), str(emission["text"])
    problem = [names.index(c) for c in text], len(emission["logits"]), len(text), len(names) - 1
    found = jaxctc.diagnose(batches.log_softmax(emission["logits"]), *problem, labels=names)
    assert (found.codes, found.rows[0].target, found.rows[0].reading) == ((), text, text)
    assert jaxctc.diagnose(emission["logits"], *problem, from_logits=True).codes == ()


@pytest.fixture
def examples(monkeypatch):
    pytest.importorskip("sklearn")
    pytest.importorskip("optax")
    if not (ROOT / "examples").is_dir():
        pytest.skip("the examples are not beside the tests")
    monkeypatch.syspath_prepend(ROOT / "examples")


def codes_after(steps, descend, state, logits_of, batch, draw, blank):
    """Train, and return what one held-out batch has after some of the steps."""
    lengths, found = (batch.input_lengths, batch.target_lengths), {}
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        step, read = jax.jit(descend), jax.jit(logits_of)
        for i in range(max(steps) + 1):
            if i in steps:
                logits = read(state[0])
                made = jaxctc.diagnose(logits, batch.targets, *lengths, blank, batch_first=True, from_logits=True)
                found[i] = made.codes
            state = step(*state, draw())[:2]
    return found


@pytest.mark.usefixtures("examples")
def test_handwritten_lines_early_and_late():
    import _lines
    import _reader

    rng, (scans, held_out) = np.random.default_rng(0), _lines.load_scans(0)
    lines, optimizer = _lines.compose(held_out, _reader.BATCH, rng), _reader.optimizer_for(200)
    weights = _reader.init(jax.random.key(0))
    found = codes_after(
        (0, 10, 40, 200),
        functools.partial(_reader.descend, optimizer),
        (weights, optimizer.init(weights)),
        lambda weights: _reader.read(weights, lines.images),
        lines,
        lambda: _lines.compose(scans, _reader.BATCH, rng),
        _lines.BLANK,
    )
    # The one thing that there may be to say on the way is true, and no fault.
    assert found[0] == found[200] == ()
    assert set(found[10] + found[40]) <= {"all-blank"}


@pytest.mark.usefixtures("examples")
def test_spoken_digits_before_and_after_the_first_steps(shared_data):
    import _speech
    import optax
    import spoken_digits

    takes, rng = _speech.load_takes(shared_data / "fsdd.npz"), np.random.default_rng(0)
    voices = {part: [takes[name] for name in names] for part, names in _speech.SPEAKERS.items()}
    speech, optimizer = _speech.compose(voices["test"], 32, rng), optax.adamw(1e-3)

    def descend(weights, state, batch):
        gradient = jax.grad(spoken_digits.loss)(weights, batch, jax.random.key(0))
        updates, state = optimizer.update(gradient, state, weights)
        return optax.apply_updates(weights, updates), state

    weights = spoken_digits.init(jax.random.key(0))
    found = codes_after(
        (0, 10),
        descend,
        (weights, optimizer.init(weights)),
        lambda weights: spoken_digits.listen(weights, speech.features),
        speech,
        lambda: _speech.compose(voices["training"], 32, rng),
        _speech.BLANK,
    )
    assert set(itertools.chain(*found.values())) <= {"uniform", "all-blank", "one-class"}
