import inspect
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from components.gate.component import gate
from components.gate.decide import Verdict, gate_step
from components.gate.report import escape
from components.gate.rules import Limits
from fovea.errors import UserError
from fovea.records import (
    Decision,
    EvaluationRecord,
    GenerationParameters,
    Metrics,
    ModelRecord,
    ModelReference,
    now,
    read_record,
    write_record,
)
from fovea.storage import Storage
from tests.some_metrics import some_metrics

BASE, DATASET = (f"sha256:{digit * 64}" for digit in "ab")
MADE: dict[str, Any] = {
    "step_version": 1,
    "input_key": "0" * 64,
    "uri": "",
    "files": (),
    "parameters": {},
    "parents": {},
    "created_at": now(),
    "run_id": "run-0",
}
MODEL = ModelRecord(
    step="merge_adapter",
    architecture="Phi3VForCausalLM",
    num_crops=4,
    base=ModelReference(digest=BASE, record_uri="s3://fovea/index/base.json"),
    **MADE,
)


def evaluation(digest: str, accuracy: float, price_error: float) -> EvaluationRecord:
    metrics = some_metrics(
        parse_rate=accuracy,
        title_exact=accuracy,
        category_accuracy=accuracy,
        price_median_ape=price_error,
    )
    return EvaluationRecord(
        step="evaluate",
        model_digest=digest,
        dataset_digest=DATASET,
        task_digest=DATASET,
        split="test",
        generation=GenerationParameters(max_new_tokens=64, num_crops=4, dtype="float32"),
        metrics=metrics,
        shuffled=metrics.model_copy(update={"category_accuracy": 0.1}),
        chance_category_accuracy=0.2,
        **MADE,
    )


class Gate:
    """The records a gate reads and writes, as files, and a call of it."""

    def __init__(self, folder: Path, artifact_root: str) -> None:
        self.folder, self.artifact_root = folder, artifact_root
        write_record(evaluation(BASE, 0.0, 1.0), folder / "base.json")
        write_record(evaluation(MODEL.digest, 0.99, 0.05), folder / "tuned.json")
        write_record(MODEL, folder / "model.json")

    def __call__(self, run_id: str = "run-1", **limits: float) -> Verdict:
        return gate_step(
            base_record=self.folder / "base.json",
            tuned_record=self.folder / "tuned.json",
            model_record=self.folder / "model.json",
            decision_record=self.folder / "out" / "decision.json",
            report=self.folder / "out" / "report.md",
            artifact_root=self.artifact_root,
            run_id=run_id,
            **limits,
        )

    @property
    def decision(self) -> Decision:
        return read_record(self.folder / "out" / "decision.json", Decision)

    @property
    def report(self) -> str:
        return (self.folder / "out" / "report.md").read_text()


@pytest.fixture
def decide(tmp_path: Path, s3: str) -> Gate:
    return Gate(tmp_path, s3)


def test_a_good_model_passes_and_the_decision_stands_in_s3(decide: Gate) -> None:
    assert decide() == Verdict(True, "passed: all 13 rules hold")
    decision = decide.decision
    assert decision.passed
    assert decision.model_digest == MODEL.digest
    assert set(decision.parents) == {"model", "base", "tuned"}
    assert Storage().find(decide.artifact_root, "gate", decision.input_key) == decision
    assert decide.report.startswith("# Passed\n")
    # The base under the same rules stands beside the model.
    row = next(line for line in decide.report.splitlines() if "category\\_accuracy |" in line)
    assert "| 0.99 | >= 0.9 | 0 ✗ |" in row


def test_a_refusal_is_a_verdict_with_a_decision(decide: Gate) -> None:
    verdict = decide(min_samples=301)
    assert not verdict.passed
    assert verdict.reason == "refused: samples (samples is 300, not >= 301)"
    assert decide.decision.reason == verdict.reason
    assert not decide.decision.passed
    assert decide.report.startswith("# Refused\n")


def test_every_run_decides_for_itself(decide: Gate) -> None:
    decide("run-1")
    first = decide.decision
    decide("run-2")
    assert decide.decision.input_key != first.input_key
    assert decide.decision.run_id == "run-2"


UNREADABLE = {
    "empty": b"",
    "no text": b"\xff\xfe\x00",
    "no record": b"{}",
    "deep": b"[" * 100_000,
    "incomplete": b'{"kind": "evaluation"}',
    "another kind": MODEL.to_json().encode(),
    "no file": None,
}


@pytest.mark.parametrize("name", ["tuned", "base"])
def test_an_unreadable_evaluation_refuses_with_a_decision(decide: Gate, name: str) -> None:
    path = decide.folder / f"{name}.json"
    for case, content in UNREADABLE.items():
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        verdict = decide(case.replace(" ", "-"))
        assert not verdict.passed, case
        assert "records_readable" in verdict.reason
        assert "\n" not in verdict.reason
        assert not decide.decision.passed
        assert name not in decide.decision.parents


def test_a_figure_that_is_not_finite_or_missing_refuses(decide: Gate) -> None:
    path = decide.folder / "tuned.json"
    good = json.loads(path.read_text())
    for figure, value in itertools.product(Metrics.model_fields.keys() - {"intervals"}, ["NaN", None]):
        document = json.loads(json.dumps(good))
        document["metrics"][figure] = "@"
        if value is None:
            del document["metrics"][figure]
        path.write_text(json.dumps(document).replace('"@"', str(value)))
        verdict = decide()
        assert not verdict.passed
        assert figure in verdict.reason


def test_without_the_models_record_there_is_no_decision(decide: Gate) -> None:
    (decide.folder / "model.json").write_text("{}")
    verdict = decide()
    assert not verdict.passed
    assert "model:" in verdict.reason
    assert not (decide.folder / "out" / "decision.json").exists()
    assert decide.report.startswith("# Refused")


def test_the_base_itself_is_refused_as_the_model(decide: Gate) -> None:
    write_record(evaluation(BASE, 0.99, 0.05), decide.folder / "tuned.json")
    verdict = decide()
    assert not verdict.passed
    assert "evaluated_this_model" in verdict.reason


@pytest.mark.parametrize("limits", [{"min_samples": 0}, {"min_parse_rate": float("nan")}, {"min_price": 1.0}])
def test_wrong_limits_are_an_error_that_names_them(decide: Gate, limits: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(limits))):
        decide(**limits)
    assert Storage().exists(f"{decide.artifact_root}/runs/run-1/failure.json")


def test_values_cannot_break_out_of_the_report(decide: Gate) -> None:
    hostile = "<script>alert(1)</script> | [x](http://example.org) ![](http://example.org)\n# Passed"
    (decide.folder / "tuned.json").write_text(json.dumps({"kind": hostile}))
    assert not decide().passed
    assert "<script>" not in decide.report
    assert "](http" not in decide.report
    assert "\n# Passed" not in decide.report
    assert escape("a|b\nc") == "a\\|b c"


def test_the_components_defaults_are_the_rules_defaults() -> None:
    parameters = inspect.signature(gate.python_func).parameters
    for name, field in Limits.model_fields.items():
        assert parameters[name].default == field.default
