import base64
import io
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from fovea.records import Metrics, RuleResult, now
from pipelines.report.page import Example, FieldComparison, write_report
from pipelines.report.summary import EndpointSummary, FigureTitle, GateSummary, StepSummary, Summary
from tests.some_records import some_metrics

HOSTILE = '<script>alert("x")</script>{{ 7 * 7 }}'


def metrics(category: float) -> Metrics:
    return some_metrics(304, 301, **{"category.accuracy": category, "full_price.median_ape": 0.07})


def rule(name: str, value: float, limit: float, *, passed: bool, metric: str = "") -> RuleResult:
    return RuleResult(
        name=name,
        description=f"Rule {name} {HOSTILE}",
        value=value,
        comparison=">=",
        limit=limit,
        passed=passed,
        reason=f"because {HOSTILE}",
        metric=metric,
    )


@pytest.fixture
def summary() -> Summary:
    return Summary(
        run_id="123",
        state="refused",
        task="",
        reason=f"refused: {HOSTILE}",
        seconds=185.2,
        finished_at=now(),
        settings={"source": HOSTILE},
        samples=304,
        models={"base": metrics(0.05), "challenger": metrics(0.97), "shuffled": metrics(0.08)},
        figures=(FigureTitle(name="category.accuracy", title="Category right", unit="fraction"),),
        gate=GateSummary(
            passed=False,
            reason=HOSTILE,
            rules=(
                rule("comparable", 1.0, 1.0, passed=True),
                rule("samples", 304, 200, passed=True, metric="samples"),
                rule("category_accuracy", 0.85, 0.9, passed=False, metric="category.accuracy"),
            ),
            base_passed=False,
            base_reason=HOSTILE,
        ),
        endpoint=EndpointSummary(
            service="fovea",
            predict_path="/v1/models/fovea:predict",
            chat_path="/openai/v1/chat/completions",
            row_id="r",
            answer={"product": HOSTILE},
            truth={"product": HOSTILE},
            probes=8,
            agreed=8,
        ),
        steps={"train_lora": StepSummary(seconds=61.2, reused=True)},
        digests={"dataset": "sha256:" + "0" * 64},
        records={"train_lora": "s3://fovea/index/train_lora/1.json"},
    )


def example(answer: str | None) -> Example:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "teal").save(buffer, "JPEG")
    picture = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    fields = (FieldComparison("product", answer, HOSTILE, answer == HOSTILE),)
    return Example(row_id=HOSTILE, picture=picture, text=HOSTILE, fields=fields)


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_every_value_is_escaped(summary: Summary, tmp_path: Path) -> None:
    page = Page(write_report(tmp_path, summary, [example(HOSTILE)], [example(None)]).read_text())
    assert "script" not in page.tags
    assert page.text.count(HOSTILE) >= 8


def test_it_needs_nothing_beside_it(summary: Summary, tmp_path: Path) -> None:
    page = Page(write_report(tmp_path, summary, [example("x")], []).read_text())
    assert page.addresses
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    assert "link" not in page.tags


def test_it_says_the_figures(summary: Summary, tmp_path: Path) -> None:
    text = Page(write_report(tmp_path, summary, [], []).read_text()).text
    for said in (
        "304 held-out pictures",
        "97.0 %",
        "holds",
        "≥ 200",
        "85.0 %",
        "≥ 90.0 %",
        "3 min 05 s",
        "reused",
    ):
        assert said in text


def test_a_run_that_failed_early_has_a_report_too(summary: Summary, tmp_path: Path) -> None:
    early = summary.model_copy(
        update={
            "state": "failed",
            "task": "prepare_data",
            "samples": None,
            "models": {},
            "gate": None,
            "endpoint": None,
            "steps": {},
            "digests": {},
            "records": {},
        }
    )
    text = Page(write_report(tmp_path, early, [], []).read_text()).text
    assert "prepare_data" in text
    assert HOSTILE in text


def test_the_summary_is_written_whole(summary: Summary, tmp_path: Path) -> None:
    path = summary.write(tmp_path)
    assert Summary.model_validate_json(path.read_text()) == summary
    assert list(tmp_path.iterdir()) == [path]
