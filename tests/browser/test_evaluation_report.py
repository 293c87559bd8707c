"""The report of an evaluation in a real browser, within a frame as KFP's UI shows it."""

import base64
import html
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from components.evaluate.report.page import write_report
from components.evaluate.split import Row
from fovea.records import RuleResult
from fovea.storage import Storage
from tests.browser.chromium import FAINT, PROGRAM, SKIP, Browser
from tests.components.evaluate import evaluations as made
from tests.own_bucket import own_bucket

pytestmark = pytest.mark.skipif(PROGRAM is None, reason=SKIP)

SANDBOX = "allow-scripts"
"""What the frames of KFP's and MLflow's UIs allow; no origin of ours, no forms, no links out of the frame."""

SHOWN = "[...document.querySelectorAll('figure.example')].filter(each => each.offsetParent)"
CATEGORIES = 5


def attacks(trap: str) -> list[str]:
    """Texts that do something where they are taken for markup, script or style."""
    return [
        "<script>document.title = 'owned'</script>",
        f"<script src={trap}/script></script>",
        f'"><img src={trap}/img onerror="document.title = \'owned\'">',
        f"' onmouseover='document.title = 1' style='background:url({trap}/style)",
        f"</option></select></figcaption></main><iframe src={trap}/frame></iframe>",
        f"</style><style>body {{ background: url({trap}/css) }}</style>",
        f"<link rel=stylesheet href={trap}/link><meta http-equiv=refresh content='0;url={trap}/refresh'>",
        "<svg onload=\"document.title = 'owned'\"></svg>",
        "</title></path></svg><b>bold</b>",
        "مرحبا 你好 👗👠 é\u0301 ﷽ \u202efdp.exe",
        "W" * 10_000,
    ]


@pytest.fixture(scope="module")
def report(
    s3_server: dict[str, str], tmp_path_factory: pytest.TempPathFactory, trap: tuple[str, list[str]]
) -> Path:
    """A report of answers that are all attacks, in titles, categories, texts, rules and models' names."""
    texts, folder = attacks(trap[0]), tmp_path_factory.mktemp("report")
    with own_bucket(s3_server, folder / "cache") as root:
        bucket = made.Bucket(f"{root}/fovea", Storage())
        rows = [
            Row(
                f"{number}{texts[number % 11][:50]}",
                texts[number % 11][:50],
                texts[number % 11][:50],
                {
                    "product": texts[number % 11],
                    "category": texts[number % CATEGORIES],
                    "full_price": 20.0 + number,
                },
            )
            for number in range(66)
        ]
        said = [
            made.answer(made.TASK, {**row.truth, "full_price": 21.0}, texts[number % 11], 0.5 + number / 200)
            if number % 3
            else made.answer(
                made.TASK, {**row.truth, "product": texts[-number % 11]}, sure=0.4 + number / 200
            )
            for number, row in enumerate(rows)
        ]
        nothing = [made.answer(made.TASK, None, texts[number % 11]) for number in range(len(rows))]
        dataset = made.save_dataset(bucket, rows)
        base = made.save_evaluation(
            bucket, "base", dataset, rows, nothing, baselines={texts[2]: [row.truth for row in rows]}
        )
        champion = made.save_evaluation(bucket, "champion", dataset, rows, said[::-1])
        challenger = made.save_evaluation(bucket, "challenger", dataset, rows, said)
        rule = RuleResult(
            name="a",
            description=texts[0],
            value=0.5,
            comparison=">=",
            limit=0.9,
            passed=False,
            reason=texts[2],
        )
        return write_report(
            folder / "evaluation.html",
            decision=made.decision("challenger", rule, reason=texts[6]),
            base=base,
            champion=champion,
            challenger=challenger,
            dataset=dataset,
            storage=bucket.storage,
        )


@pytest.fixture(scope="module")
def host(report: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page that shows the report in a sandboxed frame, its text given as the frame's document."""
    path = tmp_path_factory.mktemp("host") / "host.html"
    path.write_text(
        "<!doctype html><title>host</title><body style='margin:0'>"
        f'<iframe sandbox="{SANDBOX}" style="width:100%;height:100vh;border:0;display:block" '
        f'srcdoc="{html.escape(report.read_text())}"></iframe>'
    )
    return path


@contextmanager
def inside(page: Browser) -> Iterator[None]:
    """Within the block the page is the document in the frame, which runs in a process of its own."""
    targets = page.call("Target.getTargets")["targetInfos"]
    (frame,) = [each["targetId"] for each in targets if each["type"] == "iframe"]
    outer = page._session
    page._session = {
        "sessionId": page.call("Target.attachToTarget", targetId=frame, flatten=True)["sessionId"]
    }
    try:
        yield
    finally:
        page._session = outer


def press(page: Browser, key: str, code: int) -> None:
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)


def test_nothing_in_it_runs_or_calls_out(page: Browser, report: Path, trap: tuple[str, list[str]]) -> None:
    page.open(report.as_uri())
    page.evaluate("Promise.all([...document.images].map(each => each.decode())).then(() => 1)")
    assert page.evaluate("document.title").startswith("Fovea: evaluation of model ")
    assert (
        page.evaluate("document.querySelectorAll('script, iframe, link, object, form, a, b b').length") == 0
    )
    assert page.evaluate("document.querySelectorAll('meta[http-equiv=refresh]').length") == 0
    attributes = "[...new Set([...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames()))]"
    assert not [name for name in page.evaluate(attributes) if name.startswith("on")]
    text = page.evaluate("document.body.textContent")
    assert all(attack[:30] in text for attack in attacks(trap[0])[:9])
    assert "\u202e" not in text
    assert page.evaluate("document.images.length") > 20
    assert page.evaluate("[...document.images].every(each => each.naturalWidth > 0)")
    assert page.requests() == []
    assert trap[1] == []
    assert [event for event in page.events if event["method"] == "Runtime.exceptionThrown"] == []


def test_the_filter_works_by_keyboard_in_a_sandboxed_frame(
    page: Browser, host: Path, trap: tuple[str, list[str]]
) -> None:
    page.open(host.as_uri())
    with inside(page):
        assert page.evaluate("window.origin") == "null"
        assert page.evaluate("document.title").startswith("Fovea: evaluation of model ")
        assert page.evaluate(f"{SHOWN}.every(each => each.classList.contains('overall'))")
        assert page.evaluate(f"{SHOWN}.length") > 10
        page.evaluate("document.querySelector('#category').focus()")
        for number in range(1, CATEGORIES + 1):
            press(page, "ArrowDown", 40)
            shown = page.evaluate(f"{SHOWN}.map(each => each.className)")
            assert shown
            assert all(f"c{number}" in each.split() for each in shown)
        press(page, "Home", 36)
        assert page.evaluate(f"{SHOWN}.every(each => each.classList.contains('overall'))")
        # The others choose among tables in the same way.
        tables = "[...document.querySelectorAll('.by-category')].filter(each => each.offsetParent)"
        page.evaluate("document.querySelector('#by-category').focus()")
        assert page.evaluate(f"{tables}.map(each => each.ariaLabel)") == [
            "By category: Product right, letter by letter"
        ]
        press(page, "ArrowDown", 40)
        assert page.evaluate(f"{tables}.length") == 1
        assert "Product F1 of words" in page.evaluate(f"{tables}[0].ariaLabel")
        page.evaluate("document.querySelector('#rows').focus()")
        press(page, "ArrowDown", 40)
        assert not page.evaluate("Boolean(document.querySelector('.over-all').offsetParent)")
    assert trap[1] == []


@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_the_screen(page: Browser, report: Path, width: int, dark: bool) -> None:
    page.open(report.as_uri(), width=width, dark=dark)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    shade = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (max(shade) < 60) == dark
    # What is wider than the page scrolls by itself, and can be reached by keyboard.
    wide = "[...document.querySelectorAll('.scroll')].filter(each => each.scrollWidth > each.clientWidth)"
    assert page.evaluate(f"{wide}.every(each => each.tabIndex === 0 && each.ariaLabel)")
    assert page.evaluate(f"{wide}.length") > 0 or width > 360
    if folder := os.environ.get("FOVEA_SCREENSHOTS"):
        page.screenshot(Path(folder) / f"evaluation-{width}-{'dark' if dark else 'light'}.png")


# It draws the pictures of docs/ where asked to; elsewhere there is nothing to leave out.
if "FOVEA_EVALUATION_REPORT" in os.environ:

    def test_pictures_for_the_documentation(page: Browser) -> None:
        """Of the report that FOVEA_EVALUATION_REPORT names, into the folder FOVEA_SCREENSHOTS."""
        folder = Path(os.environ["FOVEA_SCREENSHOTS"])
        url = Path(os.environ["FOVEA_EVALUATION_REPORT"]).resolve().as_uri()
        for name, width, height, dark, top in (
            ("evaluation", 1100, 1640, False, "main"),
            ("evaluation-pictures", 1100, 760, False, ".choose.sticky"),
            ("evaluation-narrow-dark", 360, 1400, True, "main"),
        ):
            page.open(url, width=width, dark=dark)
            page.evaluate("Promise.all([...document.images].map(each => each.decode())).then(() => 1)")
            start = page.evaluate(f"document.querySelector('{top}').getBoundingClientRect().top")
            clip = {"x": 0, "y": max(0, start - 12), "width": width, "height": height, "scale": 1}
            shot = page.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
            (folder / f"{name}.png").write_bytes(base64.b64decode(shot["data"]))


def test_who_cannot_see_it_is_told(page: Browser, report: Path) -> None:
    """Plots, pictures, choices and tables have names, headings go down by one, texts stand out."""
    page.open(report.as_uri())
    assert page.evaluate("[...document.querySelectorAll('[role=img]')].every(each => each.ariaLabel)")
    assert page.evaluate("[...document.images].every(each => each.alt)")
    assert page.evaluate("[...document.querySelectorAll('select')].every(each => each.labels.length)")
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(each => +each.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


@pytest.mark.parametrize("dark", [False, True])
def test_texts_stand_out(page: Browser, report: Path, dark: bool) -> None:
    page.open(report.as_uri(), dark=dark)
    # Whatever the counts of the matrix are.
    page.evaluate(
        "document.querySelectorAll('.matrix td b').forEach((each, number) => {"
        "each.parentElement.className = number % 2 ? 'hit' : 'miss';"
        "each.parentElement.style.setProperty('--shade', `${number % 11 * 10}%`)})"
    )
    assert page.evaluate(FAINT) == []
