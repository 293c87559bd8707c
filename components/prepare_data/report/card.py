"""The dataset card: a README.md that the hub, `datasets` and people read."""

import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml

from components.prepare_data.report import statistics
from components.prepare_data.workspace import Workspace
from fovea.task import Task

TEMPLATE = Path(__file__).with_name("card.md.j2")

_CATEGORIES = 50
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
# What would be markup within a line, and what would turn an address into a link.
_MARKDOWN = re.compile(r"[\\`*_\[\]|~@]|:(?=//)|(?<=www)\.")


def write_card(path: Path, *, workspace: Workspace, task: Task, settings: Mapping[str, Any]) -> None:
    """Write the card of a workspace whose rows are split; the same rows and settings give the same bytes.

    Args:
        path: The file to write, ``README.md`` next to the shards.
        workspace: The rows and pictures, with their states.
        task: What is asked and answered.
        settings: The parameters that decide what comes out.
    """
    counts = statistics.count(workspace)
    environment = jinja2.Environment(
        autoescape=False,  # noqa: S701 - Markdown: what a table holds goes through the filter below
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["md"] = _markdown
    page = environment.from_string(TEMPLATE.read_text()).render(
        header=yaml.safe_dump(_header(counts), sort_keys=False, allow_unicode=True),
        task=task,
        columns=_columns(task),
        counts=counts,
        explain={
            reason: statistics.explain(reason, _table_columns(task, settings)) for reason in counts.dropped
        },
        categories=[
            (name, len(found), list(found.items())[:_CATEGORIES])
            for name, found in statistics.categories(workspace, task)
        ],
        prices=[
            (name, currency, statistics.spread(np.concatenate(list(amounts.values()))))
            for name, currency, amounts in statistics.prices(workspace, task)
        ],
        settings=settings,
    )
    path.write_text(page)


def _header(counts: statistics.Counts) -> dict[str, Any]:
    """Return what the hub reads from a card's front matter."""
    size = next((name for limit, name in _SIZES if counts.kept < limit), "n>1M")
    return {
        "pretty_name": "Product pictures with their titles, categories and prices",
        "task_categories": ["image-text-to-text"],
        "size_categories": [size],
        "tags": ["phi-3-vision", "fovea"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"{split}-*.parquet"} for split in counts.splits],
            }
        ],
    }


def _columns(task: Task) -> list[tuple[str, str, str]]:
    """Return the shards' columns: name, type and what they hold."""
    fields = [
        (
            name,
            field.arrow_type,
            f"{field.answered()['type']}, from the table's column {field.column}",
        )
        for name, field in task.fields.items()
    ]
    return [
        ("row_id", "string", "a digest of what the row holds"),
        ("product_id", "string", "rows of the same product have the same; none is in two splits"),
        ("image", "Image", "JPEG: upright, RGB, transparency on white"),
        *fields,
        ("currency", "string", "of the price, or null where none is named"),
    ]


def _table_columns(task: Task, settings: Mapping[str, Any]) -> dict[str, None]:
    """Return the table's columns, which reasons start with."""
    named = [value for name, value in settings.items() if name.endswith("_column") and isinstance(value, str)]
    return dict.fromkeys([*named, *(field.column for field in task.fields.values())])


def _markdown(value: object) -> str:
    """Return a value as text that Markdown shows as it is: no markup, no HTML, one line."""
    escaped = _MARKDOWN.sub(r"\\\g<0>", " ".join(statistics.shown(value).split()))
    return html.escape(escaped, quote=False)
