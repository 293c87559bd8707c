"""Estimates before a run is submitted: GPUs, disk space and hours."""

from dataclasses import dataclass

from components.prepare_data.parameters import PrepareDataParameters
from fovea.errors import UserError
from pipelines.cluster.settings import ClusterSettings, Placement
from pipelines.settings import RunSettings


@dataclass(frozen=True)
class Needs:
    """The most that a run uses at one time."""

    training_gpus: int
    evaluation_gpus: int
    serving_gpus: int
    """GPUs of the deployed service."""
    canary_gpus: int
    """GPUs of the canary next to the old model, until it is promoted."""
    gpu_type: str
    scratch: str
    """Disk space of each task that handles data or weights."""
    longest_hours: float
    """Sum of the time limits of the longest chain of tasks, without retries."""

    @property
    def run_gpus(self) -> int:
        """GPUs at one time: the base is evaluated during the training."""
        return max(self.training_gpus + self.evaluation_gpus, 2 * self.evaluation_gpus)


def needs_of(run: RunSettings, placement: Placement, settings: ClusterSettings) -> Needs:
    """Return what a run with these settings needs."""
    service = run.kserve
    gpus = service.gpus * service.replicas
    tasks = settings.tasks
    chain = (tasks.small, tasks.prepare, tasks.train, tasks.merge, tasks.evaluate, tasks.small, tasks.deploy)
    return Needs(
        training_gpus=placement.gpus,
        evaluation_gpus=placement.evaluation_gpus,
        serving_gpus=gpus,
        canary_gpus=0 if service.rollout == "recreate" else gpus,
        gpu_type=placement.gpu_type,
        scratch=settings.scratch,
        longest_hours=sum(each.hours for each in chain),
    )


def describe(needs: Needs) -> list[str]:
    """Return the estimates as lines of text."""
    canary = f", and {needs.canary_gpus} for the canary beside it" if needs.canary_gpus else ""
    return [
        f"GPUs of the run     {needs.run_gpus} {needs.gpu_type} at a time: {needs.training_gpus} to train, "
        f"{needs.evaluation_gpus} for each evaluation",
        f"GPUs of the service {needs.serving_gpus}{canary}",
        f"room                {needs.scratch} for each of up to three tasks at a time",
        f"ended at the latest after {needs.longest_hours:g} h",
    ]


def describe_training(run: RunSettings, rows: int) -> list[str]:
    """Return the training's hours, estimated from the table's first rows, or why they are unknown."""
    # Imported here: it imports torch, which takes seconds.
    from components.prepare_data.report.preview import look_at

    prepare = run.of(PrepareDataParameters)
    try:
        with look_at(prepare, rows=rows, epochs=run.num_train_epochs) as look:
            preview = look.preview
    except UserError as error:
        return [f"training            not known: {error}"]
    if preview.tokens is None:
        return [
            f"training            not known: none of the first {rows} rows can be used; see fovea preview"
        ]
    size = (
        f"{preview.training_rows:,} rows, {preview.tokens.median:,.0f} tokens each, {preview.epochs:g} times"
    )
    known = "" if preview.rows is not None else " of the rows that were looked at alone"
    return [
        f"training            {size}{known}",
        *(
            f"                    about {each.duration} on one {each.speed.device} at the published size"
            for each in preview.trainings
        ),
    ]
