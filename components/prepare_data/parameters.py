"""Parameters of prepare_data."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fovea.parameters import NOT_IN_RESULT, Experiment, FormerName, Name, NumCrops, Seed
from fovea.task import Task, product_task

Column = Annotated[str, Field(min_length=1, max_length=200)]


class PrepareDataParameters(NumCrops, Seed, Experiment):
    """Parameters of the source, of reading and cleaning rows, and of the splits."""

    source: Annotated[str, NOT_IN_RESULT] = Field(min_length=1)
    """The table: a CSV, JSON Lines or Parquet file, a folder of them or a pattern, as path, http(s) URL or
    s3:// URI; or a dataset of the hub, hf://owner/name@revision/configuration:split."""
    fetch_profile: Name = "default"
    """The platform's fetch profile that the table and the pictures are fetched under."""
    image_column: Column = "imageurl"
    """Column with the pictures, or their addresses: http(s), s3:// or relative to the table."""
    title_column: Column = "title"
    """Column with the products' titles."""
    category_column: Column = "category3_code"
    """Column with their categories."""
    price_column: Column = "full_price"
    """Column with their prices."""
    product_column: Column = "product_code"
    """Column that says which rows are the same product; no product is in two splits."""
    currency_column: str = "currency_code"
    """Column with the prices' currency; empty where there is none."""
    currencies: Literal["refuse", "convert", "state"] = "refuse"
    """What to do with prices in several currencies: refuse the table, convert them by rate_column, or state
    the currency in the answer."""
    rate_column: str = ""
    """To convert: column with what one unit of the row's currency is worth in target_currency."""
    target_currency: str = Field(default="", pattern="^([A-Z]{3})?$")
    """To convert: the currency of all prices then, such as EUR."""
    decimal_mark: Literal["", ".", ","] = ""
    """What separates decimals in prices; empty to infer it from each price, dropping those like 1.390 that
    could mean two things."""
    longest_side: int = Field(default=1344, ge=28, le=4096)
    """Larger pictures are scaled down to this many pixels; a crop is 336."""
    max_rows: int = Field(default=0, ge=0)
    """Only the table's first rows are read; 0 for all."""
    min_rows: int = Field(default=20, ge=1)
    """The fewest rows that each split must have, where its share is not 0."""
    validation_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of the products held out to watch the training."""
    test_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of the products held out for the evaluation."""
    split_name: Name = "default"
    """Runs of the same split_name, seed and shares keep every product in the split it was in."""
    recheck_hours: Annotated[int, NOT_IN_RESULT] = Field(default=24, ge=0)
    """Pictures fetched less long ago are taken from the picture store without asking."""
    fetch_concurrency: Annotated[int, NOT_IN_RESULT, FormerName("concurrency")] = Field(
        default=64, ge=1, le=256
    )
    """Pictures fetched at the same time."""

    @model_validator(mode="after")
    def _check_shares(self) -> Self:
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction and test_fraction must add up to less than 1")
        return self

    @model_validator(mode="after")
    def _check_currencies(self) -> Self:
        if {bool(self.rate_column), bool(self.target_currency)} != {self.currencies == "convert"}:
            raise ValueError(
                "currencies=convert requires rate_column and target_currency; other values do not use them"
            )
        if self.currencies == "state" and not self.currency_column:
            raise ValueError("currencies=state requires currency_column")
        return self

    def task(self) -> Task:
        """Return the product catalogue's task with these columns."""
        return product_task(
            self.title_column,
            self.category_column,
            self.price_column,
            self.currency_column if self.currencies == "state" else None,
        )
