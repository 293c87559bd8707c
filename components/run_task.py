"""The task of a run, from the parameters that describe its table."""

from typing import Protocol

from fovea.task import Task, product_task


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
