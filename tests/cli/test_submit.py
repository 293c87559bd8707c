"""`fovea submit` as it is typed; the endpoint is a stand-in that starts nothing."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cli.submit import submit
from fovea.errors import UserError
from tests.pipelines.cluster.kfp_server import serve_kfp

SETTINGS = ["artifact_root=s3://models/fovea", "base_model=s3://models/base.json", "source=s3://feeds/a.csv"]

CLUSTER = Path(__file__).resolve().parents[2] / "manifests" / "overlays" / "production" / "cluster.yaml"

app = typer.Typer()
app.command("submit")(submit)


def invoke(*arguments: str, settings: list[str] = SETTINGS, **environment: str):
    given = [word for setting in settings for word in ("--set", setting)]
    return CliRunner().invoke(app, [*arguments, *given], env={"FOVEA_CLUSTER": str(CLUSTER), **environment})


@pytest.mark.parametrize(("end", "status"), [("SUCCEEDED", 0), ("FAILED", 1)])
def test_it_prints_the_link_and_follows(end: str, status: int) -> None:
    with serve_kfp() as kfp:
        kfp.token, kfp.end, kfp.states = "secret-token", end, [[("train-lora", end)]]
        environment = {"KF_PIPELINES_ENDPOINT": kfp.host, "KF_PIPELINES_TOKEN": kfp.token}
        shown = invoke("--wait", "--look=0", **environment)
    assert shown.exit_code == status
    assert f"Run: {kfp.host}/#/runs/details/run_id-0" in shown.output
    assert f"train-lora: {end.lower()}" in shown.output
    assert "secret-token" not in shown.output


def test_nothing_is_sent_with_wrong_settings() -> None:
    with serve_kfp() as kfp:
        wrong = [
            (["--endpoint", kfp.host], [*SETTINGS, "num_train_epochs=-1"], "num_train_epochs = '-1'"),
            (["--endpoint", kfp.host], SETTINGS[:2], "source is missing"),
            (["--endpoint", kfp.host, "--wait", "--cron", "0 0 3 * * 1"], SETTINGS, "leave one out"),
        ]
        for arguments, settings, reason in wrong:
            error = invoke(*arguments, settings=settings).exception
            assert isinstance(error, UserError)
            assert reason in str(error)
        assert not kfp.pipelines
        assert not kfp.experiments


def test_what_a_run_will_need_is_said_first(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (64, 64), (200, 30, 60)).save(tmp_path / "a.png")
    rows = [f"p{number},Scarf {number},SCARVES,{number}00,USD,a.png" for number in range(1, 13)]
    header = "product_code,title,category3_code,full_price,currency_code,imageurl"
    (tmp_path / "a.csv").write_text("\n".join([header, *rows]))
    settings = [*SETTINGS[:2], f"source={tmp_path / 'a.csv'}", "gpus=4", 'kserve={"gpus": 2, "replicas": 2}']
    with serve_kfp() as kfp:
        shown = invoke("--dry-run", settings=settings, KF_PIPELINES_ENDPOINT=kfp.host)
        assert not kfp.pipelines
    assert shown.exit_code == 0, shown.output
    lines = [" ".join(line.split()) for line in shown.output.splitlines()]
    assert "GPUs of the run 5 nvidia.com/gpu at a time: 4 to train, 1 for each evaluation" in lines
    assert "GPUs of the service 4, and 4 for the canary beside it" in lines
    assert "room 100Gi for each of up to three tasks at a time" in lines
    assert any(line.startswith("training") and line.endswith("tokens each, 3 times") for line in lines)
    assert any("on one A100 80 GB at the published size" in line for line in lines)


def test_a_table_that_cannot_be_read_from_here_holds_nothing_up() -> None:
    with serve_kfp() as kfp:
        given = [*SETTINGS[:2], "source=missing.csv"]
        shown = invoke(settings=given, KF_PIPELINES_ENDPOINT=kfp.host)
    assert shown.exit_code == 0
    assert "not known: " in shown.output
    assert len(kfp.runs) == 1
