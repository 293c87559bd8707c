import pytest

from fovea.errors import UserError
from fovea.steps import RunContext, reporting_failure
from fovea.storage import Storage
from pipelines.lifecycle.outcome import Outcome, report_outcome_step, require_step


def report(s3: str, state: str) -> Outcome:
    outcome = report_outcome_step(state=state, artifact_root=s3, run_id="r1")
    assert outcome == Outcome.model_validate_json(Storage().read_bytes(f"{s3}/runs/r1/outcome.json"))
    return outcome


def test_a_run_that_succeeded(s3: str) -> None:
    require_step(passed=True, reason="passed", artifact_root=s3, run_id="r1")
    assert report(s3, "SUCCEEDED").state == "succeeded"


def test_a_refusal_is_told_from_a_failure(s3: str) -> None:
    with pytest.raises(UserError, match="parse_rate is 0"):
        require_step(passed=False, reason="refused: parse_rate is 0", artifact_root=s3, run_id="r1")
    outcome = report(s3, "FAILED")
    assert (outcome.state, outcome.task, outcome.reason) == ("refused", "", "refused: parse_rate is 0")


def test_a_run_can_be_asked_to_end_without_a_deployment(s3: str) -> None:
    require_step(
        passed=False, reason="refused: parse_rate is 0", artifact_root=s3, run_id="r1", on_refusal="end"
    )
    outcome = report(s3, "SUCCEEDED")
    assert (outcome.state, outcome.task, outcome.reason) == ("not_deployed", "", "refused: parse_rate is 0")
    assert not Storage().exists(f"{s3}/runs/r1/failure.json")


def test_a_crash_is_reported_with_its_task_and_message(s3: str) -> None:
    context = RunContext(artifact_root=s3, run_id="r1")
    with pytest.raises(ValueError, match="broken"), reporting_failure("train_lora", context, Storage()):
        raise ValueError("broken")
    outcome = report(s3, "FAILED")
    assert (outcome.state, outcome.task, outcome.reason) == ("failed", "train_lora", "broken")


def test_a_task_that_could_say_nothing(s3: str) -> None:
    outcome = report(s3, "FAILED")
    assert outcome.state == "failed"
    assert "out of memory" in outcome.reason


def test_a_retry_that_succeeded_hides_the_failure_before_it(s3: str) -> None:
    context = RunContext(artifact_root=s3, run_id="r1")
    with pytest.raises(ValueError, match="once"), reporting_failure("train_lora", context, Storage()):
        raise ValueError("once")
    assert report(s3, "SUCCEEDED").state == "succeeded"


def test_a_cancelled_run(s3: str) -> None:
    assert report(s3, "CANCELLED").state == "cancelled"
