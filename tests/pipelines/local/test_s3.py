import signal
import subprocess
import sys
from pathlib import Path

import boto3
import psutil
import pytest

from fovea.errors import UserError
from pipelines.local import s3
from pipelines.local.s3 import free_port, is_free, serve_s3


def servers(folder: Path) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if str(folder) in (process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


def test_it_serves_folders_as_buckets_and_ends_with_the_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "buckets" / "one").mkdir(parents=True)
    with serve_s3(tmp_path / "buckets") as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        names = [bucket["Name"] for bucket in boto3.Session().client("s3").list_buckets()["Buckets"]]
        assert names == ["one"]
        assert servers(tmp_path / "buckets")
    assert servers(tmp_path / "buckets") == []


def test_the_keys_are_on_no_command_line(tmp_path: Path) -> None:
    with serve_s3(tmp_path / "buckets") as server:
        for process in servers(tmp_path / "buckets"):
            assert not any(server.secret_key in part for part in process.cmdline())


def test_it_ends_when_the_process_that_started_it_is_killed(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from pipelines.local.s3 import serve_s3
with serve_s3(Path({str(tmp_path / "buckets")!r})):
    print("up", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "up\n"
        left = servers(tmp_path / "buckets")
        assert left
        parent.send_signal(signal.SIGKILL)
    psutil.wait_procs(left, timeout=20)
    assert servers(tmp_path / "buckets") == []


def test_one_that_does_not_start_is_an_error_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    false = tmp_path / "rclone"
    false.write_text("#!/bin/sh\necho no such backend >&2\nexit 3\n")
    false.chmod(0o755)
    monkeypatch.setattr(s3, "find_rclone", lambda: false)
    with pytest.raises(UserError, match="ends: no such backend"), serve_s3(tmp_path / "buckets"):
        pass


def test_a_port_is_free_until_it_is_taken(tmp_path: Path) -> None:
    assert is_free(free_port())
    with serve_s3(tmp_path / "buckets") as server:
        assert not is_free(int(server.endpoint_url.rsplit(":", 1)[1]))
