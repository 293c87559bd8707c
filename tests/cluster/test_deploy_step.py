"""The step, the rollback and the status, from records in a real S3 to a real API server."""

import base64
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from components.deploy.history import present_deployment
from components.deploy.rollback import roll_back
from components.deploy.targets import rollout
from components.deploy.targets.cluster import Cluster
from components.deploy.targets.kserve import live_shares
from fovea.records import ModelRecord, StepInputs
from fovea.steps import RunContext, run_step
from fovea.storage import Storage
from fovea.task import Answer, product_task
from tests.cluster.conftest import QUICK, Place
from tests.components.deploy.conftest import (  # noqa: F401 - fixtures
    World,
    answers,
    decide,
    evaluate,
    tuned_folder,
    world,
)


def right_answers(world: World, answers: list[Answer]) -> dict[str, Any]:  # noqa: F811
    """What the evaluation got, by picture."""
    folder = Storage().download(world.dataset)
    rows = pq.read_table(sorted(folder.glob("test-*.parquet"))).to_pylist()
    task = {"name": product_task().name, "version": product_task().version}
    return {
        base64.b64encode(row["image"]["bytes"]).decode(): {
            "text": answer.text,
            "fields": product_task().parse(answer.text).fields,
            "confidence": {"product": None, "category": 0.9, "full_price": 0.6},
            "task": task,
        }
        for row, answer in zip(rows, answers, strict=True)
    }


def with_namespace(kubeconfig: Path, namespace: str, folder: Path) -> Path:
    """A copy of a kubeconfig whose contexts have a namespace."""
    document = yaml.safe_load(kubeconfig.read_text())
    for each in document["contexts"]:
        each["context"]["namespace"] = namespace
    copy = folder / "kubeconfig"
    copy.write_text(yaml.safe_dump(document))
    return copy


def test_from_records_to_an_answering_service_and_back(
    world: World,  # noqa: F811
    answers: list[Answer],  # noqa: F811
    place: Place,
    kubeconfig: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place.double.answers = right_answers(world, answers)
    monkeypatch.setattr(rollout, "address_of", place.double.address_of)
    monkeypatch.setenv("KUBECONFIG", str(with_namespace(kubeconfig, place.namespace, tmp_path)))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    asked: dict[str, Any] = {
        "deploy_target": "kserve",
        "service_name": "shop",
        "kserve": {**QUICK, "traffic_steps": [50]},
    }
    assert world.deploy(**asked).deployed
    document = present_deployment(Storage(), world.root, "shop")
    assert document is not None
    assert (document.rollout, document.namespace) == ("first", place.namespace)
    assert document.parameters is not None
    assert document.parameters.kserve.namespace == place.namespace

    context = RunContext(artifact_root=world.root, run_id="run-0")
    second = run_step(
        ModelRecord,
        StepInputs(step="merge_adapter", version=1, parameters={"number": 2}, parents={}),
        context,
        work=lambda attempt: (
            (attempt.payload / "config.json").write_text("2")
            and {"architecture": "Phi3VForCausalLM", "num_crops": 4, "task": product_task()}
        ),
    )
    evaluation = evaluate(context, second, world.dataset, [answer.text for answer in answers])
    records = {"model": second, "evaluation": evaluation, "decision": decide(context, second, evaluation)}
    assert world.deploy(run_id="run-2", **records, **asked).deployed
    cluster = Cluster(place.admin, place.namespace)
    shares = live_shares(cluster, "shop")
    assert [(each.digest, each.percent, each.pods) for each in shares] == [(second.digest, 100, 1)]

    # It goes back to where the service is, not to where another kubeconfig leads.
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    verdict, earlier = roll_back("shop", world.root, Storage())
    assert (verdict.deployed, earlier.run_id) == (True, "run-1"), verdict.reason
    (share,) = live_shares(cluster, "shop")
    assert share.digest == world.model.digest
