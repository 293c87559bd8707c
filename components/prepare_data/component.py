"""The KFP contract of prepare_data."""

from kfp import dsl

from components.container_image import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def prepare_data(
    base: dsl.Input[dsl.Model],
    dataset: dsl.Output[dsl.Dataset],
    report: dsl.Output[dsl.HTML],
    artifact_root: str,
    run_id: str,
    source: str,
    experiment: str = "fovea",
    fetch_profile: str = "default",
    image_column: str = "imageurl",
    title_column: str = "title",
    category_column: str = "category3_code",
    price_column: str = "full_price",
    product_column: str = "product_code",
    currency_column: str = "currency_code",
    currencies: str = "refuse",
    rate_column: str = "",
    target_currency: str = "",
    decimal_mark: str = "",
    longest_side: int = 1344,
    num_crops: int = 4,
    validation_fraction: float = 0.05,
    test_fraction: float = 0.1,
    seed: int = 0,
    split_name: str = "default",
    min_rows: int = 20,
    max_rows: int = 0,
    recheck_hours: int = 24,
    concurrency: int = 64,
) -> None:
    """Turn a table and its pictures into a clean dataset, split by product.

    Args:
        base: Record of the base model, whose tokenizer counts the sequences.
        dataset: Record of the dataset.
        report: What became of the rows, as a page.
        artifact_root: s3://bucket/prefix that payloads and records lie under.
        run_id: The run's ID.
        source: The table: a CSV, JSON Lines or Parquet file, a folder of them or a pattern, as path, http(s)
            URL or s3:// URI; or hf://owner/name, a dataset of the hub.
        experiment: MLflow experiment that the report is logged to.
        fetch_profile: The platform's fetch profile for the table and the pictures.
        image_column: Column with the pictures, or their addresses: http(s), s3:// or relative to the table.
        title_column: Column with the titles.
        category_column: Column with the categories.
        price_column: Column with the prices.
        product_column: Column that says which rows are the same product.
        currency_column: Column with the prices' currency; empty where there is none.
        currencies: Prices in several currencies: refuse, convert (by rate_column) or state (in the answer).
        rate_column: To convert: what one unit of the row's currency is worth in target_currency.
        target_currency: To convert: the currency of all prices then.
        decimal_mark: What separates decimals in prices, a point or a comma; empty to tell from each price.
        longest_side: Larger pictures are scaled down to this many pixels.
        num_crops: Crops a picture is cut into at most, which sets the length of a sequence.
        validation_fraction: Share of the products held out for validation.
        test_fraction: Share of the products held out for the evaluation.
        seed: Another seed splits the products another way.
        split_name: Runs of the same name, seed and shares keep every product in the split it was in.
        min_rows: The fewest rows each split must have, where its share is not 0.
        max_rows: Only the table's first rows are read; 0 for all.
        recheck_hours: Pictures fetched less long ago are taken from the picture store without asking.
        concurrency: How many pictures are fetched at the same time.
    """
    from components.prepare_data.step import prepare_data_step
    from fovea.steps import RunContext, configure_logging

    configure_logging()
    prepare_data_step(
        RunContext(artifact_root=artifact_root, run_id=run_id),
        {
            "source": source,
            "fetch_profile": fetch_profile,
            "image_column": image_column,
            "title_column": title_column,
            "category_column": category_column,
            "price_column": price_column,
            "product_column": product_column,
            "currency_column": currency_column,
            "currencies": currencies,
            "rate_column": rate_column,
            "target_currency": target_currency,
            "decimal_mark": decimal_mark,
            "longest_side": longest_side,
            "num_crops": num_crops,
            "validation_fraction": validation_fraction,
            "test_fraction": test_fraction,
            "seed": seed,
            "split_name": split_name,
            "min_rows": min_rows,
            "max_rows": max_rows,
            "recheck_hours": recheck_hours,
            "concurrency": concurrency,
        },
        dataset_record=dataset.path,
        base_record=base.path,
        report=report.path,
        experiment=experiment,
    )
