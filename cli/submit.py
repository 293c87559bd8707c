"""`fovea submit`: start a run on Kubeflow Pipelines."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipelines.cluster.submit import Submission

_TOKEN = "KF_PIPELINES_TOKEN"  # noqa: S105 - a variable's name
_POD_TOKEN = Path("/var/run/secrets/kubeflow/pipelines/token")


def submit(
    endpoint: Annotated[
        str,
        typer.Option(
            help="The address of Kubeflow Pipelines' API.", metavar="URL", envvar="KF_PIPELINES_ENDPOINT"
        ),
    ],
    cluster: Annotated[
        Path,
        typer.Option(
            help="What the platform decides: image, GPUs, resources, Secrets.",
            metavar="FILE",
            envvar="FOVEA_CLUSTER",
        ),
    ],
    settings: Annotated[
        Path | None, typer.Option(help="A YAML file of settings, lines of 'name: value'.", metavar="FILE")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="One setting; may be repeated.", metavar="NAME=VALUE")
    ] = None,
    name: Annotated[str, typer.Option(help="What the run is called in the UI.")] = "fovea-finetune",
    namespace: Annotated[
        str, typer.Option(help="The profile's namespace, where Kubeflow has several users.")
    ] = "",
    service_account: Annotated[
        str, typer.Option(help="The Kubernetes service account that the run's pods have.")
    ] = "fovea-pipeline",
    token_file: Annotated[
        Path | None, typer.Option(help="A file with a bearer token, read again for every request.")
    ] = None,
    cron: Annotated[
        str, typer.Option(help="Run again and again: six fields, '0 0 3 * * 1' is Mondays at three.")
    ] = "",
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow the run; end with 1 if it does not succeed.")
    ] = False,
    look: Annotated[
        int, typer.Option(help="Rows of the table to look at, to estimate the hours; 0 for none.", min=0)
    ] = 20,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it will need, and start nothing.")
    ] = False,
) -> None:
    """Start a run on Kubeflow Pipelines, and print what it will need and its link.

    The settings are checked first. The pipeline is uploaded unless this version is there already.
    Besides a run's settings there are gpus, evaluation_gpus, gpu_type, gpu_node_selector, gpu_tolerations.
    A token comes from --token-file, from the variable KF_PIPELINES_TOKEN, or, in a pod, from its projected
    volume.

    Example: fovea submit --endpoint http://localhost:8888 --cluster cluster.yaml --settings mine.yaml

    Example: fovea submit --set source=s3://feeds/products.csv --set gpus=2 --cron "0 0 3 * * 1"
    """
    from fovea.errors import UserError
    from pipelines.cluster.settings import read_cluster_settings
    from pipelines.cluster.submit import Endpoint, Pipelines, prepare

    if wait and (cron or dry_run):
        raise UserError("--wait follows one run, which --cron and --dry-run do not start; leave one out")
    submission = prepare(
        read_cluster_settings(cluster),
        settings,
        overrides or [],
        run_name=name,
        service_account=service_account,
        cron=cron,
    )
    _print_needs(submission, look)
    if dry_run:
        return
    token = os.environ.get(_TOKEN)
    if token_file is None and not token and _POD_TOKEN.is_file():
        token_file = _POD_TOKEN
    pipelines = Pipelines(
        Endpoint(host=endpoint, namespace=namespace, token=token or None, token_file=token_file)
    )
    submitted = pipelines.submit(submission)
    print(f"{'Uploaded' if submitted.uploaded else 'Found'} version {submitted.version} of the pipeline")
    print(f"{'Recurring run' if cron else 'Run'}: {submitted.link}")
    if wait:
        state = ""
        for task, state in pipelines.follow(submitted.identity):
            print(f"  {task}: {state.lower()}", flush=True)
        raise typer.Exit(0 if state == "SUCCEEDED" else 1)


def _print_needs(submission: "Submission", rows: int) -> None:
    from pipelines.cluster.needs import describe, describe_training, needs_of

    lines = describe(needs_of(submission.run, submission.placement, submission.cluster))
    if rows:
        lines += describe_training(submission.run, rows)
    print("What it will need")
    for line in lines:
        print(f"  {line}", flush=True)
