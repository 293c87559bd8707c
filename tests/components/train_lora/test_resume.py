"""A training that was killed goes on, and its adapter is that of a training that was not."""

import json
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from components.train_lora.checkpoints import Checkpoints, read_checkpoint
from fovea.errors import UserError
from fovea.records import AdapterRecord, StepInputs
from fovea.storage import Storage
from tests.components.train_lora.die import training
from tests.components.train_lora.inputs import QUICK, Inputs
from tests.tiny_model import write_tiny_model

LONG: dict[str, Any] = {
    # Everything that a checkpoint has to carry: dropout draws from the random state, evaluations look for the
    # best, and 5 steps of 2 batches make an epoch whose last step has one.
    "num_train_epochs": 2.0,
    "lora_dropout": 0.2,
    "train_batch_size": 4,
    "per_device_train_batch_size": 2,
    "eval_steps": 3,
    "keep": "best_loss",
    "checkpoint_minutes": 1e-9,
}
STEPS = 10
SELDOM = {"checkpoint_minutes": 0.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def inputs(s3: str, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Inputs:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Inputs(s3, tmp_path, model, {"train": 18, "validation": 4})


def killed(inputs: Inputs, step: int, number: signal.Signals, **parameters: Any) -> str:
    """Run a training that dies at ``step``; return its output."""
    log, given = inputs.folder / "log.txt", QUICK | LONG | parameters
    with training(inputs, log, f"{inputs.root}/killed", given, step=step, number=number) as process:
        pass
    assert process.exitcode, log.read_text()
    return log.read_text()


def records(inputs: Inputs) -> list[str]:
    listed = Storage().list(f"{inputs.root}/killed/checkpoints/")
    return sorted(uri for uri in listed if uri.count("/") == inputs.root.count("/") + 5)


def told(record: AdapterRecord) -> tuple[float | None, ...]:
    return record.steps, record.epochs, record.train_loss, record.validation_loss


@pytest.mark.prove
def test_a_killed_training_goes_on_bit_for_bit(inputs: Inputs, capfd: pytest.CaptureFixture[str]) -> None:
    undisturbed = inputs.train(root=f"{inputs.root}/undisturbed", **LONG | SELDOM)
    assert undisturbed.steps == STEPS

    # No grace: what is there is the checkpoint after the step before.
    killed(inputs, 4, signal.SIGKILL)
    assert [Path(uri).name[:8] for uri in records(inputs)] == ["00000002", "00000003"]

    # With grace: the step is ended and saved, whatever the clock says.
    said = killed(inputs, 8, signal.SIGTERM, **SELDOM)
    assert "resuming from the checkpoint of step 3 of 10" in said
    newest = read_checkpoint(Storage(), records(inputs)[-1])
    assert newest.step == 8
    failure = json.loads(Storage().read_bytes(f"{inputs.root}/killed/runs/killed/failure.json"))
    assert failure["kind"] == "Interrupted"
    assert {entry.path for entry in newest.files} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "best.json",
        "best.safetensors",
        "optimizer.pt",
        "README.md",
        "rng_state.pth",
        "scheduler.pt",
        "trainer_state.json",
    }

    # A broken one is passed over for the one before.
    entry = next(entry for entry in newest.files if entry.path == "optimizer.pt")
    Storage().write_bytes(newest.uri + entry.path, b"cut off")
    capfd.readouterr()
    resumed = inputs.train("resumed", root=f"{inputs.root}/killed", **LONG | SELDOM)
    said = capfd.readouterr().out
    assert "skipped a checkpoint" in said
    assert "resuming from the checkpoint of step 3 of 10" in said
    assert resumed.files == undisturbed.files
    assert told(resumed) == told(undisturbed)
    assert not list(Storage().list(f"{inputs.root}/killed/checkpoints/"))


@pytest.mark.prove
@pytest.mark.timeout(1800)
def test_killed_at_ten_random_steps_bit_for_bit(inputs: Inputs) -> None:
    undisturbed = inputs.train(root=f"{inputs.root}/undisturbed", **LONG | SELDOM | {"num_train_epochs": 4.0})
    chosen = random.Random(5)  # noqa: S311
    for number in range(10):
        begun = max((int(Path(uri).name[:8]) for uri in records(inputs)), default=0)
        step = chosen.randint(begun + 1, begun + 3)
        killed(inputs, min(step, 20), chosen.choice([signal.SIGKILL, signal.SIGTERM]), num_train_epochs=4.0)
        if number == 4:
            # Not every kill comes right after a checkpoint.
            killed(inputs, min(step + 2, 20), signal.SIGKILL, num_train_epochs=4.0, **SELDOM)
    resumed = inputs.train("resumed", root=f"{inputs.root}/killed", **LONG | {"num_train_epochs": 4.0})
    assert resumed.files == undisturbed.files
    assert told(resumed) == told(undisturbed)


def test_a_checkpoint_of_other_inputs_is_refused_with_the_difference(inputs: Inputs) -> None:
    killed(inputs, 3, signal.SIGKILL)
    uri = records(inputs)[-1]
    with pytest.raises(
        UserError, match=r"other inputs: lora_r was 4 and is 8, lora_alpha was 32.0 and is 16.0;"
    ) as refused:
        inputs.train(
            "other",
            root=f"{inputs.root}/killed",
            **LONG | {"resume_from_checkpoint": uri, "lora_r": 8, "lora_alpha": 16.0},
        )
    assert "learning_rate" not in str(refused.value)
    assert inputs.report("failure", "other", root=f"{inputs.root}/killed")["kind"] == "user"
    # Found by its inputs alone, it is not found by others.
    record = read_checkpoint(Storage(), uri)
    elsewhere = StepInputs(**{**record.inputs.model_dump(), "version": 99})
    assert Checkpoints(Storage(), f"{inputs.root}/killed", elsewhere).newest(inputs.folder / "none") is None
    with pytest.raises(UserError, match="no such object"):
        inputs.train("none", **LONG | {"resume_from_checkpoint": f"{inputs.root}/none.json"})
