"""The local target: the model server runs as a child process while it is verified, and is then stopped."""

import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from components.deploy.parameters import DeployParameters
from components.deploy.release import Release
from components.deploy.targets.target import RolloutOutcome
from components.deploy.verification import Verification, load_probes, verify
from fovea.progress import Progress
from fovea.storage import Storage

logger = logging.getLogger("fovea")

_REPOSITORY = Path(__file__).resolve().parents[3]
_STOP_SECONDS = 15.0
_POLL_SECONDS = 0.1
_REPORT_SECONDS = 5.0


class ServerError(Exception):
    """The server did not start; the message is one line."""


@dataclass(frozen=True)
class LocalTarget:
    """This machine. `fovea serve` starts the server again from the deployment's document.

    Args:
        storage: S3.
    """

    storage: Storage

    def deploy(self, release: Release, settings: DeployParameters) -> RolloutOutcome:
        """Start the model server, verify it, and stop it."""
        deadline = time.monotonic() + settings.deploy_timeout_seconds
        probes = load_probes(self.storage, release.dataset, release.evaluation, settings.deploy_probes)
        server = LocalServer(
            model_uri=release.record_uris["model"],
            name=settings.service_name,
            port=settings.deploy_port,
            dtype=release.evaluation.generation.dtype,
            evaluation_uri=release.calibration_uri,
        )
        try:
            with server.running(settings.deploy_timeout_seconds) as address:
                timeout = max(1.0, deadline - time.monotonic())
                logger.info("deploy: asking %s about %d held-out pictures", address, len(probes))
                # The server is on this machine: no proxy of the environment leads to it.
                with httpx.Client(base_url=address, timeout=timeout, trust_env=False) as client:
                    expected = release.expectation(settings.service_name)
                    return RolloutOutcome(
                        verify(client, probes, expected, Progress(logger, "deploy: asking"))
                    )
        except ServerError as error:
            return RolloutOutcome(Verification(False, str(error)))


@dataclass(frozen=True)
class LocalServer:
    """The model server as a child process.

    Args:
        model_uri: URI of the model's record.
        name: the name callers use.
        port: 0 takes a free one.
        dtype: what the model computes in.
        evaluation_uri: URI of its evaluation's record, which confidences come from; empty for none.
    """

    model_uri: str
    name: str
    port: int = 0
    dtype: str = "auto"
    evaluation_uri: str = ""

    @contextmanager
    def running(self, timeout: float) -> Iterator[str]:
        """Run the server for the block and give its address, ``http://host:port``, once it answers.

        However this process ends, the server ends too: it watches a pipe that only this process holds open.

        Raises:
            ServerError: it does not answer within ``timeout`` seconds; the message ends with its last line.
        """
        with tempfile.TemporaryDirectory(prefix="fovea-deploy-") as name:
            folder = Path(name)
            with (folder / "log").open("wb") as log:
                process = subprocess.Popen(  # noqa: S603
                    self._command(folder / "address"),
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=_environment(),
                )
            try:
                yield self._wait_until_ready(process, folder, time.monotonic() + timeout)
            finally:
                _stop(process)

    def _command(self, address_file: Path) -> list[str]:
        options = {
            "--model-uri": self.model_uri,
            "--model-name": self.name,
            "--host": "127.0.0.1",
            "--http-port": str(self.port),
            "--dtype": self.dtype,
            "--address-file": str(address_file),
        }
        if self.evaluation_uri:
            options["--evaluation"] = self.evaluation_uri
        pairs = [part for option in options.items() for part in option]
        return [sys.executable, "-m", "serving", *pairs, "--exit-with-parent"]

    def _wait_until_ready(self, process: "subprocess.Popen[bytes]", folder: Path, deadline: float) -> str:
        started = time.monotonic()
        report = started + _REPORT_SECONDS
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise ServerError(
                    f"the model server ended with status {process.returncode}: {_last_words(folder / 'log')}"
                )
            address = _address(folder / "address")
            if address is not None and _is_ready(address, self.name):
                return address
            if time.monotonic() > report:
                report += _REPORT_SECONDS
                logger.info("deploy: the model server is starting (%.0f s)", time.monotonic() - started)
            time.sleep(_POLL_SECONDS)
        raise ServerError(
            f"the model server was not ready after {deadline - started:.0f} s; it last said: "
            f"{_last_words(folder / 'log')}"
        )


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(_REPOSITORY), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


def _address(file: Path) -> str | None:
    try:
        return file.read_text()
    except FileNotFoundError:
        return None


def _is_ready(address: str, name: str) -> bool:
    try:
        return httpx.get(f"{address}/v2/models/{name}/ready", timeout=5, trust_env=False).is_success
    except httpx.TransportError:
        return False


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        logger.warning("deploy: the model server did not end within %.0f s and is killed", _STOP_SECONDS)
    finally:
        # Also where a second Ctrl-C interrupts the wait. On a process that has ended, this does nothing.
        process.kill()
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _last_words(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "nothing"
