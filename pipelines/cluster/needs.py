"""What a run on a cluster will need, told before it is submitted: GPUs, room and hours."""

from dataclasses import dataclass

from components.prepare_data.parameters import PrepareDataParameters
from fovea.errors import UserError
from pipelines.cluster.settings import ClusterSettings, Placement
from pipelines.settings import RunSettings


@dataclass(frozen=True)
class Needs:
    """The most that a run holds at one time, besides what its tasks ask one after the other."""

    training_gpus: int
    evaluation_gpus: int
    serving_gpus: int
    """Of the service as it will be, for as long as it serves."""
    canary_gpus: int
    """Of the new model beside the old one, until it is promoted."""
    gpu_type: str
    scratch: str
    """Of each task that handles data or weights."""
    longest_hours: float
    """After which the run's longest chain of tasks is ended at the latest, without retries."""

    @property
    def run_gpus(self) -> int:
        """GPUs at one time: the base is evaluated while the training goes on."""
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
    """Return the needs as lines for people."""
    canary = f", and {needs.canary_gpus} for the canary beside it" if needs.canary_gpus else ""
    return [
        f"GPUs of the run     {needs.run_gpus} {needs.gpu_type} at a time: {needs.training_gpus} to train, "
        f"{needs.evaluation_gpus} for each evaluation",
        f"GPUs of the service {needs.serving_gpus}{canary}",
        f"room                {needs.scratch} for each of up to three tasks at a time",
        f"ended at the latest after {needs.longest_hours:g} h",
    ]


def describe_training(run: RunSettings, rows: int) -> list[str]:
    """Return what the table's first rows say of the training's hours, or why nothing is known of them."""
    # Imported here: it brings torch, which takes seconds that a submission without a look need not wait for.
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
