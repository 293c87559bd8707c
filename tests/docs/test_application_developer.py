"""The examples of the page for application developers run, against a real server."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fovea.task import product_task
from tests.left_out import Missing
from tests.serving.conftest import ANSWER, RunningServer, picture, running_server
from tests.tiny_model import write_tiny_model

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "application-developer.md").read_text()
ADDRESS = "http://127.0.0.1:8080"

# The client for Node is no dependency of this project: npm install openai somewhere, and name that folder.
NODE_MODULES = os.environ.get("FOVEA_NODE_MODULES", "")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("server")
    model = write_tiny_model(folder / "model", answer=ANSWER, task=product_task())
    with running_server(folder / "run", "--model-dir", str(model)) as started:
        yield started


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder as a run leaves one behind."""
    (tmp_path / ".fovea" / "last-run").mkdir(parents=True)
    picture(1).save(tmp_path / ".fovea" / "last-run" / "held-out.jpg")
    return tmp_path


def run(command: list[str], server: RunningServer, place: Path, text: str) -> str:
    result = subprocess.run(
        command, input=text.replace(ADDRESS, server.address), cwd=place, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("code", blocks("python"))
def test_python(server: RunningServer, place: Path, code: str) -> None:
    assert "scarf" in (said := run([sys.executable, "-"], server, place, code)) or "bag" in said


@pytest.mark.skipif(not shutil.which("curl"), reason=Missing.CURL)
@pytest.mark.parametrize("code", [block for block in blocks("sh") if "curl" in block])
def test_curl(server: RunningServer, place: Path, code: str) -> None:
    said = run(["bash", "-eu", "-o", "pipefail"], server, place, code)
    assert "full_price" in said
    assert '"error"' not in said.replace('"error":null', "").replace('"name":"error"', "")


@pytest.mark.skipif(not NODE_MODULES, reason=Missing.OPENAI_FOR_NODE)
def test_node(server: RunningServer, place: Path) -> None:
    (place / "node_modules").symlink_to(NODE_MODULES)
    (code,) = blocks("js")
    said = run(["node", "--input-type=module", "-"], server, place, code)
    assert "full_price" in said


def test_all_are_run() -> None:
    assert len(blocks("python")) == 4
    assert len([block for block in blocks("sh") if "curl" in block]) == 3
