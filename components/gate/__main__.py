"""Runs the gate by itself: ``python -m components.gate --help``."""

from pathlib import Path
from typing import Annotated

import typer

from components.gate.decide import gate_step
from components.gate.rules import Limits
from fovea.errors import UserError
from fovea.steps import configure_logging

_DEFAULTS = Limits()


def main(
    base: Annotated[Path, typer.Option(help="File with the record of the base's evaluation.")],
    tuned: Annotated[Path, typer.Option(help="File with the record of the tuned model's evaluation.")],
    champion: Annotated[
        Path, typer.Option(help="File with the record of the champion's evaluation, or of why there is none.")
    ],
    model: Annotated[Path, typer.Option(help="File with the record of the tuned model.")],
    artifact_root: Annotated[str, typer.Option(help="s3://bucket/prefix of payloads and records.")],
    decision: Annotated[Path, typer.Option(help="Where the record of the decision goes.")] = Path(
        "decision.json"
    ),
    report: Annotated[Path, typer.Option(help="Where the decision goes as a table.")] = Path("decision.md"),
    run_id: Annotated[str, typer.Option(help="Which run this belongs to.")] = "manual",
    min_samples: Annotated[int, typer.Option(help="Rows that the figures rest on.")] = _DEFAULTS.min_samples,
    min_parse_rate: Annotated[
        float, typer.Option(help="Share of readable answers.")
    ] = _DEFAULTS.min_parse_rate,
    min_category_accuracy: Annotated[
        float, typer.Option(help="Share of right categories.")
    ] = _DEFAULTS.min_category_accuracy,
    max_price_median_ape: Annotated[
        float, typer.Option(help="Median relative price error.")
    ] = _DEFAULTS.max_price_median_ape,
    min_picture_reliance: Annotated[
        float, typer.Option(help="Fall in category accuracy with other products' pictures.")
    ] = _DEFAULTS.min_picture_reliance,
    champion_margin: Annotated[
        float, typer.Option(help="By how much it may at worst be behind the champion.")
    ] = _DEFAULTS.champion_margin,
    rules: Annotated[
        str, typer.Option(help="Further rules: a YAML file, or the s3:// URI of one.", metavar="FILE|URI")
    ] = "",
) -> None:
    """Decide whether a tuned model may be deployed; ends with 1 where it is refused."""
    configure_logging()
    try:
        verdict = gate_step(
            base_record=base,
            tuned_record=tuned,
            champion_record=champion,
            model_record=model,
            decision_record=decision,
            report=report,
            artifact_root=artifact_root,
            run_id=run_id,
            min_samples=min_samples,
            min_parse_rate=min_parse_rate,
            min_category_accuracy=min_category_accuracy,
            max_price_median_ape=max_price_median_ape,
            min_picture_reliance=min_picture_reliance,
            champion_margin=champion_margin,
            gate_rules=_text(rules),
        )
    except UserError as error:
        typer.echo(f"gate: {error}", err=True)
        raise typer.Exit(1) from error
    raise typer.Exit(0 if verdict.passed else 1)


def _text(rules: str) -> str:
    """Return the YAML in a file; a URI as it is.

    Raises:
        UserError: the file cannot be read.
    """
    if not rules or rules.startswith("s3://"):
        return rules
    try:
        return Path(rules).read_text()
    except (OSError, ValueError) as error:
        raise UserError(f"{rules}: cannot be read ({error}); give a YAML file or an s3:// URI") from error


if __name__ == "__main__":
    typer.run(main)
