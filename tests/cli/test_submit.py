"""`fovea submit` as it is typed; the endpoint is a stand-in that starts nothing."""

import pytest
import typer
from typer.testing import CliRunner

from cli.submit import submit
from fovea.errors import UserError
from tests.pipelines.kfp_server import serve_kfp

SETTINGS = ["artifact_root=s3://models/fovea", "base_model=s3://models/base.json", "source=s3://feeds/a.csv"]

app = typer.Typer()
app.command("submit")(submit)


def invoke(*arguments: str, settings: list[str] = SETTINGS, **environment: str):
    given = [word for setting in settings for word in ("--set", setting)]
    return CliRunner().invoke(app, [*arguments, *given], env=environment)


@pytest.mark.parametrize(("end", "status"), [("SUCCEEDED", 0), ("FAILED", 1)])
def test_it_prints_the_link_and_follows(end: str, status: int) -> None:
    with serve_kfp() as kfp:
        kfp.token, kfp.end, kfp.states = "secret-token", end, [[("train-lora", end)]]
        shown = invoke("--wait", KF_PIPELINES_ENDPOINT=kfp.host, KF_PIPELINES_TOKEN="secret-token")  # noqa: S106
    assert shown.exit_code == status
    assert f"Run: {kfp.host}/#/runs/details/run_id-0" in shown.output
    assert f"train-lora: {end.lower()}" in shown.output
    assert "secret-token" not in shown.output


def test_nothing_is_sent_with_wrong_settings() -> None:
    with serve_kfp() as kfp:
        wrong = [
            (["--endpoint", kfp.host], [*SETTINGS, "epochs=-1"], "epochs = '-1'"),
            (["--endpoint", kfp.host], SETTINGS[:2], "source is missing"),
            (["--endpoint", kfp.host, "--wait", "--cron", "0 0 3 * * 1"], SETTINGS, "leave one of them out"),
        ]
        for arguments, settings, reason in wrong:
            error = invoke(*arguments, settings=settings).exception
            assert isinstance(error, UserError)
            assert reason in str(error)
        assert not kfp.pipelines
        assert not kfp.experiments
