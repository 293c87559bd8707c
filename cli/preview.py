"""`fovea preview`: show what a run would make of a table, from its first rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from PIL import Image
    from rich.console import Console
    from rich.text import Text

    from components.prepare_data.parameters import PrepareDataParameters
    from components.prepare_data.report.preview import Example, Preview

_THUMBNAIL_COLUMNS = 24
_SHOWN = 10


@dataclass(frozen=True)
class _Chosen:
    """The validated choices of the user."""

    prepare: "PrepareDataParameters"
    base_model: str
    epochs: float


def preview(
    source: Annotated[str | None, typer.Argument(help="The table; by default the setting source.")] = None,
    settings: Annotated[
        Path | None, typer.Option(help="A YAML file of settings, as for fovea run.", metavar="FILE")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="One setting; can be repeated.", metavar="NAME=VALUE")
    ] = None,
    rows: Annotated[int, typer.Option(help="The number of rows to read.", min=1, max=10_000)] = 100,
    tokens_per_second: Annotated[
        float | None, typer.Option(help="The training rate of your device, to estimate hours.", min=1e-9)
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Also write the preview as a page with pictures.")] = None,
) -> None:
    """Preview a table: the use of its columns, the dropped rows, examples, and the training time of a run.

    Nothing is stored except the page of --html.

    Example: fovea preview products.csv

    Example: fovea preview --settings mine.yaml --set source=s3://feeds/today.parquet --html preview.html
    """
    from rich.console import Console

    from cli.progress import showing_progress
    from components.prepare_data.report.page import write_report
    from components.prepare_data.report.preview import look_at

    chosen = _chosen(source, settings, overrides or [])
    with (
        showing_progress() as show,
        look_at(
            chosen.prepare,
            rows=rows,
            base_model=chosen.base_model,
            epochs=chosen.epochs,
            own_speed=tokens_per_second,
            progress=lambda done, total: show("looking at pictures", done, total),
        ) as look,
    ):
        examples = look.examples(_SHOWN)
        if html is not None:
            write_report(
                html,
                workspace=look.workspace,
                task=look.task,
                source=look.location,
                settings=chosen.prepare.model_dump(),
                preview=look.preview,
            )
    _print(Console(highlight=False), look.location, look.preview, examples)
    if html is not None:
        print(f"\nWrote {html}")


def _chosen(source: str | None, settings: Path | None, overrides: Sequence[str]) -> _Chosen:
    """Validate the settings as a run would, with placeholders for those that only a run needs."""
    from components.prepare_data.parameters import PrepareDataParameters
    from fovea.errors import UserError
    from pipelines.settings import read_overrides, read_settings, validate_settings

    given = {**(read_settings(settings) if settings else {}), **read_overrides(overrides)}
    given |= {"source": source} if source else {}
    if not given.get("source"):
        raise UserError("no table is given; name one: fovea preview products.csv")
    base_model = str(given.get("base_model") or "")
    stand_ins = {"artifact_root": "s3://preview", "base_model": "s3://preview/base.json"}
    run = validate_settings({**given, **stand_ins})
    return _Chosen(run.of(PrepareDataParameters), base_model, run.num_train_epochs)


def _print(console: "Console", location: str, preview: "Preview", examples: "Sequence[Example]") -> None:
    from rich.text import Text

    from components.prepare_data.report.statistics import shown

    counts = preview.counts
    title = f"{counts.kept:,} of {counts.read:,} rows that were looked at could be trained on"
    console.print(Text.assemble((title, "bold"), f"\n{shown(location)}"), soft_wrap=True)
    uses = [(use.use, use.column, " · ".join(use.examples) or "nothing") for use in preview.columns]
    _print_table(console, "Use of the columns", uses)
    left_out = [(f"{x.rows:,}", f"{x.about}: {x.explanation}", x.example) for x in preview.left_out]
    _print_table(console, "Dropped rows, with an example", left_out)
    if examples:
        console.print("\n[bold]Training examples[/bold]")
        _print_examples(console, examples)
    _print_estimate(console, preview)


def _print_table(console: "Console", title: str, rows: Sequence[tuple[str, ...]]) -> None:
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for row in rows:
        # Text, because a table may contain rich's markup.
        table.add_row("", *map(Text, row))
    console.print(f"\n[bold]{title}[/bold]")
    console.print(table)


def _print_estimate(console: "Console", preview: "Preview") -> None:
    rows = "of those, " if preview.rows is None else f"{preview.rows:,} rows in the table; "
    lines = [f"{rows}{preview.kept:,} kept, {preview.training_rows:,} to train on, {preview.epochs:g} times"]
    if preview.tokens:
        how = "" if preview.counted else "; text tokens are estimated, set base_model to count them"
        least, most = preview.tokens.least, preview.tokens.most
        lines.append(f"{preview.tokens.median:,.0f} tokens per example ({least:,.0f} to {most:,.0f}{how})")
    console.print("\n[bold]Estimate for the whole table[/bold]")
    for line in lines:
        console.print(f"  {line}", markup=False, soft_wrap=True)
    trainings = [
        (
            each.duration,
            f"on one {each.speed.device}" if each.speed.device != "yours" else "on yours",
            f"{each.speed.tokens_per_second:,.0f} tokens per second ({each.speed.basis})",
        )
        for each in preview.trainings
    ]
    _print_table(console, "Training the published model", trainings)


def _print_examples(console: "Console", examples: "Sequence[Example]") -> None:
    """Print the target texts of pictures, with the pictures if the terminal supports colours."""
    from rich.columns import Columns
    from rich.console import Group
    from rich.text import Text

    if console.color_system != "truecolor":
        for each in examples:
            console.print(Text(f"  {each.answer}"), soft_wrap=True)
        return
    cells = [
        Group(_coloured(each.picture), *Text(each.answer).wrap(console, _THUMBNAIL_COLUMNS))
        for each in examples
    ]
    console.print(Columns(cells, width=_THUMBNAIL_COLUMNS, padding=(1, 2, 0, 0)))


def _coloured(picture: "Image.Image") -> "Text":
    """Return a picture as half blocks: each character shows two pixels, one above the other."""
    from rich.text import Text

    small = picture.copy()
    small.thumbnail((_THUMBNAIL_COLUMNS, _THUMBNAIL_COLUMNS))
    lines = []
    for y in range(0, small.height - 1, 2):
        pairs = [(small.getpixel((x, y)), small.getpixel((x, y + 1))) for x in range(small.width)]
        lines.append(Text.assemble(*(("▀", f"rgb{_rgb(top)} on rgb{_rgb(bottom)}") for top, bottom in pairs)))
    return Text("\n").join(lines)


def _rgb(pixel: Any) -> str:
    return "({},{},{})".format(*pixel)
