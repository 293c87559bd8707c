"""`fovea doctor`: what is here, what is missing, and what to do about it."""

import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cluster.findings import Finding

_CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"
_NEEDED_DISK = 4e9
_NEEDED_MEMORY = 4e9
_SERVICE_PORT = 8080
_NEEDED_PACKAGES = (
    "accelerate", "boto3", "datasets", "httpx", "kfp", "kserve", "mlflow", "numpy", "peft", "pillow",
    "pyarrow", "pydantic", "torch", "transformers", "typer",
)  # fmt: skip


def doctor(
    state: Annotated[Path, typer.Option(help="The folder of local runs.", metavar="DIR")] = Path(".fovea"),
    cluster: Annotated[
        Path | None,
        typer.Option(
            help="Look at a cluster instead, for runs with these settings of the platform.", metavar="FILE"
        ),
    ] = None,
    namespace: Annotated[
        str, typer.Option(help="With --cluster: where runs will be; else the context's.")
    ] = "",
    artifact_root: Annotated[
        str, typer.Option(help="With --cluster: where runs will keep their artifacts.", metavar="URI")
    ] = "",
) -> None:
    """Look at what a run needs: what is here, what is missing, what to do. Ends with 1 if something is.

    Example: fovea doctor

    Example: fovea doctor --cluster cluster.yaml --namespace shop --artifact-root s3://models/fovea
    """
    if cluster is not None:
        _report(_on_a_cluster(cluster, namespace, artifact_root))
    else:
        _report([*_python(), *_packages(), *_rclone(), *_room(state), *_port(), *_state(state), *_platform()])


def _on_a_cluster(settings: Path, namespace: str, artifact_root: str) -> Iterator[Finding]:
    from components.deploy.targets.cluster import Cluster
    from pipelines.cluster.doctor import Examination
    from pipelines.cluster.settings import read_cluster_settings

    yield from Examination(
        Cluster.connect(namespace), read_cluster_settings(settings), artifact_root
    ).findings()


def _report(findings: Iterable[Finding]) -> None:
    """Print findings as they come; end with 1 where something is missing."""
    missing = []
    colours = {"ok": typer.colors.GREEN, "note": typer.colors.YELLOW, "missing": typer.colors.RED}
    for finding in findings:
        typer.secho(f"{finding.level:8}", fg=colours[finding.level], nl=False)
        typer.echo(f"{finding.what:18}{finding.found}")
        if finding.remedy:
            typer.echo(f"{'':26}→ {finding.remedy}")
        if finding.level == "missing" and finding.what not in missing:
            missing.append(finding.what)
    if missing:
        typer.secho(f"missing: {', '.join(missing)}", fg=typer.colors.RED, err=True)
        raise typer.Exit(1)


def _python() -> Iterator[Finding]:
    yield Finding("ok", "Python", f"{sys.version.split()[0]} at {sys.executable}")


def _packages() -> Iterator[Finding]:
    pinned = _pins()
    wrong, absent = [], []
    for name in _NEEDED_PACKAGES:
        try:
            # What stands behind a + names a build, such as +cpu, not a version.
            version = metadata.version(name).split("+")[0]
        except metadata.PackageNotFoundError:
            absent.append(name)
            continue
        if pinned.get(name, version) != version:
            wrong.append(f"{name} {version} instead of {pinned[name]}")
    if absent:
        yield Finding("missing", "packages", ", ".join(absent), "run make, which installs them")
    if wrong:
        yield Finding("note", "packages", ", ".join(wrong), "not the tested versions; run make")
    if not absent and not wrong:
        yield Finding("ok", "packages", f"the {len(_NEEDED_PACKAGES)} that matter, as pinned")


def _pins() -> dict[str, str]:
    if not _CONSTRAINTS.exists():
        return {}
    lines = [line.split("#")[0].strip() for line in _CONSTRAINTS.read_text().splitlines()]
    pairs = [line.split(";")[0].strip().split("==") for line in lines if "==" in line]
    return {name.lower().replace("_", "-"): version for name, version in pairs}


def _rclone() -> Iterator[Finding]:
    from fovea.errors import UserError
    from pipelines.local.s3 import find_rclone

    try:
        yield Finding("ok", "rclone", str(find_rclone()))
    except UserError as error:
        yield Finding("missing", "rclone", "not found", str(error))


def _room(state: Path) -> Iterator[Finding]:
    import psutil  # type: ignore[import-untyped]

    existing = next(folder for folder in (state.absolute(), *state.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    found = f"{free / 1e9:.1f} GB free at {existing}"
    if free >= _NEEDED_DISK:
        yield Finding("ok", "disk", found)
    else:
        yield Finding("missing", "disk", found, f"a run needs {_NEEDED_DISK / 1e9:.0f}; free some")
    memory = psutil.virtual_memory().available
    found = f"{memory / 1e9:.1f} GB available"
    if memory >= _NEEDED_MEMORY:
        yield Finding("ok", "memory", found)
    else:
        yield Finding(
            "note", "memory", found, f"a run takes about {_NEEDED_MEMORY / 1e9:.0f}; close something"
        )


def _port() -> Iterator[Finding]:
    from pipelines.local.s3 import is_free

    if is_free(_SERVICE_PORT):
        yield Finding("ok", "port", f"{_SERVICE_PORT} is free")
    else:
        yield Finding("note", "port", f"{_SERVICE_PORT} is taken", "give another one: make serve PORT=8081")


def _state(state: Path) -> Iterator[Finding]:
    if not state.exists():
        yield Finding("ok", "state folder", f"{state.absolute()}: not there yet, the first run makes it")
    elif not os.access(state, os.W_OK):
        yield Finding("missing", "state folder", f"{state.absolute()}: not writable", "give another --state")
    else:
        has_run = (state / "last-run" / "summary.json").exists()
        yield Finding("ok", "state folder", f"{state.absolute()}: {'has a run' if has_run else 'no run yet'}")


def _platform() -> Iterator[Finding]:
    from fovea.errors import UserError
    from fovea.platform import DEFAULT_PATH, load_platform

    named = os.environ.get("FOVEA_PLATFORM")
    try:
        profiles = sorted(load_platform().fetch_profiles)
    except UserError as error:
        yield Finding("missing", "platform file", str(error), "mend the file, or unset FOVEA_PLATFORM")
        return
    if named or DEFAULT_PATH.exists():
        yield Finding("ok", "platform file", f"{named or DEFAULT_PATH}: fetch profiles {', '.join(profiles)}")
    else:
        yield Finding("ok", "platform file", "none, so only public addresses are fetched from")
    yield from _servers()


def _servers() -> Iterator[Finding]:
    """Look at S3 and MLflow where the environment names them; `fovea run` brings its own."""
    for what, names in (
        ("S3", ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")),
        ("MLflow", ("MLFLOW_TRACKING_URI",)),
    ):
        address = next((os.environ[name] for name in names if os.environ.get(name)), "")
        if not address.startswith("http"):
            yield Finding("ok", what, "not named by the environment; fovea run starts its own")
        elif _answers(address):
            yield Finding("ok", what, f"{_without_password(address)} answers")
        else:
            found = f"{_without_password(address)} does not answer"
            yield Finding("missing", what, found, f"start it, or unset {names[0]}")


def _answers(address: str) -> bool:
    import httpx

    try:
        httpx.get(address, timeout=5)
    except httpx.HTTPError:
        return False
    return True


def _without_password(address: str) -> str:
    head, at, tail = address.rpartition("@")
    return f"{head.split('://')[0]}://…@{tail}" if at else address
