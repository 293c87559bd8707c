"""The graph: from a table of pictures to a model that answers, or to the reason why not.

What a task has no input for it does not know: everything that changes a result is a parameter, and what the
platform decides (addresses, credentials, which hosts may be fetched) is none.
"""

from collections.abc import Mapping
from typing import Any

from kfp import dsl

from components.deploy.component import deploy
from components.evaluate.component import evaluate, find_champion, report_evaluation
from components.gate.component import gate
from components.merge_adapter.component import merge_adapter
from components.prepare_data.component import prepare_data
from components.train_lora.component import train_lora
from pipelines.lifecycle.component import preflight, report_outcome, require

RUN_ID = dsl.PIPELINE_JOB_ID_PLACEHOLDER


def _task(component: Any, given: Mapping[str, Any], **own: Any) -> Any:
    """Make a task of a component: it gets the run's parameters of the same names, and ``own`` above them."""
    wanted = component.component_spec.inputs or {}
    shared = {name: value for name, value in {**given, "run_id": RUN_ID}.items() if name in wanted}
    # The steps' own index in S3 is the only cache: two would disagree.
    return component(**{**shared, **own}).set_caching_options(False)


@dsl.pipeline(name="fovea-finetune")  # type: ignore[untyped-decorator]
def finetune(
    artifact_root: str,
    base_model: str,
    source: str,
    experiment: str = "fovea",
    registered_model: str = "fovea",
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
    max_rows: int = 0,
    min_rows: int = 20,
    validation_fraction: float = 0.05,
    test_fraction: float = 0.1,
    seed: int = 0,
    split_name: str = "default",
    recheck_hours: int = 24,
    num_crops: int = 4,
    rank: int = 16,
    alpha: float = 32.0,
    dropout: float = 0.05,
    target_modules: str = "decoder",
    learning_rate: float = 1e-4,
    schedule: str = "cosine",
    warmup_ratio: float = 0.05,
    weight_decay: float = 0.0,
    epochs: float = 3.0,
    max_steps: int = 0,
    batch_size: int = 32,
    device_batch_size: int = 4,
    gradient_checkpointing: bool = True,
    compile: bool = False,  # noqa: A002
    precision: str = "auto",
    evaluation_steps: int = 0,
    answered_samples: int = 8,
    early_stopping: int = 0,
    keep: str = "last",
    checkpoint_minutes: float = 10.0,
    resume_from: str = "",
    max_samples: int = 0,
    generation_batch_size: int = 16,
    max_new_tokens: int = 64,
    calibration_samples: int = 500,
    min_samples: int = 200,
    min_parse_rate: float = 0.98,
    min_category_accuracy: float = 0.9,
    max_price_median_ape: float = 0.15,
    min_picture_reliance: float = 0.3,
    champion_margin: float = 0.03,
    gate_rules: str = "",
    on_refusal: str = "fail",
    service_name: str = "fovea",
    deploy_target: str = "local",
    kserve: str = "{}",
) -> None:
    """Fine-tune Phi-3-Vision on pictures of products, check the result, and deploy it if it is good.

    Args:
        artifact_root: Where everything the run makes is kept: s3://bucket/prefix.
        base_model: Record of the base model in S3: s3://…/index/import_model/….json.
        source: The products: CSV, JSON Lines or Parquet, a file, a folder or a pattern, at an http(s) URL or
            an s3:// URI; or a dataset of the hub, hf://owner/name@revision/configuration:split.
        experiment: MLflow experiment that the training is logged to.
        registered_model: Name of the model in MLflow's registry.
        fetch_profile: Which of the platform's fetch profiles pictures may be fetched under.
        image_column: Column with the pictures, or their addresses.
        title_column: Column with the products' titles.
        category_column: Column with their categories.
        price_column: Column with their prices.
        product_column: Column that says which rows are the same product; no product is in two splits.
        currency_column: Column with the prices' currency; empty where there is none.
        currencies: What to do with prices in several currencies: refuse the table, convert them by
            rate_column, or state the currency in the answer.
        rate_column: To convert: column with what one unit of the row's currency is worth in target_currency.
        target_currency: To convert: the currency of all prices then, such as EUR.
        decimal_mark: What separates decimals in prices: . or , ; empty to tell from each price.
        longest_side: Larger pictures are scaled down to this many pixels; a crop is 336.
        max_rows: Only the table's first rows are read; 0 for all.
        min_rows: The fewest rows each split must have.
        validation_fraction: Share of the products held out to watch the training.
        test_fraction: Share of the products held out for the evaluation.
        seed: Of the split and the training.
        split_name: Runs of the same split_name, seed and shares keep every product in the split it was in.
        recheck_hours: Pictures fetched less long ago are taken from the picture store without asking.
        num_crops: Crops a picture is cut into at most, 1 to 16, in training, evaluation and serving. The
            first lever on cost: 16 take 2509 tokens a picture, 4 take 757, 1 takes 313.
        rank: Rank of the LoRA matrices.
        alpha: LoRA scaling: the update is multiplied by alpha / rank.
        dropout: Dropout before the LoRA matrices.
        target_modules: What gets LoRA matrices: decoder, decoder+projector, decoder+tower or
            decoder+projector+tower.
        learning_rate: Peak learning rate.
        schedule: Of the learning rate: constant, linear or cosine.
        warmup_ratio: Share of the steps spent warming up.
        weight_decay: AdamW's weight decay.
        epochs: Passes over the training split.
        max_steps: Optimiser steps of the training, instead of epochs; 0 for epochs.
        batch_size: Examples an optimiser step; a multiple of device_batch_size.
        device_batch_size: Examples in a device's memory at once.
        gradient_checkpointing: Trade a third more work for less memory.
        compile: Compile the model with torch.compile before it is trained.
        precision: Of the training: auto (bfloat16 on a GPU, else float32), float32 or bfloat16.
        evaluation_steps: Training steps between evaluations on the validation split; 0 for one an epoch.
        answered_samples: Validation rows that are answered at each of these evaluations.
        early_stopping: End the training after so many evaluations without a better one; 0 for never.
        keep: Which adapter: last, best_loss (on the validation split) or best_answers.
        checkpoint_minutes: Minutes between a training's checkpoints; 0 for none but at SIGTERM.
        resume_from: Record of the checkpoint to go on from; empty for the newest of the same inputs.
        max_samples: Rows of the test split that the models are evaluated on; 0 for all.
        generation_batch_size: Pictures answered at once in the evaluation.
        max_new_tokens: Longest answer, in tokens.
        calibration_samples: Rows of the validation split that the confidences of a tuned model are calibrated
            on; 0 for none.
        min_samples: The gate asks for at least this many evaluated rows.
        min_parse_rate: The gate asks for this share of answers that can be read.
        min_category_accuracy: The gate asks for this share of right categories.
        max_price_median_ape: The gate asks for at most this median relative price error.
        min_picture_reliance: The gate asks for this fall in category accuracy with other products' pictures.
        champion_margin: The gate asks that the model is surely less than this behind the champion.
        gate_rules: Further rules of the gate, as YAML or the s3:// URI of one.
        on_refusal: Of the gate: fail the run, or end it as not deployed.
        service_name: Name of the deployed service.
        deploy_target: local, where the model is started and asked on the machine of the task; or kserve, an
            InferenceService that is rolled out beside the old model and gets traffic once it is verified.
        kserve: How the service is run and rolled out, as JSON: namespace, runtime, replicas, gpus, memory,
            node_selector, tolerations, rollout, traffic_steps and more.
    """
    given = dict(locals())
    with dsl.ExitHandler(_task(report_outcome, given), name="finetune"):
        checked = _task(preflight, given)
        base = checked.outputs["base"]
        prepared = _task(prepare_data, given, base=base)
        dataset = prepared.outputs["dataset"]
        trained = _task(train_lora, given, dataset=dataset, base=base)
        merged = _task(
            merge_adapter,
            given,
            adapter=trained.outputs["adapter"],
            base=base,
            registered_model_name=registered_model,
        )
        model = merged.outputs["model"]
        asking = {"dataset": dataset, "split": "test", "batch_size": generation_batch_size}
        # At the end of the training: another run may have deployed a model meanwhile.
        champion = _task(find_champion, given).after(merged).outputs["champion"]
        of_base = _task(evaluate, given, model=base, subject="base", **asking)
        of_base.set_display_name("evaluate-base")
        of_champion = _task(evaluate, given, model=champion, subject="champion", **asking)
        of_champion.set_display_name("evaluate-champion")
        of_tuned = _task(evaluate, given, model=model, subject="tuned", **asking)
        of_tuned.set_display_name("evaluate-tuned")
        judged = _task(
            gate,
            given,
            base=of_base.outputs["evaluation"],
            champion=of_champion.outputs["evaluation"],
            tuned=of_tuned.outputs["evaluation"],
            model=model,
        )
        reported = _task(
            report_evaluation,
            given,
            base=of_base.outputs["evaluation"],
            champion=of_champion.outputs["evaluation"],
            tuned=of_tuned.outputs["evaluation"],
            decision=judged.outputs["decision"],
            dataset=dataset,
            model=model,
        )
        # Both branches: kfp.local passes over a lone If on a named output without a word. And both after the
        # report: a run that is refused ends there.
        with dsl.If(judged.outputs["passed"] == True, name="passed"):  # noqa: E712
            deployed = _task(
                deploy,
                given,
                model=model,
                evaluation=of_tuned.outputs["evaluation"],
                dataset=dataset,
                decision=judged.outputs["decision"],
                target=deploy_target,
            ).after(reported)
            _task(
                require,
                given,
                passed=deployed.outputs["deployed"],
                reason=deployed.outputs["reason"],
                on_refusal="fail",
            )
        with dsl.Else(name="refused"):
            _task(require, given, passed=False, reason=judged.outputs["reason"]).after(reported)
