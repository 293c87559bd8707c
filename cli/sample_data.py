"""`fovea sample-data`: write the sample catalogue."""

from pathlib import Path
from typing import Annotated

import typer


def sample_data(
    out: Annotated[Path, typer.Option(help="The folder to write; reused if it has the same catalogue.")],
    rows: Annotated[int, typer.Option(help="Rows of products.csv, at least 40.")] = 3040,
    seed: Annotated[int, typer.Option(help="Seed of the catalogue; the same seed gives the same bytes.")] = 0,
) -> None:
    """Write a catalogue of drawn products: pictures, a CSV, and the list of its deliberate flaws.

    Example: fovea sample-data --out catalogue --rows 500 --seed 7
    """
    from cli.progress import showing_progress
    from sample.catalogue import write_catalogue

    with showing_progress() as show:
        summary = write_catalogue(out, rows, seed, lambda done, total: show("drawing products", done, total))
    print(f"{'Reused' if summary.reused else 'Wrote'} the sample catalogue in {out}")
    print(f"  products.csv  {summary.rows:,} rows of {summary.products:,} products, seed {summary.seed}")
    print(f"  flaws.json    the flaws of some rows; {summary.usable:,} products are usable")
