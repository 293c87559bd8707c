"""`fovea serve`: the model server on this machine."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fovea.parameters import parse_parameters
from serving.options import with_options
from serving.settings import ServerSettings

if TYPE_CHECKING:
    from components.deploy.parameters import Deployment
    from pipelines.local.state import State
    from serving.engine.loading import LocatedModel


# --model and --service find the model, its name and its evaluation.
@with_options(ServerSettings, without=("model_uri", "model_dir", "model_record", "evaluation", "model_name"))
def serve(
    model: Annotated[
        str | None,
        typer.Option(help="A model's record, s3://…/index/….json, or a folder.", metavar="URI|DIR"),
    ] = None,
    service: Annotated[
        str,
        typer.Option(help="The service whose deployment is served; by default the last run's."),
    ] = "",
    state: Annotated[Path, typer.Option(help="The folder of local runs.", metavar="DIR")] = Path(".fovea"),
    **options: Any,
) -> None:
    """Serve a model over KServe's V1 and V2 and OpenAI's chat completions, with a page at /, until Ctrl-C.

    Without --model it is the deployed model of the last run's service on this machine.

    Example: fovea serve

    Example: fovea serve --model models/mine --port 8081
    """
    from pipelines.local.processes import interruptible
    from serving.server import serve as serve_model

    settings = parse_parameters(ServerSettings, options, what="options")
    with interruptible():
        found = (
            _locate_deployed(service, state)
            if model is None
            else _locate_named(model, service or settings.model_name, state)
        )
        serve_model(settings, found)


def _locate_named(model: str, name: str, state: Path) -> "LocatedModel":
    """Return the named model; a model in S3 is downloaded."""
    from pipelines.local.run import ARTIFACT_ROOT
    from pipelines.local.state import State
    from serving.engine.loading import LocatedModel, locate_model

    if not model.startswith(f"{ARTIFACT_ROOT}/") or _names_s3():
        return LocatedModel(name, *locate_model(model))
    place = State(state.absolute())
    with _local_s3(place):
        return LocatedModel(name, *locate_model(model, place.cache))


def _locate_deployed(service: str, state: Path) -> "LocatedModel":
    """Return the deployed model of a service, downloaded; of the last run's where none is named."""
    from pipelines.local.run import ARTIFACT_ROOT
    from pipelines.local.state import State
    from serving.engine.loading import LocatedModel, find_evaluation, locate_model

    place = State(state.absolute())
    with _local_s3(place):
        deployed = _deployed(ARTIFACT_ROOT, service or _last_service(place))
        folder, digest = locate_model(deployed.model.record_uri, place.cache)
        evaluation = deployed.records.get("evaluation") if deployed.calibration_digest else None
        found = find_evaluation(evaluation, digest) if evaluation else None
        return LocatedModel(deployed.service, folder, digest, found)


@contextmanager
def artifacts(artifact_root: str, state: Path) -> Iterator[str]:
    """Give the artifact root for the block: the one that is named, or that of the runs on this machine.

    For the latter, their S3 store is started and MLFLOW_TRACKING_URI leads to their MLflow store.
    """
    from pipelines.local.run import ARTIFACT_ROOT
    from pipelines.local.state import State

    if artifact_root:
        yield artifact_root.rstrip("/")
        return
    place = State(state.absolute())
    with _local_s3(place):
        os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{place.mlflow}")
        os.environ.setdefault("FOVEA_CACHE", str(place.cache))
        yield ARTIFACT_ROOT


def _names_s3() -> bool:
    return any(os.environ.get(name) for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"))


@contextmanager
def _local_s3(place: "State") -> Iterator[None]:
    """Serve the S3 store of the local runs for the block, and set this process's environment for it."""
    from fovea.errors import UserError
    from pipelines.local.s3 import serve_s3

    if not place.s3.is_dir():
        raise UserError(
            f"{place.root}: no run has kept anything here; type `fovea run` first, or give --model"
        )
    with serve_s3(place.s3) as server:
        os.environ.update(server.environment())
        for name in ("NO_PROXY", "no_proxy"):
            os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1"]))
        yield


def _last_service(place: "State") -> str:
    """Return the service that the last run was to deploy to; empty where no run has ended."""
    from pipelines.report.summary import Summary

    summary = Summary.read(place.last_run)
    return str(summary.settings.get("service_name", "")) if summary else ""


def _deployed(artifact_root: str, service: str) -> "Deployment":
    """Return the present deployment of a service; where none is named, the newest of all services."""
    from components.deploy.history import present_deployments
    from fovea.errors import UserError
    from fovea.storage import Storage

    found = {each.service: each for each in present_deployments(Storage(), artifact_root)}
    if service in found:
        return found[service]
    if found and not service:
        return max(found.values(), key=lambda each: each.verified_at)
    what = f"the service {service!r}" if service else "a service"
    others = f"serve another one with --service ({', '.join(found)}), " if found else ""
    raise UserError(f"no run has deployed {what} here; {others}type `fovea run` first, or give --model")
