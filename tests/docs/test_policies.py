"""S3's policies of the security page, held to what is really asked of S3."""

import json
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import boto3
import pytest

from fovea.records import ModelRecord, StepInputs
from fovea.steps import RunContext, run_step
from fovea.storage import Storage, index_uri
from fovea.task import product_task
from serving.engine import loading

PAGE = Path(__file__).resolve().parents[2] / "docs" / "security.md"
PIPELINE, SERVER, PEOPLE = (
    json.loads(body) for body in re.findall(r"^```json\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
)


def allows(policy: dict[str, Any], action: str, resource: str) -> bool:
    """Whether a policy of plain Allow statements allows it; conditions are taken to hold."""
    for statement in policy["Statement"]:
        assert statement["Effect"] == "Allow"
        actions, resources = (
            [each] if isinstance(each := statement[key], str) else each for key in ("Action", "Resource")
        )
        if action in actions and any(fnmatchcase(resource, pattern) for pattern in resources):
            return True
    return False


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What the server asks of S3: action and key."""
    client = boto3.client("s3")
    found: list[tuple[str, str]] = []

    def note(params: dict[str, Any], model: Any, **_: Any) -> None:
        action = {"HeadObject": "GetObject", "ListObjectsV2": "ListBucket"}.get(model.name, model.name)
        found.append((f"s3:{action}", params.get("Key", "")))

    client.meta.events.register("before-parameter-build.s3", note)
    monkeypatch.setattr(loading, "Storage", lambda: Storage(client))
    return found


def model(root: str) -> ModelRecord:
    return run_step(
        ModelRecord,
        StepInputs(step="merge_adapter", version=1, parameters={}, parents={}),
        RunContext(artifact_root=root, run_id="run"),
        work=lambda attempt: (
            (attempt.payload / "config.json").write_text("{}")
            and {"architecture": "Phi3VForCausalLM", "num_crops": 4, "task": product_task()}
        ),
    )


def test_the_server_gets_by_with_its_policy(s3: str, tmp_path: Path, asked: list[tuple[str, str]]) -> None:
    record = model(f"{s3}/fovea")
    uri = index_uri(f"{s3}/fovea", "merge_adapter", record.input_key)
    _, digest = loading.locate_model(uri, tmp_path)
    assert digest == record.digest
    assert len(asked) >= 2
    for action, key in asked:
        assert allows(SERVER, action, f"arn:aws:s3:::models/{key}"), (action, key)


def test_what_each_may_not() -> None:
    arn = "arn:aws:s3:::models/fovea/"
    for key in (
        "prepare_data/x/train-0.parquet",
        "pictures/default/packs/x",
        "train_lora/x",
        "runs/x/failure.json",
    ):
        assert not allows(SERVER, "s3:GetObject", arn + key)
    for key in ("index/merge_adapter/x.json", "merge_adapter/x/model.safetensors"):
        assert allows(SERVER, "s3:GetObject", arn + key)
        assert not allows(SERVER, "s3:PutObject", arn + key)
        assert not allows(PEOPLE, "s3:PutObject", arn + key)
        # Nothing that is complete is taken away, whoever has taken a task over.
        assert not allows(PIPELINE, "s3:DeleteObject", arn + key)
    assert not allows(PEOPLE, "s3:GetObject", arn + "prepare_data/x/train-0.parquet")
    for key in ("checkpoints/train_lora/x.json", "pictures/default/index/x"):
        assert allows(PIPELINE, "s3:DeleteObject", arn + key)
