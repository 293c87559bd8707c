"""`fovea run`: run the whole pipeline on this machine."""

import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from pipelines.local.state import State
    from pipelines.report.summary import Summary


def run(
    settings: Annotated[
        Path | None, typer.Option(help="A YAML file of settings, lines of 'name: value'.", metavar="FILE")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="One setting; can be repeated.", metavar="NAME=VALUE")
    ] = None,
    state: Annotated[Path, typer.Option(help="The folder for all state of runs.", metavar="DIR")] = Path(
        ".fovea"
    ),
    sample_rows: Annotated[int, typer.Option(help="Rows of the sample catalogue.", min=40)] = 3040,
    sample_seed: Annotated[int, typer.Option(help="Seed of the sample catalogue.", min=0)] = 0,
) -> None:
    """Run the whole pipeline on this machine: from pictures to a verified model server.

    It needs no cluster, GPU or account. Unless the settings name a source and a base_model, the first run
    creates a sample catalogue and a small sample model. Unchanged results are reused.

    With a source, the service, the registered model and the experiment are named after the table
    (products for products.csv), and those of the sample stay unchanged. To choose other names, set
    service_name, registered_model_name and experiment.

    Example: fovea run

    Example: fovea run --set num_train_epochs=2 --set lora_r=8

    Example: fovea run --settings mine.yaml --set source=products.csv
    """
    from rich.console import Console

    from pipelines.local.processes import interruptible
    from pipelines.local.run import Sample, run_locally
    from pipelines.local.state import claim
    from pipelines.report.page import choose_examples, save_evaluation, save_picture, write_report
    from pipelines.report.summary import collect_summary
    from pipelines.settings import default_settings, read_overrides, read_settings

    console = Console(highlight=False, soft_wrap=True)
    show = _Lines(console)
    given = {**(read_settings(settings) if settings else {}), **read_overrides(overrides or [])}
    values = {**default_settings(given), **given}
    with (
        interruptible(),
        claim(state) as place,
        run_locally(values, Sample(sample_rows, sample_seed), place, show) as ended,
    ):
        summary, records = collect_summary(
            ended.storage,
            ended.settings.artifact_root,
            ended.run_id,
            ended.outcome,
            ended.settings.model_dump(mode="json"),
            ended.seconds,
        )
        summary.write(place.last_run)
        write_report(place.last_run, summary, *choose_examples(records, ended.storage, place.cache))
        save_evaluation(place.last_run, ended.storage, ended.settings.artifact_root, ended.run_id)
        if summary.endpoint:
            save_picture(place.last_run, records, ended.storage, place.cache, summary.endpoint.row_id)
    _print_summary(console, summary, place)
    if summary.state == "not_deployed" or _is_deployed_already(summary):
        console.print(f"\nnothing was deployed: {summary.reason.removeprefix('refused: ')}", markup=False)
        if _is_deployed_already(summary):
            console.print("make serve starts the current service")
        return
    if summary.state != "succeeded":
        where = f" in {summary.task}" if summary.task else ""
        reason = summary.reason.removeprefix(f"{summary.state}: ")
        typer.secho(f"{summary.state}{where}: {reason}", fg=typer.colors.RED, err=True)
        raise typer.Exit(1)
    _print_next(console, place)


def _is_deployed_already(summary: "Summary") -> bool:
    """Return whether the gate refused only because the model is the champion, as in a repeated run."""
    refused = [rule.name for rule in summary.gate.rules if not rule.passed] if summary.gate else []
    return summary.state == "refused" and refused == ["differs_from_champion"]


class _Lines(logging.Handler):
    """Prints lines of progress with the time since the start; it also handles this project's log records."""

    def __init__(self, console: "Console") -> None:
        super().__init__()
        self._console = console
        self._started = time.monotonic()
        logger = logging.getLogger("fovea")
        logger.setLevel(logging.INFO)
        logger.handlers, logger.propagate = [self], False

    def __call__(self, line: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        self._console.print(f"{minutes:3d}:{seconds:02d}  {line}", markup=False)

    def emit(self, record: logging.LogRecord) -> None:
        self(self.format(record))


def _print_summary(console: "Console", summary: "Summary", place: "State") -> None:
    if summary.models:
        _print_models(console, summary)
    if summary.gate:
        _print_gate(console, summary)
    if summary.endpoint:
        _print_endpoint(console, summary)
    _print_steps(console, summary)
    console.print("\n[bold]Files[/bold]")
    for what, path in (
        ("report", place.last_run / "report.html"),
        ("evaluation", place.last_run / "evaluation.html"),
        ("figures", place.last_run / "summary.json"),
        ("full log", place.last_run / "log.txt"),
        ("MLflow store", place.mlflow),
        ("S3 store", place.s3),
    ):
        if path.exists():
            console.print(f"  {what:13}{_near(path)}", markup=False)


def _print_models(console: "Console", summary: "Summary") -> None:
    from rich.table import Table

    from pipelines.report import text

    table = Table(title=f"\n{summary.samples} held-out pictures", title_justify="left", title_style="bold")
    table.add_column("")
    headings = text.columns(summary.models)
    for heading in headings.values():
        table.add_column(heading, justify="right")
    for figure in summary.figures:
        table.add_row(figure.title, *(text.metric(summary.models[model], figure) for model in headings))
    console.print(table)


def _print_gate(console: "Console", summary: "Summary") -> None:
    from rich.markup import escape
    from rich.table import Table

    from fovea.evaluation.text import rule_limit, rule_value

    gate = summary.gate
    if gate is None:
        return
    verdict = "[green]passed[/green]" if gate.passed else "[red]refused[/red]"
    table = Table(title=f"\nThe gate: {verdict}", title_justify="left", title_style="bold")
    for heading, side in (("", "left"), ("rule", "left"), ("value", "right"), ("limit", "right")):
        table.add_column(heading, justify="right" if side == "right" else "left")
    for rule in gate.rules:
        table.add_row(
            "[green]✓[/green]" if rule.passed else "[red]✗[/red]",
            escape(rule.description),
            rule_value(rule),
            rule_limit(rule),
        )
    console.print(table)
    of_base = "let the base pass, so they have no effect" if gate.base_passed else "refuse the base"
    console.print(f"The same rules {of_base}: {gate.base_reason.removeprefix('refused: ')}", markup=False)


def _print_endpoint(console: "Console", summary: "Summary") -> None:
    from pipelines.report.text import field_value

    endpoint = summary.endpoint
    if endpoint is None:
        return
    console.print(f"\n[bold]The service {endpoint.service}[/bold]")
    console.print(f"  POST {endpoint.predict_path}\n  POST {endpoint.chat_path}", markup=False)
    console.print(
        f"  {endpoint.probes} held-out pictures over both protocols, {endpoint.agreed} as in the evaluation"
    )
    answer = endpoint.answer or {}
    for name, truth in endpoint.truth.items():
        said = field_value(answer.get(name))
        console.print(f"  {name:12} {said:32} truth: {field_value(truth)}", markup=False)


def _print_steps(console: "Console", summary: "Summary") -> None:
    from pipelines.report.text import duration

    console.print(f"\n[bold]The steps[/bold], {duration(summary.seconds)} in total")
    width = max(map(len, summary.steps), default=0)
    for name, step in summary.steps.items():
        reused = "  reused" if step.reused else ""
        console.print(f"  {name:{width}}{duration(step.seconds):>10}{reused}", markup=False)


def _print_next(console: "Console", place: "State") -> None:
    commands = _near(Path(sys.executable).parent)
    console.print("\n[bold]Next steps[/bold]")
    for command, what in (
        ("make serve", "starts the service on port 8080; in another terminal:"),
        (f"{commands}/fovea predict {_near(place.last_run / 'held-out.jpg')}", "sends it that picture"),
        (f"{commands}/mlflow ui --backend-store-uri sqlite:///{place.mlflow}", "shows the experiments"),
    ):
        console.print(f"  {command}\n      {what}", markup=False)
    console.print("A page to try it, while make serve runs: http://127.0.0.1:8080/", markup=False)


def _near(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
