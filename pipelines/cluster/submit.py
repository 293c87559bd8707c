"""Submit the pipeline to Kubeflow Pipelines: upload it once, start a run, follow it.

This speaks to the API through `kfp_server_api`, which `kfp.Client` wraps: the wrapper reads a context file of
the user's, prints, and waits half a minute with stack traces where nothing answers.
"""

import json
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
_TIMEOUT_SECONDS = 60.0
_ENDED = {"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"}
_UNSENT = (urllib3.exceptions.HTTPError, OSError)


class Endpoint(BaseModel):
    """Where Kubeflow Pipelines is, and who asks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    """The address of its API, ``https://kubeflow.example.com/pipeline``."""
    namespace: str = ""
    """The profile's namespace in multi-user mode; empty otherwise."""
    token: SecretStr | None = None
    """A bearer token."""
    token_file: Path | None = None
    """A file with one that is renewed there, as a pod's projected token is."""


class Submission(BaseModel):
    """What is submitted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_name: str
    run: RunSettings
    cluster: ClusterSettings
    placement: Placement
    service_account: str = ""
    """The Kubernetes service account of the run's pods; empty for the installation's default."""
    cron: str = ""
    """For a recurring run: when, in six fields of which the first is seconds. Empty for one run now."""

    def arguments(self) -> dict[str, Any]:
        """Return the pipeline's arguments."""
        form = {name: value for name, value in to_arguments(self.run).items() if name not in FIXED}
        return {**form, **self.placement.arguments()}


def prepare(
    cluster: ClusterSettings, settings: Path | None, overrides: Sequence[str], **others: Any
) -> Submission:
    """Return a submission from settings as people give them, above the platform's defaults.

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
    """What came of a submission: a run's or a recurring run's ID, and where a browser finds it."""

    identity: str
    link: str
    version: str
    uploaded: bool
    """Whether this version of the pipeline was uploaded now, and not there before."""


class Pipelines:
    """Kubeflow Pipelines as this project uses it; what is asked twice is done once."""

    def __init__(self, endpoint: Endpoint, wait: Callable[[float], None] = time.sleep) -> None:
        """Prepare to connect; ``wait`` takes the seconds to wait between attempts."""
        self._host = endpoint.host.rstrip("/")
        self._namespace = endpoint.namespace or None
        self._wait = wait
        client = api.ApiClient(_configuration(endpoint))
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
        # A name of its own, by which a run is known again whose confirmation was lost on the way.
        common = {
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
            UserError: the endpoint refuses, or cannot be reached any more; the run goes on without.
        """
        seen: dict[str, str] = {}
        while True:
            run = self._ask(lambda: _timed(self._runs.run_service_get_run, run_id))
            for task in (run.run_details and run.run_details.task_details) or []:
                if task.state and seen.get(task.task_id) != task.state:
                    seen[task.task_id] = task.state
                    yield task.display_name, task.state
            if run.state in _ENDED:
                yield "run", run.state
                return
            self._wait(_POLL_SECONDS)

    def _version(self, content: str, version: str) -> tuple[api.V2beta1PipelineVersionReference, bool]:
        """Return the version of the pipeline that has this content, and whether it had to be uploaded."""

        def find() -> Any:
            return _first(
                _timed(
                    self._pipelines.pipeline_service_list_pipeline_versions,
                    pipeline_id,
                    filter=_named(version),
                ).pipeline_versions
            )

        pipeline_id = self._pipeline()
        made = self._ask(find)
        uploaded = made is None
        if made is None:
            with tempfile.TemporaryDirectory(prefix="fovea-submit-") as folder:
                path = Path(folder) / "finetune.yaml"
                path.write_text(content)
                made = self._once(
                    find,
                    lambda: _timed(
                        self._uploads.upload_pipeline_version, str(path), name=version, pipelineid=pipeline_id
                    ),
                )
        reference = api.V2beta1PipelineVersionReference(
            pipeline_id=pipeline_id, pipeline_version_id=made.pipeline_version_id
        )
        return reference, uploaded

    def _pipeline(self) -> str:
        """Return the ID of the pipeline; an empty one is made where there is none."""
        wanted = api.V2beta1Pipeline(display_name=PIPELINE, name=PIPELINE, namespace=self._namespace)
        found = self._find_or_make(
            lambda: _first(
                _timed(
                    self._pipelines.pipeline_service_list_pipelines,
                    namespace=self._namespace,
                    filter=_named(PIPELINE),
                ).pipelines
            ),
            lambda: _timed(self._pipelines.pipeline_service_create_pipeline, wanted),
        )
        return str(found.pipeline_id)

    def _experiment(self, name: str) -> str:
        wanted = api.V2beta1Experiment(display_name=name, namespace=self._namespace)
        found = self._find_or_make(
            lambda: _first(
                _timed(
                    self._experiments.experiment_service_list_experiments,
                    namespace=self._namespace,
                    filter=_named(name),
                ).experiments
            ),
            lambda: _timed(self._experiments.experiment_service_create_experiment, wanted),
        )
        return str(found.experiment_id)

    def _start(self, common: dict[str, Any]) -> str:
        made = self._once(
            lambda: _first(
                _timed(
                    self._runs.run_service_list_runs,
                    experiment_id=common["experiment_id"],
                    filter=_named(common["display_name"]),
                ).runs
            ),
            lambda: _timed(self._runs.run_service_create_run, api.V2beta1Run(**common)),
        )
        return str(made.run_id)

    def _start_recurring(self, cron: str, common: dict[str, Any]) -> str:
        wanted = api.V2beta1RecurringRun(
            **common,
            trigger=api.V2beta1Trigger(cron_schedule=api.V2beta1CronSchedule(cron=cron)),
            max_concurrency="1",
            no_catchup=True,
            mode=api.RecurringRunMode.ENABLE,
        )
        made = self._once(
            lambda: _first(
                _timed(
                    self._recurring_runs.recurring_run_service_list_recurring_runs,
                    experiment_id=common["experiment_id"],
                    filter=_named(common["display_name"]),
                ).recurring_runs
            ),
            lambda: _timed(self._recurring_runs.recurring_run_service_create_recurring_run, wanted),
        )
        return str(made.recurring_run_id)

    def _find_or_make(self, find: Callable[[], Any], make: Callable[[], Any]) -> Any:
        return self._ask(find) or self._once(find, make)

    def _once(self, find: Callable[[], Any], make: Callable[[], Any]) -> Any:
        """Make something; after an attempt that failed, look first whether it was made all the same."""
        tried = False

        def attempt() -> Any:
            nonlocal tried
            found = find() if tried else None
            tried = True
            try:
                return found or make()
            except api.ApiException as error:
                # Somebody else was quicker.
                if error.status == 409 and (found := find()):
                    return found
                raise

        return self._ask(attempt)

    def _ask(self, call: Callable[[], Any]) -> Any:
        """Call, and again where the endpoint was out of order for a moment."""
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
    # Attempts are counted here, where what was made by a lost request is looked for.
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


def _timed(method: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    # Without this a call to a server that is silent would never end.
    return method(*arguments, **named, _request_timeout=_TIMEOUT_SECONDS)


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


def _named(name: str) -> str:
    predicate = {"operation": "EQUALS", "key": "display_name", "stringValue": name}
    return json.dumps({"predicates": [predicate]})


def _first(found: list[Any] | None) -> Any:
    return found[0] if found else None
