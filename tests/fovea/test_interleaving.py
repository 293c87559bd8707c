"""Two attempts at the same step, interleaved at every request to S3: one record, one winner, both have it."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import boto3
import pytest
from moto import mock_aws

from fovea.records import ModelRecord, StepInputs
from fovea.steps import Attempt, RunContext, run_step
from fovea.storage import Storage

ROOT = "s3://race/root"


SESSIONS: list[boto3.Session] = []
"""One for the test: a new one reads all its definitions again."""


def client() -> Any:
    """A client with hooks of its own."""
    return SESSIONS[0].client("s3")


def empty() -> None:
    """Remove everything from the bucket."""
    s3 = client()
    for item in s3.list_objects_v2(Bucket="race")["Contents"]:
        s3.delete_object(Bucket="race", Key=item["Key"])


class DiedError(Exception):
    """The process is killed: neither this request nor a later one of it reaches S3."""


@pytest.fixture(autouse=True)
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """moto, which has conditional writes."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    with mock_aws():
        SESSIONS[:] = [boto3.Session()]
        client().create_bucket(Bucket="race")
        yield


def storage(at: int, then: Callable[[], None]) -> tuple[Storage, list[str]]:
    """S3 with something that happens before the request number ``at``; and the requests so far."""
    s3, requests = client(), []

    def before(model: Any, **_: Any) -> None:
        requests.append(model.name)
        if len(requests) - 1 == at or (then is die and len(requests) > at):
            then()

    s3.meta.events.register("before-call.s3", before)
    return Storage(s3), requests


def attempt(run_id: str, through: Storage) -> ModelRecord:
    """Do the step; each attempt's payload names its run, as if the work were not the same twice."""

    def work(attempt: Attempt) -> dict[str, Any]:
        (attempt.payload / "model.bin").write_text(run_id)
        return {"architecture": "Phi3VForCausalLM", "num_crops": 4}

    return run_step(
        ModelRecord,
        StepInputs(step="train", version=1, parameters={}, parents={}),
        RunContext(artifact_root=ROOT, run_id=run_id),
        work,
        storage=through,
    )


def nothing() -> None:
    """What happens where nothing does."""


def die() -> None:
    """Be killed."""
    raise DiedError


def requests_of_an_attempt() -> int:
    """How many requests an attempt makes that nobody disturbs."""
    through, requests = storage(-1, nothing)
    attempt("alone", through)
    empty()
    return len(requests)


def check(*records: ModelRecord) -> None:
    """One record is in the index, everybody has it, and its payload is there as it says."""
    plain = Storage(client())
    (uri,) = plain.list(f"{ROOT}/index/")
    stands = ModelRecord.from_json(plain.read_bytes(uri))
    assert all(record == stands for record in records)
    assert plain.read_bytes(stands.uri + "model.bin").decode() == stands.run_id


def test_one_attempt_runs_while_the_other_waits_at_any_request() -> None:
    count = requests_of_an_attempt()
    assert count >= 4
    for at in range(count):
        other: list[ModelRecord] = []

        def run_other(other: list[ModelRecord] = other) -> None:
            other.append(attempt("other", Storage(client())))

        through, _ = storage(at, run_other)
        check(attempt("one", through), *other)
        assert other
        empty()


def test_the_other_is_killed_at_any_request_meanwhile() -> None:
    count = requests_of_an_attempt()
    for at in range(count):
        for death in range(count):

            def run_other(death: int = death) -> None:
                through, _ = storage(death, die)
                with suppress(DiedError):
                    attempt("other", through)

            through, _ = storage(at, run_other)
            check(attempt("one", through))
            empty()
