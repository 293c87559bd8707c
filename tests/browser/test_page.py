"""The page to try the service with, in a real browser: upload, answer, error, keyboard, narrow screen."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from fovea.task import product_task
from serving.engine.loading import locate_model
from tests.browser.chromium import PROGRAM, SKIP, Browser
from tests.serving.conftest import ANSWER, RunningServer, picture, running_server
from tests.serving.in_process import CALIBRATION
from tests.some_records import some_evaluation
from tests.tiny_model import write_tiny_model

pytestmark = pytest.mark.skipif(PROGRAM is None, reason=SKIP)

HOSTILE = "<img/src=x/onerror=document.title='owned'>"
KEY = "a-key-of-the-shop-0001"


def serve(folder: Path, answer: str, *options: str) -> Any:
    model = write_tiny_model(folder / "model", answer=answer, task=product_task())
    return running_server(folder / "server", "--model-dir", str(model), *options)


def calibrated(folder: Path) -> Any:
    """Serve a model whose titles could not be calibrated."""
    model = write_tiny_model(folder / "model", answer=ANSWER, task=product_task())
    _, digest = locate_model(str(model))
    record = some_evaluation(model_digest=digest, task_digest=product_task().digest, calibration=CALIBRATION)
    (folder / "evaluation.json").write_text(record.to_json())
    options = ["--model-dir", str(model), "--evaluation", str(folder / "evaluation.json")]
    return running_server(folder / "server", *options)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with calibrated(tmp_path_factory.mktemp("usual")) as started:
        yield started


def choose(page: Browser, path: Path) -> None:
    """Choose a file as a person does, and wait for what the page says about it."""
    document = page.call("DOM.getDocument")["root"]["nodeId"]
    node = page.call("DOM.querySelector", nodeId=document, selector="#file")["nodeId"]
    page.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])
    settled(page)


def settled(page: Browser) -> None:
    condition = "document.getElementById('answer').ariaBusy === 'false' && state.asked > 0"
    script = "new Promise(done => { const look = () => (%s) ? done(1) : setTimeout(look, 10); look(); })"
    page.evaluate(script % condition)


def text(page: Browser, element: str) -> str:
    return str(page.evaluate(f"document.getElementById('{element}').innerText"))


def keep(page: Browser, name: str) -> None:
    if folder := os.environ.get("FOVEA_SCREENSHOTS"):
        page.screenshot(Path(folder) / name)


@pytest.fixture
def scarf(tmp_path: Path) -> Path:
    """Something to look at."""
    image = Image.new("RGB", (480, 360), "#e9e2d4")
    pen = ImageDraw.Draw(image)
    pen.rounded_rectangle((150, 40, 230, 330), 18, "#7a2236")
    pen.rounded_rectangle((245, 60, 325, 310), 18, "#93304a")
    for height in range(80, 310, 30):
        pen.line((150, height, 230, height - 14), "#d9a441", 5)
        pen.line((245, height, 325, height - 14), "#d9a441", 5)
    path = tmp_path / "scarf.jpg"
    image.save(path)
    return path


def test_a_picture_is_answered(page: Browser, server: RunningServer, scarf: Path) -> None:
    page.open(server.address + "/", height=620)
    assert text(page, "status") == "None yet: choose a picture."
    choose(page, scarf)
    assert text(page, "status").startswith("Answered in ")
    shown = text(page, "fields")
    assert "product\n" in shown
    assert "full price\n" in shown
    assert "120.00" in shown or "340.00" in shown
    assert shown.count(" % sure") == 2
    assert text(page, "unsure") == "How sure the model is of product is not known."
    assert text(page, "model").startswith("fovea, sha256:")
    assert page.evaluate("document.getElementById('preview').naturalWidth") == 480
    page.evaluate("document.querySelector('details').open = true")
    raw = page.evaluate("document.getElementById('raw').textContent")
    assert json.loads(raw.partition("\n\n")[2])["usage"]["completion_tokens"] == 9
    # Nothing but this server was asked, and nothing was refused by the page's own policy.
    assert all(url.startswith((server.address, "blob:")) for url in page.requests())
    logged = [event["params"]["entry"] for event in page.events if event["method"] == "Log.entryAdded"]
    assert [entry for entry in logged if entry["level"] in ("warning", "error")] == []
    page.evaluate("document.querySelector('details').open = false")
    keep(page, "page.png")


def test_what_cannot_be_answered_says_why(page: Browser, server: RunningServer, tmp_path: Path) -> None:
    page.open(server.address + "/")
    (tmp_path / "list.jpg").write_text("<html>")
    choose(page, tmp_path / "list.jpg")
    assert "The server refused (400): instances[0].image: not a picture" in text(page, "status")
    assert page.evaluate("document.getElementById('status').className") == "bad"
    assert text(page, "fields") == ""
    keep(page, "page-error.png")


def test_by_keyboard_alone(page: Browser, server: RunningServer) -> None:
    page.open(server.address + "/")
    press(page, "Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    ring = page.evaluate("getComputedStyle(document.getElementById('drop')).outlineStyle")
    assert ring == "solid"
    page.call("Page.setInterceptFileChooserDialog", enabled=True)
    press(page, "Enter")
    page.evaluate("1")
    chooser = [event for event in page.events if event["method"] == "Page.fileChooserOpened"]
    page.call("Page.setInterceptFileChooserDialog", enabled=False)
    assert chooser


def press(page: Browser, key: str) -> None:
    codes = {"Tab": 9, "Enter": 13}
    for kind in ("keyDown", "keyUp"):
        more = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
        page.call(
            "Input.dispatchKeyEvent",
            type=kind,
            key=key,
            code=key,
            windowsVirtualKeyCode=codes[key],
            **more,
        )


@pytest.mark.parametrize("width", [320, 768])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_the_screen(
    page: Browser, server: RunningServer, scarf: Path, width: int, dark: bool
) -> None:
    page.open(server.address + "/", width=width, height=760, dark=dark)
    choose(page, scarf)
    page.evaluate("document.querySelector('details').open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    shade = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (max(shade) < 60) == dark
    page.evaluate("document.querySelector('details').open = false")
    if (width, dark) == (320, True):
        keep(page, "page-narrow-dark.png")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that asks for a key, and whose answers do something where they are taken for markup."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "keys").write_text(f"shop: {KEY}")
    answer = f"Product: {HOSTILE} {'W' * 150}, Category: <b>SCARVES</b>, Full Price: 120.0"
    with serve(folder, answer, "--api-keys", str(folder / "keys")) as started:
        yield started


def test_a_key_is_asked_for_and_nothing_in_an_answer_runs(
    page: Browser, guarded: RunningServer, scarf: Path
) -> None:
    page.open(guarded.address + "/", width=320)
    choose(page, scarf)
    assert "401" in text(page, "status")
    assert page.evaluate("document.getElementById('keyed').hidden") is False
    page.evaluate(f"document.getElementById('key').value = '{KEY}'")
    choose(page, scarf)
    assert HOSTILE in text(page, "fields")
    assert text(page, "unsure").startswith("This model was not calibrated")
    assert "sure" not in text(page, "fields")
    assert text(page, "model").startswith("fovea, sha256:")
    assert page.evaluate("document.title") == "Fovea: ask about a picture"
    assert page.evaluate("document.querySelectorAll('#answer img, #answer b').length") == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


def test_pictures_can_be_dropped(page: Browser, server: RunningServer, tmp_path: Path) -> None:
    page.open(server.address + "/")
    picture(1).save(tmp_path / "a.png")
    at = page.evaluate(
        "(r => [r.x + 20, r.y + 20])(document.getElementById('answer').getBoundingClientRect())"
    )
    for kind in ("dragEnter", "dragOver", "drop"):
        page.call(
            "Input.dispatchDragEvent",
            type=kind,
            x=at[0],
            y=at[1],
            data={"items": [], "files": [str(tmp_path / "a.png")], "dragOperationsMask": 1},
        )
    settled(page)
    assert "product\n" in text(page, "fields")
