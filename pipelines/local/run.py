"""Run the whole pipeline on this machine with kfp.local, an S3 server, MLflow, and sample data and model.

It needs only Python. All state is in one folder and is reused.
"""

import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from botocore.config import Config

from fovea.errors import UserError
from fovea.models import import_model
from fovea.progress import Progress
from fovea.records import now
from fovea.steps import RunContext
from fovea.storage import Storage, index_uri, s3_client, split_uri
from pipelines.compile import PIPELINE_FILE
from pipelines.form import to_arguments
from pipelines.lifecycle.outcome import Outcome
from pipelines.local.log_stream import Stream
from pipelines.local.processes import ending_with_block
from pipelines.local.s3 import EmbeddedS3, free_port, is_free, serve_s3
from pipelines.local.state import State, write_whole
from pipelines.settings import NAMES, RunSettings, validate_settings
from sample.catalogue import CATALOGUE_VERSION, write_catalogue
from sample.model import unpack_sample_model, weights_digest
from sample.server import CatalogueServer

ARTIFACT_ROOT = "s3://fovea"
_REPOSITORY = Path(__file__).resolve().parents[2]
_FETCH_PROFILE = "sample"

logger = logging.getLogger("fovea")

Show = Callable[[str], None]


@dataclass(frozen=True)
class Sample:
    """The sample catalogue to use if the settings name no source."""

    rows: int = 3040
    seed: int = 0


@dataclass(frozen=True)
class LocalRun:
    """A finished run, while its S3 server is still running."""

    run_id: str
    outcome: Outcome
    settings: RunSettings
    seconds: float
    storage: Storage


@contextmanager
def run_locally(values: Mapping[str, Any], sample: Sample, state: State, show: Show) -> Iterator[LocalRun]:
    """Run the compiled pipeline, and yield its outcome while its S3 server is still running.

    Args:
        values: The given settings. Without a ``source`` the sample catalogue is created and served;
            without a ``base_model`` the sample model is created. A ``base_model`` can be a local folder.
        sample: The sample catalogue to create.
        state: A claimed state folder.
        show: Takes the lines of progress.

    Raises:
        UserError: settings are wrong, or a requirement of the run is missing.
    """
    started = time.monotonic()
    _validate_before_work(values)
    # Files of an earlier run must not be mistaken for this one's.
    shutil.rmtree(state.last_run, ignore_errors=True)
    state.last_run.mkdir()
    with ExitStack() as stack:
        source = values.get("source") or _serve_sample(stack, sample, state, show)
        base = values.get("base_model") or str(_sample_model(state, show))
        # rclone serves each folder as a bucket.
        (state.s3 / split_uri(ARTIFACT_ROOT)[0]).mkdir(parents=True, exist_ok=True)
        server = stack.enter_context(serve_s3(state.s3, state.last_run / "s3.log"))
        storage = _storage(server)
        settings = validate_settings(
            {
                "fetch_profile": "default" if values.get("source") else _FETCH_PROFILE,
                **values,
                "source": str(source),
                "base_model": _base_model(str(base), storage, show),
                "artifact_root": ARTIFACT_ROOT,
            }
        )
        if values.get("source"):
            show("names: " + ", ".join(f"{name} {getattr(settings, name)}" for name in NAMES))
        before = _run_ids(storage)
        stream = _run_pipeline(settings, state, server, show)
        run_ids = _run_ids(storage) - before
        run_id = run_ids.pop() if run_ids else ""
        yield LocalRun(
            run_id=run_id,
            outcome=_outcome(storage, run_id, stream),
            settings=settings,
            seconds=time.monotonic() - started,
            storage=storage,
        )


def _validate_before_work(values: Mapping[str, Any]) -> None:
    """Validate the settings before the sample is created, with example values for those that follow later."""
    if "artifact_root" in values:
        raise UserError(f"artifact_root: remove it, a local run always uses {ARTIFACT_ROOT}")
    base, source = str(values.get("base_model") or ""), str(values.get("source") or "")
    if base and not base.startswith("s3://") and not Path(base).is_dir():
        raise UserError(
            f"base_model: there is no folder {base}; give a Phi-3-Vision folder or a record's URI"
        )
    is_pattern = any(mark in source for mark in "*?")
    if source and "://" not in source and not is_pattern and not Path(source).exists():
        raise UserError(
            f"source: there is no file or folder {source}; give a table's path or URL, or hf://owner/name"
        )
    example = {
        "artifact_root": ARTIFACT_ROOT,
        "base_model": f"{ARTIFACT_ROOT}/base.json",
        "source": "example",
    }
    validate_settings({**values, **example})


def _serve_sample(stack: ExitStack, sample: Sample, state: State, show: Show) -> str:
    """Create the sample catalogue if it does not exist, serve it, and return its table's URL."""
    folder = state.sample / f"catalogue-v{CATALOGUE_VERSION}-{sample.rows}-{sample.seed}"
    started = time.monotonic()
    progress = Progress(logger, "sample catalogue: pictures")
    catalogue = write_catalogue(folder, sample.rows, sample.seed, progress)
    if catalogue.reused:
        show(f"sample catalogue: reused {folder}")
    else:
        show(f"sample catalogue: {sample.rows} rows in {time.monotonic() - started:.0f} s, in {folder}")
    server = stack.enter_context(CatalogueServer(folder, port=_catalogue_port(state, show)))
    profile = {"allowed_networks": ["127.0.0.0/8"], "allowed_ports": [server.port]}
    write_whole(state.platform, yaml.safe_dump({"fetch_profiles": {_FETCH_PROFILE: profile}}))
    return server.catalogue_url


def _catalogue_port(state: State, show: Show) -> int:
    """Return the port that the catalogue was last served at, if it is free.

    The port is part of the pictures' URLs: the same port gives the same table, so the dataset is reused.
    """
    kept = state.catalogue_port.read_text().strip() if state.catalogue_port.exists() else ""
    before = int(kept) if kept.isdecimal() else 0
    port = before if before and is_free(before) else free_port()
    if before and port != before:
        show(f"sample catalogue: port {before} is taken, so it is served at {port} and fetched again")
    write_whole(state.catalogue_port, f"{port}\n")
    return port


def _sample_model(state: State, show: Show) -> Path:
    """Write the sample model if it does not exist, and return its folder."""
    # Each version of the model has its own folder.
    folder = state.sample / f"model-{weights_digest()[:12]}"
    reused = unpack_sample_model(folder)
    show(f"sample model: {'reused' if reused else 'written to'} {folder}")
    return folder


def _storage(server: EmbeddedS3) -> Storage:
    """Return the storage of the embedded server, without changing this process's environment."""
    client = s3_client(
        endpoint_url=server.endpoint_url,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name="us-east-1",
        config=Config(proxies={}),
    )
    return Storage(client)


def _base_model(given: str, storage: Storage, show: Show) -> str:
    """Return the URI of the base model's record; import a local folder first."""
    if given.startswith("s3://"):
        return given
    record = import_model(Path(given), RunContext(artifact_root=ARTIFACT_ROOT, run_id="local"), storage)
    show(f"base model: {given}, {record.digest[:19]}")
    return index_uri(ARTIFACT_ROOT, record.step, record.input_key)


def _run_pipeline(settings: RunSettings, state: State, server: EmbeddedS3, show: Show) -> Stream:
    arguments = state.temporary / "arguments.json"
    arguments.write_text(json.dumps(to_arguments(settings)))
    command = [sys.executable, "-m", "pipelines.local.kfp_runner", PIPELINE_FILE, arguments, state.kfp]
    environment = _environment(settings, state, server)
    with (state.last_run / "log.txt").open("w") as log:
        stream = Stream(show, log)
        with ending_with_block(list(map(str, command)), environment) as process:
            stream.follow(process.stdout or [])
    return stream


def _environment(settings: RunSettings, state: State, server: EmbeddedS3) -> dict[str, str]:
    """Return the tasks' environment: that of this process, with the addresses of this machine's servers."""
    is_sample = settings.fetch_profile == _FETCH_PROFILE
    own = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "MLFLOW_"))}
    local_hosts = ",".join(filter(None, [own.get("NO_PROXY") or own.get("no_proxy"), "127.0.0.1,localhost"]))
    return {
        **own,
        **server.environment(),
        "MLFLOW_TRACKING_URI": f"sqlite:///{state.mlflow}",
        "FOVEA_CACHE": str(state.cache),
        **({"FOVEA_PLATFORM": str(state.platform)} if is_sample else {}),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(_REPOSITORY), own.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
        # torch's threads wait for each other in a spin loop. If another program used a core, a training step
        # took about six times as long; after 5,000 iterations they sleep instead. With fewer iterations
        # a step takes longer on an idle machine (docs/performance.md).
        "GOMP_SPINCOUNT": own.get("GOMP_SPINCOUNT", "5000"),
        "TMPDIR": str(state.temporary),
        # Weights and tokenizers come from S3; only a dataset may come from the hub.
        **({} if settings.source.startswith("hf://") else {"HF_HUB_OFFLINE": "1"}),
        "NO_PROXY": local_hosts,
        "no_proxy": local_hosts,
    }


def _run_ids(storage: Storage) -> set[str]:
    prefix = f"{ARTIFACT_ROOT}/runs/"
    return {uri.removeprefix(prefix).split("/")[0] for uri in storage.list(prefix)}


def _outcome(storage: Storage, run_id: str, stream: Stream) -> Outcome:
    """Return the outcome that the run wrote, or else one derived from its output."""
    uri = f"{ARTIFACT_ROOT}/runs/{run_id}/outcome.json"
    if run_id and storage.exists(uri):
        outcome = Outcome.model_validate_json(storage.read_bytes(uri))
        if outcome.state != "failed" or outcome.task:
            return outcome
    reason = stream.error or "the pipeline stopped without an error message; see log.txt in last-run"
    return Outcome(state="failed", task=stream.failed, reason=reason, finished_at=now())
