"""The work of the step: download and check the inputs, then train."""

import logging
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import fovea.tracking as tracking
from components.train_lora import memory
from components.train_lora.checkpoints import Checkpoint, Checkpoints, changed_libraries
from components.train_lora.data import Extent, fitting, load_split, measure
from components.train_lora.job import Job, accumulation
from components.train_lora.launch import count_processes, launch
from components.train_lora.parameters import TrainLoraParameters
from components.train_lora.report import report_uri, write_report
from fovea.phi3v import Phi3VConfig, Phi3VProcessor
from fovea.platform import load_platform
from fovea.records import DatasetRecord, ModelRecord, ModelReference, StepInputs
from fovea.steps import Attempt
from fovea.storage import index_uri

logger = logging.getLogger("fovea.train_lora")


class Work:
    """The work of one attempt, with the cheapest checks first."""

    def __init__(
        self,
        dataset: DatasetRecord,
        base: ModelRecord,
        parameters: TrainLoraParameters,
        inputs: StepInputs,
    ) -> None:
        self._dataset = dataset
        self._base = base
        self._parameters = parameters
        self._inputs = inputs

    def run(self, attempt: Attempt) -> Mapping[str, Any]:
        """Train, write the adapter to the attempt's payload, and return the fields of its record.

        Raises:
            UserError: the training does not fit the device, the loss diverges, MLflow cannot be reached,
                or ``resume_from_checkpoint`` names a checkpoint of other inputs.
        """
        processes = count_processes()
        accumulation(self._parameters, processes)
        with tempfile.TemporaryDirectory(prefix="fovea-trainer-") as name:
            folder = Path(name)
            checkpoint = self._checkpoint(attempt, folder / "checkpoint")
            run = self._open_run(attempt, checkpoint)
            failed = True
            try:
                job = self._prepare(attempt, folder, checkpoint, run, processes)
                trained = launch(job, run)
                shutil.copytree(job.output / "adapter", attempt.payload, dirs_exist_ok=True)
                made = {
                    **self._origin(attempt),
                    "steps": trained.steps,
                    "epochs": trained.epochs,
                    "train_loss": trained.train_loss,
                    "validation_loss": trained.validation_loss,
                    "mlflow": run.reference,
                }
                self._show(attempt, job, run)
                failed = False
            finally:
                run.finish(failed=failed)
        logger.info(
            "train_lora: %d steps, validation loss %.4f%s",
            trained.steps,
            trained.validation_loss,
            f", kept from step {trained.kept_step}" if trained.kept_step != trained.steps else "",
        )
        return made

    def _checkpoint(self, attempt: Attempt, folder: Path) -> Checkpoint | None:
        checkpoints = Checkpoints(attempt.storage, attempt.context.artifact_root, self._inputs)
        named = self._parameters.resume_from_checkpoint
        found = checkpoints.named(named, folder) if named else checkpoints.newest(folder)
        if found is not None:
            logger.info(
                "train_lora: resuming from the checkpoint of step %d of %d, made at %s by run %s",
                found.step,
                found.max_steps,
                found.created_at.isoformat(),
                found.run_id,
            )
            for library, (then, today) in changed_libraries(found).items():
                logger.warning("train_lora: %s was %s for the checkpoint and is %s now", library, then, today)
        return found

    def _open_run(self, attempt: Attempt, checkpoint: Checkpoint | None) -> tracking.Run:
        run_id = attempt.context.run_id
        tags = {"dataset": self._dataset.digest, "base": self._base.digest, "run_id": run_id}
        link = load_platform().run_link(run_id)
        if link:
            # MLflow shows this tag as the run's description, with a link.
            tags |= {"kfp_run": link, "mlflow.note.content": f"[The pipeline's run]({link})"}
        run = tracking.Run.open(
            self._parameters.experiment,
            name=run_id,
            tags=tags,
            earlier=checkpoint.mlflow if checkpoint else None,
        )
        run.set_tags(tags)
        if checkpoint is None:
            run.log_params(self._parameters.model_dump())
            rows = {split: counts.rows for split, counts in self._dataset.splits.items()}
            run.log_dataset("dataset", self._dataset.digest, self._dataset.uri, "training", rows)
        return run

    def _prepare(
        self,
        attempt: Attempt,
        folder: Path,
        checkpoint: Checkpoint | None,
        run: tracking.Run,
        processes: int,
    ) -> Job:
        storage, base, parameters = attempt.storage, self._base, self._parameters
        data = storage.download(self._dataset, progress=attempt.progress("fetching the dataset"))
        settings = storage.download(base, pattern="*.json")
        rows, extents = self._rows(data, settings)
        self._check_memory(settings, extents["train"])
        weights = storage.download(base, progress=attempt.progress("fetching the base model"))
        (folder / "output").mkdir()
        return Job(
            parameters=parameters,
            processes=processes,
            dataset=data,
            weights=weights,
            checkpoint=folder / "checkpoint" if checkpoint else None,
            output=folder / "output",
            task=self._dataset.task,
            base_digest=base.digest,
            inputs=self._inputs,
            artifact_root=attempt.context.artifact_root,
            run_id=attempt.context.run_id,
            mlflow=run.reference,
            train_rows=tuple(rows["train"]),
            train_lengths=tuple(extent.tokens for extent in extents["train"]),
            validation_rows=tuple(rows["validation"]),
        )

    def _rows(self, data: Path, settings: Path) -> tuple[dict[str, list[int]], dict[str, list[Extent]]]:
        """Return the indices of the rows that fit the context, and their extents, by split."""
        processor = Phi3VProcessor.from_pretrained(settings)
        context = Phi3VConfig.from_pretrained(settings).original_max_position_embeddings
        rows, extents = {}, {}
        for split in ("train", "validation"):
            table = load_split(data, split)
            found = measure(table, processor, self._dataset.task, self._parameters.num_crops)
            rows[split] = fitting(split, table["row_id"], found, context)
            extents[split] = [found[place] for place in rows[split]]
        return rows, extents

    def _check_memory(self, settings: Path, extents: list[Extent]) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        config = Phi3VConfig.from_pretrained(settings)
        needed, room = memory.estimate(config, self._parameters, extents, device), memory.room(device)
        logger.info(
            "train_lora: %d to %d tokens per example; memory: about %s, of %.1f free on %s",
            min(extent.tokens for extent in extents),
            max(extent.tokens for extent in extents),
            needed,
            room.free / memory.GIB,
            room.name,
        )
        memory.check(needed, room, self._parameters)

    def _origin(self, attempt: Attempt) -> dict[str, Any]:
        base = self._base
        uri = index_uri(attempt.context.artifact_root, base.step, base.input_key)
        return {
            "base": ModelReference(digest=base.digest, record_uri=uri),
            "dataset_digest": self._dataset.digest,
            "task": self._dataset.task,
            "num_crops": self._parameters.num_crops,
        }

    def _show(self, attempt: Attempt, job: Job, run: tracking.Run) -> None:
        """Write the report, and log it and the future location of the adapter to MLflow."""
        root = attempt.context.artifact_root
        path = job.output / "report.html"
        write_report(path, job.output, run_id=attempt.context.run_id, settings=self._parameters.model_dump())
        attempt.storage.write_bytes(report_uri(root, self._inputs.key), path.read_bytes())
        run.log_file(path)
        run.set_tags({"adapter_record": index_uri(root, "train_lora", self._inputs.key)})
