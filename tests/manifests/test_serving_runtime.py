"""The ServingRuntime is one that KServe takes, and starts the server with options that it has."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from serving.__main__ import parse_arguments
from tests.left_out import Missing

REPOSITORY = Path(__file__).resolve().parents[2]
FILE = REPOSITORY / "manifests" / "base" / "serving-runtime.yaml"
DEFINITIONS = REPOSITORY.parent / "shared" / "envtest" / "crds" / "kserve"

RUNTIME = yaml.safe_load(FILE.read_text())
CONTAINER = RUNTIME["spec"]["containers"][0]


@pytest.mark.skipif(not DEFINITIONS.is_dir(), reason=Missing.KSERVE_CRDS)
def test_kserve_takes_it() -> None:
    documents = [
        document
        for path in sorted(DEFINITIONS.rglob("*.yaml"))
        if "servingruntimes.serving.kserve.io" in (text := path.read_text())
        for document in yaml.load_all(text, Loader=yaml.CSafeLoader)
    ]
    schema = next(
        version["schema"]["openAPIV3Schema"]
        for document in documents
        if document and document["metadata"]["name"] == "servingruntimes.serving.kserve.io"
        for version in document["spec"]["versions"]
    )
    Draft202012Validator(closed(schema)).validate(RUNTIME)


def closed(schema: Any) -> Any:
    """Refuse fields that the definition does not know: the API server would drop them in silence."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: closed(part) for name, part in schema.items()}
    preserved = schema.get("x-kubernetes-preserve-unknown-fields")
    if schema.get("type") == "object" and "properties" in schema and not preserved:
        found["additionalProperties"] = False
        if "kind" in schema["properties"] and "apiVersion" in schema["properties"]:
            found["properties"]["metadata"] = {"type": "object"}
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    return found


def test_the_server_has_these_options() -> None:
    assert CONTAINER["command"] == ["python", "-m", "serving"]
    settings = parse_arguments([*CONTAINER["args"], "--model-uri=s3://bucket/index/merge_adapter/x.json"])
    assert settings.port == CONTAINER["ports"][0]["containerPort"]
    assert settings.log_format == "json"
    assert settings.api_keys is None


def test_the_pod_may_do_little() -> None:
    security = CONTAINER["securityContext"]
    assert security["readOnlyRootFilesystem"]
    assert security["runAsNonRoot"]
    assert security["capabilities"] == {"drop": ["ALL"]}
