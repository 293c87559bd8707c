"""Runs that are killed at every step, without warning: the next run trusts nothing that is half done."""

import signal
import subprocess
import time

import pytest

from tests.pipelines.local_runs import Folder, environment

MOMENTS = (
    "sample catalogue: ",
    "base model: ",
    "preflight: asking",
    "preflight: parameters",
    "prepare_data: ",
    "train_lora: masked",
    "train_lora: steps",
    "merge_adapter: ",
    "find_champion: ",
    "evaluate_base: ",
    "evaluate_challenger: ",
    "gate: ",
    "report_evaluation: ",
)
"""A run is killed as soon as it says a line that begins so, which each run does that gets so far."""


@pytest.mark.prove
@pytest.mark.timeout(3600)
def test_runs_that_are_killed_at_every_step(tmp_path_factory: pytest.TempPathFactory) -> None:
    undisturbed = Folder(tmp_path_factory.mktemp("undisturbed"))
    assert undisturbed.run().returncode == 1
    folder = Folder(tmp_path_factory.mktemp("killed"))
    reached = {
        (moment, number): _kill(folder, moment, number)
        for moment in MOMENTS
        for number in (signal.SIGKILL, signal.SIGTERM)
    }
    assert all(reached.values()), reached
    last = folder.run()
    assert last.returncode == 1, last.stdout + last.stderr
    assert folder.summary["state"] == "refused"
    assert folder.summary["models"] == undisturbed.summary["models"]
    assert folder.summary["digests"] == undisturbed.summary["digests"]


def _kill(folder: Folder, moment: str, number: signal.Signals) -> bool:
    """Kill a run at ``moment``, and see that everything it started ends; return whether it got there."""
    command, reached = folder.command(), False
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line[8:].startswith(moment):
                process.send_signal(number)
                reached = True
                break
        process.communicate()
    deadline = time.monotonic() + 60
    while folder.processes() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert folder.processes() == [], (moment, number)
    return reached
