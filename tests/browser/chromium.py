"""A headless Chromium of the system's, driven over pipes by the DevTools protocol."""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from tests.left_out import Missing

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SKIP = Missing.CHROMIUM

FAINT = """(() => {
  const parse = text => text.match(/[\\d.]+/g).map(v => text.startsWith('color(') ? 255 * v : +v)
  const linear = v => v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b)
  const back = node => {
    const found = parse(getComputedStyle(node).backgroundColor)
    return found.length === 3 ? found : back(node.parentElement)
  }
  const low = []
  for (const node of document.querySelectorAll('main *')) {
    const own = [...node.childNodes].some(each => each.nodeType === 3 && each.textContent.trim())
    if (!own || !node.offsetParent) continue
    const [one, other] = [light(parse(getComputedStyle(node).color)), light(back(node))]
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05)
    if (ratio < 4.5) low.push(`${node.className} ${node.textContent.slice(0, 40)} ${ratio}`)
  }
  return low
})()"""
"""The texts in a page's main part whose contrast is below 4.5 to 1 (WCAG 2.2, 1.4.3)."""


class Browser:
    """One page in a browser."""

    def __init__(self, to: int, fro: int) -> None:
        self._to = to
        self._fro = os.fdopen(fro, "rb")
        self._numbers = count(1)
        self._session: dict[str, str] = {}
        self._unread = b""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._session = {"sessionId": session}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters, **self._session}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            part = self._fro.read1(1 << 20)
            assert part, "the browser has ended"
            self._unread += part
        text, _, self._unread = self._unread.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        if "method" in message:
            self.events.append(message)
        return message

    def open(self, url: str, *, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.events.clear()
        self.call("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._read()

    def evaluate(self, script: str) -> Any:
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def screenshot(self, path: Path) -> None:
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def requests(self) -> list[str]:
        """What the page asked the network for, besides itself and what it holds."""
        sent = [event for event in self.events if event["method"] == "Network.requestWillBeSent"]
        urls = [event["params"]["request"]["url"] for event in sent]
        return [url for url in urls if not url.startswith(("file:", "data:", "about:"))]


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser that ends with the block."""
    assert PROGRAM
    to_read, to_write = os.pipe()
    fro_read, fro_write = os.pipe()
    # It reads commands from descriptor 3 and answers on 4.
    start = f'exec 3<&{to_read} 4>&{fro_write}; exec "$0" "$@"'
    flags = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
    ]
    flags += ["--no-first-run", "--disable-background-networking", "--remote-debugging-pipe"]
    process = subprocess.Popen(
        ["bash", "-c", start, PROGRAM, *flags, f"--user-data-dir={profile}"],
        pass_fds=(to_read, fro_write),
        stderr=subprocess.DEVNULL,
    )
    os.close(to_read)
    os.close(fro_write)
    try:
        found = Browser(to_write, fro_read)
        yield found
        found._session = {}
        found.call("Browser.close")
    finally:
        os.close(to_write)
        process.kill()
        process.wait(20)
