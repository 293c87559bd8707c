"""MLflow: runs, metrics and the model registry. Weights are not uploaded to it: versions refer to S3.

Tracking is on if the platform sets a server (``MLFLOW_TRACKING_URI``), and off otherwise. Opening a run
must succeed; later errors only cause warnings, because metrics are not worth failing a long training.
"""

import json
import logging
import math
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fovea.errors import UserError
from fovea.records import MlflowReference

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 60.0
"""The pause before a server that did not respond is tried again."""
_MOST_WAITING = 20_000
_REFUSALS = {
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "PERMISSION_DENIED",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
    "UNAUTHENTICATED",
}
"""MLflow's error codes for requests that would fail again."""

# The maximum that a server's database accepts.
_DESCRIPTION_CHARACTERS = 5000

_ATTEMPTS_SECONDS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}


def is_on() -> bool:
    """Return whether the platform sets an MLflow server."""
    return bool(os.environ.get("MLFLOW_TRACKING_URI"))


def client() -> "MlflowClient":
    """Return a client of the platform's MLflow server.

    Raises:
        UserError: the server does not respond.
    """
    # An unreachable server must be detected in seconds, not after MLflow's minutes of retries.
    for name, value in _ATTEMPTS_SECONDS.items():
        os.environ.setdefault(name, value)
    # Importing MLflow takes seconds, which a step without tracking should not spend.
    from mlflow import MlflowClient

    uri = os.environ["MLFLOW_TRACKING_URI"]
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    try:
        connection = MlflowClient()
        connection.search_experiments(max_results=1)
    except Exception as error:
        raise UserError(
            f"MLflow at {_without_password(uri)} does not answer ({_first_line(error)})"
        ) from error
    return connection


class Run:
    """An MLflow run that a step writes to; without tracking, all calls do nothing.

    Entries that cannot be sent because the server is unreachable are kept and sent when it responds again.
    """

    def __init__(self, reference: MlflowReference | None, connection: "MlflowClient | None") -> None:
        self.reference = reference
        self._client = connection
        self._waiting: deque[tuple[str, Callable[[MlflowClient, str], object]]] = deque(maxlen=_MOST_WAITING)
        self._again_at = 0.0

    @classmethod
    def open(
        cls, experiment: str, name: str, tags: Mapping[str, str], earlier: MlflowReference | None = None
    ) -> "Run":
        """Open a new run, or resume the one that ``MLFLOW_RUN_ID`` names, or else ``earlier``.

        A new run belongs to the experiment of ``MLFLOW_EXPERIMENT_ID``, or else to ``experiment``.

        Raises:
            UserError: tracking is on, and the server cannot be reached or refuses.
        """
        if not is_on():
            logger.info("no MLFLOW_TRACKING_URI is set: nothing is tracked")
            return cls(None, None)
        connection = client()
        given = os.environ.get("MLFLOW_RUN_ID")
        try:
            if given:
                run = connection.get_run(given)
            else:
                run = _go_on(connection, earlier) or connection.create_run(
                    os.environ.get("MLFLOW_EXPERIMENT_ID") or _experiment_id(connection, experiment),
                    run_name=name,
                    tags=dict(tags),
                )
        except Exception as error:
            raise UserError(
                f"MLflow refuses a run in experiment {experiment!r} ({_first_line(error)})"
            ) from error
        return cls(MlflowReference(experiment_id=run.info.experiment_id, run_id=run.info.run_id), connection)

    @classmethod
    def of(cls, reference: MlflowReference | None) -> "Run":
        """Return the run that a record refers to, to write to it."""
        if reference is None or not is_on():
            return cls(None, None)
        connection = _warn_only("reach", client)
        return cls(reference, connection)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters; values that are too long for MLflow are truncated."""
        self._do(
            "log parameters", lambda c, run: [c.log_param(run, k, str(v)[:500]) for k, v in params.items()]
        )

    def log_metrics(self, metrics: Mapping[str, float | None], step: int = 0, prefix: str = "") -> None:
        """Log metrics at a step; missing values and those that are not finite are omitted."""
        usable = {prefix + k: float(v) for k, v in metrics.items() if v is not None and math.isfinite(v)}
        now = int(time.time() * 1000)

        def log(connection: "MlflowClient", run: str) -> None:
            from mlflow.entities import Metric

            connection.log_batch(run, [Metric(name, value, now, step) for name, value in usable.items()])

        self._do("log metrics", log)

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Store a small file, such as a report, with the run."""
        self._do("keep a file", lambda c, run: c.log_artifact(run, str(path), folder))

    def log_table(self, columns: Mapping[str, Sequence[Any]], name: str) -> None:
        """Add rows to a table; a column can contain pictures, which are stored separately."""
        table = {column: list(values) for column, values in columns.items()}
        self._do("log a table", lambda c, run: c.log_table(run, table, name))

    def log_dataset(self, name: str, digest: str, uri: str, context: str, profile: Mapping[str, Any]) -> None:
        """Log a dataset as an input of the run; ``profile`` contains its counts."""

        def log(connection: "MlflowClient", run: str) -> None:
            from mlflow.entities import Dataset, DatasetInput, InputTag

            source = json.dumps({"uri": uri})
            # MLflow limits digests to 36 characters.
            made = Dataset(
                name, digest.removeprefix("sha256:")[:36], "s3", source, profile=json.dumps(profile)
            )
            connection.log_inputs(run, [DatasetInput(made, [InputTag("mlflow.data.context", context)])])

        self._do("log the dataset", log)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags on the run."""
        self._do("set tags", lambda c, run: [c.set_tag(run, k, v) for k, v in tags.items()])

    @contextmanager
    def system_metrics(self) -> "Iterator[None]":
        """Log the usage of processors, memory, disk, network and GPUs while the block runs."""
        monitor = self.reference and _warn_only("monitor the system", self._start_monitor)
        try:
            yield
        finally:
            if monitor:
                _warn_only("stop monitoring the system", monitor.finish)

    def _start_monitor(self) -> Any:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        for library in ("mlflow.system_metrics.system_metrics_monitor", "mlflow.system_metrics"):
            # It logs every start, and sometimes that a GPU's metrics are missing.
            logging.getLogger(library).setLevel(logging.ERROR)
        assert self.reference is not None  # noqa: S101 - for mypy
        monitor = SystemMetricsMonitor(  # type: ignore[no-untyped-call]
            self.reference.run_id, resume_logging=True, tracking_uri=os.environ["MLFLOW_TRACKING_URI"]
        )
        monitor.start()  # type: ignore[no-untyped-call]
        return monitor

    def finish(self, *, failed: bool = False) -> None:
        """Close the run, and send the waiting entries."""
        self._waiting.append(
            ("close the run", lambda c, run: c.set_terminated(run, "FAILED" if failed else "FINISHED"))
        )
        self.flush()

    def flush(self) -> None:
        """Send the waiting entries now."""
        self._again_at = 0.0
        self._send()
        if self._waiting:
            logger.warning("MLflow: %d entries could not be sent", len(self._waiting))

    def _do(self, what: str, action: "Callable[[MlflowClient, str], object]") -> None:
        self._waiting.append((what, action))
        self._send()

    def _send(self) -> None:
        if self._client is None or self.reference is None:
            self._waiting.clear()
            return
        if time.monotonic() < self._again_at:
            return
        while self._waiting:
            what, action = self._waiting[0]
            try:
                action(self._client, self.reference.run_id)
            except Exception as error:  # MLflow raises a dozen types, and none may stop a run.
                logger.warning(
                    "MLflow could not %s (%s); the run continues without it", what, _first_line(error)
                )
                if getattr(error, "error_code", "") not in _REFUSALS:
                    self._again_at = time.monotonic() + _RETRY_SECONDS
                    return
            self._waiting.popleft()


def _go_on(connection: "MlflowClient", earlier: MlflowReference | None) -> Any:
    """Return an earlier run, running again; None if there is none, or it was deleted."""
    if earlier is None:
        return None
    try:
        run = connection.get_run(earlier.run_id)
        if run.info.lifecycle_stage != "active":
            return None
        connection.update_run(earlier.run_id, status="RUNNING")
    except Exception as error:
        logger.warning(
            "MLflow no longer has the run %s (%s); creating a new one", earlier.run_id, _first_line(error)
        )
        return None
    return run


def register_model(
    name: str, source_uri: str, reference: MlflowReference | None, tags: Mapping[str, str]
) -> MlflowReference | None:
    """Register ``source_uri`` as a version of the model ``name``, and set the alias ``challenger`` to it.

    An existing version with this source is reused, so that repeating a step creates no second one.

    Returns:
        The reference with name and version; None if tracking is off or the server fails.
    """
    if reference is None or not is_on():
        return None

    def register() -> MlflowReference:
        connection = client()
        if not any(model.name == name for model in connection.search_registered_models(f"name = '{name}'")):
            connection.create_registered_model(name)
        versions = connection.search_model_versions(f"name = '{name}'")
        version = next((each for each in versions if each.source == source_uri), None)
        if version is None:
            version = connection.create_model_version(
                name, source_uri, run_id=reference.run_id, tags=dict(tags)
            )
        connection.set_registered_model_alias(name, "challenger", version.version)
        return reference.model_copy(update={"model_name": name, "model_version": str(version.version)})

    registered: MlflowReference | None = _warn_only("register the model", register)
    return registered


def tag_model_version(
    reference: MlflowReference | None,
    tags: Mapping[str, str],
    alias: str | None = None,
    description: str | None = None,
) -> None:
    """Set tags, and optionally an alias and a description, on the model version of ``reference``."""
    if reference is None or reference.model_name is None or reference.model_version is None or not is_on():
        return
    name, version = reference.model_name, reference.model_version

    def tag() -> None:
        connection = client()
        for key, value in tags.items():
            connection.set_model_version_tag(name, version, key, value)
        if description is not None:
            connection.update_model_version(name, version, description[:_DESCRIPTION_CHARACTERS])
        if alias is not None:
            connection.set_registered_model_alias(name, alias, version)

    _warn_only("tag the model version", tag)


def version_source(name: str, alias: str) -> str | None:
    """Return the source of the version with an alias of the model ``name``.

    Returns:
        None if tracking is off, or the model or the alias does not exist.

    Raises:
        UserError: the server does not respond, which is different from no version.
    """
    if not is_on():
        return None
    connection = client()
    try:
        models = connection.search_registered_models(f"name = '{name}'")
        version = next((model.aliases.get(alias) for model in models if model.name == name), None)
        return None if version is None else str(connection.get_model_version(name, str(version)).source)
    except Exception as error:
        raise UserError(
            f"MLflow does not say which version of {name!r} is its {alias} ({_first_line(error)})"
        ) from error


def _experiment_id(connection: "MlflowClient", name: str) -> str:
    found = connection.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    return str(connection.create_experiment(name, artifact_location=_beside_database()))


def _beside_database() -> str | None:
    """Return the folder next to a local database for files, instead of one in the working directory."""
    uri = os.environ["MLFLOW_TRACKING_URI"]
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlflow-files").as_uri()


def _warn_only(what: str, action: "Callable[[], Any]") -> Any:
    try:
        return action()
    except Exception as error:  # MLflow raises a dozen types, and none may stop a run.
        logger.warning("MLflow could not %s (%s); the run continues without it", what, _first_line(error))
        return None


def _first_line(error: Exception) -> str:
    # Libraries quote the address that they could not reach, including its password.
    return _without_password((str(error).strip().splitlines() or [type(error).__name__])[0])[:200]


def _without_password(text: str) -> str:
    """Return ``text`` with user and password removed from any URL in it."""
    return re.sub(r"://[^/\s]*@", "://…@", text)
