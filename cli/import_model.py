"""`fovea import-model`: import a base model into S3."""

from typing import Annotated

import typer


def import_model_command(
    source: Annotated[str, typer.Argument(help="A folder, or owner/name@commit on the hub.")],
    to: Annotated[str, typer.Option(help="The artifact root that runs use: s3://bucket/prefix.")],
) -> None:
    """Import a Phi-3-Vision checkpoint into S3 and print the URI of its record, for the setting base_model.

    Names, shapes and types of all tensors are checked, and the digests of files from a hub. Python files
    and auto_map are removed. Files that are already in S3 are not uploaded again.

    S3 is configured as for AWS's tools (AWS_ENDPOINT_URL_S3, AWS_ACCESS_KEY_ID, …), the hub as for
    huggingface_hub (HF_ENDPOINT, HF_TOKEN).

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
