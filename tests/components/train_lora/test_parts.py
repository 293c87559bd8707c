"""The parts of a training that need no training."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import TrainerControl, TrainerState

import fovea.tracking as tracking
from components.train_lora import memory
from components.train_lora.callbacks import Watch
from components.train_lora.data import AnswerCollator, EpochOrder, Extent, fitting, load_split, measure
from components.train_lora.job import accumulation
from components.train_lora.lora import target_modules
from components.train_lora.memory import Room, check, estimate
from components.train_lora.parameters import TrainLoraParameters
from components.train_lora.report import MAX_BYTES, write_report
from fovea.errors import UserError
from fovea.phi3v import Phi3VConfig, Phi3VForCausalLM, Phi3VProcessor
from fovea.task import product_task
from tests.components.train_lora.inputs import write_dataset
from tests.components.train_lora.outputs import left
from tests.tiny_model import write_tiny_model

PUBLISHED = Phi3VConfig(rope_scaling={"type": "su", "short_factor": [1.0] * 48, "long_factor": [4.0] * 48})
EXTENTS = [Extent(800, 5)] * 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


def test_lengths_are_those_of_the_batches(folder: Path, tmp_path: Path) -> None:
    rows = load_split(write_dataset(tmp_path / "data", {"train": 4}), "train")
    processor = Phi3VProcessor.from_pretrained(folder)
    batch = AnswerCollator(processor, product_task(), 4)(list(rows))
    extents = measure(rows, processor, product_task(), 4)
    assert [extent.tokens for extent in extents] == batch["attention_mask"].sum(dim=1).tolist()
    assert sum(extent.crops for extent in extents) == len(batch["pixel_values"])


def test_what_is_too_long_is_left_out_and_named(caplog: pytest.LogCaptureFixture) -> None:
    extents = [Extent(10, 1), Extent(4097, 1), Extent(4096, 1)]
    assert fitting("train", ["a", "b", "c"], extents, 4096) == [0, 2]
    assert "1 of 3 rows of the train split are longer than 4096 tokens and left out: b" in caplog.text
    with pytest.raises(UserError, match="lower num_crops"):
        fitting("train", ["b"], extents[1:2], 4096)


@given(st.lists(st.integers(1, 4096), min_size=1, max_size=200), st.integers(1, 16), st.integers(0, 9))
def test_an_epoch_has_every_example_once_in_an_order_of_its_own(
    lengths: list[int], batch: int, epoch: int
) -> None:
    order = EpochOrder(lengths, batch, seed=3)
    order.set_epoch(epoch)
    places = list(order)
    assert sorted(places) == list(range(len(lengths)))
    assert lengths[places[0]] == max(lengths)
    again = EpochOrder(lengths, batch, seed=3)
    again.set_epoch(epoch)
    assert list(again) == places


def test_batches_of_like_length_are_padded_little() -> None:
    lengths = [313 if place % 2 else 757 for place in range(400)]
    places = list(EpochOrder(lengths, 8, seed=0))
    mixed = sum(len({lengths[p] for p in places[start : start + 8]}) > 1 for start in range(0, 400, 8))
    assert mixed < 8


@pytest.mark.parametrize(
    ("parts", "count"), [("decoder", 4), ("decoder+projector", 6), ("decoder+projector+tower", 6 + 23 * 6)]
)
def test_target_modules(parts: str, count: int) -> None:
    parameters = TrainLoraParameters.model_validate({"lora_target_modules": parts})
    names = target_modules(parameters, PUBLISHED)
    assert len(names) == count
    # The tower's last layer is never run: a matrix there would have no gradient.
    assert not any("layers.23." in name for name in names)


def test_the_published_size_is_estimated_as_it_is_known() -> None:
    needed = estimate(PUBLISHED, TrainLoraParameters(precision="bfloat16"), EXTENTS, "cuda")
    assert needed.weights == 8_293_242_880
    assert needed.trained == 25_165_824 * 16
    # Microsoft tells of 16 GB with flash attention, for a batch of one at 16 crops.
    one = TrainLoraParameters(
        precision="bfloat16", num_crops=16, per_device_train_batch_size=1, train_batch_size=1
    )
    assert 10e9 < estimate(PUBLISHED, one, [Extent(2580, 17)], "cuda").total < 20e9


def test_more_of_anything_takes_more_memory() -> None:
    def total(**changed: Any) -> int:
        parameters = TrainLoraParameters.model_validate({"precision": "bfloat16"} | changed)
        return estimate(PUBLISHED, parameters, EXTENTS, "cuda").total

    usual = total()
    for changed in (
        {"lora_r": 64},
        {"per_device_train_batch_size": 8},
        {"gradient_checkpointing": False},
        {"precision": "float32"},
        {"lora_target_modules": "decoder+tower"},
    ):
        assert total(**changed) > usual, changed


def test_what_cannot_fit_is_refused_with_what_to_lower() -> None:
    parameters = TrainLoraParameters(precision="bfloat16", gradient_checkpointing=False)
    needed = estimate(PUBLISHED, parameters, EXTENTS, "cuda")
    check(needed, Room(80 * memory.GIB, "a large GPU"), parameters)
    with pytest.raises(
        UserError, match=r"but a small GPU has 8.0 GiB free; lower per_device_train_batch_size \(now 4"
    ):
        check(needed, Room(8 * memory.GIB, "a small GPU"), parameters)
    assert memory.room("cpu").free > 0


def test_a_batch_that_does_not_divide_among_the_devices() -> None:
    assert accumulation(TrainLoraParameters(), 8) == 1
    with pytest.raises(UserError, match="on 3 devices, 12; change one of them"):
        accumulation(TrainLoraParameters(), 3)


class Batches:
    """Stands for the Trainer: the rows of the present step."""

    def __init__(self, *batches: tuple[list[str], float]) -> None:
        self.batches = batches

    def rows_of_step(self) -> Any:
        return self.batches


def step(watch: Watch, state: TrainerState, loss: float, **figures: float) -> None:
    state.global_step += 1
    timed = {"seconds": 1.0, "waiting_seconds": 0.0, "tokens": 10.0, "pictures": 2.0, "learning_rate": 1.0}
    logs = {"loss": loss, "grad_norm": 1.0, **timed, **figures}
    state.log_history.append({**logs, "step": state.global_step})
    watch.on_log(None, state, TrainerControl(), logs)


def test_a_loss_that_is_not_finite_names_its_batch() -> None:
    watch, state = Watch(tracking.Run(None, None), None, vocabulary=100), TrainerState(max_steps=99)
    watch.trainer = Batches((["a", "b"], 1.0), (["c", "d"], math.nan))  # type: ignore[assignment]
    with pytest.raises(UserError, match="loss is nan at step 1, in the batch of rows c, d; lower learning"):
        step(watch, state, math.nan)
    watch.trainer = Batches((["a", "b"], 1.0))  # type: ignore[assignment]
    with pytest.raises(UserError, match="grad_norm is inf at step 2, in the batch of rows a, b;"):
        step(watch, state, 1.0, grad_norm=math.inf)


def test_a_loss_that_explodes_ends_the_training_and_a_spike_does_not() -> None:
    watch, state = Watch(tracking.Run(None, None), None, vocabulary=100), TrainerState(max_steps=99)
    watch.trainer = Batches((["a"], 99.0))  # type: ignore[assignment]
    for loss in [4.0] * 12 + [99.0, 99.0] + [3.0] * 5 + [99.0, 99.0]:
        step(watch, state, loss)
    with pytest.raises(UserError, match=r"exploded: 99.0 at step 22, up from 4.0.* rows a;"):
        step(watch, state, 99.0)


def test_the_report_shows_curves_and_answers_and_escapes_all(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>"
    row = {
        "row_id": evil,
        "picture": "data:image/jpeg;base64,AAAA",
        "truth": evil,
        "answer": evil,
        "right": 0.0,
    }
    page = tmp_path / "report.html"
    write_report(page, left(tmp_path, [row]), run_id=evil, settings={"resume_from_checkpoint": evil})
    text = page.read_text()
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 5
    for words in ("Loss", "Learning rate", "Throughput", "Gradient norm", "of step 20, which is kept"):
        assert words in text
    assert len(re.findall('<path class="to-[a-z]+" d="M[^"]*L', text)) == 6
    assert "2 pictures per second" in " ".join(re.sub("<[^>]+>", " ", text).split())


def test_no_report_is_larger_than_five_megabytes(tmp_path: Path) -> None:
    row = {"row_id": "r", "picture": "A" * 1_000_000, "truth": "t" * 9000, "answer": "a" * 9000, "right": 0.0}
    page = tmp_path / "report.html"
    write_report(page, left(tmp_path, [row] * 24, steps=20_000), run_id="r", settings={})
    assert page.stat().st_size < MAX_BYTES
    assert "A" * 1000 not in page.read_text()


def test_lora_in_projector_and_tower_trains_everywhere(folder: Path) -> None:
    from components.train_lora.lora import with_lora

    parameters = TrainLoraParameters.model_validate(
        {"lora_target_modules": "decoder+projector+tower", "precision": "float32", "lora_dropout": 0.0}
    )
    model = with_lora(Phi3VForCausalLM.from_pretrained(folder), parameters)
    processor = Phi3VProcessor.from_pretrained(folder)
    row = {"row_id": "r", "image": Image.new("RGB", (40, 40), "red"), "product": "Bag", "category": "BAGS"}
    batch = AnswerCollator(processor, product_task(), 1)([row | {"full_price": 1.0}])
    del batch["row_ids"]
    model.train()(**batch).loss.backward()
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert any("img_projection" in name for name in trained)
    assert any("encoder.layers.0" in name for name in trained)
    # DDP waits for every gradient.
    assert all(weight.grad is not None for weight in trained.values())
