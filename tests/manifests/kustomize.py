"""Builds what lies under manifests/, as `kubectl apply -k` would."""

import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.left_out import Missing

MANIFESTS = Path(__file__).resolve().parents[2] / "manifests"
COMPONENTS = sorted(
    str(path.parent.relative_to(MANIFESTS))
    for path in (MANIFESTS / "components").glob("*/kustomization.yaml")
    if "kind: Component" in path.read_text()
)
OVERLAYS = ["overlays/dev", "overlays/production"]
ALL = ["base", *OVERLAYS, "components/gateway-auth", *COMPONENTS]

Object = dict[str, Any]


@cache
def build(name: str) -> tuple[Object, ...]:
    """The objects of a kustomization; of a component, those of the base with it."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip(Missing.KUBECTL)
    if name not in COMPONENTS:
        return _build(kubectl, MANIFESTS / name)
    with tempfile.TemporaryDirectory(prefix="fovea-manifests-") as folder:
        copy = Path(folder) / "manifests"
        shutil.copytree(MANIFESTS, copy)
        kustomization = {"resources": ["base"], "components": [name]}
        (copy / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return _build(kubectl, copy)


def _build(kubectl: str, folder: Path) -> tuple[Object, ...]:
    command = [kubectl, "kustomize", folder]
    built = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert built.returncode == 0, built.stderr
    return tuple(yaml.load_all(built.stdout, Loader=yaml.CSafeLoader))


def by_kind(objects: tuple[Object, ...], kind: str) -> dict[str, Object]:
    """The objects of a kind, by name."""
    return {each["metadata"]["name"]: each for each in objects if each["kind"] == kind}


def pod_specs(objects: tuple[Object, ...]) -> dict[str, Object]:
    """The pod specifications of the workloads, by kind and name."""
    found = {}
    for each in objects:
        match each["kind"]:
            case "Deployment" | "Job":
                pod = each["spec"]["template"]["spec"]
            case "CronJob":
                pod = each["spec"]["jobTemplate"]["spec"]["template"]["spec"]
            case "ServingRuntime":
                pod = each["spec"]
            case _:
                continue
        found[f"{each['kind']}/{each['metadata']['name']}"] = pod
    return found
