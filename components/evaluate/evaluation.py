"""The work of evaluate: generate an answer to every picture of a split, and compute the metrics."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.evaluate.baselines import nearest, shuffle_among_groups
from components.evaluate.checkpoints import Parts
from components.evaluate.parameters import EvaluateParameters
from components.evaluate.split import Split
from fovea import tracking
from fovea.evaluation.baselines import trivial_answers
from fovea.evaluation.calibration import Calibration, fit_calibration
from fovea.evaluation.intervals import measure
from fovea.evaluation.metrics import confusions, metrics_of, slices, with_intervals
from fovea.evaluation.outcomes import Outcomes, write_baselines
from fovea.evaluation.text import figure_text
from fovea.inference import Predictor
from fovea.memory import reuse_freed_memory
from fovea.predictions import Prediction, from_table, to_table, write_predictions
from fovea.records import Confusion, DatasetRecord, GenerationParameters, ModelRecord
from fovea.steps import Attempt
from fovea.task import Answer, Fields, Task

logger = logging.getLogger("fovea")

_TRAINING, _VALIDATION = "train", "validation"
# Batches of pictures in memory: enough to group those of similar length. An evaluation that is killed loses
# these rows at most.
_BATCHES_AHEAD = 4


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a model on a dataset."""

    attempt: Attempt
    model: ModelRecord
    dataset: DatasetRecord
    split: str
    asked: EvaluateParameters
    generation: GenerationParameters
    parts: Parts
    is_challenger: bool

    def run(self) -> Mapping[str, Any]:
        """Write the payload, and return the record's own fields."""
        attempt, task = self.attempt, self.dataset.task
        reuse_freed_memory()
        data = self._fetch_data()
        weights = attempt.storage.download(self.model, progress=attempt.progress("fetching the model"))
        predictor = Predictor.load(
            weights, task=task, dtype=self.generation.dtype, num_crops=self.generation.num_crops
        )
        split = Split(data, self.split, task, self.asked.max_eval_samples)
        answers = self._answer(predictor, split)
        calibration = None if self.model.base is None else self._calibrate(predictor, data)
        baselines = self._baselines(predictor, data, split) if self.model.base is None else {}
        shown = shuffle_among_groups([row.product_group for row in split.rows])
        if shown is None:
            logger.warning("%s: there is one product group, and nothing to shuffle", attempt.task)
        write_predictions(attempt.payload, task, _predictions(split, answers, shown, calibration))
        own = self._measured(split, answers, shown) | {
            "baselines": {name: measure(outcomes) for name, outcomes in baselines.items()},
            "calibration": calibration,
        }
        self._track(own)
        return own

    def _fetch_data(self) -> Path:
        wanted = {self.split, _TRAINING if self.model.base is None else _VALIDATION}
        for split in sorted(wanted & self.dataset.splits.keys()):
            folder = self.attempt.storage.download(
                self.dataset,
                pattern=f"{split}-*.parquet",
                progress=self.attempt.progress(f"fetching the {split} split"),
            )
        return folder

    def _answer(self, predictor: Predictor, split: Split) -> list[Answer]:
        """Return the answers to the rows of a split; those of an earlier attempt are reused."""
        progress = self.attempt.progress(f"answering the {split.name} split")
        task, rows = self.dataset.task, split.rows
        kept = self.parts.load(split.name, [row.row_id for row in rows])
        answers = [each.answer for table in kept for each in from_table(table, task)]
        if answers:
            logger.info("%s: %d of %d rows were answered before", self.attempt.task, len(answers), len(rows))

        def report(done: int, _: int) -> None:
            progress(len(answers) + done, len(rows))

        for pictures in split.pictures(_BATCHES_AHEAD * self.asked.generation_batch_size, first=len(answers)):
            some = predictor.answer(
                pictures,
                max_new_tokens=self.asked.max_new_tokens,
                batch_size=self.asked.generation_batch_size,
                progress=report,
            )
            asked = rows[len(answers) : len(answers) + len(some)]
            made = [Prediction(row, answer) for row, answer in zip(asked, some, strict=True)]
            self.parts.save(to_table(task, made), split.name, len(answers))
            answers += some
        return answers

    def _calibrate(self, predictor: Predictor, data: Path) -> Calibration | None:
        if not self.asked.calibration_samples or _VALIDATION not in self.dataset.splits:
            return None
        split = Split(data, _VALIDATION, self.dataset.task, self.asked.calibration_samples)
        answers = self._answer(predictor, split)
        calibration = fit_calibration(
            self.dataset.task,
            [row.truth for row in split.rows],
            [answer.fields for answer in answers],
            [answer.scores for answer in answers],
        )
        for field, reason in calibration.reasons.items():
            logger.warning("%s: %s has no calibrated confidence: %s", self.attempt.task, field, reason)
        return calibration

    def _baselines(self, predictor: Predictor, data: Path, split: Split) -> Mapping[str, Outcomes]:
        """Return the outcomes of each baseline, and write them to the payload."""
        task = self.dataset.task
        training = Split(data, _TRAINING, task)
        pictured = Split(data, _TRAINING, task, self.asked.neighbour_samples)
        progress = self.attempt.progress("looking for the nearest training picture")
        places = nearest(predictor, pictured, split, self.asked.generation_batch_size, progress)
        answers = trivial_answers(
            task, [row.truth for row in training.rows], [pictured.rows[place].truth for place in places]
        )
        outcomes = {name: _outcomes(task, split, given) for name, given in answers.items()}
        write_baselines(outcomes, self.attempt.payload)
        return outcomes

    def _measured(
        self, split: Split, answers: Sequence[Answer], shown: Sequence[int] | None
    ) -> dict[str, Any]:
        task = self.dataset.task
        fields = [answer.fields for answer in answers]
        outcomes = _outcomes(task, split, fields)
        # The question is the same for every row and generation is greedy, so the answer to another product's
        # picture is the one already generated for that picture.
        shuffled = _outcomes(task, split, [fields[other] for other in shown]) if shown else None
        return {
            "model_digest": self.model.digest,
            "dataset_digest": self.dataset.digest,
            "task_digest": task.digest,
            "split": self.split,
            "generation": self.generation,
            "metrics": measure(outcomes),
            "parsed": measure(outcomes.take(outcomes.parsed)) if outcomes.parsed.any() else None,
            "shuffled": measure(shuffled) if shuffled is not None else None,
            "slices": {
                kind: {name: measure(outcomes.take(mask)) for name, mask in masks.items()}
                for kind, masks in slices(outcomes).items()
            },
            "confusions": confusions(outcomes),
        }

    def _track(self, own: Mapping[str, Any]) -> None:
        """Log the challenger's figures to its MLflow run."""
        metrics, shuffled, attempt = own["metrics"], own["shuffled"], self.attempt
        if self.is_challenger:
            run = tracking.Run.of(self.model.mlflow)
            run.log_metrics(with_intervals(metrics), prefix=f"{self.split}/")
            run.log_metrics(shuffled.figures if shuffled else {}, prefix=f"{self.split}/shuffled/")
            for field, confusion in own["confusions"].items():
                run.log_table(_columns(confusion), f"confusion-{field}.json")
        figures = "; ".join(
            f"{metric.title}: {figure_text(metrics.figures[name], metric.unit)}"
            for name, metric in metrics_of(self.dataset.task).items()
        )
        logger.info("%s: %d rows: %s", attempt.task, metrics.samples, figures)


def _columns(confusion: Confusion) -> dict[str, list[str] | list[int]]:
    """Return the matrix as a table: truth, answer and number of rows."""
    names = confusion.categories
    pairs = [(row, column) for row in range(len(names)) for column in range(len(names))]
    found = [(row, column) for row, column in pairs if confusion.rows[row][column]]
    return {
        "truth": [names[row] for row, _ in found],
        "answer": [names[column] for _, column in found],
        "rows": [confusion.rows[row][column] for row, column in found],
    }


def _outcomes(task: Task, split: Split, answers: Sequence[Fields | None]) -> Outcomes:
    rows = split.rows
    return Outcomes.of(
        task,
        [row.truth for row in rows],
        answers,
        [row.product_group for row in rows],
        [row.row_id for row in rows],
    )


def _predictions(
    split: Split, answers: Sequence[Answer], shown: Sequence[int] | None, calibration: Calibration | None
) -> list[Prediction]:
    """Return the answers with their rows, the confidences, and whose picture is shown instead."""
    others = [split.rows[other].row_id for other in shown] if shown else [None] * len(answers)
    return [
        Prediction(row, answer, calibration.confidences(answer.scores) if calibration else {}, other)
        for row, answer, other in zip(split.rows, answers, others, strict=True)
    ]
