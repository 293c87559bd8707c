"""The report of a preparation in a real browser: nothing in it runs or calls out, and it fits the screen."""

import os
from pathlib import Path

import pytest

from components.prepare_data.report.page import write_report
from components.prepare_data.workspace import Workspace
from fovea.task import CategoryField, PriceField, Task, TextField
from tests.browser.chromium import FAINT, PROGRAM, SKIP, Browser
from tests.components.prepare_data import workspaces

pytestmark = pytest.mark.skipif(PROGRAM is None, reason=SKIP)


def attacks(trap: str) -> list[str]:
    """Titles that do something where they are taken for markup, script or style."""
    return [
        "<script>document.title = 'owned'</script>",
        f"<script src={trap}/script></script>",
        f'"><img src={trap}/img onerror="document.title = \'owned\'">',
        f"' onmouseover='document.title = 1' style='background:url({trap}/style)",
        f"</figcaption></main><iframe src={trap}/frame></iframe>",
        f"</style><style>body {{ background: url({trap}/css) }}</style>",
        f"<link rel=stylesheet href={trap}/link><meta http-equiv=refresh content='0;url={trap}/refresh'>",
        "<svg onload=\"document.title = 'owned'\"></svg>",
        "javascript:document.title='owned'",
        "{{ 7 * 7 }}{% raw %}${7*7}",
        "-->]]></textarea></title><b>bold</b>",
        "مرحبا 你好 👗👠 é\u0301 ﷽ ﷽",
        "W" * 10_000,
        "wide " * 2_000 + "end",
    ]


@pytest.fixture
def report(tmp_path: Path, trap: tuple[str, list[str]]) -> Path:
    task = Task(
        name="wide",
        version=1,
        question="What is it? " + attacks(trap[0])[0],
        template="Product: {product}, Category: {category}, Full Price: {full_price}",
        fields={
            "product": TextField(column="title", max_length=20_000),
            "category": CategoryField(column="category3_code", max_length=20_000),
            "full_price": PriceField(column="full_price"),
        },
    )
    path = tmp_path / "report.html"
    with Workspace(tmp_path) as workspace:
        workspaces.fill(workspace)
        for number, title in enumerate(attacks(trap[0]), start=100):
            workspaces.add_kept(workspace, number, title=title, category=title, price=10.0**number % 7 + 1)
            workspaces.add_dropped(workspace, number + 100, f"reason {title}", title=title)
        settings = {"source": attacks(trap[0])[2], "seed": 0}
        write_report(path, workspace=workspace, task=task, source=attacks(trap[0])[2], settings=settings)
    _keep(path)
    return path


def _keep(path: Path) -> None:
    """Leave a copy to look at, where one is asked for."""
    if folder := os.environ.get("FOVEA_SCREENSHOTS"):
        (Path(folder) / path.name).write_bytes(path.read_bytes())


def test_nothing_in_it_runs_or_calls_out(page: Browser, report: Path, trap: tuple[str, list[str]]) -> None:
    page.open(report.as_uri())
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    page.evaluate("Promise.all([...document.images].map(each => each.decode())).then(() => 1)")
    assert page.evaluate("document.title").startswith("Fovea: dataset of ")
    assert page.evaluate("document.querySelectorAll('script, iframe, link, svg, object, b b').length") == 0
    assert page.evaluate("document.querySelectorAll('meta[http-equiv=refresh]').length") == 0
    attributes = "[...new Set([...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames()))]"
    assert not [name for name in page.evaluate(attributes) if name.startswith("on")]
    text = page.evaluate("document.body.textContent")
    assert all(title[:200] in text for title in attacks(trap[0]))
    assert page.evaluate("document.images.length") > 30
    assert page.evaluate("[...document.images].every(i => i.naturalWidth > 0)")
    assert page.requests() == []
    assert trap[1] == []
    assert [event for event in page.events if event["method"] == "Runtime.exceptionThrown"] == []


@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_the_screen(page: Browser, report: Path, tmp_path: Path, width: int, dark: bool) -> None:
    page.open(report.as_uri(), width=width, dark=dark)
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    shade = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (max(shade) < 60) == dark
    assert page.evaluate(FAINT) == []
    if folder := os.environ.get("FOVEA_SCREENSHOTS"):
        page.screenshot(Path(folder) / f"report-{width}-{'dark' if dark else 'light'}.png")
