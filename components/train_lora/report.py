"""The training report: losses, learning rate, speed, and sample answers."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fovea.pages import render_page
from fovea.pages.charts import amount
from fovea.pages.plots import Axis, Plot, plot, thinned
from fovea.storage import Storage, join_uri

TRAINED, HISTORY, ANSWERS = "trained.json", "history.json", "answers.json"
"""The files that a training writes to its output folder, besides the folder ``adapter``."""
TEMPLATE = Path(__file__).with_name("report.html.j2")
MAX_BYTES = 5_000_000
"""The maximum size of a report."""

_LONGEST_TEXT = 300


@dataclass(frozen=True)
class Chart:
    """Lines over the steps of a training, and their colours."""

    title: str
    plot: Plot
    kinds: dict[str, str]


def report_uri(artifact_root: str, input_key: str) -> str:
    """Return the URI of the report for the adapter with this input key."""
    return join_uri(artifact_root, "reports", "train_lora", f"{input_key}.html")


def write_report(path: Path, output: Path, *, run_id: str, settings: Mapping[str, Any]) -> None:
    """Write the report of the training in ``output``: one HTML file of at most `MAX_BYTES`."""
    history = json.loads((output / HISTORY).read_text())
    answers = json.loads((output / ANSWERS).read_text()) if (output / ANSWERS).exists() else None
    for row in answers["rows"] if answers else []:
        row["answer"], row["truth"] = row["answer"][:_LONGEST_TEXT], row["truth"][:_LONGEST_TEXT]
    values = {
        "run_id": run_id,
        "trained": json.loads((output / TRAINED).read_text()),
        "speed": _speed([entry for entry in history if "loss" in entry]),
        "charts": _charts(history),
        "settings": {name: str(value)[:_LONGEST_TEXT] for name, value in settings.items()},
    }
    page = render_page(TEMPLATE, answers=answers, **values)
    if len(page.encode()) > MAX_BYTES and answers:
        # Only the pictures can be large.
        bare = {**answers, "rows": [{**row, "picture": ""} for row in answers["rows"]]}
        page = render_page(TEMPLATE, answers=bare, **values)
    path.write_text(page)


def copy_report(storage: Storage, uri: str, path: Path) -> None:
    """Write the report of this or an earlier run; a missing report is not a reason to train again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = storage.exists(uri)
    path.write_bytes(
        storage.read_bytes(uri) if found else b"<p>The report of this adapter is no longer there.</p>\n"
    )


def _speed(steps: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    seconds = sum(entry["seconds"] for entry in steps)
    return {
        "pictures": sum(entry["pictures"] for entry in steps) / seconds,
        "tokens": sum(entry["tokens"] for entry in steps) / seconds,
        "waiting": sum(entry["waiting_seconds"] for entry in steps) / seconds,
        "duration": f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min",
    }


def _charts(history: Sequence[Mapping[str, float]]) -> list[Chart]:
    def series(name: str) -> list[tuple[float, float]]:
        return [(entry["step"], entry[name]) for entry in history if math.isfinite(entry.get(name, math.nan))]

    speeds = [(e["step"], e["tokens"] / e["seconds"]) for e in history if "loss" in e]
    wanted: dict[str, dict[str, list[tuple[float, float]]]] = {
        "Loss": {"training": series("loss"), "validation": series("eval_loss")},
        "Learning rate": {"learning rate": series("learning_rate")},
        "Gradient norm": {"gradient norm": series("grad_norm")},
        "Throughput": {"tokens per second": speeds},
        "Answers on the validation split": {
            "fields right": series("eval_answers_right"),
            "answers with all fields right": series("eval_answers_all_right"),
        },
    }
    return [_chart(title, lines) for title, lines in wanted.items() if any(lines.values())]


def _chart(title: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> Chart:
    named = {f"{name}, finally {amount(of[-1][1])}": of for name, of in lines.items() if of}
    points = [point for of in named.values() for point in of]
    low, high = min(0.0, *(y for _, y in points)), max(y for _, y in points)
    across = Axis.linear(0, max(step for step, _ in points))
    up = Axis.linear(low, high if high > low else low + 1)
    drawn = plot(
        across,
        up,
        f"{title}: {'; '.join(named)}, over {len(points):,} values from {amount(low)} to {amount(high)}",
        {name: thinned(of) for name, of in named.items()},
    )
    return Chart(title, drawn, dict(zip(named, ("one", "two"), strict=False)))
