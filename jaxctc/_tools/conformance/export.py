"""Write the cases and their answers to a file, for those whose implementation Python cannot call."""

import json
from pathlib import Path

import numpy as np

from jaxctc._tools.conformance.case import Case


def export(cases: list[Case], path: Path) -> None:
    """Write `path`, an .npz archive, and beside it a .json file that describes it.

    Case number k has the arrays ``k.log_probs`` (T, N, C), ``k.targets``, ``k.input_lengths``, ``k.target_lengths``,
    ``k.losses`` (N,) and ``k.gradient.CONVENTION`` (T, N, C), of the sum of the losses, all in float64 or int64.
    """
    arrays, described = {}, []
    for number, case in enumerate(cases):
        refused = "refusal" in case.asks
        for name in ("log_probs", "targets", "input_lengths", "target_lengths"):
            arrays[f"{number}.{name}"] = getattr(case, name)
        if not refused:
            arrays[f"{number}.losses"] = case.losses
            arrays[f"{number}.loss"] = case.loss
            for convention in ("log_probs", "torch", "logits") if case.normalized else ("log_probs", "torch"):
                arrays[f"{number}.gradient.{convention}"] = case.gradient(convention)
        described.append(
            {
                "number": number,
                "name": case.name,
                "aspect": case.aspect,
                "asks": case.asks,
                "blank": case.blank,
                "dtype": case.dtype,
                "reduction": case.reduction,
                "zero_infinity": case.zero_infinity,
                "targets_end_to_end": case.end_to_end,
                "loss_tolerance": case.loss_tolerance,
                "gradient_tolerance": case.gradient_tolerance,
            }
        )
    np.savez_compressed(path, **arrays)
    path.with_suffix(".json").write_text(json.dumps({"arrays": export.__doc__, "cases": described}, indent=1) + "\n")
