"""The whole pipeline here, on a tiny model that cannot pass the gate: its ends, reuse and interruption."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.tiny_model import write_tiny_model

SETTINGS = {
    "num_crops": 1,
    "longest_side": 56,
    "validation_fraction": 0.2,
    "test_fraction": 0.2,
    "min_rows": 5,
    "epochs": 1,
    "max_new_tokens": 8,
    "min_samples": 5,
}


class Folder:
    """A state folder and a base model, and runs on them."""

    def __init__(self, root: Path) -> None:
        self.state = root / "a state"
        self.base = write_tiny_model(root / "base", num_crops=1)

    def command(self, **settings: object) -> list[str]:
        values = {"base_model": self.base, **SETTINGS, **settings}
        pairs = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
        rows = ["--sample-rows", "60", "--state", str(self.state)]
        return [sys.executable, "-m", "cli.main", "run", *rows, *pairs]

    def run(self, **settings: object) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            self.command(**settings), env=environment(), capture_output=True, text=True, timeout=280
        )

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.state / "last-run" / "summary.json").read_text())

    def processes(self) -> list[list[str]]:
        """Return the command lines of the processes that work for a run in this folder."""
        found = []
        for process in psutil.process_iter(["cmdline", "environ", "status"]):
            about = [*(process.info["cmdline"] or []), *(process.info["environ"] or {}).values()]
            if process.info["status"] != psutil.STATUS_ZOMBIE and any(
                str(self.state) in text for text in about
            ):
                found.append(process.info["cmdline"])
        return found


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "110"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return Folder(tmp_path_factory.mktemp("local run"))


@pytest.fixture(scope="module")
def refused(folder: Folder) -> "subprocess.CompletedProcess[str]":
    return folder.run()


def test_a_refused_run_says_why_and_deploys_nothing(
    folder: Folder, refused: "subprocess.CompletedProcess[str]"
) -> None:
    assert refused.returncode == 1, refused.stdout + refused.stderr
    assert refused.stderr.startswith("refused: parse_rate (parse_rate is 0, not >= 0.98)")
    assert len(refused.stderr.splitlines()) == 1
    assert "Traceback" not in refused.stdout
    summary = folder.summary
    assert summary["state"] == "refused"
    assert summary["endpoint"] is None
    assert not list(folder.state.glob("s3/fovea/deployments/*"))
    assert folder.processes() == []


def test_its_summary_holds_every_figure(folder: Folder, refused: "subprocess.CompletedProcess[str]") -> None:
    summary = folder.summary
    for model in ("base", "tuned", "shuffled"):
        for figure in ("parse_rate", "title_exact", "category_accuracy", "price_median_ape"):
            assert 0 <= summary["models"][model][figure] <= 1
    assert summary["samples"] >= 5
    assert summary["gate"]["passed"] is False
    assert {rule["name"] for rule in summary["gate"]["rules"]} >= {"parse_rate", "price_error"}
    assert set(summary["digests"]) == {"dataset", "base", "model"}
    steps = ["prepare_data", "train_lora", "merge_adapter", "evaluate_base", "evaluate_tuned", "gate"]
    assert list(summary["steps"]) == steps
    assert not any(step["reused"] for step in summary["steps"].values())
    assert (folder.state / "last-run" / "report.html").stat().st_size > 10_000


def test_a_second_run_reuses_what_did_not_change(
    folder: Folder, refused: "subprocess.CompletedProcess[str]"
) -> None:
    before = folder.summary
    again = folder.run(min_parse_rate=0.5)
    assert again.returncode == 1, again.stdout + again.stderr
    assert "sample catalogue: reused" in again.stdout
    assert "train_lora: reused" in again.stdout
    after = folder.summary
    assert [name for name, step in after["steps"].items() if not step["reused"]] == ["gate"]
    assert after["digests"] == before["digests"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_no_process_behind(
    folder: Folder, refused: "subprocess.CompletedProcess[str]", number: signal.Signals
) -> None:
    with subprocess.Popen(
        folder.command(epochs=1000),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert any("train_lora: steps" in line for line in process.stdout)
        assert len(folder.processes()) >= 4
        interrupted = time.monotonic()
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == "interrupted: everything that was started has ended\n"
    assert time.monotonic() - interrupted < 30
    assert folder.processes() == []
    assert not (folder.state / "tmp").exists()


def test_a_failing_step_ends_the_run_with_its_own_message(
    folder: Folder, refused: "subprocess.CompletedProcess[str]"
) -> None:
    failed = folder.run(product_column="no_such_column")
    assert failed.returncode == 1
    assert failed.stderr.startswith("failed in prepare_data: ")
    assert "has no column no_such_column" in failed.stderr
    assert len(failed.stderr.splitlines()) == 1
    assert "Traceback" not in failed.stdout
    assert "Traceback" in (folder.state / "last-run" / "log.txt").read_text()
    summary = folder.summary
    assert summary["state"] == "failed"
    assert summary["models"] == {}
