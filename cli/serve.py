"""`fovea serve`: the model server on this machine."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from components.deploy.parameters import Deployment
    from fovea.records import EvaluationRecord
    from pipelines.state import State


def serve(
    model: Annotated[
        str | None,
        typer.Option(help="A model's record, s3://…/index/….json, or a folder.", metavar="URI|DIR"),
    ] = None,
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8080,
    host: Annotated[str, typer.Option(help="0.0.0.0 lets other machines in.")] = "127.0.0.1",
    service: Annotated[
        str, typer.Option(help="The service whose deployment is served, and the model's name.")
    ] = "fovea",
    state: Annotated[Path, typer.Option(help="The folder of local runs.", metavar="DIR")] = Path(".fovea"),
) -> None:
    """Serve a model over KServe's V1 and V2 and OpenAI's chat completions, with a page at /, until Ctrl-C.

    Without --model it is the one that the last run on this machine deployed.

    Example: fovea serve

    Example: fovea serve --model models/mine --port 8081
    """
    from pipelines.processes import interruptible
    from serving.server import ServerSettings
    from serving.server import serve as serve_model

    with interruptible():
        folder, digest, evaluation = _locate(model, service, state)
        serve_model(
            ServerSettings(
                model=str(folder),
                digest=digest,
                evaluation=evaluation,
                name=service,
                port=port,
                host=host,
            )
        )


def _locate(
    model: str | None, service: str, state: Path
) -> "tuple[Path, str, EvaluationRecord | str | None]":
    """Return the folder and digest of the model to serve; what lies in S3 is downloaded.

    And the record of its evaluation, which confidences come from: of the deployed one.
    """
    from pipelines.local import ARTIFACT_ROOT
    from pipelines.state import State
    from serving.location import find_evaluation, locate_model

    place = State(state.absolute())
    is_local = model is None or (model.startswith(f"{ARTIFACT_ROOT}/") and not _names_s3())
    if not is_local:
        return *locate_model(str(model)), None
    with _local_s3(place):
        if model is not None:
            return *locate_model(model, place.cache), None
        deployed = _deployed(ARTIFACT_ROOT, service)
        folder, digest = locate_model(deployed.model.record_uri, place.cache)
        evaluation = deployed.records.get("evaluation") if deployed.calibration_digest else None
        return folder, digest, find_evaluation(evaluation, digest) if evaluation else None


@contextmanager
def artifacts(artifact_root: str, state: Path) -> Iterator[str]:
    """Give the artifact root for the block: the one that is named, or that of the runs on this machine.

    For the latter, their S3 store is served and their MLflow store is led to.
    """
    from pipelines.local import ARTIFACT_ROOT
    from pipelines.state import State

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
    """Serve the S3 store of the local runs for the block, and lead this process to it."""
    from fovea.errors import UserError
    from pipelines.embedded_s3 import serve_s3

    if not place.s3.is_dir():
        raise UserError(
            f"{place.root}: no run has kept anything here; type `fovea run` first, or give --model"
        )
    with serve_s3(place.s3) as server:
        os.environ.update(server.environment())
        for name in ("NO_PROXY", "no_proxy"):
            os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1"]))
        yield


def _deployed(artifact_root: str, service: str) -> "Deployment":
    """Return the last deployment of a service."""
    from components.deploy.history import present_deployment
    from fovea.errors import UserError
    from fovea.storage import Storage

    found = present_deployment(Storage(), artifact_root, service)
    if found is None:
        raise UserError(
            f"no run has deployed the service {service!r} here; type `fovea run` first, or give --model"
        )
    return found
