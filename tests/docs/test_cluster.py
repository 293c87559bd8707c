"""What the pages for a cluster say: marked where they need one, and true where they do not."""

import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from cli.main import app
from components.deploy.kserve_parameters import KServeParameters
from pipelines.cluster.doctor import Examination
from pipelines.cluster.settings import ClusterSettings, Tasks
from tests.docs.pages import REPOSITORY, blocks
from tests.manifests.kustomize import COMPONENTS, MANIFESTS

CLUSTER = REPOSITORY / "docs" / "cluster.md"
SECURITY = REPOSITORY / "docs" / "security.md"
TEXT = CLUSTER.read_text()


def test_every_command_is_run_here_or_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block says first what it needs; one that needs nothing is run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "manifests").symlink_to(MANIFESTS)
    run = 0
    for block in [*blocks(CLUSTER, "sh"), *blocks(SECURITY, "sh")]:
        if re.match(r"# needs (a cluster|a container builder|S3|MinIO)", block):
            continue
        for line in block.splitlines():
            command, *words = line.split()
            assert command == "fovea", line
            result = CliRunner().invoke(app, words)
            assert result.exit_code == 0, (line, result.output, result.exception)
            run += 1
    assert run == 2
    assert {path.name for path in tmp_path.iterdir()} > {"fovea-finetune.yaml", "pipeline.yaml"}


def test_paths_that_are_named_are_there() -> None:
    named = re.findall(r"manifests/[\w/.-]*\w", TEXT + SECURITY.read_text())
    assert len(named) > 5
    for path in named:
        assert (REPOSITORY / path).exists(), path


def test_every_component_is_in_the_table() -> None:
    table = TEXT.partition("### The components")[2].partition("\n### ")[0]
    rows = set(re.findall(r"^\| `([a-z0-9-]+)` \|", table, re.MULTILINE))
    assert rows == {path.name for path in (MANIFESTS / "components").iterdir()}
    assert {f"components/{name}" for name in rows} >= set(COMPONENTS)


def test_the_example_of_cluster_yaml_is_read() -> None:
    example, launcher = map(yaml.safe_load, blocks(CLUSTER, "yaml"))
    settings = ClusterSettings.model_validate(example)
    assert settings.tasks.train.hours == 48
    assert KServeParameters.model_validate(settings.defaults["kserve"]).gpus == 1
    assert yaml.safe_load(launcher["data"]["providers"])["s3"]["default"]["credentials"] == {"fromEnv": True}


def test_the_table_of_cluster_yaml_is_whole() -> None:
    table = TEXT.partition("### cluster.yaml")[2].partition("## Runs")[0]
    named = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| ([^|]*)\|", table, re.MULTILINE))))
    assert named == set(ClusterSettings.model_fields) - {"tasks"}
    (kinds,) = re.findall(r"`tasks\.\{([\w,]+)\}`", table)
    assert set(kinds.split(",")) == set(Tasks.model_fields)
    for name, stated in re.findall(r"^\| `(\w+)` \| `([\w./-]+)` \|", table, re.MULTILINE):
        assert str(ClusterSettings.model_fields[name].default) == stated, name


def test_what_the_runbook_quotes_is_said_somewhere() -> None:
    """Messages of this project's own, word for word."""
    table = TEXT.partition("## By symptom")[2]
    sources = "".join(
        path.read_text()
        for folder in ("cli", "pipelines", "components", "fovea", "serving")
        for path in (REPOSITORY / folder).rglob("*.py")
    )
    sources = re.sub(r'"\s*\n\s*f?"', "", sources)
    own = (
        "this account may not do that",
        "the token is missing, expired or not known",
        "S3 refuses access",
        "a task stopped without an error message",
        "the API server does not know the deployer's token",
    )
    for message in own:
        assert message in table
        assert message in sources, message
    for what in ("GPUs to train", "Secret", "services", "platform"):
        assert f"*{what}" in table
        assert f'"{what}"' in Path(Examination.findings.__code__.co_filename).read_text()
