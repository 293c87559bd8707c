"""A training learns what it is shown, and nothing that is not there."""

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from PIL import Image, ImageColor
from safetensors.torch import load_file, save_file

from fovea.inference import Predictor
from fovea.phi3v import Phi3VProcessor
from fovea.records import AdapterRecord
from fovea.storage import Storage
from fovea.task import Answer, product_task
from tests.components.train_lora.inputs import Inputs, row
from tests.tiny_model import write_tiny_model

pytestmark = pytest.mark.prove

Rows = list[dict[str, Any]]
ENOUGH = {"lora_r": 16, "train_batch_size": 8, "per_device_train_batch_size": 8, "answered_samples": 0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a head that can be sure of a word.

    Its final norm gives vectors of length 8 and its head's rows are about as long as 1.2: no logit is above
    10, while a uniform guess among 32,064 ids is worth their logarithm, 10.4. However well an adapter in the
    decoder points at a row, its loss could not come near 0. Four times the length lets it.
    """
    folder = write_tiny_model(tmp_path_factory.mktemp("model"))
    state = load_file(folder / "model.safetensors")
    state["lm_head.weight"] *= 4
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(autouse=True)
def untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def answers(model: Path, record: AdapterRecord, rows: Rows) -> list[Answer]:
    predictor = Predictor.load(model, product_task(), num_crops=record.num_crops)
    PeftModel.from_pretrained(predictor.model, str(Storage().download(record)))
    return predictor.answer([each["image"] for each in rows], max_new_tokens=80)


def right(model: Path, record: AdapterRecord, rows: Rows) -> int:
    """How many rows' answers are right in every letter."""
    said = [answer.text for answer in answers(model, record, rows)]
    return sum(text == product_task().answer(each) for text, each in zip(said, rows, strict=True))


def test_eight_pictures_are_learnt_by_heart(s3: str, tmp_path: Path, model: Path) -> None:
    colours = ("red", "blue", "lime", "black", "white", "yellow", "purple", "orange")
    names = ("Silk Scarf", "Boot", "Wool Hat", "Tote", "Pumps No 5", "Belt", "Raincoat", "Clutch")
    rows = [
        row(f"r{number}", colour, name, f"C{number % 3}") | {"full_price": 100.0 + 37 * number}
        for number, (colour, name) in enumerate(zip(colours, names, strict=True))
    ]
    inputs = Inputs(s3, tmp_path, model, {"train": rows, "validation": rows})
    record = inputs.train(**ENOUGH, max_steps=60, eval_steps=60)
    assert record.validation_loss is not None
    assert record.validation_loss < 0.05
    assert right(model, record, rows) == 8


def speckled(colour: str, lot: random.Random) -> Image.Image:
    """A picture of about one colour, unlike any other: 49 patches, each a little brighter or not."""
    picture = Image.new("RGB", (7, 7))
    picture.putdata(
        [tuple(int(0.7 * part) + lot.randrange(77) for part in ImageColor.getrgb(colour)) for _ in range(49)]
    )
    return picture.resize((28, 28), Image.Resampling.NEAREST)


def scarves_and_boots(split: str, labels: Sequence[int], lot: random.Random) -> Rows:
    """Pictures that are red and blue in turn, and named by ``labels``."""
    return [
        row(f"{split}{number}", "red", ("Scarf", "Boots")[label], "BAGS")
        | {"image": speckled(("red", "blue")[number % 2], lot)}
        for number, label in enumerate(labels)
    ]


@pytest.mark.parametrize("shuffled", [False, True])
def test_only_names_that_go_with_pictures_are_told_of_others(
    s3: str, tmp_path: Path, model: Path, shuffled: bool
) -> None:
    lot = random.Random(1)  # noqa: S311
    labels = [0, 1] * 4, [0, 1] * 8
    if shuffled:
        # As often with either colour.
        labels = [0, 0, 1, 1] * 2, [0, 0, 1, 1] * 4
    rows = [
        scarves_and_boots(split, given, lot)
        for split, given in zip(("train", "validation"), labels, strict=True)
    ]
    inputs = Inputs(s3, tmp_path, model, {"train": rows[0], "validation": rows[1]})
    record = inputs.train(**ENOUGH, max_steps=80, eval_steps=80)
    # By heart either way.
    assert right(model, record, rows[0]) == 8
    learnt, loss = right(model, record, rows[1]), record.validation_loss
    # A guess between two names costs one bit an answer.
    answer = product_task().answer(rows[1][0]) + "<|end|>"
    guess = math.log(2) / len(Phi3VProcessor.from_pretrained(model).tokenizer(answer).input_ids)
    assert loss is not None
    if shuffled:
        assert 2 <= learnt <= 14
        assert loss > 0.9 * guess
    else:
        assert learnt == 16
        assert loss < 0.25 * guess
