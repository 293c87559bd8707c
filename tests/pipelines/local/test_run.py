"""The whole pipeline here, on a tiny model that cannot pass the gate: its ends, reuse and interruption."""

import signal
import subprocess
import time

import pytest

from tests.pipelines.local_runs import Folder, environment


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
    assert refused.stderr.startswith("refused: parse_rate is 0.00 %, not ≥ 98.00 %;")
    assert len(refused.stderr.splitlines()) == 1
    assert "Traceback" not in refused.stdout
    summary = folder.summary
    assert summary["state"] == "refused"
    assert summary["endpoint"] is None
    assert not list(folder.state.glob("s3/fovea/deployments/*"))
    assert folder.processes() == []


def test_its_summary_holds_every_figure(folder: Folder, refused: "subprocess.CompletedProcess[str]") -> None:
    summary = folder.summary
    for model in ("nearest_neighbour", "base", "challenger", "shuffled"):
        for figure in ("parse_rate", "product.exact", "category.accuracy", "full_price.median_ape"):
            assert 0 <= summary["models"][model]["figures"][figure] <= 1
    assert summary["samples"] >= 5
    assert summary["gate"]["passed"] is False
    assert {rule["name"] for rule in summary["gate"]["rules"]} >= {"parse_rate", "full_price_median_ape"}
    assert set(summary["digests"]) == {"dataset", "base", "model"}
    steps = ["prepare_data", "train_lora", "merge_adapter", "evaluate_base", "evaluate_challenger", "gate"]
    assert list(summary["steps"]) == steps
    assert not any(step["reused"] for step in summary["steps"].values())
    assert (folder.state / "last-run" / "report.html").stat().st_size > 10_000
    assert "no report" not in (folder.state / "last-run" / "evaluation.html").read_text()


def test_a_second_run_reuses_what_did_not_change_and_may_end_without_a_deployment(
    folder: Folder, refused: "subprocess.CompletedProcess[str]"
) -> None:
    before = folder.summary
    again = folder.run(min_parse_rate=0.5, on_refusal="end")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "nothing was deployed: parse_rate is 0.00 %, not ≥ 50.00 %" in again.stdout
    assert "sample catalogue: reused" in again.stdout
    assert "train_lora: reused" in again.stdout
    after = folder.summary
    assert (after["state"], after["endpoint"]) == ("not_deployed", None)
    assert [name for name, step in after["steps"].items() if not step["reused"]] == ["gate"]
    assert after["digests"] == before["digests"]


def test_an_interrupted_run_leaves_no_process_behind(
    folder: Folder, refused: "subprocess.CompletedProcess[str]"
) -> None:
    with subprocess.Popen(
        folder.command(num_train_epochs=1000),
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
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == "interrupted: all processes of the run have stopped\n"
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
