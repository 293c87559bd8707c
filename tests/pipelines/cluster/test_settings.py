"""What the compiled pipeline of a cluster asks for, mounts and may do: read from what KFP will read."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.deploy.targets.cluster import API_KEYS, CREDENTIALS
from fovea.errors import UserError
from pipelines.cluster import settings
from pipelines.cluster.settings import FIXED, ClusterSettings, Placement, read_cluster_settings
from pipelines.compile import compile_for_cluster, compile_resources, version_of
from pipelines.form import FLAT
from pipelines.form import SETTINGS as SETTINGS_TEXT

DIGEST = "sha256:" + "1" * 64
IMAGE = f"registry.example:5000/team/fovea@{DIGEST}"
SETTINGS = ClusterSettings(
    image=IMAGE,
    image_pull_secrets=("registry",),
    gpu_node_selector={"pool": "a100"},
    gpu_tolerations=({"key": "nvidia.com/gpu", "operator": "Exists"},),  # type: ignore[arg-type]
    s3_secret="fovea-s3",  # noqa: S106
    mlflow_secret="mlflow",  # noqa: S106
    feed_secrets=("feed",),
    api_keys_secret="fovea-api-keys",  # noqa: S106
    kueue_queue="fovea",
    defaults={"artifact_root": "s3://models/fovea", "kserve": {"gpus": 1}},
)
MANIFESTS = Path(__file__).resolve().parents[3] / "manifests"

HEAVY = {"prepare-data", "train-lora", "merge-adapter", "evaluate", "report-evaluation"}
SHARED = "/dev/shm"  # noqa: S108 - of the pod

Document = dict[str, Any]


@cache
def compiled_text() -> str:
    return compile_for_cluster(SETTINGS)


@pytest.fixture(scope="module")
def compiled() -> tuple[Document, Document]:
    """The specification and the platform's part."""
    text = compiled_text()
    spec, platform = yaml.load_all(text, Loader=yaml.CSafeLoader)
    return spec, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def containers(compiled: tuple[Document, Document]) -> dict[str, Document]:
    executors = compiled[0]["deploymentSpec"]["executors"]
    return {name: each["container"] for name, each in executors.items()}


def tasks(compiled: tuple[Document, Document]) -> dict[str, Document]:
    """Every task of the root and of what is inside it, by its own name."""
    spec = compiled[0]
    dags = [spec["root"], *spec["components"].values()]
    return {name: task for each in dags for name, task in each.get("dag", {}).get("tasks", {}).items()}


def leaves(compiled: tuple[Document, Document]) -> dict[str, Document]:
    spec = compiled[0]
    components = spec["components"]
    return {
        name: task
        for name, task in tasks(compiled).items()
        if "executorLabel" in components[task["componentRef"]["name"]]
    }


def kind(executor: str) -> str:
    return re.sub(r"^exec-|-\d+$", "", executor)


def test_every_task_has_requests_and_limits(compiled: tuple[Document, Document]) -> None:
    for name, container in containers(compiled).items():
        resources = container["resources"]
        for what in ("CpuRequest", "CpuLimit", "MemoryRequest", "MemoryLimit"):
            assert resources[f"resource{what}"], name
        assert resources["resourceMemoryRequest"] == resources["resourceMemoryLimit"], name


def test_every_task_has_the_image_by_digest(compiled: tuple[Document, Document]) -> None:
    spec, platform = compiled
    assert {container["image"] for container in containers(compiled).values()} == {IMAGE}
    assert spec["deploymentSpec"]["executors"].keys() == platform.keys()
    for name, each in platform.items():
        assert each["imagePullPolicy"] == "IfNotPresent", name
        assert [secret["secretName"] for secret in each["imagePullSecret"]] == ["registry"]


def test_every_task_ends_in_time_and_runs_as_a_numbered_user(compiled: tuple[Document, Document]) -> None:
    for name, each in compiled[1].items():
        assert 60 <= int(each["activeDeadlineSeconds"]) <= 30 * 24 * 3600, name
        assert each["securityContext"] == {"runAsUser": "10001", "runAsGroup": "0", "runAsNonRoot": True}
        assert each["podMetadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "fovea"


def test_every_task_is_tried_again_but_the_one_that_fails_on_purpose(
    compiled: tuple[Document, Document],
) -> None:
    for name, task in leaves(compiled).items():
        retry = task.get("retryPolicy", {})
        if name.startswith("require"):
            assert not retry.get("maxRetryCount")
        else:
            assert 1 <= retry["maxRetryCount"] <= 10, name
            assert retry["backoffDuration"] == "30s", name
            assert (retry["backoffFactor"], retry["backoffMaxDuration"]) == (2.0, "600s"), name


def test_nothing_is_cached(compiled: tuple[Document, Document]) -> None:
    for name, task in leaves(compiled).items():
        assert not task["cachingOptions"].get("enableCache"), name


def test_gpus_are_what_the_run_says(compiled: tuple[Document, Document]) -> None:
    spec, platform = compiled
    with_gpus = set()
    for name, container in containers(compiled).items():
        accelerator = container["resources"].get("accelerator")
        assert bool(accelerator) == (kind(name) in {"train-lora", "evaluate"}), name
        if accelerator is None:
            assert "nodeSelector" not in platform[name]
            continue
        with_gpus.add(name)
        own = platform[name]
        parameter = "componentInputParameter"
        assert own["nodeSelector"]["nodeSelectorJson"][parameter] == "pipelinechannel--gpu_node_selector"
        (toleration,) = own["tolerations"]
        assert toleration["tolerationJson"][parameter] == "pipelinechannel--gpu_tolerations"
        assert {"volumeName": "shm", "mountPath": SHARED, "medium": "Memory", "sizeLimit": "8Gi"} in own[
            "emptyDirMounts"
        ]
    assert {kind(name) for name in with_gpus} == {"train-lora", "evaluate"}
    trained = containers(compiled)["exec-train-lora"]["resources"]["accelerator"]
    assert trained["resourceCount"] == "{{$.inputs.parameters['pipelinechannel--gpus']}}"
    assert trained["resourceType"] == "{{$.inputs.parameters['pipelinechannel--gpu_type']}}"
    inputs = spec["root"]["inputDefinitions"]["parameters"]
    # KFP's driver takes a number there for nothing, and the pod gets no GPU.
    assert inputs["gpus"]["parameterType"] == "STRING"
    assert inputs["gpus"]["defaultValue"] == "1"
    assert inputs["gpu_node_selector"]["defaultValue"] == {"pool": "a100"}
    assert inputs["gpu_tolerations"]["defaultValue"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}]


def test_what_handles_weights_has_room(compiled: tuple[Document, Document]) -> None:
    for name, own in compiled[1].items():
        mounts = {mount["mountPath"]: mount for mount in own.get("emptyDirMounts", [])}
        environment = {each["name"]: each["value"] for each in containers(compiled)[name].get("env", [])}
        if kind(name) in HEAVY:
            assert mounts["/scratch"]["sizeLimit"] == "100Gi"
            assert environment == {"FOVEA_CACHE": "/scratch/cache", "TMPDIR": "/scratch"}
        else:
            assert not mounts
            assert not environment


def test_the_task_deploy_alone_has_the_deployers_token(compiled: tuple[Document, Document]) -> None:
    for name, own in compiled[1].items():
        mounted = {each["secretName"]: each["mountPath"] for each in own.get("secretAsVolume", [])}
        expected = {
            "deploy": {"fovea-deployer-token": str(CREDENTIALS), "fovea-api-keys": str(API_KEYS)},
            "prepare-data": {"feed": "/var/run/secrets/feeds/feed"},
        }
        assert mounted == expected.get(kind(name), {}), name
        assert {each["secretName"] for each in own["secretAsEnv"]} == {"fovea-s3", "mlflow"}
        assert [each["mountPath"] for each in own["configMapAsVolume"]] == ["/etc/fovea"]


def test_with_roles_and_a_storage_class() -> None:
    text = compile_for_cluster(ClusterSettings(image=IMAGE, scratch_class="gp3"))
    _, platform = yaml.load_all(text, Loader=yaml.CSafeLoader)
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for name, own in executors.items():
        assert "secretAsEnv" not in own
        assert ("secretAsVolume" in own) == (kind(name) == "deploy")
    (volume,) = executors["exec-merge-adapter"]["genericEphemeralVolume"]
    assert (volume["size"], volume["storageClassName"], volume["mountPath"]) == ("100Gi", "gp3", "/scratch")


def test_no_value_of_a_secret_and_no_switch_of_the_environment(compiled: tuple[Document, Document]) -> None:
    text = yaml.safe_dump_all(compiled)
    assert not re.search(r"AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY|password:|eyJ[A-Za-z0-9_-]{20}", text)
    for container in containers(compiled).values():
        assert {each["name"] for each in container.get("env", [])} <= {"FOVEA_CACHE", "TMPDIR"}


def test_every_if_has_its_else(compiled: tuple[Document, Document]) -> None:
    conditions = [
        task["triggerPolicy"]["condition"]
        for task in tasks(compiled).values()
        if "condition" in task.get("triggerPolicy", {})
    ]
    positive = {each for each in conditions if not each.startswith("!")}
    assert positive
    assert {f"!({each})" for each in positive} == set(conditions) - positive


def test_the_form_has_the_settings_and_the_placement(compiled: tuple[Document, Document]) -> None:
    spec, _ = compiled
    inputs = spec["root"]["inputDefinitions"]["parameters"]
    assert set(inputs) == {*FLAT, SETTINGS_TEXT, *Placement.model_fields} - set(FIXED)
    assert {name for name, each in inputs.items() if not each.get("isOptional")} == {"base_model", "source"}
    assert inputs["artifact_root"]["defaultValue"] == "s3://models/fovea"
    assert yaml.safe_load(inputs[SETTINGS_TEXT]["defaultValue"])["kserve"]["gpus"] == 1
    assert all(each["description"] for each in inputs.values())
    described = spec["pipelineInfo"]["description"]
    assert all(f"| `{name}` |" in described for name in inputs)
    # What is chosen on a cluster is chosen: a model in its task's own pod serves nobody.
    assert "constant: kserve" in yaml.safe_dump(spec)


def test_the_description_is_a_table_with_the_choices(compiled: tuple[Document, Document]) -> None:
    lines = compiled[0]["pipelineInfo"]["description"].splitlines()[2:]
    assert all(line.count(" | ") >= 3 or line.startswith("|---") for line in lines)
    assert any(line.startswith("| `num_crops` | `4` | ≥ 1 and ≤ 16 |") for line in lines)


def test_the_same_settings_give_the_same_bytes() -> None:
    assert compile_for_cluster(SETTINGS) == compiled_text()


def test_a_task_whose_kind_nobody_has_said_does_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(settings._KINDS, "gate")
    with pytest.raises(TypeError, match="gate: say in"):
        settings.cluster_pipeline(SETTINGS)


def test_custom_resources_hold_the_same_pipeline() -> None:
    text = compile_resources(SETTINGS, namespace="shop")
    pipeline, version = yaml.load_all(text, Loader=yaml.CSafeLoader)
    spec, platform = yaml.load_all(compiled_text(), Loader=yaml.CSafeLoader)
    assert (pipeline["kind"], version["kind"]) == ("Pipeline", "PipelineVersion")
    name = "fovea-finetune"
    assert version["spec"]["pipelineName"] == pipeline["metadata"]["name"] == name
    # A version cannot be changed, so that another content is another version.
    assert version["metadata"] == {"name": f"{name}-{version_of(compiled_text())}", "namespace": "shop"}
    assert version["spec"]["pipelineSpec"] == spec
    assert version["spec"]["platformSpec"] == platform


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("image: fovea:latest", "image: String should match pattern"),
        (f"image: {IMAGE}\ngpus: 0", "set both to 0 for the CPU"),
        (f"image: {IMAGE}\ngpu: 1", "gpu: Extra inputs are not permitted"),
        (f"image: {IMAGE}\ntasks: {{train: {{cpu: 8, memory: lots}}}}", "tasks.train.memory"),
        (f"image: {IMAGE}\ndefaults: {{deploy_target: local}}", "deploy_target has one value on a cluster"),
        (f"image: {IMAGE}\ndefaults: {{num_crops: 99}}", "num_crops"),
        ("image: [", "cannot be read"),
    ],
)
def test_wrong_settings_are_named(content: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=re.escape(told)) as error:
        read_cluster_settings(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_missing_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_cluster_settings(tmp_path / "missing.yaml")


@pytest.mark.parametrize("path", sorted(MANIFESTS.rglob("cluster.yaml")), ids=lambda path: path.parent.name)
def test_the_settings_beside_the_manifests_are_read(path: Path) -> None:
    settings = read_cluster_settings(path)
    if path.parent.name == "production":
        assert settings.image.partition("@")[2] in (path.parent / "kustomization.yaml").read_text()
