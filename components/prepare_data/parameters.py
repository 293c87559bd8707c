"""What a run may set about the preparation."""

from typing import Literal, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fovea.task import Task, product_task


class PrepareParameters(BaseModel):
    """The parameters of prepare_data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(
        min_length=1,
        description="The table: a CSV, JSON Lines or Parquet file, a folder of them or a pattern, as path, "
        "http(s) URL or s3:// URI; or hf://owner/name, a dataset of the hub.",
    )
    fetch_profile: str = Field(
        default="default", description="The platform's fetch profile for the table and the pictures."
    )
    image_column: str = Field(
        default="imageurl",
        min_length=1,
        description="The column with the pictures, or their addresses: http(s), s3:// or relative to the "
        "table.",
    )
    title_column: str = Field(default="title", min_length=1, description="The column with the titles.")
    category_column: str = Field(
        default="category3_code", min_length=1, description="The column with the categories."
    )
    price_column: str = Field(default="full_price", min_length=1, description="The column with the prices.")
    product_column: str = Field(
        default="product_code",
        min_length=1,
        description="The column that says which rows are the same product.",
    )
    currency_column: str = Field(
        default="currency_code",
        description="The column with the prices' currency; empty where there is none.",
    )
    currencies: Literal["refuse", "convert", "state"] = Field(
        default="refuse",
        description="What to do with prices in several currencies: refuse the table, convert them by "
        "rate_column, or state the currency in the answer.",
    )
    rate_column: str = Field(
        default="",
        description="To convert: the column with what one unit of the row's currency is worth in "
        "target_currency.",
    )
    target_currency: str = Field(
        default="", pattern="^([A-Z]{3})?$", description="To convert: the currency of all prices then."
    )
    decimal_mark: Literal["", ".", ","] = Field(
        default="",
        description="What separates decimals in prices; empty to tell from each price, dropping those like "
        "1.390 that could mean two things.",
    )
    longest_side: int = Field(
        default=1344, ge=28, le=4096, description="Larger pictures are scaled down to this many pixels."
    )
    num_crops: int = Field(
        default=4,
        ge=1,
        le=16,
        description="Crops a picture is cut into at most, which sets the length of a sequence.",
    )
    validation_fraction: float = Field(
        default=0.05, ge=0, lt=1, description="The share of the products that is held out for validation."
    )
    test_fraction: float = Field(
        default=0.1, ge=0, lt=1, description="The share of the products that is held out for the evaluation."
    )
    seed: int = Field(default=0, ge=0, description="Another seed splits the products another way.")
    split_name: str = Field(
        default="default",
        pattern="^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$",
        description="Runs of the same name, seed and shares keep every product in the split it was in.",
    )
    min_rows: int = Field(
        default=20, ge=1, description="The fewest rows that each split must have, where its share is not 0."
    )
    max_rows: int = Field(default=0, ge=0, description="Only the table's first rows are read; 0 for all.")
    recheck_hours: int = Field(
        default=24,
        ge=0,
        description="Pictures fetched less long ago are taken from the picture store without asking.",
    )
    concurrency: int = Field(
        default=64, ge=1, le=256, description="How many pictures are fetched at the same time."
    )

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction and test_fraction must leave something to train on")
        if {bool(self.rate_column), bool(self.target_currency)} != {self.currencies == "convert"}:
            raise ValueError(
                "currencies=convert needs rate_column and target_currency, and nothing else does"
            )
        if self.currencies == "state" and not self.currency_column:
            raise ValueError("currencies=state needs a currency_column")
        return self

    def task(self) -> Task:
        """Return the product catalogue's task on the columns that are named here."""
        return run_task(self)


class TableParameters(Protocol):
    """The parameters that a run's task follows from."""

    @property
    def title_column(self) -> str:
        """The column with the titles."""

    @property
    def category_column(self) -> str:
        """The column with the categories."""

    @property
    def price_column(self) -> str:
        """The column with the prices."""

    @property
    def currency_column(self) -> str:
        """The column with the prices' currency."""

    @property
    def currencies(self) -> str:
        """What is done with prices in several currencies; with ``state``, the answer says the currency."""


def run_task(parameters: TableParameters) -> Task:
    """Return the product catalogue's task on the columns that the parameters name."""
    return product_task(
        parameters.title_column,
        parameters.category_column,
        parameters.price_column,
        parameters.currency_column if parameters.currencies == "state" else None,
    )
