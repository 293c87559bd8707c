"""What the pages do with what a local run left behind: its store served, a step by itself, MLflow's pages."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from pipelines.local.s3 import find_rclone, free_port
from tests.docs.pages import REPOSITORY, blocks
from tests.pipelines.local_runs import Folder


def block(page: str, command: str) -> str:
    (found,) = [each for each in blocks(REPOSITORY / "docs" / page, "sh") if command in each]
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout after a run: the environment in .venv, the run's state in .fovea."""
    root = tmp_path_factory.mktemp("checkout")
    folder = Folder(root)
    ended = folder.run()
    assert "refused" in ended.stderr, ended.stdout + ended.stderr
    (root / ".fovea").symlink_to(folder.state)
    (root / ".venv" / "bin").mkdir(parents=True)
    for name, program in {
        "python": Path(sys.executable),
        "mlflow": Path(sys.executable).with_name("mlflow"),
        "rclone": find_rclone(),
    }.items():
        shim = root / ".venv" / "bin" / name
        shim.write_text(f'#!/bin/sh\nexec "{program}" "$@"\n')
        shim.chmod(0o755)
    return root


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "RCLONE_CONFIG": os.devnull}


@contextmanager
def running(command: str, place: Path, address: str) -> Iterator[httpx.Response]:
    """Run a server of the page for the block, and yield its first answer."""
    process = subprocess.Popen(["sh", "-c", f"exec {command.strip()}"], cwd=place, env=environment())
    deadline = time.monotonic() + 120
    try:
        while True:
            assert process.poll() is None
            try:
                answer = httpx.get(address, timeout=30)
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline
                time.sleep(0.2)
        yield answer
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.prove
def test_a_step_by_itself(place: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    serve = block("platform-engineer.md", "rclone serve").replace("127.0.0.1:9000", address)
    evaluate = block("platform-engineer.md", "components evaluate").replace("127.0.0.1:9000", address)
    with running(serve, place, f"http://{address}"):
        done = subprocess.run(
            ["sh", "-ec", evaluate], cwd=place, env=environment(), capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "parse_rate" in done.stdout
    assert (place / "evaluation.json").is_file()


@pytest.mark.prove
def test_mlflows_pages(place: Path) -> None:
    port = free_port()
    command = f"{block('data-scientist.md', 'mlflow ui').strip()} --port {port}"
    with running(command, place, f"http://127.0.0.1:{port}") as answer:
        assert answer.status_code == 200
        assert "MLflow" in answer.text
