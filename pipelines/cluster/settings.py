"""The pipeline for a cluster: the graph of `finetune`, with resources, volumes and configuration.

`finetune` defines the tasks without naming machines, so it runs anywhere. Here the tasks get an image by
digest, requests and limits, GPUs, volumes, configuration and permissions, from the platform's typed settings.
"""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from kfp import kubernetes
from kfp.dsl import pipeline_context
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from components.deploy.kserve_parameters import Toleration
from components.deploy.targets.cluster import API_KEYS, CREDENTIALS
from fovea.errors import UserError
from fovea.yaml_text import read_yaml
from pipelines.finetune import SUMMARY, build_graph, make_pipeline
from pipelines.form import describe_parameter, form_parameters, limits_of
from pipelines.settings import RunSettings

_QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"
_NAME = r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$"

Quantity = Annotated[str, Field(pattern=_QUANTITY)]
Name = Annotated[str, Field(pattern=_NAME)]
OptionalName = Annotated[str, Field(pattern=f"{_NAME}|^$")]

SCRATCH = "/scratch"
"""The folder for downloads and results of tasks."""

FEEDS = "/var/run/secrets/feeds"
"""The folder of the Secrets that fetch profiles read headers from."""

USER = 10001
"""The image's user."""

FIXED = {"deploy_target": "kserve"}
"""Settings with one value on a cluster: a model that is served in its task's pod cannot be reached."""


class Resources(BaseModel):
    """The resources and the time limit of a task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpu: Quantity
    """The request; ``cpu_limit`` is the limit."""
    cpu_limit: str = Field(default="", pattern=f"{_QUANTITY}|^$")
    """Empty for the request."""
    memory: Quantity
    """Request and limit: a task that uses more than its request can be killed."""
    hours: float = Field(default=1.0, gt=0, le=24 * 30)
    """A task that takes longer is stopped."""
    retries: int = Field(default=2, ge=0, le=10)
    """Retries after an error; a training resumes from its checkpoint."""


class Tasks(BaseModel):
    """The resources of each kind of task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    small: Resources = Resources(cpu="500m", cpu_limit="2", memory="2Gi", hours=1.0)
    """Preflight, gate and outcome."""
    prepare: Resources = Resources(cpu="4", memory="8Gi", hours=24.0)
    train: Resources = Resources(cpu="8", memory="64Gi", hours=96.0, retries=4)
    merge: Resources = Resources(cpu="4", memory="24Gi", hours=2.0)
    evaluate: Resources = Resources(cpu="8", memory="32Gi", hours=12.0)
    report: Resources = Resources(cpu="2", memory="8Gi", hours=2.0)
    """The evaluation's report."""
    deploy: Resources = Resources(cpu="500m", cpu_limit="2", memory="4Gi", hours=4.0, retries=1)


class Placement(BaseModel):
    """Parameters of a cluster's pipeline about its GPUs; the platform sets the defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    gpus: int = Field(default=1, ge=0, le=16)
    """GPUs of a training; 0 trains on the CPU."""
    evaluation_gpus: int = Field(default=1, ge=0, le=16)
    """GPUs of each evaluation, which uses one at most."""
    gpu_type: str = Field(default="nvidia.com/gpu", pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$")
    """Name of the resource that a GPU is."""
    gpu_node_selector: dict[str, str] = {}
    """Labels of the nodes for tasks with GPUs, as JSON."""
    gpu_tolerations: tuple[Toleration, ...] = ()
    """Taints that tasks with GPUs tolerate, as a JSON list of Kubernetes' tolerations."""

    @field_validator("gpu_node_selector", "gpu_tolerations", mode="before")
    @classmethod
    def _from_json(cls, value: Any) -> Any:
        """Accept JSON or YAML as text: a single setting on the command line is text."""
        return read_yaml(value or "null") or {} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.evaluation_gpus and not self.gpus:
            raise ValueError("gpus is 0, and evaluation_gpus is not; set both to 0 for the CPU")
        return self

    def arguments(self) -> dict[str, Any]:
        """Return the values as parameters of the pipeline.

        Numbers of GPUs are text: KFP's driver ignores a number there, and requests no GPU.
        """
        tolerations = [
            {key: value for key, value in each.model_dump().items() if value not in ("", None)}
            for each in self.gpu_tolerations
        ]
        counts = {"gpus": str(self.gpus), "evaluation_gpus": str(self.evaluation_gpus)}
        return {**self.model_dump(mode="json"), **counts, "gpu_tolerations": tolerations}


class ClusterSettings(Placement):
    """The platform's settings, which the pipeline is compiled with."""

    image: str = Field(pattern=r"^[a-z0-9][^\s@]*@sha256:[0-9a-f]{64}$")
    """By digest: KFP and nodes cache by name, and a tag can change."""
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    image_pull_secrets: tuple[Name, ...] = ()
    tasks: Tasks = Tasks()
    scratch: Quantity = "100Gi"
    """Disk space of a task that handles data or weights."""
    scratch_class: OptionalName = ""
    """The storage class of a volume made for each such task; empty for the node's own disk. KFP sets no
    fsGroup, so user 10001 or group 0 must be able to write to the volumes of the class."""
    shared_memory: Quantity = "8Gi"
    """Size of /dev/shm in tasks with GPUs; it counts as the task's memory."""
    services: Name = "fovea-services"
    """ConfigMap with the addresses of S3 and MLflow."""
    platform: Name = "fovea-platform"
    """ConfigMap with platform.yaml, see `fovea.platform`."""
    s3_secret: OptionalName = ""
    """Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; empty where the account has a role."""
    mlflow_secret: OptionalName = ""
    """Secret with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; empty without authentication."""
    feed_secrets: tuple[Name, ...] = ()
    """Secrets for fetch profiles' headers, each a folder of its name below /var/run/secrets/feeds."""
    deployer_secret: Name = "fovea-deployer-token"  # noqa: S105 - a name
    """Secret with the deployer's token, which the task `deploy` alone mounts."""
    api_keys_secret: OptionalName = ""
    """Secret with the server's API keys, of which `deploy` takes the one called deployer."""
    kueue_queue: OptionalName = ""
    """Kueue's LocalQueue for the tasks."""
    defaults: dict[str, Any] = {}
    """Settings of runs with other defaults on this platform, such as artifact_root."""

    @field_validator("defaults")
    @classmethod
    def _are_parameters(cls, defaults: dict[str, Any]) -> dict[str, Any]:
        fixed = sorted(set(defaults) & set(FIXED))
        if fixed:
            raise ValueError(f"{', '.join(fixed)} has one value on a cluster; leave it out")
        stand_ins = {"artifact_root": "s3://a", "base_model": "s3://a/b.json", "source": "a"}
        run = RunSettings.model_validate({**stand_ins, **defaults})
        valid = run.model_dump(mode="json", exclude_unset=True)
        return {name: valid[name] for name in defaults}

    @property
    def placement(self) -> Placement:
        """The defaults of the GPU parameters."""
        return Placement(**{name: getattr(self, name) for name in Placement.model_fields})


def read_cluster_settings(path: Path) -> ClusterSettings:
    """Read the platform's settings from a YAML file.

    Raises:
        UserError: it cannot be read, or names every field that is wrong.
    """
    try:
        content = read_yaml(path.read_text()) or {}
        return ClusterSettings.model_validate(content)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, each['loc']))}: {each['msg'].removeprefix('Value error, ')}".removeprefix(
                ": "
            )
            for each in error.errors()
        )
        raise UserError(f"{path}: {wrong}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error


def cluster_pipeline(settings: ClusterSettings) -> Any:
    """Return the pipeline for a cluster, whose tasks have the settings' resources."""
    placed = settings.placement.arguments()
    form = [each for each in form_parameters(settings.defaults) if each.name not in FIXED]
    placements = [
        inspect.Parameter(
            name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=type(value), default=value
        )
        for name, value in placed.items()
    ]

    def build(given: Mapping[str, Any]) -> None:
        build_graph({**given, **FIXED})
        for task in pipeline_context.Pipeline.get_default_pipeline().tasks.values():
            _equip(task, settings, {name: given[name] for name in placed})

    descriptions = {each.name: describe_parameter(each.name) for each in form}
    descriptions |= {name: _describe_placement(name) for name in placed}
    return make_pipeline(
        build, [*form, *placements], descriptions, _description([*form, *placements], descriptions)
    )


def _describe_placement(name: str) -> str:
    return " ".join((Placement.model_fields[name].description or "").split())


def _description(parameters: Sequence[inspect.Parameter], descriptions: Mapping[str, str]) -> str:
    """Return a description with a table of parameters: the form shows only names and types."""
    lines = ["| parameter | default | allowed | |", "|---|---|---|---|"]
    for each in sorted(parameters, key=lambda parameter: parameter.name):
        default = "" if each.default is inspect.Parameter.empty else f"`{each.default}`"
        lines.append(f"| `{each.name}` | {default} | {limits_of(each.name)} | {descriptions[each.name]} |")
    return SUMMARY + "\n\n" + "\n".join(lines)


def _equip(task: Any, settings: ClusterSettings, placed: Mapping[str, Any]) -> None:
    """Set a task's image, resources, configuration and volumes by its kind.

    Raises:
        TypeError: the task has no kind in `_KINDS`.
    """
    component = task.component_spec.name
    if component not in _KINDS:
        raise TypeError(f"{component}: say in pipelines.cluster.settings what kind of task it is")
    kind = _KINDS[component]
    _set_resources(task, getattr(settings.tasks, kind), retries=component != "require")
    task.set_container_image(settings.image)
    kubernetes.set_image_pull_policy(task, settings.image_pull_policy)
    if settings.image_pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(settings.image_pull_secrets))
    kubernetes.set_security_context(task, run_as_user=USER, run_as_group=0, run_as_non_root=True)
    kubernetes.add_pod_label(task, "app.kubernetes.io/part-of", "fovea")
    if settings.kueue_queue:
        kubernetes.add_pod_label(task, "kueue.x-k8s.io/queue-name", settings.kueue_queue)
    _configure(task, settings, kind)
    if kind in _HEAVY:
        _give_scratch(task, settings)
    if kind in _GPUS:
        _give_gpus(task, settings, placed, placed[_GPUS[kind]])


_KINDS = {
    "preflight": "small",
    "prepare-data": "prepare",
    "train-lora": "train",
    "merge-adapter": "merge",
    "find-champion": "small",
    "evaluate": "evaluate",
    "report-evaluation": "report",
    "gate": "small",
    "deploy": "deploy",
    "require": "small",
    "report-outcome": "small",
}
_HEAVY = {"prepare", "train", "merge", "evaluate", "report"}
_GPUS = {"train": "gpus", "evaluate": "evaluation_gpus"}


def _set_resources(task: Any, resources: Resources, *, retries: bool) -> None:
    task.set_cpu_request(resources.cpu).set_cpu_limit(resources.cpu_limit or resources.cpu)
    task.set_memory_request(resources.memory).set_memory_limit(resources.memory)
    kubernetes.set_timeout(task, round(resources.hours * 3600))
    # `require` fails on purpose: a retry would fail again.
    task.set_retry(
        resources.retries if retries else 0,
        backoff_duration="30s",
        backoff_factor=2.0,
        backoff_max_duration="600s",
    )


def _configure(task: Any, settings: ClusterSettings, kind: str) -> None:
    addresses = ("AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL_S3", "MLFLOW_TRACKING_URI")
    kubernetes.use_config_map_as_env(
        task, settings.services, {name: name for name in addresses}, optional=True
    )
    kubernetes.use_config_map_as_volume(task, settings.platform, "/etc/fovea", optional=True)
    for secret, names in (
        (settings.s3_secret, ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")),
        (settings.mlflow_secret, ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")),
    ):
        if secret:
            kubernetes.use_secret_as_env(task, secret, {name: name for name in names})
    if kind == "prepare":
        for secret in settings.feed_secrets:
            kubernetes.use_secret_as_volume(task, secret, f"{FEEDS}/{secret}")
    if kind == "deploy":
        kubernetes.use_secret_as_volume(task, settings.deployer_secret, str(CREDENTIALS))
        if settings.api_keys_secret:
            kubernetes.use_secret_as_volume(task, settings.api_keys_secret, str(API_KEYS))


def _give_scratch(task: Any, settings: ClusterSettings) -> None:
    if settings.scratch_class:
        kubernetes.add_ephemeral_volume(
            task,
            "scratch",
            SCRATCH,
            access_modes=["ReadWriteOnce"],
            size=settings.scratch,
            storage_class_name=settings.scratch_class,
        )
    else:
        kubernetes.empty_dir_mount(task, "scratch", SCRATCH, size_limit=settings.scratch)
    task.set_env_variable("FOVEA_CACHE", f"{SCRATCH}/cache")
    task.set_env_variable("TMPDIR", SCRATCH)


def _give_gpus(task: Any, settings: ClusterSettings, placed: Mapping[str, Any], count: Any) -> None:
    task.set_accelerator_type(placed["gpu_type"]).set_accelerator_limit(count)
    kubernetes.add_node_selector_json(task, placed["gpu_node_selector"])
    kubernetes.add_toleration_json(task, placed["gpu_tolerations"])
    shared = "/dev/shm"  # noqa: S108 - of the pod
    kubernetes.empty_dir_mount(task, "shm", shared, medium="Memory", size_limit=settings.shared_memory)
