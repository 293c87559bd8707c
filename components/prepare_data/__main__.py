"""Runs prepare_data by itself: ``python -m components.prepare_data --help``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from components.prepare_data.parameters import PrepareParameters

_FIELDS = PrepareParameters.model_fields


def _option(name: str) -> Any:
    return typer.Option(help=_FIELDS[name].description)


def main(
    source: Annotated[str, _option("source")],
    artifact_root: Annotated[str, typer.Option(help="s3://bucket/prefix of payloads and records.")],
    dataset: Annotated[Path, typer.Option(help="Where the record of the dataset goes.")] = Path(
        "dataset.json"
    ),
    run_id: Annotated[str, typer.Option(help="Which run this belongs to.")] = "manual",
    base: Annotated[
        Path | None, typer.Option(help="File with the record of the base model, to count the sequences.")
    ] = None,
    report: Annotated[Path, typer.Option(help="Where the report goes.")] = Path("report.html"),
    experiment: Annotated[str, typer.Option(help="MLflow experiment, where tracking is on.")] = "fovea",
    fetch_profile: Annotated[str, _option("fetch_profile")] = _FIELDS["fetch_profile"].default,
    image_column: Annotated[str, _option("image_column")] = _FIELDS["image_column"].default,
    title_column: Annotated[str, _option("title_column")] = _FIELDS["title_column"].default,
    category_column: Annotated[str, _option("category_column")] = _FIELDS["category_column"].default,
    price_column: Annotated[str, _option("price_column")] = _FIELDS["price_column"].default,
    product_column: Annotated[str, _option("product_column")] = _FIELDS["product_column"].default,
    currency_column: Annotated[str, _option("currency_column")] = _FIELDS["currency_column"].default,
    currencies: Annotated[str, _option("currencies")] = _FIELDS["currencies"].default,
    rate_column: Annotated[str, _option("rate_column")] = _FIELDS["rate_column"].default,
    target_currency: Annotated[str, _option("target_currency")] = _FIELDS["target_currency"].default,
    decimal_mark: Annotated[str, _option("decimal_mark")] = _FIELDS["decimal_mark"].default,
    longest_side: Annotated[int, _option("longest_side")] = _FIELDS["longest_side"].default,
    num_crops: Annotated[int, _option("num_crops")] = _FIELDS["num_crops"].default,
    validation_fraction: Annotated[float, _option("validation_fraction")] = _FIELDS[
        "validation_fraction"
    ].default,
    test_fraction: Annotated[float, _option("test_fraction")] = _FIELDS["test_fraction"].default,
    seed: Annotated[int, _option("seed")] = _FIELDS["seed"].default,
    split_name: Annotated[str, _option("split_name")] = _FIELDS["split_name"].default,
    min_rows: Annotated[int, _option("min_rows")] = _FIELDS["min_rows"].default,
    max_rows: Annotated[int, _option("max_rows")] = _FIELDS["max_rows"].default,
    recheck_hours: Annotated[int, _option("recheck_hours")] = _FIELDS["recheck_hours"].default,
    concurrency: Annotated[int, _option("concurrency")] = _FIELDS["concurrency"].default,
) -> None:
    """Turn a table and its pictures into a clean dataset, split by product."""
    parameters = {name: value for name, value in locals().items() if name in _FIELDS}
    # Here, so that --help comes at once.
    from components.prepare_data.prepare import prepare_data_step
    from fovea.errors import UserError
    from fovea.steps import RunContext, configure_logging

    configure_logging()
    try:
        prepare_data_step(
            RunContext(artifact_root=artifact_root, run_id=run_id),
            parameters,
            dataset,
            base_record=base,
            report=report,
            experiment=experiment,
        )
    except UserError as error:
        typer.echo(f"prepare_data: {error}", err=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    typer.run(main)
