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
    from cli.progress import showing_progress
    from fovea.sample.model import Recipe, make_sample_model

    with showing_progress() as show:
        reused = make_sample_model(out, Recipe(seed=seed), show)
    print(f"{'Reused' if reused else 'Made'} the sample model in {out}")
    print(f"  fine-tune it: fovea run --set base_model={out}")
