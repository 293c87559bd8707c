"""`fovea sample-model`: make the sample model."""

from pathlib import Path
from typing import Annotated

import typer


def sample_model(
    out: Annotated[Path, typer.Option(help="The model's folder; reused if it holds the same model.")],
    seed: Annotated[int, typer.Option(help="Of the training; another seed, another model.")] = 0,
) -> None:
    """Make a small Phi-3-Vision that can see and write, and knows nothing of any catalogue.

    It is trained from scratch on this machine, in about three minutes on two cores.

    Example: fovea sample-model --out model
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TaskID, TimeRemainingColumn

    from fovea.sample.model import Recipe, make_sample_model

    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        stages: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in stages:
                stages[what] = progress.add_task(what.capitalize(), total=total)
            progress.update(stages[what], completed=done)

        reused = make_sample_model(out, Recipe(seed=seed), show)
    print(f"{'Reused' if reused else 'Made'} the sample model in {out}")
    print(f"  fine-tune it: fovea run --set base_model={out}")
