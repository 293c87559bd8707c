"""The report of an evaluation: what it shows, how large it is, and that nothing in it is markup of others."""

import base64
import html
import io
import re
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from components.evaluate.report.page import MAX_BYTES, write_report, written
from components.evaluate.split import Row
from fovea.errors import UserError
from fovea.records import DatasetRecord, EvaluationRecord, Interval, RuleResult
from fovea.storage import Storage
from fovea.task import Answer
from tests.components.evaluate import evaluations as made
from tests.components.evaluate.evaluations import Bucket
from tests.own_bucket import own_bucket

NASTY = [
    "<script>alert(1)</script>",
    '"><img src=http://evil.test onerror=alert(1)>',
    "' style='background:url(http://evil.test)' x='",
    "</style><style>body{background:url(//evil.test)}</style>",
    "</option></select><iframe src=//evil.test>",
    "{{ 7 * 7 }}{% raw %}",
    "\u202egnp.exe \u0000\u0007 مرحبا 👗",
    "W" * 30_000,
]


class Elements(HTMLParser):
    """What a page's markup comes to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def classes(self, name: str) -> list[dict[str, str | None]]:
        return [attrs for _, attrs in self.tags if name in (attrs.get("class") or "").split()]


def evaluation(
    bucket: Bucket,
    model: str,
    dataset: DatasetRecord,
    rows: Sequence[Row],
    answers: Sequence[Answer],
    **more: Any,
) -> EvaluationRecord:
    return made.save_evaluation(bucket, model, dataset, rows, answers, **more)


def nothing(rows: Sequence[Row]) -> list[Answer]:
    return [made.answer(made.TASK, None) for _ in rows]


@pytest.fixture(scope="module")
def bucket(s3_server: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    with own_bucket(s3_server, tmp_path_factory.mktemp("cache")) as root:
        yield Bucket(f"{root}/fovea", Storage())


def test_what_it_shows(bucket: Bucket, tmp_path: Path) -> None:
    rows = made.some_rows(120)
    dataset = made.save_dataset(bucket, rows)
    constant = {"product": "Scarf", "category": "CATEGORY 0", "full_price": 20.0}
    base = evaluation(
        bucket, "base", dataset, rows, nothing(rows), baselines={"majority_category": [constant] * 120}
    )
    champion = evaluation(
        bucket, "champion", dataset, rows, made.right_but(rows, 2, category="CATEGORY 9", full_price=1.0)
    )
    challenger = evaluation(
        bucket, "challenger", dataset, rows, made.right_but(rows, 10, product="Silk scarf")
    )
    rule = RuleResult(
        name="gain",
        description="More right categories than the champion",
        metric="category.accuracy",
        against="champion",
        value=0.5,
        interval=Interval(low=0.4, high=0.6),
        own=1.0,
        compared=0.5,
        comparison=">",
        limit=0.0,
        passed=True,
        reason="",
    )
    path = write_report(
        tmp_path / "reports" / "evaluation.html",
        decision=made.decision("challenger", rule, passed=True),
        base=base,
        champion=champion,
        challenger=challenger,
        dataset=dataset,
        storage=bucket.storage,
    )
    page = path.read_text()
    text = " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page[page.index("<body>") :])).split())
    assert text.startswith("The model may be deployed passed all rules hold challenger ")
    for digest in (challenger.model_digest, base.model_digest, champion.model_digest, dataset.digest):
        assert digest.removeprefix("sha256:")[:12] in text
    compared = "+50.0 points surely > 0.0 points 40.0 – 60.0 100.0 % against 50.0 %"
    assert f"More right categories than the champion {compared}" in text
    low, high = (
        challenger.metrics.intervals["product.exact"].low,
        challenger.metrics.intervals["product.exact"].high,
    )
    assert f"90.0 % {100 * low:.1f} – {100 * high:.1f}" in text
    assert "majority category" in text
    assert "shuffled" in text
    for name in ("Full price median error", "By category", "By full price", "CATEGORY 2", "10.00 to 40.00"):
        assert name in text
    assert "108 of 120 rows have every field right" in text
    assert 'value="1">CATEGORY 0: 36 of 40 right</option>' in page
    # Which category for which: all of each row are right.
    assert text.count("answer as") == 0
    assert 'title="CATEGORY 1 answered as CATEGORY 1: 40 of 40"' in page
    # Confidence is told for the title alone: the other fields have no mistakes to fit on.
    assert "40 right and 0 wrong" not in text
    assert "120 right and 0 wrong answers to fit on" in text
    assert "confidence is off by" in text


def test_pictures_are_those_of_their_rows(bucket: Bucket, tmp_path: Path) -> None:
    rows = made.some_rows(40)
    dataset = made.save_dataset(bucket, rows)
    answers = [made.answer(made.TASK, row.truth) for row in rows]
    for number in (3, 5, 8):  # the last is wrong in most
        answers[number] = made.answer(
            made.TASK,
            {
                **rows[number].truth,
                "full_price": 1.0,
                **({"category": "CATEGORY 9"} if number == 8 else {}),
            },
        )
    challenger = evaluation(bucket, "challenger", dataset, rows, answers)
    page = report(tmp_path, bucket, dataset, challenger, challenger).read_text()
    worst = page[page.index('class="pictures worst"') : page.index('class="pictures best"')]
    names = re.findall(r"row <code>(.*?)</code>", worst)
    assert names[0] == "row-8"
    assert sorted(names) == ["row-3", "row-5", "row-8"]
    for name, data in zip(names, re.findall(r"base64,([^\"]*)", worst), strict=True):
        shown = Image.open(io.BytesIO(base64.b64decode(data))).getpixel((30, 30))
        assert isinstance(shown, tuple)
        expected = made.colour(int(name.removeprefix("row-")) % 30)
        assert max(abs(one - other) for one, other in zip(shown, expected, strict=True)) < 8


def report(
    tmp_path: Path,
    bucket: Bucket,
    dataset: DatasetRecord,
    base: EvaluationRecord,
    challenger: EvaluationRecord,
    champion: EvaluationRecord | None = None,
    **more: Any,
) -> Path:
    return write_report(
        tmp_path / "evaluation.html",
        **{"decision": None, **more},
        base=base,
        champion=champion,
        challenger=challenger,
        dataset=dataset,
        storage=bucket.storage,
    )


def test_nothing_in_it_is_markup_of_others(bucket: Bucket, tmp_path: Path) -> None:
    rows = [
        Row(
            text[:40] + str(number),
            text[:40],
            text[:40],
            {"product": text, "category": text + str(number % 2), "full_price": 10.0 + number},
        )
        for number, text in enumerate(NASTY * 4)
    ]
    dataset = made.save_dataset(bucket, rows)
    said = [made.answer(made.TASK, {**rows[-number].truth}, NASTY[number % 8]) for number in range(len(rows))]
    unreadable = [made.answer(made.TASK, None, NASTY[number % 8]) for number in range(len(rows))]
    challenger = evaluation(bucket, "challenger", dataset, rows, said)
    base = evaluation(
        bucket, "base", dataset, rows, unreadable, baselines={NASTY[1]: [row.truth for row in rows]}
    )
    rule = RuleResult(
        name="a",
        description=NASTY[0],
        value=None,
        comparison=">=",
        limit=None,
        passed=False,
        reason=NASTY[1],
    )
    path = report(
        tmp_path,
        bucket,
        dataset,
        base,
        challenger,
        decision=made.decision("challenger", rule, reason=NASTY[2]),
    )
    page = path.read_text()
    found = Elements(page)
    assert not {"script", "iframe", "link", "object", "base", "form", "a"} & {tag for tag, _ in found.tags}
    assert sum(tag == "style" for tag, _ in found.tags) == 1
    attributes = [(tag, name, value or "") for tag, attrs in found.tags for name, value in attrs.items()]
    assert not [each for each in attributes if each[1].startswith("on") or each[1] == "href"]
    assert all(value.startswith("data:image/jpeg;base64,") for _, name, value in attributes if name == "src")
    assert not [value for _, name, value in attributes if name == "style" and "url" in value]
    style = page[page.index("<style>") : page.index("</style>")]
    assert "evil" not in style
    assert "\u202e" not in page
    assert "\u0000" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "W" * 200 not in page


def test_every_category_has_examples(bucket: Bucket, tmp_path: Path) -> None:
    rows = made.some_rows(200, categories=40)
    dataset = made.save_dataset(bucket, rows)
    base = evaluation(bucket, "base", dataset, rows, nothing(rows), resamples=5)
    challenger = evaluation(
        bucket, "challenger", dataset, rows, made.right_but(rows, 3, full_price=1.0), resamples=5
    )
    found = Elements(report(tmp_path, bucket, dataset, base, challenger).read_text())
    options = [attrs["value"] for tag, attrs in found.tags if tag == "option"]
    assert options[-32:] == [str(number) for number in range(32)]
    assert all(found.classes(f"c{number}") for number in range(1, 32))
    assert len(found.classes("overall")) == 20


def test_it_is_never_larger_than_it_may_be(bucket: Bucket, tmp_path: Path) -> None:
    """Many categories, long answers, and pictures that cannot be made small."""
    long = "wide words " * 400
    rows = made.some_rows(200, categories=60, titles=[long + str(number) for number in range(7)])
    noise = made.jpeg(0, 256, noise=True)
    dataset = made.save_dataset(bucket, rows, dict.fromkeys(range(200), noise))
    challenger = evaluation(
        bucket, "challenger", dataset, rows, made.right_but(rows, 2, full_price=1.0), resamples=2
    )
    base = evaluation(bucket, "base", dataset, rows, nothing(rows), resamples=0, calibrated=False)
    path = report(tmp_path, bucket, dataset, base, challenger, base)
    assert MAX_BYTES / 2 < path.stat().st_size <= MAX_BYTES
    assert path.read_text().count("picture not shown") > 10


@pytest.mark.parametrize("count", [1, 2, 30])
@pytest.mark.parametrize("readable", [False, True])
def test_little_is_enough(bucket: Bucket, tmp_path: Path, count: int, readable: bool) -> None:
    """No verdict, no champion, no baselines, hardly a row, none that can be read, no calibration."""
    rows = made.some_rows(count, categories=1)
    dataset = made.save_dataset(bucket, rows)
    answers = [made.answer(made.TASK, row.truth if readable else None) for row in rows]
    challenger = evaluation(bucket, "challenger", dataset, rows, answers, calibrated=count == 30, resamples=0)
    page = report(tmp_path, bucket, dataset, challenger, challenger).read_text()
    assert "The gate has not judged this model" in page
    assert ("No row has a mistake." if readable else "No row is all right.") in page
    assert "nan" not in page.lower().replace("nanny", "")


def test_what_was_told_before_there_were_slices_and_confidences(bucket: Bucket, tmp_path: Path) -> None:
    rows = made.some_rows(20)
    dataset = made.save_dataset(bucket, rows)
    challenger = evaluation(bucket, "challenger", dataset, rows, made.right_but(rows, 3, full_price=1.0))
    bare = challenger.model_copy(
        update={"slices": {}, "calibration": None, "parsed": None, "shuffled": None, "confusions": {}}
    )
    page = report(tmp_path, bucket, dataset, bare, bare).read_text()
    assert "The answers carry no confidence" in page
    assert "By category" not in page


def test_pictures_of_another_dataset_are_not_shown(bucket: Bucket, tmp_path: Path) -> None:
    rows = made.some_rows(10)
    dataset = made.save_dataset(bucket, rows)
    other = dataset.model_copy(update={"longest_side": 65})
    challenger = evaluation(bucket, "challenger", dataset, rows, made.right_but(rows, 3, full_price=1.0))
    page = report(tmp_path, bucket, other, challenger, challenger).read_text()
    assert "this is not the dataset that was asked about" in page
    assert "base64," not in page


def test_a_champion_that_is_the_base_is_shown_once(bucket: Bucket, tmp_path: Path) -> None:
    rows = made.some_rows(10)
    dataset = made.save_dataset(bucket, rows)
    base = evaluation(bucket, "base", dataset, rows, nothing(rows))
    challenger = evaluation(bucket, "challenger", dataset, rows, made.right_but(rows, 3, full_price=1.0))
    assert "champion" not in report(tmp_path, bucket, dataset, base, challenger, base).read_text()


def test_predictions_that_are_gone_are_told(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOVEA_CACHE", str(tmp_path))
    rows = made.some_rows(4)
    dataset = made.save_dataset(bucket, rows)
    challenger = evaluation(bucket, "challenger", dataset, rows, nothing(rows))
    gone = challenger.model_copy(update={"uri": f"{bucket.root}/nowhere/"})
    with pytest.raises(UserError, match="nowhere"):
        report(tmp_path, bucket, dataset, gone, gone)


def rule(**values: Any) -> RuleResult:
    given = {
        "name": "a",
        "description": "d",
        "value": 0.5,
        "comparison": ">=",
        "limit": 0.9,
        "passed": False,
        "reason": "r",
    }
    return RuleResult(**{**given, **values})


def test_rules_as_people_read_them() -> None:
    holds = written(rule(value=1.0, limit=1.0, passed=True))
    assert (holds.value, holds.limit, holds.reason) == ("holds", "", "")
    assert written(rule(value=0.0, limit=1.0)).value == "does not hold"
    figure = written(rule(metric="parse_rate"))
    assert (figure.value, figure.limit, figure.reason) == ("50.0 %", "≥ 90.0 %", "r")
    count = written(rule(metric="samples", unit="count", value=276, limit=200))
    assert (count.value, count.limit) == ("276", "≥ 200")
    missing = written(rule(value=None, limit=None))
    assert (missing.value, missing.limit) == ("–", "")
    loss = written(
        rule(
            metric="full_price.mean_absolute_error",
            unit="currency",
            against="base",
            value=-1.5,
            limit=-2.0,
            own=11.5,
            compared=10.0,
            interval=Interval(low=-2.5, high=-0.5),
        )
    )
    assert (loss.value, loss.interval, loss.compared, loss.limit) == (
        "−1.50",
        "−2.50 – −0.50",
        "11.50 against 10.00",
        "surely ≥ −2.00",
    )
