"""An S3 server on this machine: `rclone serve s3` on a plain folder."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fovea.errors import UserError

_START_SECONDS = 20.0

# Runs a command until it exits or standard input closes, which happens when the parent process is gone.
_END_WITH_STDIN = """
exec 3<&0
"$@" 3<&- &
server=$!
{ read -r _; kill "$server"; } <&3 2>/dev/null &
wait "$server"
"""


@dataclass(frozen=True)
class EmbeddedS3:
    """The address of the embedded server, and its credentials."""

    endpoint_url: str
    access_key: str
    secret_key: str

    def environment(self) -> dict[str, str]:
        """Return the environment variables that point boto3 to this server."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


def find_rclone() -> Path:
    """Return the rclone on PATH, or else the one that is installed next to this Python.

    Raises:
        UserError: there is none.
    """
    installed = Path(sys.executable).parent / "rclone"
    found = shutil.which("rclone") or (str(installed) if installed.exists() else None)
    if found is None:
        raise UserError(
            "rclone, the embedded S3 server, is missing; run `make` again, or put rclone on the PATH"
        )
    return Path(found)


def free_port() -> int:
    """Return a TCP port of the loopback interface that is currently free."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def is_free(port: int) -> bool:
    """Return whether a TCP port of the loopback interface is currently free."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@contextmanager
def serve_s3(folder: Path, log: Path | None = None) -> Iterator[EmbeddedS3]:
    """Serve the subfolders of ``folder`` as buckets, with credentials generated for this run.

    The server writes to ``log``, and stops with the block.

    Raises:
        UserError: it does not start; the message includes the last line of its log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = log or folder.with_suffix(".log")
    server = EmbeddedS3(f"http://127.0.0.1:{free_port()}", "fovea", secrets.token_urlsafe(24))
    address = server.endpoint_url.removeprefix("http://")
    command = [str(find_rclone()), "serve", "s3", str(folder), "--addr", address]
    # The keys are passed by environment, because every user can read a command line.
    environment = {
        **os.environ,
        # Quoted, because rclone parses the variable as a line of CSV.
        "RCLONE_AUTH_KEY": f'"{server.access_key},{server.secret_key}"',
        "RCLONE_CONFIG": os.devnull,
    }
    with log.open("wb") as output:
        # A separate session: Ctrl-C must reach the pipeline first, which still has to record the failure.
        process = subprocess.Popen(  # noqa: S603
            ["/bin/sh", "-c", _END_WITH_STDIN, "sh", *command],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_listening(server, process, log)
        yield server
    finally:
        _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_until_listening(server: EmbeddedS3, process: "subprocess.Popen[bytes]", log: Path) -> None:
    host, port = server.endpoint_url.removeprefix("http://").split(":")
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    said = log.read_text(errors="replace").strip().splitlines()[-1:] or ["nothing"]
    raise UserError(f"the embedded S3 server did not start; its log, {log}, ends: {said[0]}")
