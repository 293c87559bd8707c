"""Check the settings and services of a run before anything costs money."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from components.gate.parameters import read_rules
from fovea import tracking
from fovea.champion import find_champion
from fovea.errors import UserError
from fovea.platform import load_platform
from fovea.records import AbsentRecord, ModelRecord, write_record
from fovea.steps import RunContext, reporting_failure
from fovea.storage import Storage
from pipelines.form import from_arguments
from pipelines.settings import COMPONENTS, RunSettings

TASK = "preflight"

logger = logging.getLogger("fovea")


class Checked(NamedTuple):
    """What preflight returns: each component's parameters, and the effect of a refusal."""

    prepare_data: dict[str, Any]
    train_lora: dict[str, Any]
    merge_adapter: dict[str, Any]
    evaluate: dict[str, Any]
    gate: dict[str, Any]
    deploy: dict[str, Any]
    on_refusal: str


def preflight_step(arguments: Mapping[str, Any], *, run_id: str, base_record: str | Path) -> Checked:
    """Check a run's settings, S3, MLflow, the champion and the base model, and write the base's record.

    Args:
        arguments: The pipeline's arguments (`pipelines.form`).
        run_id: The run's ID.
        base_record: Where the base model's record goes.

    Raises:
        UserError: the first problem.
    """
    context = RunContext(artifact_root=str(arguments.get("artifact_root", "")), run_id=run_id)
    storage = Storage()
    with reporting_failure(TASK, context, storage):
        settings = from_arguments(arguments)
        load_platform().fetch_profile(settings.fetch_profile)
        _check_storage(storage, context)
        read_rules(settings.gate_rules, storage).check(settings.task())
        base = _read_base(storage, settings.base_model)
        if tracking.is_on():
            logger.info("%s: checking MLflow", TASK)
            _check_champion(storage, settings)
        write_record(base, base_record)
    logger.info(
        "%s: settings, S3, %s and the base model %s are in order",
        TASK,
        "MLflow" if tracking.is_on() else "no MLflow (none is configured)",
        base.digest[:19],
    )
    return Checked(**{name: settings.parameters(name) for name in COMPONENTS}, on_refusal=settings.on_refusal)


def _check_storage(storage: Storage, context: RunContext) -> None:
    """Write, read and list under the run's prefix, as every later task does."""
    uri = context.run_uri("started.json")
    content = b"{}\n"
    # Conditional like the commit of records, which a policy may refuse although it allows plain writes.
    storage.write_bytes(uri, content, only_if_absent=True)
    if storage.read_bytes(uri) != content:
        raise UserError(f"{uri}: S3 does not return what was written; check any proxy in front of it")
    if uri not in storage.list(context.run_uri("")):
        raise UserError(f"{context.run_uri('')}: the object just written is not listed; check s3:ListBucket")


def _check_champion(storage: Storage, settings: RunSettings) -> None:
    """Refuse a run whose model could not be compared with the champion."""
    champion = find_champion(storage, settings.registered_model_name)
    if isinstance(champion, AbsentRecord) or champion.task is None:
        return
    difference = settings.task().difference(champion.task)
    if difference:
        raise UserError(
            f"the champion of registered_model_name {settings.registered_model_name} answers another task "
            f"than this run's: {difference}. Give this run another registered_model_name and another "
            "service_name"
        )


def _read_base(storage: Storage, uri: str) -> ModelRecord:
    base = ModelRecord.from_json(storage.read_bytes(uri), source=uri)
    absent = [entry.path for entry in base.files if not storage.exists(base.uri + entry.path)]
    if absent:
        raise UserError(f"{base.uri}: {', '.join(absent[:3])} missing; import the base model again")
    return base
