"""`fovea sample-data`: write the sample catalogue."""

from pathlib import Path
from typing import Annotated

import typer


def sample_data(
    out: Annotated[Path, typer.Option(help="The folder to write; reused if it holds the same catalogue.")],
    rows: Annotated[int, typer.Option(help="Rows of products.csv, from 40.")] = 3040,
    seed: Annotated[
        int, typer.Option(help="Another seed, another catalogue; the same seed, the same bytes.")
    ] = 0,
) -> None:
    """Write a catalogue of drawn products: pictures, a CSV, and what is wrong with which rows.

    Example: fovea sample-data --out catalogue --rows 500 --seed 7
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    from fovea.sample.catalogue import write_catalogue

    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("Drawing products", total=None)
        summary = write_catalogue(
            out, rows, seed, lambda done, total: progress.update(task, completed=done, total=total)
        )
    print(f"{'Reused' if summary.reused else 'Wrote'} the sample catalogue in {out}")
    print(f"  products.csv  {summary.rows:,} rows of {summary.products:,} products, seed {summary.seed}")
    print(f"  flaws.json    what is wrong with some rows; {summary.usable:,} products are usable")
