"""The documents of a service's deployments: the present one, and those before it."""

from collections.abc import Iterator

from pydantic import ValidationError

from components.deploy.parameters import Deployment
from fovea.errors import UserError
from fovea.storage import Storage, join_uri

_WITHDRAWN = "withdrawn"


def deployment_uri(artifact_root: str, service_name: str) -> str:
    """Return the key of a service's deployment document."""
    return join_uri(artifact_root, "deployments", f"{service_name}.json")


def write_deployment(storage: Storage, artifact_root: str, document: Deployment) -> str:
    """Write a document to the service's history, and then as its present one; return the URI of that."""
    text = (document.model_dump_json(indent=2) + "\n").encode()
    storage.write_bytes(_history_uri(artifact_root, document, "deployment.json"), text)
    uri = deployment_uri(artifact_root, document.service)
    storage.write_bytes(uri, text)
    return uri


def present_deployment(storage: Storage, artifact_root: str, service_name: str) -> Deployment | None:
    """Return the present deployment of a service, or None.

    Raises:
        UserError: its document cannot be read.
    """
    uri = deployment_uri(artifact_root, service_name)
    return _read(storage, uri) if storage.exists(uri) else None


def present_deployments(storage: Storage, artifact_root: str) -> Iterator[Deployment]:
    """Yield the present deployment of every service, in the order of their names.

    Raises:
        UserError: a document cannot be read.
    """
    prefix = join_uri(artifact_root, "deployments", "")
    for uri in storage.list(prefix):
        if "/" not in uri.removeprefix(prefix):
            yield _read(storage, uri)


def withdraw(storage: Storage, artifact_root: str, document: Deployment) -> None:
    """Mark a deployment as rolled back, so that no later rollback returns to it."""
    storage.write_bytes(_history_uri(artifact_root, document, _WITHDRAWN), b"{}\n")


def champion_before(storage: Storage, artifact_root: str, present: Deployment) -> Deployment:
    """Return the last verified deployment of another model than the present one.

    Raises:
        UserError: there is none, or a document cannot be read.
    """
    prefix = join_uri(artifact_root, "deployments", present.service, "")
    uris = list(storage.list(prefix))
    deployments = [(uri, _read(storage, uri)) for uri in uris if uri.endswith("/deployment.json")]
    # All deployments of a model before its rollback are out; it may be deployed again later.
    withdrawn = {
        each.model.digest: each.verified_at
        for uri, each in sorted(deployments, key=lambda pair: pair[1].verified_at)
        if uri.replace("/deployment.json", f"/{_WITHDRAWN}") in uris
    }
    fitting = [
        each
        for _, each in deployments
        if each.records
        and each.model.digest != present.model.digest
        and not (each.model.digest in withdrawn and each.verified_at <= withdrawn[each.model.digest])
    ]
    if not fitting:
        raise UserError(
            f"{present.service}: no earlier deployment of another model is known under {artifact_root}; "
            "deploy one by a run of the pipeline"
        )
    return max(fitting, key=lambda each: each.verified_at)


def _read(storage: Storage, uri: str) -> Deployment:
    try:
        return Deployment.model_validate_json(storage.read_bytes(uri))
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{uri}: not a deployment ({'.'.join(map(str, first['loc']))}: {first['msg']}); if an earlier "
            "version of Fovea wrote it, remove it: the service then counts as never deployed by that run"
        ) from error


def _history_uri(artifact_root: str, document: Deployment, name: str) -> str:
    return join_uri(artifact_root, "deployments", document.service, document.run_id, name)
