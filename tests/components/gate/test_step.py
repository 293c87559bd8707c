"""The gate as a step: what it reads from S3 and files, what it refuses, and where its decision stands."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from components.gate.step import Verdict, escape, gate_step
from fovea.errors import UserError
from fovea.evaluation.intervals import measure
from fovea.evaluation.metrics import metrics_of
from fovea.evaluation.outcomes import write_baselines
from fovea.predictions import Prediction, Row, write_predictions
from fovea.records import (
    AbsentRecord,
    Decision,
    EvaluationRecord,
    ModelRecord,
    ModelReference,
    StepInputs,
    now,
    read_record,
    write_record,
)
from fovea.steps import Attempt, RunContext, run_step
from fovea.storage import Storage
from fovea.task import Answer, Task, product_task
from tests.components.gate.answerers import (
    BASE,
    CHAMPION,
    NO_CHAMPION,
    RESAMPLES,
    TASK,
    TRUTHS,
    Answers,
    baselines,
    good,
    nothing,
    outcomes,
    record,
    shown_others,
)
from tests.own_bucket import own_bucket

MODEL = ModelRecord(
    step="merge_adapter",
    step_version=1,
    input_key="0" * 64,
    uri="",
    files=(),
    parameters={},
    parents={},
    created_at=now(),
    run_id="run-0",
    architecture="Phi3VForCausalLM",
    num_crops=4,
    task=TASK,
    base=ModelReference(digest=BASE, record_uri="s3://fovea/index/base.json"),
)


def commit(root: str, digest: str, answers: Answers, *, is_base: bool = False) -> EvaluationRecord:
    """Commit an evaluation as the evaluate step leaves it: figures, predictions and, of a base, baselines."""
    own = outcomes(answers)
    shuffled = outcomes(shown_others(answers))
    trivial = baselines() if is_base else {}

    def work(attempt: Attempt) -> Mapping[str, Any]:
        predictions = [
            Prediction(
                Row(str(number), str(number), own.groups.tolist()[number], truth),
                Answer("", answer, None if answer else "no answer", 1, 1, "stop"),
                shuffled_row_id=str((number + 5) % len(TRUTHS)),
            )
            for number, (truth, answer) in enumerate(zip(TRUTHS, answers, strict=True))
        ]
        write_predictions(attempt.payload, TASK, predictions)
        if trivial:
            write_baselines(trivial, attempt.payload)
        whole = record(digest, {"own": own, "shuffled": shuffled, **trivial})
        return {name: getattr(whole, name) for name in EvaluationRecord.model_fields if name in OWN}

    return run_step(
        EvaluationRecord,
        StepInputs(step="evaluate", version=2, parameters={}, parents={"model": digest}),
        RunContext(artifact_root=root, run_id="run-0"),
        work,
    )


OWN = set(EvaluationRecord.model_fields) - {
    *("step", "step_version", "input_key", "uri", "files", "parameters", "parents", "created_at", "run_id"),
    *("kind", "schema_version"),
}


class Gate:
    """The records a gate reads and writes, as files, and a call of it."""

    def __init__(self, folder: Path, artifact_root: str, evaluations: Mapping[str, EvaluationRecord]) -> None:
        self.folder, self.artifact_root = folder, artifact_root
        self.base, self.challenger = evaluations["base"], evaluations["challenger"]
        for name, each in {**evaluations, "model": MODEL, "champion": NO_CHAMPION}.items():
            write_record(each, folder / f"{name}.json")

    def __call__(self, run_id: str = "run-1", **asked: Any) -> Verdict:
        return gate_step(
            base_record=self.folder / "base.json",
            challenger_record=self.folder / "challenger.json",
            champion_record=self.folder / "champion.json",
            model_record=self.folder / "model.json",
            decision_record=self.folder / "out" / "decision.json",
            report=self.folder / "out" / "report.md",
            artifact_root=self.artifact_root,
            # Every run decides for itself, and the tests share a store.
            run_id=f"{self.folder.name}-{run_id}",
            parameters=asked,
        )

    @property
    def decision(self) -> Decision:
        return read_record(self.folder / "out" / "decision.json", Decision)

    @property
    def report(self) -> str:
        return (self.folder / "out" / "report.md").read_text()


@pytest.fixture(scope="module")
def store(
    s3_server: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, dict[str, EvaluationRecord]]]:
    """A bucket with the evaluations of a base and of a good model; it is only added to."""
    with own_bucket(s3_server, tmp_path_factory.mktemp("cache")) as root:
        base = commit(root, BASE, nothing(), is_base=True)
        yield root, {"base": base, "challenger": commit(root, MODEL.digest, good())}


@pytest.fixture
def decide(tmp_path: Path, store: tuple[str, dict[str, EvaluationRecord]]) -> Gate:
    return Gate(tmp_path, *store)


def test_a_good_model_passes_and_the_decision_stands_in_s3(decide: Gate) -> None:
    verdict = decide()
    assert verdict.passed, verdict.reason
    decision = decide.decision
    assert verdict.reason == f"passed: all {len(decision.rules)} rules hold"
    assert decision.passed
    assert decision.model_digest == MODEL.digest
    assert decision.parents == {
        "model": MODEL.digest,
        "base": decide.base.digest,
        "challenger": decide.challenger.digest,
    }
    assert Storage().find(decide.artifact_root, "gate", decision.input_key) == decision
    by_name = {rule.name: rule for rule in decision.rules}
    beaten = by_name["beats_nearest_neighbour_on_full_price"]
    assert beaten.inputs == {"base": decide.base.digest, "challenger": decide.challenger.digest}
    assert beaten.interval is not None
    assert beaten.interval.low > 0
    assert (beaten.samples, beaten.against) == (len(TRUTHS), "baseline:nearest_neighbour")
    assert decide.report.startswith("# Passed\n")
    assert "The same rules refuse the base." in decide.report
    assert (decision.base_passed, "parse_rate" in decision.base_reason) == (False, True)
    # The base under the same rules stands beside the model.
    row = next(line for line in decide.report.splitlines() if "| category\\_accuracy |" in line)
    assert "| ≥ 90.0 % | 240 | 0.0 % ✗ |" in row


def test_a_champion_is_compared_with(decide: Gate) -> None:
    champion = commit(decide.artifact_root, CHAMPION, good(wrong=0.05, seed=9))
    write_record(champion, decide.folder / "champion.json")
    verdict = decide()
    assert verdict.passed, verdict.reason
    assert decide.decision.parents["champion"] == champion.digest
    write_record(decide.challenger, decide.folder / "champion.json")
    assert "differs_from_champion (the model is the champion already)" in decide("run-2").reason


def test_rules_of_ones_own_are_judged_and_stand_in_the_decision(decide: Gate) -> None:
    rules = "rules: [{name: bags, metric: category.accuracy, slice: category=BAGS, at_least: 0.999}]"
    verdict = decide(gate_rules=rules)
    assert verdict.reason.startswith("refused: bags (category.accuracy is 9")
    storage = Storage()
    storage.write_bytes(f"{decide.artifact_root}/rules.yaml", b"defaults: false\n" + rules.encode())
    by_uri = decide("run-2", gate_rules=f"{decide.artifact_root}/rules.yaml", min_samples=10_000)
    assert by_uri.reason == verdict.reason
    assert [rule["name"] for rule in decide.decision.parameters["rules"]] == ["bags"]
    with pytest.raises(UserError, match=r"unknown metric 'accuracy'; there are product\.exact"):
        decide("run-3", gate_rules="rules: [{name: bags, metric: accuracy, at_least: 0.5}]")


def test_a_refusal_is_a_verdict_with_a_decision(decide: Gate) -> None:
    verdict = decide(min_samples=301)
    assert not verdict.passed
    assert verdict.reason == "refused: samples is 240, not ≥ 301"
    assert decide.decision.reason == verdict.reason
    assert not decide.decision.passed
    assert decide.report.startswith("# Refused\n")


def test_every_run_decides_for_itself(decide: Gate) -> None:
    decide("run-1")
    first = decide.decision
    decide("run-2")
    assert decide.decision.input_key != first.input_key
    assert decide.decision.run_id.endswith("run-2")
    # And says the same of the same.
    assert decide.decision.rules == first.rules


UNREADABLE = {
    "empty": b"",
    "no text": b"\xff\xfe\x00",
    "no record": b"{}",
    "deep": b"[" * 100_000,
    "incomplete": b'{"kind": "evaluation"}',
    "another kind": MODEL.to_json().encode(),
    "no file": None,
}


@pytest.mark.parametrize(
    ("name", "cases"), [("challenger", UNREADABLE), ("base", ["no file"]), ("champion", ["empty", "no file"])]
)
def test_an_unreadable_evaluation_refuses_with_a_decision(
    decide: Gate, name: str, cases: Iterable[str]
) -> None:
    path = decide.folder / f"{name}.json"
    for case in cases:
        content = UNREADABLE[case]
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        verdict = decide(case.replace(" ", "-"))
        assert not verdict.passed, case
        assert "records_readable" in verdict.reason
        assert "\n" not in verdict.reason
        assert not decide.decision.passed
        assert name not in decide.decision.parents


@pytest.mark.parametrize("damage", ["changed", "gone", "no baselines"])
def test_predictions_that_are_not_those_of_the_record_refuse(
    decide: Gate, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOVEA_CACHE", str(decide.folder / "cache"))
    moved = decide.challenger.model_copy(update={"uri": f"{decide.challenger.uri[:-1]}-{damage}/"})
    if damage == "changed":
        data = Storage().read_bytes(decide.challenger.uri + "predictions-00000.parquet")
        Storage().write_bytes(moved.uri + "predictions-00000.parquet", data[:-8] + bytes(8))
    if damage in ("changed", "gone"):
        write_record(moved, decide.folder / "challenger.json")
    else:
        files = [entry for entry in decide.base.files if entry.path != "baselines.parquet"]
        write_record(decide.base.model_copy(update={"files": tuple(files)}), decide.folder / "base.json")
    verdict = decide()
    assert not verdict.passed
    assert "records_readable" in verdict.reason
    assert ("baselines" if damage == "no baselines" else "predictions of challenger") in verdict.reason


@pytest.mark.parametrize(
    ("task", "passed"),
    [(product_task("name", "kind", "amount"), True), (product_task(currency_column="currency"), False)],
)
def test_a_task_is_what_is_asked_and_answered(decide: Gate, task: Task, passed: bool) -> None:
    write_record(MODEL.model_copy(update={"task": task}), decide.folder / "model.json")
    model = read_record(decide.folder / "model.json", ModelRecord)
    challenger = decide.challenger.model_copy(update={"model_digest": model.digest})
    write_record(challenger, decide.folder / "challenger.json")
    verdict = decide()
    assert verdict.passed is passed, verdict.reason
    if not passed:
        here = f"product-catalogue 1 ({task.digest[:19]})"
        assert f"are of another task ({TASK.digest[:19]}) than the models, {here}" in verdict.reason


def test_a_figure_that_is_not_finite_missing_or_made_up_refuses(decide: Gate) -> None:
    path = decide.folder / "challenger.json"
    good_one = json.loads(path.read_text())
    for figure, value in [
        ("samples", "NaN"),
        ("category.accuracy", "Infinity"),
        ("full_price.mean_ape", None),
    ]:
        document = json.loads(json.dumps(good_one))
        metrics = document["metrics"]
        holder = metrics if figure in metrics else metrics["figures"]
        holder[figure] = "@"
        if value is None:
            del holder[figure]
        path.write_text(json.dumps(document).replace('"@"', str(value)))
        verdict = decide(f"{figure}-{value}")
        assert not verdict.passed
        assert figure in verdict.reason
    good_one["metrics"]["figures"]["product.exact"] = 0.123456
    path.write_text(json.dumps(good_one))
    assert "figures_agree (product.exact of challenger is 0.123456 in the record" in decide("made-up").reason


def test_without_the_models_record_there_is_no_decision(decide: Gate) -> None:
    (decide.folder / "model.json").write_text("{}")
    verdict = decide()
    assert not verdict.passed
    assert "model:" in verdict.reason
    assert not (decide.folder / "out" / "decision.json").exists()
    assert decide.report.startswith("# Refused")


def test_the_base_itself_is_refused_as_the_model(decide: Gate) -> None:
    write_record(decide.base, decide.folder / "challenger.json")
    verdict = decide()
    assert not verdict.passed
    assert "evaluated_this_model" in verdict.reason


@pytest.mark.parametrize("limits", [{"min_samples": 0}, {"min_parse_rate": float("nan")}, {"min_price": 1.0}])
def test_wrong_limits_are_an_error_that_names_them(decide: Gate, limits: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(limits))):
        decide(**limits)
    assert Storage().exists(f"{decide.artifact_root}/runs/{decide.folder.name}-run-1/failure.json")


def test_values_cannot_break_out_of_the_report(decide: Gate) -> None:
    hostile = "<script>alert(1)</script> | [x](http://example.org) ![](http://example.org)\n# Passed"
    (decide.folder / "challenger.json").write_text(json.dumps({"kind": hostile}))
    write_record(AbsentRecord(reason=hostile), decide.folder / "champion.json")
    assert not decide().passed
    assert "<script>" not in decide.report
    assert "](http" not in decide.report
    assert "\n# Passed" not in decide.report
    assert escape("a|b\nc") == "a\\|b c"


def test_evaluations_of_tests_are_like_real_ones() -> None:
    assert set(metrics_of(TASK)) <= set(measure(outcomes(good()), RESAMPLES).intervals)
