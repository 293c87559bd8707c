"""The dataset card: a README.md for readers, the hub and `datasets`."""

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
# Markup within a line, and the parts of an address that would make it a link.
_MARKDOWN = re.compile(r"[\\`*_\[\]|~@]|:(?=//)|(?<=www)\.")


def write_card(path: Path, *, workspace: Workspace, task: Task, settings: Mapping[str, Any]) -> None:
    """Write the card of a dataset. The same rows and settings give the same bytes.

    Args:
        path: The file to write, ``README.md`` next to the shards.
        workspace: The workspace, after rows were split.
        task: The task.
        settings: The parameters that determine the dataset.
    """
    counts = statistics.count(workspace)
    environment = jinja2.Environment(
        autoescape=False,  # noqa: S701 - Markdown: values of the table are escaped by the filter below
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
    """Return the card's front matter, which the hub reads."""
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
    """Return the name, type and meaning of the shards' columns."""
    fields = [
        (
            name,
            field.arrow_type,
            f"{field.answered()['type']}, from the table's column {field.column}",
        )
        for name, field in task.fields.items()
    ]
    return [
        ("row_id", "string", "digest of the row's content"),
        ("product_id", "string", "the same for all rows of a product; no product is in two splits"),
        ("image", "Image", "JPEG: upright, RGB, transparency on white"),
        *fields,
        ("currency", "string", "of the price, or null if unknown"),
    ]


def _table_columns(task: Task, settings: Mapping[str, Any]) -> dict[str, None]:
    """Return the table's columns, with which reasons start."""
    named = [value for name, value in settings.items() if name.endswith("_column") and isinstance(value, str)]
    return dict.fromkeys([*named, *(field.column for field in task.fields.values())])


def _markdown(value: object) -> str:
    """Escape a value so that Markdown renders it as plain text on one line."""
    escaped = _MARKDOWN.sub(r"\\\g<0>", " ".join(statistics.shown(value).split()))
    return html.escape(escaped, quote=False)
