"""`fovea import-model`: bring a base model into S3."""

from typing import Annotated

import typer


def import_model_command(
    source: Annotated[str, typer.Argument(help="A folder, or owner/name@commit on the hub.")],
    to: Annotated[str, typer.Option(help="The artifact root that runs use: s3://bucket/prefix.")],
) -> None:
    """Bring a Phi-3-Vision checkpoint into S3, and print its record's URI: a run's base_model.

    Names, shapes and types of all tensors are checked, the digests of what comes from a hub, too.
    Python files and auto_map are left out. What is in S3 already is not uploaded again.

    S3 is found as AWS's own tools find it (AWS_ENDPOINT_URL_S3, AWS_ACCESS_KEY_ID, …), the hub as
    huggingface_hub does (HF_ENDPOINT, HF_TOKEN).

    Example: fovea import-model ./Phi-3-vision-128k-instruct --to s3://models/fovea
    """
    from cli.progress import showing_progress
    from fovea.models import import_model
    from fovea.steps import RunContext
    from fovea.storage import Storage, index_uri, split_uri

    split_uri(to)
    context = RunContext(artifact_root=to.rstrip("/"), run_id="import-model")
    with showing_progress() as show:
        record = import_model(
            source, context, Storage(), lambda done, total: show("uploading files", done, total)
        )
    size = sum(file.size for file in record.files)
    print(f"{record.architecture}, {len(record.files)} files, {size:,} bytes, num_crops {record.num_crops}")
    print(f"  digest: {record.digest}")
    print(f"  base_model: {index_uri(context.artifact_root, record.step, record.input_key)}")
