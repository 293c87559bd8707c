import errno
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli import main
from fovea import __version__
from fovea.errors import UserError

COMMANDS = [
    "sample-data",
    "sample-model",
    "run",
    "compile",
    "serve",
    "predict",
    "doctor",
    "preview",
    "import-model",
    "submit",
    "status",
    "rollback",
]


def fovea(*arguments: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-P", "-m", "cli.main", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def test_help_lists_every_command() -> None:
    shown = fovea("--help")
    assert shown.returncode == 0
    for command in COMMANDS:
        assert f"  {command} " in shown.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    shown = fovea(command, "--help")
    assert shown.returncode == 0
    assert f"Example: fovea {command}" in shown.stdout


def test_help_comes_without_the_heavy_libraries() -> None:
    code = (
        "import sys, cli.main; print({'torch', 'transformers', 'mlflow', 'kfp', 'kserve'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


def test_version() -> None:
    assert fovea("--version").stdout == f"fovea {__version__}\n"


def test_compile_writes_the_pipeline(tmp_path: Path) -> None:
    from pipelines.compile import PIPELINE_FILE

    assert fovea("compile", "--out", "mine.yaml", cwd=tmp_path).returncode == 0
    assert (tmp_path / "mine.yaml").read_text() == PIPELINE_FILE.read_text()


def test_compile_for_a_cluster(tmp_path: Path) -> None:
    cluster = Path(main.__file__).parents[1] / "manifests" / "overlays" / "production" / "cluster.yaml"
    options = (
        "--cluster",
        str(cluster),
        "--kubernetes",
        "--namespace",
        "shop",
        "--out",
        "a.yaml",
    )
    made = fovea("compile", *options, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "a.yaml").read_text().count("namespace: shop") == 2
    for wrong in (("--kubernetes",), ("--cluster", str(cluster), "--namespace", "shop")):
        assert "give --" in CliRunner().invoke(main.app, ["compile", *wrong]).exception.args[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "lerning_rate=0"), "there is no setting 'lerning_rate'; did you mean learning_rate"),
        (("--set", "num_crops=99"), "num_crops = '99': input should be less than or equal to 16"),
        (("--set", "source=missing.csv"), "source: there is no file or folder missing.csv"),
        (("--set", "base_model=missing"), "base_model: there is no folder missing"),
        (("--set", "artifact_root=s3://mine"), "artifact_root: remove it"),
        (("--settings", "missing.yaml"), "missing.yaml: cannot be read (No such file or directory)"),
        (("--state", "/dev/null/state"), "/dev/null/state: cannot be written"),
    ],
)
def test_what_a_user_can_mend_is_known_at_once(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    failed = CliRunner().invoke(main.app, ["run", *arguments])
    assert isinstance(failed.exception, UserError)
    assert message in str(failed.exception)
    assert not (tmp_path / ".fovea" / "sample").exists()


def test_what_a_user_can_mend_is_one_line(tmp_path: Path) -> None:
    started = time.monotonic()
    failed = fovea("run", "--set", "source=missing.csv", cwd=tmp_path)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: source: there is no file or folder missing.csv")
    assert len(failed.stderr.splitlines()) == 1
    assert time.monotonic() - started < 60


def test_an_unknown_option_is_told_with_the_usage() -> None:
    failed = fovea("run", "--sett", "x")
    assert failed.returncode == 2
    assert "No such option" in failed.stderr


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full: free some space"),
        (PermissionError(errno.EACCES, "Permission denied", "out.yaml"), "out.yaml: Permission denied"),
        (UserError("x: is wrong; mend it"), "x: is wrong; mend it"),
    ],
)
def test_the_systems_errors_are_one_line_too(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**options: object) -> None:
        raise error

    monkeypatch.setattr(main, "app", fail)
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == 1
    assert f"error: {message}" in capsys.readouterr().err
