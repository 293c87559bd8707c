import json
import logging
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from fovea.errors import UserError
from fovea.records import AdapterRecord, ModelRecord, StepInputs
from fovea.steps import Attempt, Interrupted, RunContext, reporting_failure, run_step
from fovea.storage import Storage

DIGEST = f"sha256:{'a' * 64}"
INPUTS: dict[str, Any] = {
    "step": "make",
    "version": 1,
    "parameters": {"rank": 4},
    "parents": {"base": DIGEST},
}
Work = Callable[[Attempt], Mapping[str, Any]]


class Worker:
    """The work of a step, which counts how often it was done."""

    def __init__(self) -> None:
        self.done = 0

    def __call__(self, attempt: Attempt) -> Mapping[str, Any]:
        self.done += 1
        assert not list(attempt.payload.iterdir())
        (attempt.payload / "sub").mkdir()
        (attempt.payload / "sub" / "weights.bin").write_bytes(b"weights")
        return {"architecture": "Phi3VForCausalLM", "num_crops": 4}


def run(root: str, work: Work, run_id: str = "run-1", **changes: Any) -> ModelRecord:
    inputs = StepInputs(**INPUTS | {name: changes.pop(name) for name in INPUTS if name in changes})
    return run_step(ModelRecord, inputs, RunContext(artifact_root=root, run_id=run_id), work, **changes)


def document(root: str, name: str, run_id: str = "run-1") -> Any:
    return json.loads(Storage().read_bytes(f"{root}/runs/{run_id}/{name}.json"))


def keys(root: str, prefix: str) -> list[str]:
    return list(Storage().list(f"{root}/{prefix}"))


def test_a_step_keeps_its_payload_its_record_and_how_it_went(s3: str) -> None:
    record = run(s3, Worker(), task="make_twice")
    assert record.uri.startswith(f"{s3}/make/")
    assert record.parameters == {"rank": 4}
    assert record.parents == {"base": DIGEST}
    assert record.run_id == "run-1"
    assert (Storage().download(record) / "sub" / "weights.bin").read_bytes() == b"weights"
    assert Storage().find_by_payload(record.uri) == record
    for gone in (f"{record.uri}x/", f"{s3}/make/{'0' * 16}-0/", "s3://fovea/"):
        with pytest.raises(UserError, match=r"no record in the index|not an S3 URI|no such bucket"):
            Storage().find_by_payload(gone)
    report = document(s3, "make_twice")
    assert report["reused"] is False
    assert report["step"] == "make"
    assert report["digest"] == record.digest
    assert ModelRecord.from_json(Storage().read_bytes(report["record_uri"])) == record


def test_a_step_of_the_same_inputs_is_reused(s3: str, caplog: pytest.LogCaptureFixture) -> None:
    work = Worker()
    record = run(s3, work)
    with caplog.at_level(logging.INFO, logger="fovea"):
        assert run(s3, work, run_id="run-2") == record
    assert work.done == 1
    assert "make: reused what run run-1 made" in caplog.text
    assert document(s3, "make", "run-2")["reused"] is True
    assert len(keys(s3, "make/")) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"parameters": {"rank": 8}},
        {"parents": {"base": f"sha256:{'b' * 64}"}},
        {"version": 2},
        {"step": "make_otherwise"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_step_of_other_inputs_is_done_again(s3: str, changes: dict[str, Any]) -> None:
    work = Worker()
    first, second = run(s3, work), run(s3, work, **changes)
    assert work.done == 2
    assert first.uri != second.uri
    assert first.input_key != second.input_key


def test_a_step_without_files_has_no_payload(s3: str) -> None:
    record = run(s3, lambda attempt: {"architecture": "Phi3VForCausalLM", "num_crops": 4})
    assert record.uri == ""
    assert record.files == ()


def failing(error: BaseException) -> Work:
    def work(attempt: Attempt) -> Mapping[str, Any]:
        (attempt.payload / "half").write_text("half")
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "kind", "has_traceback"),
    [
        (UserError("the disk is full; make room"), "user", False),
        (ValueError("a bug"), "ValueError", True),
        (ZeroDivisionError(), "ZeroDivisionError", True),
    ],
)
def test_a_failure_is_written_down_and_nothing_else(
    s3: str, error: Exception, kind: str, has_traceback: bool
) -> None:
    with pytest.raises(type(error)):
        run(s3, failing(error))
    failure = document(s3, "failure")
    assert failure["task"] == "make"
    assert failure["error"] == (str(error) or kind)
    assert failure["kind"] == kind
    assert ("Traceback" in failure["traceback"]) is has_traceback
    assert not keys(s3, "index/")
    assert not keys(s3, "make/")
    # The next attempt is not stopped by this one.
    assert run(s3, Worker()).files


def test_being_told_to_end_is_written_down(s3: str) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def work(attempt: Attempt) -> Mapping[str, Any]:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal came too late")

    with pytest.raises(Interrupted):
        run(s3, work)
    assert document(s3, "failure")["kind"] == "Interrupted"
    assert "SIGTERM" in document(s3, "failure")["error"]
    assert not keys(s3, "index/")
    assert signal.getsignal(signal.SIGTERM) is before


class Broken(Storage):
    """S3 that takes no payloads."""

    def upload_folder(self, *arguments: Any, **named: Any) -> Any:
        raise UserError("S3 cannot be reached")


class Watching(Storage):
    """S3 that notes in which order things are written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[str] = []

    def upload_folder(self, folder: Path, uri: str, *arguments: Any) -> Any:
        files = super().upload_folder(folder, uri, *arguments)
        self.written.append("payload")
        return files

    def write_bytes(self, uri: str, data: bytes, **named: Any) -> bool:
        self.written.append("record" if "/index/" in uri else "report")
        return super().write_bytes(uri, data, **named)


def test_a_record_is_written_after_its_payload(s3: str) -> None:
    storage = Watching()
    run(s3, Worker(), storage=storage)
    assert storage.written == ["payload", "record", "report"]


def test_an_upload_that_fails_leaves_no_record(s3: str) -> None:
    with pytest.raises(UserError, match="cannot be reached"):
        run(s3, Worker(), storage=Broken())
    assert not keys(s3, "index/")
    assert document(s3, "failure")["error"] == "S3 cannot be reached"


def test_a_record_that_would_not_be_valid_is_not_written(s3: str) -> None:
    with pytest.raises(ValueError, match="num_crops"):
        run(s3, lambda attempt: {"architecture": "Phi3VForCausalLM"})
    assert not keys(s3, "index/")


def test_a_record_of_another_kind_at_the_key_is_refused(s3: str) -> None:
    run(s3, Worker())
    with pytest.raises(UserError, match="holds a model record"):
        run_step(
            AdapterRecord,
            StepInputs(**INPUTS),
            RunContext(artifact_root=s3, run_id="run-2"),
            Worker(),
        )


def test_that_a_failure_cannot_be_written_does_not_hide_it(s3: str, caplog: pytest.LogCaptureFixture) -> None:
    context = RunContext(artifact_root="s3://no-such-bucket-here", run_id="run-1")
    with pytest.raises(ValueError, match="first"), reporting_failure("make", context, Storage()):
        raise ValueError("first")
    assert "the failure could not be recorded" in caplog.text
