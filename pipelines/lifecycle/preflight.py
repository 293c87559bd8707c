"""Check what a run leans on before anything costs money."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.gate.parameters import read_rules
from fovea import tracking
from fovea.champion import find_champion
from fovea.errors import UserError
from fovea.platform import load_platform
from fovea.records import AbsentRecord, ModelRecord, write_record
from fovea.steps import RunContext, parse_parameters, reporting_failure
from fovea.storage import Storage
from pipelines.settings import FinetuneParameters

TASK = "preflight"

logger = logging.getLogger("fovea")


def preflight_step(values: Mapping[str, Any], *, run_id: str, base_record: str | Path) -> ModelRecord:
    """Check a run's parameters, S3, MLflow, the champion and the base model; hand the base's record over.

    Args:
        values: Every parameter of the run, the fields of `FinetuneParameters`.
        run_id: The run's ID.
        base_record: Where the base model's record goes.

    Raises:
        UserError: the first thing that is wrong.
    """
    context = RunContext(artifact_root=str(values.get("artifact_root", "")), run_id=run_id)
    storage = Storage()
    with reporting_failure(TASK, context, storage):
        parameters: FinetuneParameters = parse_parameters(FinetuneParameters, values)
        load_platform().fetch_profile(parameters.fetch_profile)
        _check_storage(storage, context)
        read_rules(parameters.gate_rules, storage)
        base = _read_base(storage, parameters.base_model)
        if tracking.is_on():
            logger.info("%s: asking MLflow", TASK)
            _check_champion(storage, parameters)
        write_record(base, base_record)
    logger.info(
        "%s: parameters, S3, %s and the base model %s are in order",
        TASK,
        "MLflow" if tracking.is_on() else "no MLflow (none is configured)",
        base.digest[:19],
    )
    return base


def _check_storage(storage: Storage, context: RunContext) -> None:
    """Write, read and list under the run's own prefix, which every later task does."""
    uri = context.run_uri("started.json")
    content = b"{}\n"
    # On the condition that records are committed on, which a policy may refuse where it allows plain writes.
    storage.write_bytes(uri, content, only_if_absent=True)
    if storage.read_bytes(uri) != content:
        raise UserError(f"{uri}: S3 returns something else than was written; check what stands before it")
    if uri not in storage.list(context.run_uri("")):
        raise UserError(f"{context.run_uri('')}: what was just written is not listed; check s3:ListBucket")


def _check_champion(storage: Storage, parameters: FinetuneParameters) -> None:
    """Refuse to begin a run whose model could not be compared with the champion."""
    champion = find_champion(storage, parameters.registered_model)
    if isinstance(champion, AbsentRecord) or champion.task is None:
        return
    difference = parameters.task().difference(champion.task)
    if difference:
        raise UserError(
            f"the champion of registered_model {parameters.registered_model} answers another task than this "
            f"run's: {difference}. Give this run another registered_model and another service_name"
        )


def _read_base(storage: Storage, uri: str) -> ModelRecord:
    base = ModelRecord.from_json(storage.read_bytes(uri), source=uri)
    absent = [entry.path for entry in base.files if not storage.exists(base.uri + entry.path)]
    if absent:
        raise UserError(f"{base.uri}: {', '.join(absent[:3])} missing; import the base model again")
    return base
