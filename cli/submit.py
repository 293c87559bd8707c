"""`fovea submit`: start a run on Kubeflow Pipelines."""

import os
from pathlib import Path
from typing import Annotated

import typer

_TOKEN = "KF_PIPELINES_TOKEN"  # noqa: S105 - a variable's name
_POD_TOKEN = Path("/var/run/secrets/kubeflow/pipelines/token")


def submit(
    endpoint: Annotated[
        str,
        typer.Option(
            help="The address of Kubeflow Pipelines' API.", metavar="URL", envvar="KF_PIPELINES_ENDPOINT"
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
    ] = "",
    token_file: Annotated[
        Path | None, typer.Option(help="A file with a bearer token, read anew for every request.")
    ] = None,
    cron: Annotated[
        str, typer.Option(help="Run again and again: six fields, '0 0 3 * * 1' is Mondays at three.")
    ] = "",
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow the run; end with 1 if it does not succeed.")
    ] = False,
) -> None:
    """Start a run on Kubeflow Pipelines, and print its link.

    The settings are checked first. The pipeline is uploaded unless this very version is there already.
    A token comes from --token-file, from the variable KF_PIPELINES_TOKEN, or, in a pod, from its projected
    volume.

    Example: fovea submit --endpoint http://localhost:8888 --settings mine.yaml

    Example: fovea submit --set source=s3://feeds/products.csv --cron "0 0 3 * * 1"
    """
    from fovea.errors import UserError
    from pipelines.settings import read_overrides, read_settings, validate_settings
    from pipelines.submit import Endpoint, Pipelines, Submission

    if wait and cron:
        raise UserError("--wait follows one run and --cron starts many; leave one of them out")
    given = {**(read_settings(settings) if settings else {}), **read_overrides(overrides or [])}
    parameters = validate_settings(given)
    token = os.environ.get(_TOKEN)
    if token_file is None and not token and _POD_TOKEN.is_file():
        token_file = _POD_TOKEN
    pipelines = Pipelines(
        Endpoint(host=endpoint, namespace=namespace, token=token or None, token_file=token_file)
    )
    submitted = pipelines.submit(
        Submission(run_name=name, parameters=parameters, service_account=service_account, cron=cron)
    )
    print(f"{'Uploaded' if submitted.uploaded else 'Found'} version {submitted.version} of the pipeline")
    print(f"{'Recurring run' if cron else 'Run'}: {submitted.link}")
    if wait:
        state = ""
        for task, state in pipelines.follow(submitted.identity):
            print(f"  {task}: {state.lower()}", flush=True)
        raise typer.Exit(0 if state == "SUCCEEDED" else 1)
