"""What a training must not depend on."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from PIL import Image
from torch._dynamo.utils import counters

from benchmarks.plain_twin import PlainPhi3VForCausalLM
from components.train_lora import launch
from components.train_lora.data import AnswerCollator, EpochOrder
from components.train_lora.job import arguments
from components.train_lora.lora import with_lora
from components.train_lora.parameters import TrainLoraParameters
from components.train_lora.trainer import LoraTrainer
from fovea.phi3v import Phi3VForCausalLM, Phi3VProcessor
from fovea.storage import Storage
from fovea.task import product_task
from tests.components.train_lora.die import training
from tests.components.train_lora.inputs import FEATURES, QUICK, Inputs, weights
from tests.left_out import Missing
from tests.tiny_model import write_tiny_model

COLOURS = ("red", "blue", "lime", "black", "white", "yellow", "purple", "orange")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


def table(sizes: Sequence[tuple[int, int]], categories: Sequence[str] = COLOURS) -> Dataset:
    rows = [
        {
            "row_id": f"r{number}",
            "product_id": f"p{number}",
            "product_group": f"p{number}",
            "image": Image.new("RGB", size, COLOURS[number % len(COLOURS)]),
            "product": "Bag" + "x" * (number % 5),
            "category": categories[number % len(categories)].upper(),
            "full_price": 100.0,
            "currency": "USD",
        }
        for number, size in enumerate(sizes)
    ]
    return Dataset.from_list(rows, FEATURES)


SIZES = [(40, 40), (90, 30), (30, 90), (56, 56), (120, 40), (28, 28), (40, 80), (64, 64)]


def train(
    folder: Path,
    work: Path,
    rows: Dataset,
    twin: bool = False,
    attention: str = "sdpa",
    **parameters: Any,
) -> tuple[list[float], dict[str, torch.Tensor], LoraTrainer]:
    """Train on the rows in order; return each step's loss, and the weights."""
    quick = QUICK | {"num_crops": 4, "learning_rate": 1e-3, "num_train_epochs": 2.0, "answered_samples": 0}
    given = TrainLoraParameters.model_validate(quick | parameters)
    torch.manual_seed(0)
    model: Any = Phi3VForCausalLM.from_pretrained(folder, attn_implementation=attention)
    if twin:
        model = PlainPhi3VForCausalLM.sharing(model, given.num_crops)
    adapted = with_lora(model, given)
    processor = Phi3VProcessor.from_pretrained(folder)
    args = arguments(work, given, len(rows), 1)
    args.eval_strategy = "no"
    trainer = LoraTrainer(
        model=adapted,
        args=args,
        data_collator=AnswerCollator(processor, product_task(), given.num_crops),
        train_dataset=rows,
        order=EpochOrder([1] * len(rows), given.train_batch_size, given.seed, grouped=False),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    trained = {
        name: value.detach().clone() for name, value in adapted.named_parameters() if value.requires_grad
    }
    return losses, trained, trainer


def close(
    one: tuple[list[float], dict[str, torch.Tensor], Any],
    other: tuple[list[float], dict[str, torch.Tensor], Any],
) -> None:
    """The tolerances: losses to 1e-4 relative, weights to 2e-4 (a fifth of one step of the learning rate)."""
    assert one[0] == pytest.approx(other[0], rel=1e-4)
    assert one[1].keys() == other[1].keys()
    for name, weight in one[1].items():
        torch.testing.assert_close(weight, other[1][name], rtol=1e-3, atol=2e-4, msg=name)


@pytest.fixture(scope="module")
def usual(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train(folder, tmp_path_factory.mktemp("usual"), table(SIZES))


@pytest.mark.parametrize(
    "switched",
    [
        {"attention": "eager"},
        {"gradient_checkpointing": True},
        # Everything the plain twin does: logits everywhere, every crop slot, eager attention.
        {"twin": True},
        {"per_device_train_batch_size": 4},
        {"per_device_train_batch_size": 1},
    ],
    ids=lambda switched: next(iter(switched)),
)
def test_a_switch_changes_neither_losses_nor_weights(
    folder: Path, tmp_path: Path, usual: Any, switched: dict[str, Any]
) -> None:
    close(train(folder, tmp_path, table(SIZES), **switched), usual)


@pytest.mark.prove
@pytest.mark.skipif(shutil.which("g++") is None, reason=Missing.COMPILER)
@pytest.mark.timeout(1800)
def test_compiling_changes_neither_losses_nor_weights(folder: Path, tmp_path: Path) -> None:
    """By inductor, the Trainer's own choice; pictures of one size, since each new shape is compiled anew."""
    rows = table([(40, 40)]).select([0] * 4)
    compiled = train(folder, tmp_path / "compiled", rows, torch_compile=True)
    assert counters["stats"]["unique_graphs"] >= 1
    names = {name.replace("_orig_mod.", ""): weight for name, weight in compiled[1].items()}
    close((compiled[0], names, None), train(folder, tmp_path / "usual", rows))


def test_grouping_by_length_changes_no_samples_loss(folder: Path) -> None:
    rows = table(SIZES)
    collator = AnswerCollator(Phi3VProcessor.from_pretrained(folder), product_task(), 4)
    model = Phi3VForCausalLM.from_pretrained(folder)

    def losses(places: Sequence[int]) -> list[float]:
        batch = collator([rows[place] for place in places])
        del batch["row_ids"]
        labels = batch["labels"][:, 1:]
        counts = (labels != -100).sum(dim=1).tolist()
        with torch.no_grad():
            logits = model(**batch).logits.split(counts)
        targets = [row[row != -100] for row in labels]
        return [
            float(torch.nn.functional.cross_entropy(said, target))
            for said, target in zip(logits, targets, strict=True)
        ]

    alone = [losses([place])[0] for place in range(len(rows))]
    assert losses(range(len(rows))) == pytest.approx(alone, rel=1e-4)
    grouped = list(EpochOrder([len(str(size)) for size in SIZES], 4, seed=1))
    assert sorted(grouped) == list(range(len(rows)))
    together = [loss for start in (0, 4) for loss in losses(grouped[start : start + 4])]
    assert together == pytest.approx([alone[place] for place in grouped], rel=1e-4)


@pytest.fixture
def inputs(s3: str, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Inputs:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Inputs(s3, tmp_path, folder, {"train": 16, "validation": 4})


@pytest.mark.prove
@pytest.mark.parametrize("interrupted", [False, True])
def test_two_processes_equal_one_and_end_together(
    inputs: Inputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    interrupted: bool,
) -> None:
    """With gloo. Told to end, they save one checkpoint and go on; to the same as an undisturbed one."""
    parameters = {"num_train_epochs": 3.0, "learning_rate": 1e-3}
    one = inputs.train("one", root=f"{inputs.root}/one", **parameters)
    assert one.steps == 12

    storage, root, log = Storage(), f"{inputs.root}/two", tmp_path / "log.txt"
    if interrupted:
        often = QUICK | parameters | {"checkpoint_minutes": 1e-9}
        with training(inputs, log, root, often, processes=2) as process:
            while not any(uri.endswith(".json") for uri in storage.list(f"{root}/checkpoints/")):
                process.join(0.05)
                assert process.exitcode is None, log.read_text()
            process.terminate()
        said = log.read_text()
        assert "Interrupted: received SIGTERM" in said
        assert said.count("SIGTERM: saving a checkpoint after this step") == 2
        failure = json.loads(storage.read_bytes(f"{root}/runs/killed/failure.json"))
        assert failure["kind"] == "Interrupted"
    monkeypatch.setattr("components.train_lora.train.count_processes", lambda: 2)
    capfd.readouterr()
    two = inputs.train("two", root=root, **parameters)
    assert ("resuming from the checkpoint of step" in capfd.readouterr().out) == interrupted
    assert two.steps == 12
    assert two.train_loss == pytest.approx(one.train_loss, rel=1e-5)
    assert two.validation_loss == pytest.approx(one.validation_loss, rel=1e-4)
    single = weights(one)
    for name, weight in weights(two).items():
        torch.testing.assert_close(weight, single[name], rtol=1e-3, atol=1e-4)


def test_there_are_as_many_processes_as_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for gpus, processes in ((0, 1), (1, 1), (4, 4)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        assert launch.count_processes() == processes
