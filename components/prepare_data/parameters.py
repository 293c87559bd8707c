"""What a run may set about the preparation."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class PrepareParameters(BaseModel):
    """The parameters of prepare_data; the columns of the answer's fields are the task's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(min_length=1, description="The table: a CSV file's path, http(s) URL or s3:// URI.")
    fetch_profile: str = Field(
        default="default", description="The platform's fetch profile for the table and the pictures."
    )
    image_column: str = Field(
        default="imageurl",
        description="The column with the pictures' addresses: http(s), s3:// or relative to the table.",
    )
    product_column: str = Field(
        default="product_code", description="The column that says which rows are the same product."
    )
    currency_column: str = Field(
        default="currency_code",
        description="The column with the prices' currency; empty where there is none.",
    )
    decimal_mark: Literal["", ".", ","] = Field(
        default="",
        description="What separates decimals in prices; empty to tell from each price, dropping those like "
        "1.390 that could mean two things.",
    )
    longest_side: int = Field(
        default=1344, ge=28, le=4096, description="Larger pictures are scaled down to this many pixels."
    )
    validation_fraction: float = Field(
        default=0.05, ge=0, lt=1, description="The share of the products that is held out for validation."
    )
    test_fraction: float = Field(
        default=0.1, ge=0, lt=1, description="The share of the products that is held out for the evaluation."
    )
    seed: int = Field(default=0, ge=0, description="Another seed splits the products another way.")
    min_rows: int = Field(
        default=20, ge=1, description="The fewest rows that each split must have, where its share is not 0."
    )
    max_rows: int = Field(default=0, ge=0, description="Only the table's first rows are read; 0 for all.")
    concurrency: int = Field(
        default=16, ge=1, le=256, description="How many pictures are fetched at the same time."
    )

    @model_validator(mode="after")
    def _something_is_left_to_train_on(self) -> Self:
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction and test_fraction must leave something to train on")
        return self
