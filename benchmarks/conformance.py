"""Make the page `docs/conformance.md`, and the README's table: what implementations of CTC hold to, ours among them.

Run it as ``python -m benchmarks.conformance``. It asks those that are installed, and takes the reports of the others
from `benchmarks/results/conformance/`: Keras and TensorFlow want an environment of their own, where
``python -m benchmarks.conformance keras tensorflow`` writes their reports.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jaxctc
from jaxctc import conformance
from jaxctc._tools.check import worker
from jaxctc._tools.conformance import table

ROOT = Path(__file__).parents[1]
REPORTS = ROOT / "benchmarks" / "results" / "conformance"
PAGE = ROOT / "docs" / "conformance.md"
README = ROOT / "README.md"
IN_README = {"xla": "jaxctc", "torch": "torch", "optax": "optax"}
TABLE = re.compile(r"(?<=\n)(\|.*\n)+")
HERE = "benchmarks.conformance"
PEERS = {
    "reference": [f"{HERE}:reference", "--signature", "jaxctc"],
    "xla": [f"{HERE}:xla", "--signature", "jaxctc"],
    "pallas": [f"{HERE}:pallas", "--signature", "jaxctc"],
    "bridge": ["bridge:ctc_loss"],
    "torch": ["torch.nn.functional:ctc_loss"],
    "optax": ["optax:ctc_loss", "--signature", "optax"],
    "keras": ["keras.ops:ctc_loss", "--signature", "keras"],
    "tensorflow": ["tensorflow:nn.ctc_loss", "--signature", "tensorflow"],
}
HEADS = {
    "reference": "jaxctc, reference",
    "xla": "jaxctc, xla",
    "pallas": "jaxctc, pallas (TPU kernels, interpreted)",
    "bridge": "bridge",
    "torch": "torch, CPU",
    "optax": "optax",
    "keras": "Keras on JAX",
    "tensorflow": "TensorFlow, CPU",
}
BEGINNING = """# Who holds to what

Each row is an aspect of CTC with one or more cases, small batches whose right answers are known from the enumeration
of every path, and long ones from a recursion in float64. *Held* means that every case came out right: losses within
1e-5 of themselves, and every element of the gradient within 1e-4, where it is between -1 and 1; more for half
precision, less for float64. In brackets is the largest error, infinite where a number is NaN or infinite and should
not be, or the reverse. *Not asked* means that the signature has no argument for it. Everything ran on a CPU.

`python -m jaxctc.conformance package:function` asks an implementation of your own; `--help` says how. `python -m
benchmarks.conformance` makes this page.
"""
END = """
What stands behind the rows where something did not hold:

- **Infeasible.** `torch` has the loss inf, and a gradient of NaN; `bridge` gives
  PyTorch's gradient on purpose, and 0 with `normalized=False`. `optax`, `Keras` and `TensorFlow` return a finite loss
  for a target that no path can spell, which a training takes for a hard example.
- **Accuracy.** Log space in float32 loses a digit whenever the log likelihood becomes ten times as large. `reference`
  is a recursion in log space too, which is what it is for; `xla` and the kernels keep a mantissa and an exponent.
- **Labels and lengths out of range.** A number came back, or the process died.
- **Padded labels.** What stands in the padding changes the last bits of what `TensorFlow` returns, of no other's.
- **T = 8000.** `TensorFlow` was called eagerly, without `tf.function`: its process had taken all 23 GB of the machine
  when it was killed, which is why no error stands there.
"""


def reference(*arguments, **options):
    return jaxctc.ctc_loss(*arguments, **options, implementation="reference")


def xla(*arguments, **options):
    return jaxctc.ctc_loss(*arguments, **options, implementation="xla")


def pallas(*arguments, **options):
    worker.register_interpreted()
    return jaxctc.ctc_loss(*arguments, **options, implementation=worker.INTERPRETED)


def main(names: list[str]) -> None:
    REPORTS.mkdir(parents=True, exist_ok=True)
    environment = {"JAX_PLATFORMS": "cpu", "KERAS_BACKEND": "jax", **os.environ}
    for name in names or [name for name in PEERS if name not in ("keras", "tensorflow")]:
        command = [sys.executable, "-m", "jaxctc.conformance", *PEERS[name], "--json", str(REPORTS / f"{name}.json")]
        print(name, flush=True)
        subprocess.run(command, check=False, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    PAGE.write_text(page(), encoding="utf-8")
    README.write_text(readme(README.read_text(encoding="utf-8")), encoding="utf-8")


def reports(heads: dict[str, str]) -> list[dict[str, Any]]:
    """Return the reports that are there, under these names."""
    found = {name: REPORTS / f"{name}.json" for name in heads if (REPORTS / f"{name}.json").exists()}
    made = [{**json.loads(path.read_text()), "function": heads[name]} for name, path in found.items()]
    for report in made:
        if report["version"].split()[0] in ("benchmarks", "bridge"):
            report["version"] = f"jaxctc {jaxctc.__version__}"
    return made


def page() -> str:
    """Return the page, made from the reports."""
    return f"{BEGINNING}\n{table.markdown(reports(HEADS))}{END}"


def readme(text: str) -> str:
    """Return the README with the table of how we differ, which is the first of its section, made from the reports."""
    before, head, after = text.partition("## How it differs\n")
    made = table.differences(reports(IN_README), conformance.cases())
    return before + head + TABLE.sub(lambda _: made, after, count=1)


if __name__ == "__main__":
    main(sys.argv[1:])
