"""Every parameter of a fine-tuning run, with its default and what is allowed.

The pipeline's own parameters have the same names and defaults. They are checked when a run is submitted, and
again by preflight, since a run can also be started by hand.
"""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from components.deploy.kserve_parameters import KServeJson
from components.gate.parameters import read_rules
from components.prepare_data.parameters import run_task
from fovea.errors import UserError
from fovea.task import Task

Fraction = Annotated[float, Field(ge=0, le=1)]
Column = Annotated[str, Field(min_length=1, max_length=200)]


def _are_rules(text: str) -> str:
    """Refuse rules that the gate would not take; what lies in S3 is read by preflight."""
    if not text.startswith("s3://"):
        try:
            read_rules(text)
        except UserError as error:
            raise ValueError(str(error)) from error
    return text


# A name that MLflow, S3 keys and Kubernetes objects all take.
Name = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$")]


class FinetuneParameters(BaseModel):
    """The parameters of one run, field by field those of the pipeline."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # Where things are
    artifact_root: Annotated[str, Field(pattern=r"^s3://[^/\s]+(/\S*)?$")]
    base_model: Annotated[str, Field(pattern=r"^s3://[^/\s]+/\S+\.json$")]
    source: Annotated[str, Field(min_length=1)]
    experiment: Annotated[str, Field(min_length=1, max_length=200)] = "fovea"
    registered_model: Name = "fovea"
    fetch_profile: Name = "default"

    # Data
    image_column: Column = "imageurl"
    title_column: Column = "title"
    category_column: Column = "category3_code"
    price_column: Column = "full_price"
    product_column: Column = "product_code"
    currency_column: str = "currency_code"
    currencies: Literal["refuse", "convert", "state"] = "refuse"
    rate_column: str = ""
    target_currency: Annotated[str, Field(pattern="^([A-Z]{3})?$")] = ""
    decimal_mark: Literal["", ".", ","] = ""
    longest_side: Annotated[int, Field(ge=28, le=4096)] = 1344
    max_rows: Annotated[int, Field(ge=0)] = 0
    min_rows: Annotated[int, Field(ge=1)] = 20
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    split_name: Name = "default"
    recheck_hours: Annotated[int, Field(ge=0)] = 24

    # Training
    num_crops: Annotated[int, Field(ge=1, le=16)] = 4
    rank: Annotated[int, Field(ge=1, le=256)] = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    target_modules: Literal["decoder", "decoder+projector", "decoder+tower", "decoder+projector+tower"] = (
        "decoder"
    )
    learning_rate: Annotated[float, Field(ge=0, le=1)] = 1e-4
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_ratio: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    weight_decay: Fraction = 0.0
    epochs: Annotated[float, Field(gt=0, le=1000)] = 3.0
    max_steps: Annotated[int, Field(ge=0)] = 0
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 32
    device_batch_size: Annotated[int, Field(ge=1, le=512)] = 4
    gradient_checkpointing: bool = True
    compile: bool = False
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    evaluation_steps: Annotated[int, Field(ge=0)] = 0
    answered_samples: Annotated[int, Field(ge=0, le=1000)] = 8
    early_stopping: Annotated[int, Field(ge=0)] = 0
    keep: Literal["last", "best_loss", "best_answers"] = "last"
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 10.0
    resume_from: Annotated[str, Field(pattern=r"^(s3://[^/\s]+/\S+\.json)?$")] = ""

    # Evaluation
    max_samples: Annotated[int, Field(ge=0)] = 0
    generation_batch_size: Annotated[int, Field(ge=1, le=1024)] = 16
    max_new_tokens: Annotated[int, Field(ge=1, le=1024)] = 64
    calibration_samples: Annotated[int, Field(ge=0)] = 500

    # What the gate asks for
    min_samples: Annotated[int, Field(ge=1)] = 200
    min_parse_rate: Fraction = 0.98
    min_category_accuracy: Fraction = 0.9
    max_price_median_ape: Annotated[float, Field(ge=0)] = 0.15
    min_picture_reliance: Fraction = 0.3
    champion_margin: Fraction = 0.03
    gate_rules: Annotated[str, Field(max_length=64 * 1024), AfterValidator(_are_rules)] = ""
    on_refusal: Literal["fail", "end"] = "fail"

    # Deployment
    service_name: Name = "fovea"
    deploy_target: Literal["local", "kserve"] = "local"
    kserve: KServeJson = "{}"

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction and test_fraction together must leave rows to train on")
        if {bool(self.rate_column), bool(self.target_currency)} != {self.currencies == "convert"}:
            raise ValueError(
                "currencies=convert needs rate_column and target_currency, and nothing else does"
            )
        if self.currencies == "state" and not self.currency_column:
            raise ValueError("currencies=state needs a currency_column")
        if self.batch_size % self.device_batch_size:
            raise ValueError("batch_size must be a multiple of device_batch_size")
            raise ValueError("batch_size must be a multiple of device_batch_size")
        if self.keep == "best_answers" and not self.answered_samples:
            raise ValueError("keep=best_answers needs answered_samples above 0")
        return self

    def task(self) -> Task:
        """Return what the run's models are asked and answer."""
        return run_task(self)
