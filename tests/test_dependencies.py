"""pyproject.toml declares what the code imports, in the group that is installed with it."""

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
MAKEFILE = (REPOSITORY / "Makefile").read_text()
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
OWN: dict[str, tuple[str, ...]] = {
    "fovea": ("fetch", "pages", "storage", "tracking", "training"),
    "sample": (),
}
OWN |= dict.fromkeys(("cli", "components", "pipelines", "serving"), ("platform",))
OWN |= dict.fromkeys(("benchmarks", "tests", "tools"), ("platform", "dev"))
"""The packages here, and the groups of dependencies that each may use."""


def normal(name: str) -> str:
    """A distribution's name as PEP 503 writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(groups: tuple[str, ...]) -> set[str]:
    requirements = [*PROJECT["dependencies"], *(each for group in groups for each in required_by(group))]
    return {normal(re.split(r"[^\w.-]", each, maxsplit=1)[0]) for each in requirements}


def required_by(group: str) -> list[str]:
    """The requirements of a group, with those of the groups that it names as ``fovea[…]``."""
    found = []
    for each in PROJECT["optional-dependencies"][group]:
        others = re.fullmatch(r"fovea\[([\w,-]+)\]", each)
        found += [own for other in others[1].split(",") for own in required_by(other)] if others else [each]
    return found


def imported(file: Path) -> set[str]:
    """The top-level packages that a file imports, at its top or in a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module or "")
    return {name.partition(".")[0] for name in names}


@cache
def distributions() -> dict[str, set[str]]:
    """Which distributions hold a top-level package."""
    return {name: set(map(normal, held)) for name, held in packages_distributions().items()}


@pytest.mark.parametrize("package", OWN)
def test_every_import_is_declared(package: str) -> None:
    may = declared(OWN[package])
    missing = {
        f"{name} in {file.relative_to(REPOSITORY)}"
        for file in (REPOSITORY / package).rglob("*.py")
        for name in imported(file) - set(sys.stdlib_module_names) - set(OWN)
        if not distributions().get(name, {name}) & may
    }
    assert not missing


def test_the_python_versions_that_are_promised_are_tested() -> None:
    promised = [each.rsplit(" :: ")[-1] for each in PROJECT["classifiers"] if "Python :: 3." in each]
    assert PROJECT["requires-python"] == f">={promised[0]}"
    workflow = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "ci.yml").read_text())
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == promised
    looked_for = re.findall(r"\bpython(3\.\d+)\b", re.findall(r"^PYTHON \?=.*\n", MAKEFILE, re.MULTILINE)[0])
    assert sorted(looked_for) == promised


def test_groups_are_told_apart() -> None:
    assert {"torch", "transformers"} <= declared(())
    assert not {"kfp", "mlflow", "boto3", "jinja2", "httpcore"} & declared(())
    assert {"kfp", "moto", "torch"} <= declared(("platform", "dev"))


def test_the_bare_library_has_the_model_and_needs_no_server_or_store() -> None:
    """Packages of the extras are hidden from an import of what ``pip install fovea`` is for."""
    hidden = [
        "mlflow",
        "boto3",
        "botocore",
        "jinja2",
        "pynvml",
        "peft",
        "pyarrow",
        "sklearn",
        "kfp",
        "kserve",
    ]
    assert not {name for package in hidden for name in distributions().get(package, set())} & declared(())
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({hidden!r})); "
        "import fovea.phi3v, fovea.task, fovea.inference"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
