"""The image: linted, selected, built for real where buildah is, and a whole pipeline run inside."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.left_out import Missing

REPOSITORY = Path(__file__).resolve().parents[2]
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()
STEPS = ("prepare_data", "train_lora", "merge_adapter", "evaluate", "gate", "deploy")


def test_both_targets_hold_the_same_code() -> None:
    stages = {stage.split("\n")[0].split()[-1]: stage for stage in ("\n" + DOCKERFILE).split("\nFROM ")[1:]}
    for target in ("cpu", "cuda"):
        lines = stages[target].splitlines()
        copied = [line.split()[1] for line in lines if line.startswith("COPY ") and "--from" not in line]
        assert copied == ["fovea", "sample", "components", "pipelines", "serving", "cli"]
        user = next(line for line in reversed(lines) if line.startswith("USER "))
        assert user == "USER 10001:0"
    from pipelines.cluster.settings import USER

    assert f"useradd --uid {USER} " in stages["base"]


def test_what_is_copied_is_in_the_build_context() -> None:
    lines = (REPOSITORY / ".dockerignore").read_text().split()
    let_in = {line[1:] for line in lines if line.startswith("!")}
    assert lines[0] == "*"
    copied = {
        word
        for line in DOCKERFILE.splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    }
    assert {word.removeprefix("./") for word in copied} == let_in


@pytest.mark.prove
def test_the_dockerfile_is_clean() -> None:
    hadolint = shutil.which("hadolint")
    if hadolint is None:
        pytest.skip(Missing.HADOLINT)
    linted = subprocess.run(
        [hadolint, REPOSITORY / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert linted.returncode == 0, linted.stdout


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The command that runs something in a container of the target `cpu`, built now."""
    missing = [name for name in ("buildah", "debootstrap") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(Missing.BUILDAH)
    base = os.environ.get("FOVEA_TEST_BASE_IMAGE") or _make_base()
    flags = _flags(base, tmp_path_factory.mktemp("image"))
    subprocess.run(
        [
            "make",
            "image",
            "BUILDER=buildah",
            "TARGET=cpu",
            "IMAGE=localhost/fovea-proof",
            f"IMAGE_FLAGS={flags}",
        ],
        cwd=REPOSITORY,
        check=True,
        timeout=1800,
    )
    name = _buildah("from", "--pull-never", "localhost/fovea-proof:cpu")
    yield ["buildah", "run", "--isolation", "chroot", name, "--"]
    _buildah("rm", name)


def _buildah(*arguments: object) -> str:
    command = ["buildah", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout.strip()


def _make_base() -> str:
    """Make a Debian with Python from its packages, where no registry can be asked."""
    name = _buildah("from", "scratch")
    root = _buildah("mount", name)
    packages = "python3,python3-venv,ca-certificates"
    command = ["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", root]
    subprocess.run(command, check=True, capture_output=True, timeout=900)
    _buildah("umount", name)
    _buildah("commit", "--quiet", name, "localhost/fovea-proof-base")
    _buildah("rm", name)
    return "localhost/fovea-proof-base"


def _flags(base: str, folder: Path) -> str:
    """What a build here takes: the base, and pip's configuration and authorities, which stay outside."""
    # Other indexes and folders of wheels, such as for torch without CUDA, come with pip's configuration.
    flags = [f"--isolation chroot --pull-never --build-arg BASE_IMAGE={base} --build-arg TORCH_INDEX="]
    configuration = ["[global]"]
    authorities = Path("/etc/ssl/certs/ca-certificates.crt")
    if authorities.exists():
        configuration.append(f"cert = {authorities}")
        flags.append(f"--volume {authorities}:{authorities}:ro")
    wheels = os.environ.get("PIP_FIND_LINKS", "")
    if wheels and Path(wheels).is_dir():
        configuration.append(f"find-links = {wheels}")
        flags.append(f"--volume {wheels}:{wheels}:ro")
    (folder / "pip.conf").write_text("\n".join(configuration) + "\n")
    flags.append(f"--volume {folder / 'pip.conf'}:/etc/pip.conf:ro")
    return " ".join(flags)


def run(container: list[str], *command: str, seconds: float = 120) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*container, *command], capture_output=True, text=True, check=False, timeout=seconds
    )


@pytest.mark.prove
@pytest.mark.timeout(3600)
def test_the_image_holds_what_it_needs_and_no_more(container: list[str]) -> None:
    assert run(container, "id", "-u").stdout == "10001\n"
    assert run(container, "sh", "-c", "touch $HOME/a && echo $HOME").stdout == "/home/fovea\n"
    assert run(container, "sh", "-c", "touch /app/a").returncode != 0
    for tool in ("pip", "setuptools"):
        assert run(container, "python", "-c", f"import {tool}").returncode != 0
    assert run(container, "sh", "-c", "command -v pip gcc make").stdout == ""
    assert run(container, "fovea", "--version").stdout.startswith("fovea ")
    for module in (*(f"components.{step}" for step in STEPS), "serving"):
        assert run(container, "python", "-m", module, "--help").returncode == 0, module


@pytest.mark.prove
@pytest.mark.timeout(3600)
def test_a_pipeline_runs_inside(container: list[str]) -> None:
    """The six steps and the server, from a catalogue to a model that answers."""
    ended = run(container, "fovea", "run", "--state", "/tmp/state", seconds=3000)  # noqa: S108 - in the image
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "The gate: passed" in ended.stdout
    assert "8 as in the evaluation" in ended.stdout
