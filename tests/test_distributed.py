"""Several processes train as one does; and when one is lost, what was trained is not."""

import os
import re
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "distributed.py"
STEPS = 12
PATIENCE = 30
"""Seconds in which all have ended, as the example says."""


def train(output, *options):
    """The exit status, and all that was said."""
    command = [sys.executable, EXAMPLE, "--steps", STEPS, "--save-every", 4, "--output", output, *options]
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as example:
        try:
            said, _ = example.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            os.killpg(example.pid, signal.SIGKILL)  # the processes that it has started too
            raise
    return example.returncode, said


def lose(output, step, process, saved):
    """Kills the process after the step; what was said, of which this much is always the same."""
    status, said = train(output, "--resume", "--kill", step, process)
    assert status == 1, said
    assert f"process {process}: killed by SIGKILL" in said, said
    [took] = re.findall(r"All have ended, (\d+\.\d) s after the first\.", said)
    assert float(took) < PATIENCE
    assert f"The last checkpoint is of step {saved}. The same command with --resume goes on from there." in said, said
    return said


@pytest.mark.skipif(not EXAMPLE.exists(), reason="the examples are not beside the tests")
@pytest.mark.skipif(not (find_spec("orbax") and find_spec("sklearn")), reason="needs the packages of the examples")
def test_the_loss_of_a_process_changes_no_result(tmp_path):
    """Process 1 is lost where a checkpoint is due; then both come to the end."""
    ended = lose(tmp_path, step=8, process=1, saved=4)
    assert "process 0: ended by itself, with the error above" in ended, ended
    assert "process 0 ends after 8 steps: most likely another process is lost." in ended, ended

    status, said = train(tmp_path, "--resume", "--compare")
    assert status == 0, said
    several, one = (dict(np.load(tmp_path / f"distributed-{count}" / "result.npz")) for count in (2, 1))
    assert several["losses"].shape == (STEPS,)
    for name, value in one.items():
        np.testing.assert_allclose(several[name], value, rtol=0, atol=1e-4, err_msg=name)
