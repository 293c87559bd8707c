"""MLflow: runs, metrics and the model registry. Weights never go through it: versions point at S3.

Tracking is on when the platform names a server (``MLFLOW_TRACKING_URI``), and off otherwise. Opening a run
must succeed; everything after that only warns, since no figure is worth a night's training.
"""

import logging
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fovea.errors import UserError
from fovea.records import MlflowReference

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

_ATTEMPTS_SECONDS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}


def is_on() -> bool:
    """Return whether the platform names an MLflow server."""
    return bool(os.environ.get("MLFLOW_TRACKING_URI"))


def client() -> "MlflowClient":
    """Return a client of the server that the platform names.

    Raises:
        UserError: the server does not answer.
    """
    # An unreachable server must be known in seconds, not after MLflow's own minutes of retries.
    for name, value in _ATTEMPTS_SECONDS.items():
        os.environ.setdefault(name, value)
    # Importing MLflow takes seconds, which a step without tracking need not wait for.
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
    """An MLflow run that a step writes to; without tracking, it takes everything and keeps nothing."""

    def __init__(self, reference: MlflowReference | None, connection: "MlflowClient | None") -> None:
        self.reference = reference
        self._client = connection

    @classmethod
    def open(cls, experiment: str, name: str, tags: Mapping[str, str]) -> "Run":
        """Open a run, or go on with the one that ``MLFLOW_RUN_ID`` names.

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
                run = connection.create_run(
                    _experiment_id(connection, experiment), run_name=name, tags=dict(tags)
                )
        except Exception as error:
            raise UserError(
                f"MLflow refuses a run in experiment {experiment!r} ({_first_line(error)})"
            ) from error
        return cls(MlflowReference(experiment_id=run.info.experiment_id, run_id=run.info.run_id), connection)

    @classmethod
    def of(cls, reference: MlflowReference | None) -> "Run":
        """Return the run that a record refers to, to add to it."""
        if reference is None or not is_on():
            return cls(None, None)
        connection = _warn_only("reach", client)
        return cls(reference, connection)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters; what is longer than MLflow takes is cut."""
        self._do(
            "log parameters", lambda c, run: [c.log_param(run, k, str(v)[:500]) for k, v in params.items()]
        )

    def log_metrics(self, metrics: Mapping[str, float | None], step: int = 0, prefix: str = "") -> None:
        """Log figures at a step; what is missing or not finite is left out."""
        usable = {k: float(v) for k, v in metrics.items() if v is not None and math.isfinite(v)}
        self._do(
            "log metrics",
            lambda c, run: [c.log_metric(run, prefix + k, v, step=step) for k, v in usable.items()],
        )

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Keep a small file, such as a report, with the run."""
        self._do("keep a file", lambda c, run: c.log_artifact(run, str(path), folder))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags on the run."""
        self._do("set tags", lambda c, run: [c.set_tag(run, k, v) for k, v in tags.items()])

    def finish(self, *, failed: bool = False) -> None:
        """Close the run."""
        self._do("close the run", lambda c, run: c.set_terminated(run, "FAILED" if failed else "FINISHED"))

    def _do(self, what: str, action: "Callable[[MlflowClient, str], object]") -> None:
        connection, reference = self._client, self.reference
        if connection is not None and reference is not None:
            _warn_only(what, lambda: action(connection, reference.run_id))


def register_model(
    name: str, source_uri: str, reference: MlflowReference | None, tags: Mapping[str, str]
) -> MlflowReference | None:
    """Register ``source_uri`` as a version of the model ``name``, and point alias ``challenger`` at it.

    A version that has this source already is taken, so that a step run again makes no second one.

    Returns:
        The reference with name and version; None where tracking is off or the server fails.
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
    reference: MlflowReference | None, tags: Mapping[str, str], alias: str | None = None
) -> None:
    """Set tags, and an alias where one is given, on the model version that ``reference`` names."""
    if reference is None or reference.model_name is None or reference.model_version is None or not is_on():
        return
    name, version = reference.model_name, reference.model_version

    def tag() -> None:
        connection = client()
        for key, value in tags.items():
            connection.set_model_version_tag(name, version, key, value)
        if alias is not None:
            connection.set_registered_model_alias(name, alias, version)

    _warn_only("tag the model version", tag)


def _experiment_id(connection: "MlflowClient", name: str) -> str:
    found = connection.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    return str(connection.create_experiment(name))


def _warn_only(what: str, action: "Callable[[], Any]") -> Any:
    try:
        return action()
    except Exception as error:  # MLflow raises a dozen types, and none may end a run.
        logger.warning("MLflow could not %s (%s); the run goes on without", what, _first_line(error))
        return None


def _first_line(error: Exception) -> str:
    # Libraries quote the address they could not reach, with its password.
    return _without_password((str(error).strip().splitlines() or [type(error).__name__])[0])[:200]


def _without_password(text: str) -> str:
    """Return ``text`` with user and password taken out of any URL in it."""
    return re.sub(r"://[^/\s]*@", "://…@", text)
