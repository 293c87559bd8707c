"""Submission to Kubeflow Pipelines: upload the pipeline once, start a run, and follow it.

The API is called through `kfp_server_api`, the generated client that `kfp.Client` wraps.
docs/decisions/0014 says why the wrapper is not used.
"""

import json
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import kfp_server_api as api
import urllib3
from pydantic import BaseModel, ConfigDict, SecretStr
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from fovea.errors import UserError
from fovea.parameters import parse_parameters
from pipelines.cluster.settings import FIXED, ClusterSettings, Placement
from pipelines.compile import compile_for_cluster, version_of
from pipelines.form import to_arguments
from pipelines.settings import RunSettings, read_overrides, read_settings, validate_settings

PIPELINE = "fovea-finetune"

_ATTEMPTS = 5
_POLL_SECONDS = 10.0
_TIMEOUT = (10, 60)
"""Seconds to connect and to answer. The client ignores a timeout that is a single float."""
_ENDED = {"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"}
_UNSENT = (urllib3.exceptions.HTTPError, OSError)


class Endpoint(BaseModel):
    """The address of Kubeflow Pipelines, and the user's credentials."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    """The address of its API, ``https://kubeflow.example.com/pipeline``."""
    namespace: str = ""
    """The profile's namespace in multi-user mode; empty otherwise."""
    token: SecretStr | None = None
    """A bearer token."""
    token_file: Path | None = None
    """A file with a bearer token, read for every request: a pod's projected token is renewed in place."""


class Submission(BaseModel):
    """A run to submit: its settings, and where its pods are placed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_name: str
    run: RunSettings
    cluster: ClusterSettings
    placement: Placement
    service_account: str = ""
    """The Kubernetes service account of the run's pods; empty for the installation's default."""
    cron: str = ""
    """The schedule of a recurring run, in six fields of which the first is seconds. Empty for one run now."""

    def arguments(self) -> dict[str, Any]:
        """Return the pipeline's arguments."""
        form = {name: value for name, value in to_arguments(self.run).items() if name not in FIXED}
        return {**form, **self.placement.arguments()}


def prepare(
    cluster: ClusterSettings, settings: Path | None, overrides: Sequence[str], **others: Any
) -> Submission:
    """Return a submission from the user's settings, which override the platform's defaults.

    Args:
        cluster: The platform's settings.
        settings: A YAML file of settings.
        overrides: Settings as ``name=value``.
        others: The other fields of `Submission`.

    Raises:
        UserError: names what is wrong.
    """
    names = Placement.model_fields.keys()
    given = {
        **cluster.defaults,
        **cluster.placement.arguments(),
        **(read_settings(settings, names) if settings else {}),
        **read_overrides(overrides, names),
    }
    for name, value in FIXED.items():
        if given.setdefault(name, value) != value:
            raise UserError(f"{name} = {given[name]!r}: on a cluster it is {value}; leave it out")
    return Submission(
        run=validate_settings({name: given[name] for name in given if name not in names}),
        placement=parse_parameters(Placement, {name: given[name] for name in names}, what="settings"),
        cluster=cluster,
        **others,
    )


@dataclass(frozen=True)
class Submitted:
    """A run or recurring run that was started: its ID, and its page in the UI."""

    identity: str
    link: str
    version: str
    uploaded: bool
    """Whether this version of the pipeline was uploaded now; False where it was found."""


class _ApiClient(api.ApiClient):  # type: ignore[misc]
    """A client whose requests have a timeout, without which a silent server is waited for without end."""

    def call_api(self, *arguments: Any, **options: Any) -> Any:
        return super().call_api(*arguments, **{**options, "_request_timeout": _TIMEOUT})


class Pipelines:
    """A client of Kubeflow Pipelines that retries, and yet uploads a version and starts a run only once."""

    def __init__(self, endpoint: Endpoint, wait: Callable[[float], None] = time.sleep) -> None:
        """Prepare to connect; ``wait`` takes the seconds to wait between attempts."""
        self._host = endpoint.host.rstrip("/")
        self._namespace = endpoint.namespace or None
        self._wait = wait
        client = _ApiClient(_configuration(endpoint))
        self._pipelines = api.PipelineServiceApi(client)
        self._uploads = api.PipelineUploadServiceApi(client)
        self._experiments = api.ExperimentServiceApi(client)
        self._runs = api.RunServiceApi(client)
        self._recurring_runs = api.RecurringRunServiceApi(client)

    def submit(self, submission: Submission) -> Submitted:
        """Upload the pipeline unless this version is there, and start a run or a recurring run.

        Raises:
            UserError: the endpoint refuses, or cannot be reached.
        """
        content = compile_for_cluster(submission.cluster)
        version = version_of(content)
        reference, uploaded = self._version(content, version)
        common = {
            # Unique, so that a run whose confirmation was lost is found by it.
            "display_name": f"{submission.run_name} {uuid.uuid4().hex[:6]}",
            "experiment_id": self._experiment(submission.run.experiment),
            "pipeline_version_reference": reference,
            "runtime_config": api.V2beta1RuntimeConfig(parameters=submission.arguments()),
            "service_account": submission.service_account or None,
        }
        if submission.cron:
            identity, page = self._start_recurring(submission.cron, common), "recurringrun"
        else:
            identity, page = self._start(common), "runs"
        return Submitted(identity, f"{self._host}/#/{page}/details/{identity}", version, uploaded)

    def follow(self, run_id: str) -> Iterator[tuple[str, str]]:
        """Yield each task's name and state when it changes, and at the end the run's, named ``run``.

        Raises:
            UserError: the endpoint refuses, or can no longer be reached. The run itself continues.
        """
        seen: dict[str, str] = {}
        while True:
            run = self._ask(lambda: self._runs.run_service_get_run(run_id))
            for task in (run.run_details and run.run_details.task_details) or []:
                if task.state and seen.get(task.task_id) != task.state:
                    seen[task.task_id] = task.state
                    yield task.display_name, task.state
            if run.state in _ENDED:
                yield "run", run.state
                return
            self._wait(_POLL_SECONDS)

    def _version(self, content: str, version: str) -> tuple[api.V2beta1PipelineVersionReference, bool]:
        """Return the version of the pipeline with this content, and whether it had to be uploaded."""
        pipeline_id = self._pipeline()
        versions = self._pipelines.pipeline_service_list_pipeline_versions
        find = partial(_find, versions, "pipeline_versions", version, pipeline_id=pipeline_id)

        def upload() -> Any:
            with tempfile.TemporaryDirectory(prefix="fovea-submit-") as folder:
                path = Path(folder) / "finetune.yaml"
                path.write_text(content)
                return self._uploads.upload_pipeline_version(str(path), name=version, pipelineid=pipeline_id)

        found = self._ask(find)
        made = found or self._once(find, upload)
        reference = api.V2beta1PipelineVersionReference(
            pipeline_id=pipeline_id, pipeline_version_id=made.pipeline_version_id
        )
        return reference, found is None

    def _pipeline(self) -> str:
        """Return the ID of the pipeline, which is created without a version where there is none."""
        pipelines = self._pipelines.pipeline_service_list_pipelines
        find = partial(_find, pipelines, "pipelines", PIPELINE, namespace=self._namespace)
        wanted = api.V2beta1Pipeline(display_name=PIPELINE, name=PIPELINE, namespace=self._namespace)
        create = partial(self._pipelines.pipeline_service_create_pipeline, wanted)
        return str((self._ask(find) or self._once(find, create)).pipeline_id)

    def _experiment(self, name: str) -> str:
        """Return the ID of the experiment, which is created where there is none."""
        experiments = self._experiments.experiment_service_list_experiments
        find = partial(_find, experiments, "experiments", name, namespace=self._namespace)
        wanted = api.V2beta1Experiment(display_name=name, namespace=self._namespace)
        create = partial(self._experiments.experiment_service_create_experiment, wanted)
        return str((self._ask(find) or self._once(find, create)).experiment_id)

    def _start(self, common: dict[str, Any]) -> str:
        name, experiment_id = common["display_name"], common["experiment_id"]
        find = partial(_find, self._runs.run_service_list_runs, "runs", name, experiment_id=experiment_id)
        create = partial(self._runs.run_service_create_run, api.V2beta1Run(**common))
        return str(self._once(find, create).run_id)

    def _start_recurring(self, cron: str, common: dict[str, Any]) -> str:
        name, experiment_id = common["display_name"], common["experiment_id"]
        runs = self._recurring_runs.recurring_run_service_list_recurring_runs
        find = partial(_find, runs, "recurring_runs", name, experiment_id=experiment_id)
        wanted = api.V2beta1RecurringRun(
            **common,
            trigger=api.V2beta1Trigger(cron_schedule=api.V2beta1CronSchedule(cron=cron)),
            max_concurrency="1",
            no_catchup=True,
            mode=api.RecurringRunMode.ENABLE,
        )
        create = partial(self._recurring_runs.recurring_run_service_create_recurring_run, wanted)
        return str(self._once(find, create).recurring_run_id)

    def _once(self, find: Callable[[], Any], create: Callable[[], Any]) -> Any:
        """Create an object. After an attempt that failed, look first whether it was created all the same."""
        tried = False

        def attempt() -> Any:
            nonlocal tried
            found = find() if tried else None
            tried = True
            try:
                return found or create()
            except api.ApiException as error:
                # Another client has created it in the meantime.
                if error.status == 409 and (found := find()):
                    return found
                raise

        return self._ask(attempt)

    def _ask(self, call: Callable[[], Any]) -> Any:
        """Call, and retry while the endpoint is out of order."""
        retrying = Retrying(
            stop=stop_after_attempt(_ATTEMPTS),
            wait=wait_random_exponential(multiplier=0.5, max=20),
            retry=retry_if_exception(_is_passing),
            sleep=self._wait,
            reraise=True,
        )
        try:
            return retrying(call)
        except api.ApiException as error:
            raise UserError(f"{self._host}: {_explain(error)}") from error
        except _UNSENT as error:
            raise UserError(
                f"{self._host}: cannot be reached ({_first_line(error)}); check --endpoint"
            ) from error
        except ValueError as error:
            raise UserError(
                f"{self._host}: does not answer as Kubeflow Pipelines does ({_first_line(error)}); "
                "check --endpoint"
            ) from error


def _configuration(endpoint: Endpoint) -> Any:
    configuration = api.Configuration()
    configuration.host = endpoint.host.rstrip("/")
    configuration.api_key_prefix["authorization"] = "Bearer"
    # `_ask` retries, since it first looks for what a request whose answer was lost has created.
    configuration.retries = False
    if endpoint.token is not None:
        configuration.api_key["authorization"] = endpoint.token.get_secret_value()
    if endpoint.token_file is not None:
        path = endpoint.token_file

        def refresh(configuration: Any) -> None:
            configuration.api_key["authorization"] = path.read_text().strip()

        if not path.is_file():
            raise UserError(f"{path}: there is no token file; mount it, or give --token-file")
        configuration.api_key["authorization"] = ""
        configuration.refresh_api_key_hook = refresh
    return configuration


def _is_passing(error: BaseException) -> bool:
    if isinstance(error, api.ApiException):
        return error.status in (429, 500, 502, 503, 504)
    return isinstance(error, _UNSENT)


def _explain(error: api.ApiException) -> str:
    told = _message(error)
    if error.status == 401:
        return f"the token is missing, expired or not known ({told}); get a new one"
    if error.status == 403:
        return f"this account may not do that ({told}); ask for rights in the namespace, or name it"
    if error.status == 404:
        return f"there is no such thing ({told}); check --endpoint and --namespace"
    return f"answers {error.status} ({told})"


def _message(error: api.ApiException) -> str:
    try:
        document = json.loads(error.body or "{}")
        told = str(document.get("message") or document.get("error_message") or error.reason)
    except (ValueError, AttributeError):
        told = str(error.reason)
    return " ".join(told.split())[:300]


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]


def _find(list_objects: Callable[..., Any], kind: str, name: str, **where: str | None) -> Any:
    """Return the object with this display name, or None; ``kind`` is the answer's list of objects."""
    predicate = {"operation": "EQUALS", "key": "display_name", "stringValue": name}
    found = getattr(list_objects(filter=json.dumps({"predicates": [predicate]}), **where), kind)
    return found[0] if found else None
