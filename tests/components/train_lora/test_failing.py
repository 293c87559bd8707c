"""How a training ends that cannot go on, or need not; and that MLflow's absence is no reason to."""

import math
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict

from components.train_lora.data import ROW_IDS
from components.train_lora.trainer import LoraTrainer
from fovea import tracking
from fovea.errors import UserError
from fovea.storage import Storage
from tests.components.train_lora.inputs import Inputs, weights
from tests.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def inputs(s3: str, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Inputs:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Inputs(s3, tmp_path, model, {"train": 8, "validation": 2})


def changed(
    monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[LoraTrainer, Any, Any], Any]
) -> None:
    """Let ``change`` see and change what a method of the Trainer returns; it gets its first tensor inputs."""
    usual = getattr(LoraTrainer, name)

    def method(self: LoraTrainer, *args: Any, **kwargs: Any) -> Any:
        given = dict(args[1]) if len(args) > 1 and isinstance(args[1], dict) else {}
        return change(self, given, usual(self, *args, **kwargs))

    monkeypatch.setattr(LoraTrainer, name, method)


def test_out_of_memory_says_what_to_lower(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(trainer: LoraTrainer, given: Any, result: Any) -> Any:
        if trainer.state.global_step == 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return result

    changed(monkeypatch, "training_step", run_out)
    said = (
        r"memory ran out after step 1, with 2 examples of up to \d+ tokens per batch; lower "
        r"per_device_train_batch_size \(now 2; train_batch_size can stay the same\), "
        r"or set gradient_checkpointing to true, or lower num_crops \(now 4\), "
        r"or use a device with more memory"
    )
    with pytest.raises(UserError, match=said):
        inputs.train(num_crops=4)
    failure = inputs.report("failure")
    assert failure["kind"] == "user"
    assert failure["task"] == "train_lora"
    assert re.search(said, failure["error"])


def test_another_error_of_torch_is_no_lack_of_memory(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(trainer: LoraTrainer, given: Any, result: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    changed(monkeypatch, "training_step", fail)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        inputs.train()
    failure = inputs.report("failure")
    assert failure["kind"] == "RuntimeError"
    assert "in train_lora_step" in failure["traceback"]


def test_the_batch_whose_loss_is_not_finite_is_named(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    named: list[str] = []
    usual = LoraTrainer.compute_loss

    def spoil(self: LoraTrainer, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if model.training and "train5" in inputs[ROW_IDS] and self.state.global_step >= 2:
            named.extend(inputs[ROW_IDS])
            inputs["pixel_values"] *= math.nan
        return usual(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(LoraTrainer, "compute_loss", spoil)
    with pytest.raises(UserError, match="loss is nan at step") as told:
        inputs.train()
    assert len(named) == 2
    assert f"in the batch of rows {', '.join(named)}; lower learning_rate" in str(told.value)
    assert inputs.report("failure")["error"] == str(told.value)


def test_a_loss_that_explodes_ends_the_training(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(trainer: LoraTrainer, given: Any, loss: Any) -> Any:
        return loss * 100 if trainer.state.global_step > 10 else loss

    changed(monkeypatch, "compute_loss", explode)
    with pytest.raises(UserError, match=r"exploded: .* at step 14, .* rows train\d.* raise warmup_ratio"):
        inputs.train(max_steps=20, eval_steps=20)


def test_a_training_that_gets_no_better_ends_early(inputs: Inputs) -> None:
    record = inputs.train(learning_rate=0.0, eval_steps=1, early_stopping_patience=2, answered_samples=0)
    # The first is the best so far; two more are not better.
    assert record.steps == 3


@pytest.mark.parametrize(
    ("keep", "figure", "values"),
    [("best_loss", "eval_loss", [3.0, 1.0, 2.0]), ("best_answers", "eval_answers_right", [0.2, 0.9, 0.9])],
)
def test_the_best_adapter_is_kept(
    inputs: Inputs,
    monkeypatch: pytest.MonkeyPatch,
    keep: str,
    figure: str,
    values: list[float],
) -> None:
    left, seen = iter(values), []

    def judge(trainer: LoraTrainer, given: Any, output: Any) -> Any:
        seen.append((weights_of(trainer), output.metrics["eval_loss"]))
        output.metrics[figure] = next(left)
        return output

    changed(monkeypatch, "evaluation_loop", judge)
    kept = inputs.train(max_steps=3, keep=keep, eval_steps=1)
    assert kept.steps == 3
    assert kept.validation_loss == (1.0 if keep == "best_loss" else seen[1][1])
    for name, weight in weights(kept).items():
        assert torch.equal(weight, seen[1][0][name])
        assert not torch.equal(weight, seen[2][0][name])


def weights_of(trainer: LoraTrainer) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in get_peft_model_state_dict(trainer.model).items()}


def test_an_unreachable_mlflow_is_known_before_anything_is_fetched(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=rf"MLflow at http://127\.0\.0\.1:{port} does not answer"):
        inputs.train()
    assert "fetching" not in capfd.readouterr().out
    assert inputs.report("failure")["kind"] == "user"


def test_what_mlflow_did_not_take_in_between_is_there_at_the_end(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import mlflow
    from mlflow import MlflowClient

    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    calls = {"log_batch": MlflowClient.log_batch, "log_table": MlflowClient.log_table}

    def gone(self: MlflowClient, *args: Any, **kwargs: Any) -> None:
        raise ConnectionError("connection refused")

    for name in calls:
        monkeypatch.setattr(MlflowClient, name, gone)
    usual = tracking.Run.finish

    def back(self: tracking.Run, *, failed: bool = False) -> None:
        for name, method in calls.items():
            monkeypatch.setattr(MlflowClient, name, method)
        usual(self, failed=failed)

    monkeypatch.setattr(tracking.Run, "finish", back)
    record = inputs.train(num_train_epochs=5.0, eval_steps=5)
    mlflow.set_tracking_uri(None)
    assert "MLflow could not log" in capfd.readouterr().out
    assert record.mlflow is not None
    client = MlflowClient(store)
    run = client.get_run(record.mlflow.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["lora_r"] == "4"
    steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")]
    assert steps == [10]
    losses = client.get_metric_history(run.info.run_id, "validation/loss")
    assert [metric.step for metric in losses] == [5, 10]
    assert losses[-1].value == pytest.approx(record.validation_loss)
    for name in ("grad_norm", "learning_rate", "pictures_per_second", "tokens_per_second", "waiting_share"):
        assert name in run.data.metrics
    assert run.data.tags["adapter_record"].endswith(f"{record.input_key}.json")
    assert run.inputs.dataset_inputs[0].dataset.digest == inputs.dataset.digest.removeprefix("sha256:")[:36]
    kept = {entry.path for entry in client.list_artifacts(run.info.run_id)}
    assert {"answers.json", "report.html"} <= kept
    assert Storage().exists(run.data.tags["adapter_record"])
