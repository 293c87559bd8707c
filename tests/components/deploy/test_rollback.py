"""Back to the champion before; the server is passed over here, other tests start it."""

import json
from typing import Any

import pytest

from components.deploy.history import champion_before, present_deployment
from components.deploy.parameters import Deployment, Example
from components.deploy.rollback import roll_back
from components.deploy.targets.local import LocalTarget
from components.deploy.targets.target import RolloutOutcome
from components.deploy.verification import Verification
from fovea.errors import UserError
from fovea.records import ModelRecord, StepInputs
from fovea.steps import RunContext, run_step
from fovea.storage import Storage
from fovea.task import product_task
from tests.components.deploy.conftest import World, decide, evaluate

EXAMPLE = Example(row_id="row-0", text="x", answer=None, truth={}, latency_ms=1.0)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the next verifications pass; the last holds on."""
    verdicts = [True]

    def verified(*_: Any) -> RolloutOutcome:
        passed = verdicts.pop(0) if len(verdicts) > 1 else verdicts[0]
        return RolloutOutcome(Verification(passed, "asked", 1, 1, EXAMPLE))

    monkeypatch.setattr(LocalTarget, "deploy", verified)
    return verdicts


def another_model(world: World, number: int) -> dict[str, Any]:
    """The records of a model with a digest of its own."""
    context = RunContext(artifact_root=world.root, run_id="run-0")

    def work(attempt: Any) -> dict[str, Any]:
        (attempt.payload / "config.json").write_text(str(number))
        return {"architecture": "Phi3VForCausalLM", "num_crops": 4, "task": product_task()}

    inputs = StepInputs(step="merge_adapter", version=1, parameters={"number": number}, parents={})
    model = run_step(ModelRecord, inputs, context, work)
    evaluation = evaluate(context, model, world.dataset, ["x"])
    return {"model": model, "evaluation": evaluation, "decision": decide(context, model, evaluation)}


def present(world: World) -> Deployment:
    """What the service stands for."""
    found = present_deployment(Storage(), world.root, "fovea")
    assert found is not None
    return found


def test_back_and_further_back(world: World, passes: list[bool]) -> None:
    others = [another_model(world, number) for number in (1, 2)]
    assert world.deploy(run_id="run-1").deployed
    for number, records in enumerate(others, start=2):
        assert world.deploy(run_id=f"run-{number}", **records).deployed
    assert present(world).model.digest == others[1]["model"].digest
    for expected in (others[0]["model"], world.model):
        verdict, earlier = roll_back("fovea", world.root, Storage())
        assert verdict.deployed
        assert earlier.model.digest == present(world).model.digest == expected.digest
        assert present(world).run_id.startswith("rollback-")
    with pytest.raises(UserError, match="no earlier deployment of another model"):
        roll_back("fovea", world.root, Storage())


def test_a_champion_that_fails_now_is_not_brought_back(world: World, passes: list[bool]) -> None:
    assert world.deploy(run_id="run-1").deployed
    records = another_model(world, 1)
    assert world.deploy(run_id="run-2", **records).deployed
    passes[:] = [False]
    verdict, _ = roll_back("fovea", world.root, Storage())
    assert not verdict.deployed
    assert present(world).run_id == "run-2"
    assert champion_before(Storage(), world.root, present(world)).run_id == "run-1"


def test_what_was_never_deployed(settled: World) -> None:
    with pytest.raises(UserError, match="no run has deployed the service 'shop'"):
        roll_back("shop", settled.root, Storage())


def test_what_an_earlier_version_wrote_is_not_guessed_at(world: World, passes: list[bool]) -> None:
    """A document that is not of today's form: the rollback says which, and the service stays."""
    assert world.deploy(run_id="run-1").deployed
    storage, records = Storage(), another_model(world, 1)
    evaluation = present(world).records["evaluation"]
    assert world.deploy(run_id="run-2", **records).deployed

    def refused(uri: str, document: dict[str, Any], reason: str) -> None:
        kept = storage.read_bytes(uri)
        storage.write_bytes(uri, json.dumps(document).encode())
        with pytest.raises(UserError, match=reason):
            roll_back("fovea", world.root, storage)
        storage.write_bytes(uri, kept)
        assert present(world).run_id == "run-2"

    document = json.loads(storage.read_bytes(evaluation))
    del document["metrics"]["groups"]
    refused(evaluation, document, r"run-1 cannot be brought back: .*evaluate.*metrics\.groups.*earlier")
    # Nor is one passed over, which would bring an older model back.
    for name in ("fovea/run-1/deployment.json", "fovea.json"):
        uri = f"{world.root}/deployments/{name}"
        document = json.loads(storage.read_bytes(uri))
        refused(uri, {**document, "schema_version": 0}, rf"{name}: not a deployment \(schema_version: ")
