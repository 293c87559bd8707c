import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fovea.inference import Predictor
from fovea.task import product_task
from sample import general
from sample.drawing import random_look, render, seeded
from sample.model import unpack_sample_model

PICTURES = 200
UNSEEN_SEED = 1_000_003


def named_right(folder: Path) -> dict[str, float]:
    """Share of unseen pictures whose description names what they show, by what is named."""
    rng = seeded(UNSEEN_SEED)
    looks = [random_look(rng) for _ in range(PICTURES)]
    prompt = general.prompt("Describe the picture.", rng, picture=True)
    requests = [(prompt, [render(look, 200, 200, rng)]) for look in looks]
    answers = Predictor.load(folder, product_task()).generate(requests, max_new_tokens=40, batch_size=50)
    words = {
        "kind": lambda look: {look.kind},
        "colour": lambda look: {look.colour},
        "pattern": lambda look: set(general.PATTERN_WORDS[look.pattern]),
        "size": lambda look: set(general.SIZE_WORDS[look.size]),
    }
    return {
        name: sum(
            any(word in answer.text.lower() for word in right(look))
            for look, answer in zip(looks, answers, strict=True)
        )
        / PICTURES
        for name, right in words.items()
    }


@pytest.mark.prove
@pytest.mark.timeout(3600)
def test_training_again_gives_a_model_as_good_as_the_one_that_ships(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cli.main", "sample-model", "--train", "--out", tmp_path / "trained"]
    # On all cores, where other tests use one.
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    started = time.monotonic()
    subprocess.run(command, env=environment, check=True)
    print(f"trained in {time.monotonic() - started:.0f} s")
    unpack_sample_model(tmp_path / "shipped")
    trained, shipped = named_right(tmp_path / "trained"), named_right(tmp_path / "shipped")
    print(f"trained {trained}\nshipped {shipped}")
    for name, share in shipped.items():
        assert trained[name] >= share - 0.05, name


@pytest.mark.timeout(600)
def test_the_model_that_ships_names_what_it_sees(tmp_path: Path) -> None:
    unpack_sample_model(tmp_path / "shipped")
    shipped = named_right(tmp_path / "shipped")
    assert shipped["kind"] >= 0.9
    assert shipped["colour"] >= 0.9
    assert shipped["pattern"] >= 0.85
    assert shipped["size"] >= 0.6
