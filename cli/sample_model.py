"""`fovea sample-model`: write the sample model."""

from pathlib import Path
from typing import Annotated

import typer


def sample_model(
    out: Annotated[Path, typer.Option(help="The model's folder; reused if it has the same model.")],
    train: Annotated[
        bool, typer.Option("--train", help="Train it from scratch instead of copying the shipped model.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="With --train: seed of the training.")] = None,
) -> None:
    """Write a small Phi-3-Vision that can see and write but does not know any catalogue.

    The trained model ships with the project. --train trains it again with the same recipe, in about six
    minutes on two cores.

    Example: fovea sample-model --out model

    Example: fovea sample-model --out model --train --seed 1
    """
    from sample.model import unpack_sample_model

    if seed is not None and not train:
        raise typer.BadParameter("needs --train: the shipped model has seed 0", param_hint="--seed")
    reused = _train(out, seed or 0) if train else unpack_sample_model(out)
    print(f"{'Reused' if reused else 'Wrote'} the sample model in {out}")
    print(f"  fine-tune it: fovea run --set base_model={out}")


def _train(out: Path, seed: int) -> bool:
    from tempfile import TemporaryDirectory

    from cli.progress import showing_progress
    from fovea.errors import UserError
    from sample.model import unpack_sample_model

    if out.exists():
        raise UserError(f"{out}: exists; remove it, or choose another folder with --out")
    # Imported here: importing torch takes seconds, and a wrong --out should fail first.
    from sample.training import Recipe, write_sample_model

    with TemporaryDirectory(prefix="fovea-sample-model-") as name, showing_progress() as show:
        write_sample_model(Path(name), Recipe(seed=seed), show)
        return unpack_sample_model(out, Path(name))
