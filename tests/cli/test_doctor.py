import http.server
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cli import doctor

app = typer.Typer()
app.command()(doctor.doctor)


@pytest.fixture(autouse=True)
def no_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "MLFLOW_TRACKING_URI", "FOVEA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)


def run(state: Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["--state", str(state)])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as listener:
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        yield f"http://user:secret@127.0.0.1:{listener.server_port}"
        listener.shutdown()


def test_a_machine_that_has_everything(tmp_path: Path) -> None:
    status, said, errors = run(tmp_path / "state")
    assert status == 0, said + errors
    for what in ("Python", "packages", "rclone", "disk", "memory", "port", "state folder", "platform file"):
        assert f" {what} " in said


def test_a_missing_package_and_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pins = tmp_path / "constraints.txt"
    pins.write_text("boto3==0.1  # old\nTorch==2.13.0\n")
    monkeypatch.setattr(doctor, "_CONSTRAINTS", pins)
    monkeypatch.setattr(doctor, "_NEEDED_PACKAGES", ("boto3", "torch", "no-such-package"))
    status, said, errors = run(tmp_path)
    assert status == 1
    assert "no-such-package" in said
    assert "instead of 0.1" in said
    assert "torch" not in said
    assert errors == "missing: packages\n"


def test_a_full_disk_is_missing_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10**8)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    status, said, errors = run(tmp_path)
    assert status == 1
    assert "0.1 GB free" in said
    assert "free some" in said
    assert errors == "missing: disk\n"


def test_a_taken_port_is_worth_a_note_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(doctor, "_SERVICE_PORT", taken.getsockname()[1])
        status, said, _ = run(tmp_path)
    assert status == 0
    assert "is taken" in said
    assert "make serve PORT=" in said


def test_a_platform_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEA_PLATFORM", str(tmp_path / "missing.yaml"))
    status, said, errors = run(tmp_path)
    assert status == 1
    assert "missing.yaml" in said
    assert errors == "missing: platform file\n"


def test_servers_that_the_environment_names(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    status, said, errors = run(tmp_path)
    assert status == 1
    assert "http://…@127.0.0.1" in said
    assert "secret" not in said
    assert "http://127.0.0.1:9 does not answer" in said
    assert errors.endswith("missing: MLflow\n")
