"""Records: small, typed JSON documents that steps pass on. The payload stays in S3."""

import hashlib
import json
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from fovea.errors import UserError
from fovea.evaluation.calibration import Calibration
from fovea.task import Task
from fovea.task.metrics import Unit

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


def _inside(path: str) -> str:
    parts = path.split("/")
    if path.startswith("/") or "\\" in path or any(part in {"", ".", ".."} for part in parts):
        raise ValueError(f"a file's path must lie inside its payload, got {path!r}")
    return path


def canonical_json(value: Any) -> bytes:
    """Return ``value`` as JSON bytes that are the same for equal values. NaN is refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def sha256_digest(value: Any) -> str:
    """Return ``sha256:…`` of a JSON value's canonical form."""
    return "sha256:" + hashlib.sha256(canonical_json(value)).hexdigest()


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FileEntry(_Model):
    """A file of a payload: ``path`` is relative to the payload's prefix, ``size`` in bytes."""

    path: Annotated[str, AfterValidator(_inside)]
    size: int = Field(ge=0)
    sha256: Sha256


class MlflowReference(_Model):
    """The MLflow experiment, run and model version of a record."""

    experiment_id: str
    run_id: str
    model_name: str | None = None
    model_version: str | None = None


class ModelReference(_Model):
    """A model, by its record's digest and the record's URI."""

    digest: Digest
    record_uri: str


class Record(_Model):
    """Base class of records: the payload, its files' digests, and what made it."""

    kind: str
    schema_version: Literal[1] = 1
    step: str
    step_version: int
    input_key: Sha256
    uri: str
    """The payload's S3 prefix, ending in ``/``; empty where there is no payload."""
    files: tuple[FileEntry, ...]
    parameters: dict[str, Any]
    parents: dict[str, str]
    created_at: datetime
    run_id: str

    @cached_property
    def digest(self) -> str:
        """``sha256:…`` of the content, without when, where and from what it was made."""
        volatile = {"uri", "created_at", "run_id", "input_key", "mlflow", "parameters", "parents"}
        return sha256_digest(self.model_dump(mode="json", exclude=volatile))

    def to_json(self) -> str:
        """Return the record as an indented JSON document."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "record") -> Self:
        """Read a record of this class.

        Raises:
            UserError: ``text`` is not such a record; ``source`` names it in the message.
        """
        try:
            record = _ANY_RECORD.validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(
                f"{source}: not a record ({'.'.join(map(str, first['loc']))}: {first['msg']})"
            ) from error
        if not isinstance(record, cls):
            raise UserError(f"{source}: is a record of kind {record.kind!r}, {cls.__name__} was expected")
        return record


class StepInputs(_Model):
    """What determines a step's result; a result of equal inputs is reused."""

    step: str
    version: int
    """The step's version; another version makes another result of the same inputs."""
    parameters: dict[str, Any]
    parents: dict[str, str]
    """Digests of what the step reads, by name."""

    @cached_property
    def key(self) -> str:
        """The input key: 64 hexadecimal digits, the SHA-256 of the inputs' canonical JSON."""
        return hashlib.sha256(canonical_json(self.model_dump())).hexdigest()

    def difference(self, other: "StepInputs") -> str:
        """Return what differs in ``other``, as text; empty where nothing does."""
        mine, its = ({"step's version": of.version, **of.parents, **of.parameters} for of in (self, other))
        return ", ".join(
            f"{name} was {mine.get(name)!r} and is {its.get(name)!r}"
            for name in dict.fromkeys([*mine, *its])
            if mine.get(name) != its.get(name)
        )


class Split(_Model):
    """The size of one split."""

    rows: int
    products: int


class Groups(_Model):
    """Groups of products whose pictures look alike."""

    groups: int
    products: int
    """Products in all groups."""
    broken_up: int
    """Groups that were too large to be plausible, and were split into products."""


class SequenceLengths(_Model):
    """How long the training sequences are, in tokens, at ``num_crops``."""

    num_crops: int
    total: int
    median: int
    longest: int


class DatasetRecord(Record):
    """A prepared dataset: Parquet shards ``{split}-*.parquet``, and ``README.md``, its card.

    Columns: ``row_id`` and ``product_id`` (text); ``product_group`` (text: the first of the products
    whose pictures look alike, or the product itself); ``image`` (the `datasets` Image
    feature); one for each field of the task; ``currency`` (text or null).
    """

    kind: Literal["dataset"] = "dataset"
    task: Task
    splits: dict[str, Split]
    dropped: dict[str, int]
    """Rows of the source that were left out, by reason."""
    currency: str | None
    """The currency of all prices; None where the feed names none, or where each answer states its own."""
    categories: dict[str, int]
    longest_side: int
    groups: Groups | None = None
    tokens: SequenceLengths | None = None
    """None where the dataset was made without a base model's tokenizer."""
    mlflow: MlflowReference | None = None


class ModelRecord(Record):
    """A model: a transformers folder, safetensors only; a tuned one has ``task.json`` next to the weights."""

    kind: Literal["model"] = "model"
    architecture: str
    num_crops: int
    task: Task | None = None
    base: ModelReference | None = None
    adapter_digest: Digest | None = None
    mlflow: MlflowReference | None = None


class AdapterRecord(Record):
    """A LoRA adapter in PEFT's format."""

    kind: Literal["adapter"] = "adapter"
    base: ModelReference
    dataset_digest: Digest
    task: Task
    num_crops: int
    steps: int
    epochs: float
    train_loss: float
    validation_loss: float | None
    mlflow: MlflowReference | None = None


class GenerationParameters(_Model):
    """How answers were generated (always greedily)."""

    max_new_tokens: int
    num_crops: int
    dtype: str


class Interval(_Model):
    """A 95 % interval, both ends included."""

    low: float
    high: float


class Metrics(_Model):
    """How good answers are; over all rows, an answer that could not be read counts as wrong.

    ``figures`` are by the names of the task's metrics (`fovea.evaluation.metrics`): fractions, but for
    amounts of money, which are in currency. ``intervals`` have the same names.
    """

    samples: int
    groups: int
    """Groups of products whose pictures look alike, which intervals resample."""
    figures: dict[str, float]
    intervals: dict[str, Interval] = {}

    @property
    def parse_rate(self) -> float:
        """The share of answers that can be read."""
        return self.figures["parse_rate"]


class Confusion(_Model):
    """A confusion matrix: ``rows[truth][answer]``, both in the order of ``categories``."""

    categories: tuple[str, ...]
    rows: tuple[tuple[int, ...], ...]


class EvaluationRecord(Record):
    """A model's figures on a split.

    The payload: ``predictions-00000.parquet`` and on, in the order of the split; where there are baselines,
    ``baselines.parquet`` with the outcome of each row, by baseline.
    """

    kind: Literal["evaluation"] = "evaluation"
    model_digest: Digest
    dataset_digest: Digest
    task_digest: Digest
    split: str
    generation: GenerationParameters
    metrics: Metrics
    """Over all rows."""
    parsed: Metrics | None = None
    """Over the rows whose answer could be read; None where there are none."""
    shuffled: Metrics | None
    """Over all rows, with the pictures shuffled among the product groups; None where there is only one."""
    slices: dict[str, dict[str, Metrics]] = {}
    """Over the rows of a slice: by field, then by the slice's name."""
    baselines: dict[str, Metrics] = {}
    """The trivial answers on the same rows; a base model's evaluation has them."""
    confusions: dict[str, Confusion] = {}
    """By field of categories."""
    calibration: Calibration | None = None
    """Fitted on the validation split; None where it was not requested."""


class RuleResult(_Model):
    """The result of one rule of the gate."""

    name: str
    description: str
    value: float | None
    """The figure; for a comparison the gain, above 0 where the model is better; for a condition 1 or 0."""
    comparison: Literal[">=", "<=", ">", "<"]
    """How the value, or the lower end of the gain's interval, must compare with the limit."""
    limit: float | None
    passed: bool
    reason: str
    metric: str = ""
    """Empty for a condition, as are ``slice`` and ``against``."""
    unit: Unit = "fraction"
    """Of the metric."""
    slice: str = ""
    against: str = ""
    own: float | None = None
    """For a comparison, the model's figure."""
    compared: float | None = None
    """For a comparison, the other model's figure."""
    interval: Interval | None = None
    """The value's 95 % interval."""
    samples: int | None = None
    """Rows that it is computed on."""
    inputs: dict[str, Digest] = {}
    """Digests of the evaluations that it reads."""


class Decision(Record):
    """The gate's verdict on a model."""

    kind: Literal["decision"] = "decision"
    model_digest: Digest
    passed: bool
    reason: str
    rules: tuple[RuleResult, ...]
    base_passed: bool = False
    """Whether the base passes the same rules; they then require nothing."""
    base_reason: str = ""


class AbsentRecord(_Model):
    """Replaces a record that is legitimately missing, such as the champion's before the first deployment."""

    kind: Literal["absent"] = "absent"
    reason: str

    def to_json(self) -> str:
        """Return the document as indented JSON."""
        return self.model_dump_json(indent=2) + "\n"


AnyRecord = Annotated[
    DatasetRecord | ModelRecord | AdapterRecord | EvaluationRecord | Decision, Field(discriminator="kind")
]
_ANY_RECORD: TypeAdapter[DatasetRecord | ModelRecord | AdapterRecord | EvaluationRecord | Decision] = (
    TypeAdapter(AnyRecord)
)

R = TypeVar("R", bound=Record)


def read_record(path: str | Path, record_type: type[R]) -> R:
    """Read a record from a local file: a KFP artifact is one.

    Raises:
        UserError: the file cannot be read, or is not such a record.
    """
    return record_type.from_json(_read(path), source=str(path))


def read_optional_record(path: str | Path, record_type: type[R]) -> R | AbsentRecord:
    """Read a record, or the AbsentRecord in its place, from a local file.

    Raises:
        UserError: the file cannot be read, or is neither.
    """
    text = _read(path)
    try:
        return AbsentRecord.model_validate_json(text)
    except ValidationError:
        return record_type.from_json(text, source=str(path))


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give the JSON file a step wrote"
        ) from error


def write_record(record: Record | AbsentRecord, path: str | Path) -> None:
    """Write a record to a local file, making its folder where needed."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(record.to_json())


def now() -> datetime:
    """Return the present moment, in UTC, to the second."""
    return datetime.now(UTC).replace(microsecond=0)
