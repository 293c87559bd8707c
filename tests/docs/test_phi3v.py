"""The code of docs/phi3v.md, run as it stands: the hub's cache holds a tiny model by the published name."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from fovea.phi3v import Phi3VImageProcessor
from fovea.phi3v.image_processing import fit
from tests.tiny_model import write_tiny_model

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "phi3v.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def offline_hub(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("hub")
    cache = home / "hub" / "models--microsoft--Phi-3-vision-128k-instruct"
    write_tiny_model(cache / "snapshots" / COMMIT, answer="A bag")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(COMMIT)
    return {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def printed(offline_hub: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What each block prints, in one process, since the imports take longer than the code."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, name in enumerate(("bag.jpg", "shoes.jpg")):
        Image.new("RGB", (60, 40 + 20 * number), (200, 100, 50 * number)).save(folder / name)
    trained = "for name, weight in model.named_parameters():\n"
    trained += "    if weight.requires_grad: print(name, weight.grad is not None)"
    codes = [BLOCKS[0], f"{BLOCKS[1]}\n{trained}"]
    command = [sys.executable, "-c", f"for code in {codes!r}:\n    exec(code, {{}})\n    print('----')"]
    ended = subprocess.run(command, env=offline_hub, cwd=folder, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.split("----\n")


def test_ten_lines_answer(printed: list[str]) -> None:
    assert len([line for line in BLOCKS[0].splitlines() if line]) <= 10
    assert printed[0] == "A bag\n"


def test_a_training_step(printed: list[str]) -> None:
    lines = printed[1].splitlines()
    assert len(lines) == 2 * 4 * 2
    assert all(".layers." in line and line.endswith("True") for line in lines)


def test_the_tokens_of_a_picture() -> None:
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\d+) \|$", PAGE, re.MULTILINE)
    assert [int(row[0]) for row in rows] == [1, 4, 16]
    processor = Phi3VImageProcessor()
    for num_crops, *stated in rows:
        pictures = [fit(Image.new("RGB", size), 336, int(num_crops)) for size in ((600, 600), (600, 400))]
        tokens = [processor.num_image_tokens(picture.height, picture.width) for picture in pictures]
        assert tokens == [int(number) for number in stated]
