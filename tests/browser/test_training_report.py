"""The report of a training in a real browser, within a frame as KFP's UI shows it."""

import html
import os
from pathlib import Path

import pytest
from PIL import Image

from components.train_lora.report import write_report
from fovea.pages import picture_url
from tests.browser.chromium import FAINT, PROGRAM, SKIP, Browser
from tests.browser.test_dataset_report import attacks
from tests.components.train_lora.outputs import left

pytestmark = pytest.mark.skipif(PROGRAM is None, reason=SKIP)

NOBODY = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report whose run, rows, answers and settings are attacks; or the one that FOVEA_REPORT names."""
    if given := os.environ.get("FOVEA_REPORT"):
        return Path(given)
    folder, texts = tmp_path_factory.mktemp("report"), attacks(NOBODY)
    answers = [
        {
            "row_id": text[:500],
            "picture": picture_url(Image.new("RGB", (120, 80 + 20 * number), "teal"), 200),
            "truth": texts[-number],
            "answer": text if number else "",
            "right": number % 3 / 2,
        }
        for number, text in enumerate(texts)
    ]
    path = folder / "report.html"
    settings = {"resume_from": texts[2], texts[0]: texts[4], "rank": 16, "long": texts[12]}
    write_report(path, left(folder, answers, steps=200), run_id=texts[1], settings=settings)
    return path


@pytest.fixture(scope="module")
def host(report: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page that shows the report in a sandboxed frame, its text given as the frame's document."""
    path = tmp_path_factory.mktemp("host") / "host.html"
    path.write_text(
        "<!doctype html><title>host</title><body style='margin:0'><iframe sandbox='allow-same-origin' "
        f'style="width:100%;height:100vh;border:0;display:block" srcdoc="{html.escape(report.read_text())}">'
        "</iframe>"
    )
    return path


def test_nothing_in_it_runs_or_calls_out(page: Browser, report: Path) -> None:
    page.open(report.as_uri())
    page.evaluate("Promise.all([...document.images].map(each => each.decode())).then(() => 1)")
    assert page.evaluate("document.title").startswith("Fovea: training of ")
    forbidden = "script, iframe, link, object, form, a, b b, meta[http-equiv=refresh]"
    assert page.evaluate(f"document.querySelectorAll('{forbidden}').length") == 0
    attributes = "[...new Set([...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames()))]"
    assert not [name for name in page.evaluate(attributes) if name.startswith("on")]
    assert page.evaluate("[...document.images].every(i => i.naturalWidth > 0 && i.alt)")
    assert page.evaluate("[...document.querySelectorAll('[role=img]')].every(e => e.ariaLabel)")
    assert page.evaluate("document.querySelectorAll('.plot svg path[class^=to-]').length") >= 5
    assert page.requests() == []
    assert [event for event in page.events if event["method"] == "Runtime.exceptionThrown"] == []


def test_every_text_is_shown_as_text(page: Browser, report: Path) -> None:
    page.open(report.as_uri())
    text = page.evaluate("document.body.textContent")
    assert all(attack[:30] in text for attack in attacks(NOBODY)) or "FOVEA_REPORT" in os.environ


@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_the_screen_within_a_sandboxed_frame(
    page: Browser, host: Path, report: Path, width: int, dark: bool
) -> None:
    page.open(host.as_uri(), width=width, dark=dark)
    within = "document.querySelector('iframe').contentDocument"
    assert page.evaluate(f"{within}.title").startswith("Fovea: training of ")
    assert page.evaluate(f"{within}.documentElement.scrollWidth") <= width
    # No text of a drawing lies outside of it.
    outside = (
        f"[...{within}.querySelectorAll('.plot')].flatMap(plot => [...plot.querySelectorAll('span')]"
        ".map(text => [text, plot].map(each => each.getBoundingClientRect())))"
        ".filter(([text, plot]) => text.left < plot.left - 1 || text.right > plot.right + 1)"
    )
    assert page.evaluate(f"{outside}.length") == 0
    shade = page.evaluate(f"getComputedStyle({within}.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (max(shade) < 60) == dark
    if folder := os.environ.get("FOVEA_SCREENSHOTS"):
        page.open(report.as_uri(), width=width, dark=dark)
        page.screenshot(Path(folder) / f"training-{width}-{'dark' if dark else 'light'}.png")


@pytest.mark.parametrize("dark", [False, True])
def test_texts_stand_out(page: Browser, report: Path, dark: bool) -> None:
    page.open(report.as_uri(), dark=dark)
    assert page.evaluate(FAINT) == []
