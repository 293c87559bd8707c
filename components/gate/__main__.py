"""Runs the gate by itself: ``python -m components.gate --help``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from components.command import running, with_options
from components.gate.parameters import Limits
from fovea.errors import UserError


@with_options(Limits)
def main(
    parameters: dict[str, Any],
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
    rules: Annotated[
        str, typer.Option(help="Further rules: a YAML file, or the s3:// URI of one.", metavar="FILE|URI")
    ] = "",
) -> None:
    """Decide whether a tuned model may be deployed; ends with 1 where it is refused."""
    from components.gate.step import gate_step

    with running("gate"):
        verdict = gate_step(
            base_record=base,
            tuned_record=tuned,
            champion_record=champion,
            model_record=model,
            decision_record=decision,
            report=report,
            artifact_root=artifact_root,
            run_id=run_id,
            gate_rules=_text(rules),
            **parameters,
        )
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
