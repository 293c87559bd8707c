"""Types made of the published OpenAPI document, as the page says: they hold, in TypeScript and in Python."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.left_out import Missing

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "application-developer.md").read_text()

USE = """
import type { components } from "./fovea";

type Schemas = components["schemas"];
export const request: Schemas["PredictRequest"] = { instances: [{ image: { b64: "" } }] };
export const read = (response: Schemas["PredictResponse"]): (string | null)[] =>
  response.predictions.map((each) => each.text ?? each.error ?? null);
"""


def command(tool: str) -> list[str]:
    """How the page calls ``tool``."""
    (line,) = re.findall(rf"^.*{tool} .*openapi\.json.*$", PAGE, re.MULTILINE)
    return str(line).split()


def run(arguments: list[str], folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=600)


def installed(arguments: list[str], folder: Path) -> None:
    result = run(arguments, folder)
    if result.returncode:
        pytest.skip(f"{Missing.PACKAGES}; {arguments[0]} says: {result.stderr[-200:]}")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    shutil.copy(REPOSITORY / "docs" / "openapi.json", tmp_path / "docs")
    return tmp_path


@pytest.mark.prove
@pytest.mark.skipif(not shutil.which("npm"), reason=Missing.NPM)
def test_typescript(place: Path) -> None:
    installed(["npm", "install", "--silent", "openapi-typescript@7", "typescript@5"], place)
    made = run(command("openapi-typescript"), place)
    assert made.returncode == 0, made.stderr
    check = ["node_modules/.bin/tsc", "--noEmit", "--strict"]
    (place / "right.ts").write_text(USE)
    found = run([*check, "right.ts"], place)
    assert found.returncode == 0, found.stdout
    (place / "wrong.ts").write_text(USE.replace("b64:", "base64:"))
    assert "'base64' does not exist" in run([*check, "wrong.ts"], place).stdout


@pytest.mark.prove
def test_python(place: Path) -> None:
    installed([sys.executable, "-m", "venv", "tools"], place)
    installed(["tools/bin/pip", "install", "-q", "datamodel-code-generator"], place)
    name, *options = command("datamodel-codegen")
    made = run([f"tools/bin/{name}", *options], place)
    assert made.returncode == 0, made.stderr
    spec = importlib.util.spec_from_file_location("fovea_types", place / "fovea_types.py")
    assert spec is not None
    assert spec.loader is not None
    types = importlib.util.module_from_spec(spec)
    sys.modules["fovea_types"] = types
    spec.loader.exec_module(types)
    request = types.PredictRequest.model_validate({"instances": [{"image": {"b64": ""}}]})
    assert json.loads(request.model_dump_json(exclude_none=True))["instances"] == [{"image": {"b64": ""}}]
    with pytest.raises(ValidationError, match="base64"):
        types.PredictRequest.model_validate({"instances": [{"image": {"base64": ""}}]})
