"""The KFP contract of prepare_data."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def prepare_data(
    dataset: dsl.Output[dsl.Dataset],
    artifact_root: str,
    run_id: str,
    source: str,
    fetch_profile: str = "default",
    image_column: str = "imageurl",
    product_column: str = "product_code",
    currency_column: str = "currency_code",
    decimal_mark: str = "",
    longest_side: int = 1344,
    validation_fraction: float = 0.05,
    test_fraction: float = 0.1,
    seed: int = 0,
    min_rows: int = 20,
    max_rows: int = 0,
    concurrency: int = 16,
) -> None:
    """Turn a table and its pictures into a clean dataset, split by product.

    Args:
        dataset: Record of the dataset.
        artifact_root: s3://bucket/prefix that payloads and records lie under.
        run_id: The run's ID.
        source: The table: a CSV file's path, http(s) URL or s3:// URI.
        fetch_profile: The platform's fetch profile for the table and the pictures.
        image_column: Column with the pictures' addresses: http(s), s3:// or relative to the table.
        product_column: Column that says which rows are the same product.
        currency_column: Column with the prices' currency; empty where there is none.
        decimal_mark: What separates decimals in prices, a point or a comma; empty to tell from each price.
        longest_side: Larger pictures are scaled down to this many pixels.
        validation_fraction: Share of the products held out for validation.
        test_fraction: Share of the products held out for the evaluation.
        seed: Another seed splits the products another way.
        min_rows: The fewest rows each split must have, where its share is not 0.
        max_rows: Only the table's first rows are read; 0 for all.
        concurrency: How many pictures are fetched at the same time.
    """
    from components.prepare_data.prepare import prepare_data_step
    from fovea.steps import RunContext, configure_logging

    configure_logging()
    prepare_data_step(
        RunContext(artifact_root=artifact_root, run_id=run_id),
        {
            "source": source,
            "fetch_profile": fetch_profile,
            "image_column": image_column,
            "product_column": product_column,
            "currency_column": currency_column,
            "decimal_mark": decimal_mark,
            "longest_side": longest_side,
            "validation_fraction": validation_fraction,
            "test_fraction": test_fraction,
            "seed": seed,
            "min_rows": min_rows,
            "max_rows": max_rows,
            "concurrency": concurrency,
        },
        dataset_record=dataset.path,
    )
