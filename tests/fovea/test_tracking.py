import json
import logging
import math
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from PIL import Image

from fovea import tracking
from fovea.errors import UserError
from fovea.records import MlflowReference

REFERENCE = MlflowReference(experiment_id="1", run_id="r", model_name="m", model_version="1")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An MLflow store whose tables exist already: to make them takes seconds."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    MlflowClient(uri).search_experiments(max_results=1)
    return uri


@pytest.fixture
def server(store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowClient]:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    yield MlflowClient(store)
    mlflow.set_tracking_uri(None)


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> str:
    """The address, with a password, of a server that does not answer."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://anna:s3cret@{address}")
    return address


def test_a_run_with_its_figures(server: MlflowClient, tmp_path: Path) -> None:
    run = tracking.Run.open("figures", "run-1", {"dataset": "sha256:d"})
    assert run.reference is not None
    run.log_params({"rank": 16, "long": "x" * 9000})
    run.log_metrics({"loss": 2.0, "broken": math.nan, "endless": math.inf, "none": None}, step=10)
    run.log_metrics({"loss": 1.0}, step=20)
    run.log_metrics({"parse_rate": 0.5}, prefix="tuned/")
    run.set_tags({"gate": "passed"})
    run.finish()
    data = server.get_run(run.reference.run_id)
    assert data.data.params["rank"] == "16"
    assert data.data.params["long"].startswith("xxx")
    assert data.data.metrics == {"loss": 1.0, "tuned/parse_rate": 0.5}
    history = server.get_metric_history(run.reference.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(10, 2.0), (20, 1.0)]
    assert data.data.tags["dataset"] == "sha256:d"
    assert data.data.tags["gate"] == "passed"
    assert data.info.run_name == "run-1"
    assert data.info.status == "FINISHED"

    # A later step adds to it.
    tracking.Run.of(run.reference).log_metrics({"product.exact": 0.9})
    assert server.get_run(run.reference.run_id).data.metrics["product.exact"] == 0.9
    # The experiment is there now.
    again = tracking.Run.open("figures", "run-2", {})
    again.finish(failed=True)
    assert again.reference is not None
    assert again.reference.experiment_id == run.reference.experiment_id
    assert server.get_run(again.reference.run_id).info.status == "FAILED"


def test_a_run_that_the_platform_names_is_gone_on_with(
    server: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tracking.Run.open("named", "run-1", {}).reference
    assert first is not None
    monkeypatch.setenv("MLFLOW_RUN_ID", first.run_id)
    assert tracking.Run.open("named", "run-2", {}).reference == first
    monkeypatch.setenv("MLFLOW_RUN_ID", "no-such-run")
    with pytest.raises(UserError, match="MLflow refuses a run in experiment 'named'"):
        tracking.Run.open("named", "run-3", {})


def test_a_model_is_registered_once_for_a_source(server: MlflowClient) -> None:
    reference = tracking.Run.open("registry", "run-1", {}).reference

    def register(source: str) -> MlflowReference:
        registered = tracking.register_model("shoes", source, reference, {"fovea.model": "sha256:m"})
        assert registered is not None
        return registered

    first_source = "s3://fovea/model/1/"
    first = register(first_source)
    assert (first.model_name, first.model_version) == ("shoes", "1")
    version = server.get_model_version("shoes", "1")
    assert version.source == first_source
    assert version.tags == {"fovea.model": "sha256:m"}
    assert reference is not None
    assert version.run_id == reference.run_id
    assert server.get_model_version_by_alias("shoes", "challenger").source == first_source

    assert register(first_source) == first
    assert len(server.search_model_versions("name = 'shoes'")) == 1
    assert register("s3://fovea/model/2/").model_version == "2"
    assert server.get_model_version_by_alias("shoes", "challenger").source == "s3://fovea/model/2/"

    tracking.tag_model_version(first, {"gate": "passed"}, alias="champion", description="# Passed\n" * 999)
    assert server.get_model_version("shoes", "1").description.startswith("# Passed")
    assert server.get_model_version("shoes", "1").tags["gate"] == "passed"
    assert server.get_model_version_by_alias("shoes", "champion").source == first_source
    assert tracking.version_source("shoes", "champion") == first_source
    assert tracking.version_source("shoes", "nobody") is None
    assert tracking.version_source("boots", "champion") is None


def test_without_a_server_nothing_is_tracked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    run = tracking.Run.open("none", "run-1", {})
    assert run.reference is None
    run.log_params({"rank": 16})
    run.log_metrics({"loss": 1.0})
    run.set_tags({"a": "b"})
    run.finish()
    tracking.Run.of(REFERENCE).log_metrics({"loss": 1.0})
    assert tracking.register_model("m", "s3://fovea/m/", REFERENCE, {}) is None
    assert tracking.version_source("m", "champion") is None
    tracking.tag_model_version(REFERENCE, {"a": "b"})
    assert not list(tmp_path.iterdir())


def test_a_server_that_does_not_answer_is_known_in_seconds(nobody: str) -> None:
    started = time.monotonic()
    with pytest.raises(UserError, match=f"MLflow at http://…@{nobody} does not answer") as caught:
        tracking.Run.open("e", "run-1", {})
    assert time.monotonic() - started < 100
    assert "s3cret" not in str(caught.value)


def test_a_server_that_goes_away_later_is_only_warned_of(
    nobody: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Retries have been tried above.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match="does not answer"):
        tracking.version_source("m", "champion")
    actions: dict[str, Any] = {
        "register the model": lambda: tracking.register_model("m", "s3://fovea/m/", REFERENCE, {}),
        "tag the model version": lambda: tracking.tag_model_version(REFERENCE, {"a": "b"}),
        "reach": lambda: tracking.Run.of(REFERENCE).log_metrics({"loss": 1.0}),
        "log metrics": lambda: tracking.Run(REFERENCE, MlflowClient()).log_metrics({"loss": 1.0}),
        "close the run": lambda: tracking.Run(REFERENCE, MlflowClient()).finish(),
    }
    for what, action in actions.items():
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="fovea"):
            assert action() is None
        assert f"MLflow could not {what}" in caplog.text
        assert "s3cret" not in caplog.text


def test_what_a_silent_server_did_not_take_is_sent_later(
    server: MlflowClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = tracking.Run.open("silent", "run-1", {})
    assert run.reference is not None
    usual = MlflowClient.log_batch
    monkeypatch.setattr(
        MlflowClient, "log_batch", lambda *_, **__: (_ for _ in ()).throw(OSError("no route"))
    )
    run.log_metrics({"loss": 3.0}, step=1)
    run.log_metrics({"loss": 2.0}, step=2)
    # It is asked once, and then left alone.
    assert caplog.text.count("MLflow could not log metrics (no route)") == 1
    monkeypatch.setattr(MlflowClient, "log_batch", usual)
    run.finish()
    history = server.get_metric_history(run.reference.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 3.0), (2, 2.0)]


def test_pictures_datasets_and_the_machine(server: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tracking.Run.open("pictures", "run-1", {})
    assert run.reference is not None
    run.log_dataset("dataset", "sha256:" + "a" * 64, "s3://b/data/", "training", {"train": 3})
    picture = Image.new("RGB", (8, 8), "red")
    for step in (1, 2):
        run.log_table({"step": [step], "picture": [picture], "answer": ["Bag"]}, "answers.json")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    wanted, until = (
        {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"},
        time.time() + 60,
    )
    with run.system_metrics():
        while not wanted <= server.get_run(run.reference.run_id).data.metrics.keys():
            assert time.time() < until
            time.sleep(0.05)
    run.finish()
    found = server.get_run(run.reference.run_id)
    (dataset,) = found.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("dataset", "a" * 36)
    assert json.loads(dataset.dataset.source) == {"uri": "s3://b/data/"}
    files = {entry.path for entry in server.list_artifacts(run.reference.run_id)}
    assert {"answers.json", "table_images"} <= files
    # Files lie beside the database, wherever the process runs.
    assert not Path("mlruns").exists()

    # A run that was interrupted is gone on with, unless it is no longer there.
    assert tracking.Run.open("pictures", "again", {}, earlier=run.reference).reference == run.reference
    gone = run.reference.model_copy(update={"run_id": "0" * 32})
    assert tracking.Run.open("pictures", "again", {}, earlier=gone).reference not in (run.reference, gone)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", run.reference.experiment_id)
    other = tracking.Run.open("another name", "run-2", {}).reference
    assert other is not None
    assert other.experiment_id == run.reference.experiment_id
