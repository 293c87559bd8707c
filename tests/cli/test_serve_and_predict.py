"""`fovea serve` on what was deployed here, and `fovea predict` asking it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from unittest import mock

import boto3
import psutil
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from cli.predict import predict
from cli.serve import serve
from components.deploy.parameters import Deployment, Example
from components.deploy.step import deployment_uri
from fovea.errors import UserError
from fovea.records import ModelRecord, ModelReference, StepInputs, now
from fovea.steps import RunContext, run_step
from fovea.storage import Storage, index_uri
from fovea.task import product_task
from pipelines.local.s3 import serve_s3
from pipelines.local.state import State
from pipelines.report.summary import Summary
from serving.engine.loading import LocatedModel
from serving.settings import ServerSettings
from tests.tiny_model import write_tiny_model

REPOSITORY = Path(__file__).resolve().parents[2]
ROOT = "s3://fovea"
Asked = tuple[ServerSettings, LocatedModel]
FIELDS = {"product": "Wool [bold]scarf", "category": "SCARVES", "full_price": 1240.5}


def run(command, *arguments: str) -> Result:
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False, env={"COLUMNS": "160"})


def deploy(folder: Path, services: Sequence[str]) -> ModelRecord:
    """Leave in S3 what runs leave there that have deployed the model in ``folder``, one after the other."""
    record = run_step(
        ModelRecord,
        StepInputs(step="merge_adapter", version=1, parameters={}, parents={}),
        RunContext(artifact_root=ROOT, run_id="run-1"),
        work=lambda attempt: (
            shutil.copytree(folder, attempt.payload, dirs_exist_ok=True)
            and {"architecture": "Phi3VForCausalLM", "num_crops": 4, "task": product_task()}
        ),
    )
    uri = index_uri(ROOT, record.step, record.input_key)
    for number, service in enumerate(services):
        document = deployment(service, ModelReference(digest=record.digest, record_uri=uri), number)
        Storage().write_bytes(deployment_uri(ROOT, service), document.model_dump_json().encode())
    return record


def deployment(service: str, model: ModelReference, number: int) -> Deployment:
    return Deployment(
        service=service,
        target="local",
        model=model,
        decision_digest="",
        evaluation_digest="",
        dtype="float32",
        probes=1,
        agreed=1,
        example=Example(row_id="row-0", text="", answer=None, truth={}, latency_ms=1.0),
        predict_path="",
        chat_path="",
        verified_at=now() + timedelta(seconds=number),
        run_id="run-1",
    )


@dataclass(frozen=True)
class Served:
    """A running `fovea serve`."""

    address: str
    process: "subprocess.Popen[str]"
    record: ModelRecord


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> tuple[State, ModelRecord]:
    """The state folder of runs that have deployed a model as the service shop, and later as fovea."""
    folder = tmp_path_factory.mktemp("state")
    answer = "Product: Wool [bold]scarf, Category: SCARVES, Full Price: 1240.5"
    model = write_tiny_model(folder / "model", answer=answer, task=product_task())
    place = State(folder / "state")
    with serve_s3(place.s3) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        boto3.Session().client("s3").create_bucket(Bucket="fovea")
        return place, deploy(model, ["shop", "fovea"])


@pytest.fixture(scope="module")
def served(deployed: tuple[State, ModelRecord]) -> Iterator[Served]:
    """`fovea serve` on a state folder without a last run."""
    place, record = deployed
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    script = "import typer; from cli.serve import serve; typer.run(serve)"
    process = subprocess.Popen(
        [sys.executable, "-c", script, "--state", str(place.root), "--port", "0"],
        cwd=REPOSITORY,
        env={**clean, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if "answering at" in line:
                yield Served(line.split()[-1], process, record)
                break
        else:
            pytest.fail("".join(said))
    finally:
        process.kill()
        process.wait()


def picture(path: Path) -> str:
    Image.new("RGB", (80, 60), "red").save(path)
    return str(path)


def test_pictures_are_answered_as_a_table(served: Served, tmp_path: Path) -> None:
    result = run(
        predict, "--endpoint", served.address, picture(tmp_path / "a[red].png"), picture(tmp_path / "b.jpg")
    )
    assert result.exit_code == 0
    assert result.output.count("Wool [bold]scarf") == 2
    assert result.output.count("1,240.50") == 2
    assert "full price" in result.output
    assert "a[red].png" in result.output


def test_pictures_are_answered_as_json(served: Served, tmp_path: Path) -> None:
    result = run(predict, "--json", "--endpoint", f"{served.address}/", picture(tmp_path / "a.png"))
    (line,) = result.output.splitlines()
    answer = json.loads(line)
    assert answer["fields"] == FIELDS
    # The deployed model, downloaded by its record.
    assert answer["model_digest"] == served.record.digest


def test_one_bad_picture_fails_alone(served: Served, tmp_path: Path) -> None:
    (tmp_path / "page.jpg").write_text("<html>")
    result = run(
        predict,
        "--json",
        "--endpoint",
        served.address,
        picture(tmp_path / "a.png"),
        str(tmp_path / "page.jpg"),
        str(tmp_path / "missing.jpg"),
    )
    assert result.exit_code == 1
    answers = [json.loads(line) for line in result.output.splitlines()]
    assert [answer["fields"] for answer in answers] == [FIELDS, None, None]
    assert answers[1]["error"] == "the service answered 400: not a picture in one of JPEG, PNG, WEBP, GIF"
    assert answers[2]["error"] == "cannot be read (No such file or directory)"


def test_an_unknown_model(served: Served, tmp_path: Path) -> None:
    result = run(predict, "--model", "other", "--endpoint", served.address, picture(tmp_path / "a.png"))
    assert result.exit_code == 1
    assert "Model with name other does not exist" in result.output


def test_serving_leaves_nothing_behind(served: Served) -> None:
    # The S3 server has ended once the model was downloaded.
    assert psutil.Process(served.process.pid).children() == []
    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(30) == 0


def test_no_service(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no service answers here") as caught:
        run(predict, "--endpoint", "http://127.0.0.1:1", picture(tmp_path / "a.png"))
    assert "fovea serve" in str(caught.value)


@pytest.mark.parametrize("endpoint", ["127.0.0.1:8080", "ftp://127.0.0.1", "http://[", "http://"])
def test_an_endpoint_that_is_none(tmp_path: Path, endpoint: str) -> None:
    with pytest.raises(UserError):
        run(predict, "--endpoint", endpoint, picture(tmp_path / "a.png"))


def test_another_kind_of_server(s3_server: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not served by Fovea"):
        run(predict, "--endpoint", s3_server["AWS_ENDPOINT_URL_S3"], picture(tmp_path / "a.png"))


def test_nothing_was_ever_deployed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fovea run"):
        run(serve, "--state", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_no_such_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    (tmp_path / "s3" / "fovea").mkdir(parents=True)
    with pytest.raises(UserError, match="no run has deployed the service 'shop' here"):
        run(serve, "--state", str(tmp_path), "--service", "shop")


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Asked]]:
    """What `fovea serve` would serve, in an environment of its own: no server starts."""
    asked: list[Asked] = []
    monkeypatch.setattr("serving.server.serve", lambda *arguments: asked.append(arguments))
    own = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    with mock.patch.dict(os.environ, own, clear=True):
        yield asked


def last_run(place: State, service: str) -> None:
    """Leave in the state folder what a run on ``service`` leaves there that was refused."""
    summary = Summary(
        run_id="run-2",
        state="refused",
        task="",
        reason="refused: parse_rate is 0.1",
        seconds=1.0,
        finished_at=now(),
        settings={"service_name": service},
        samples=None,
        models={},
        figures=(),
        gate=None,
        endpoint=None,
        steps={},
        digests={},
        records={},
    )
    place.last_run.mkdir(exist_ok=True)
    summary.write(place.last_run)


@pytest.mark.parametrize(
    ("last", "options", "name"),
    [
        (None, [], "fovea"),
        ("shop", [], "shop"),
        ("fovea", [], "fovea"),
        ("fovea", ["--service", "shop"], "shop"),
        ("never-deployed", ["--service", "shop"], "shop"),
    ],
)
def test_the_last_runs_service_is_served_or_the_one_that_is_named(
    deployed: tuple[State, ModelRecord],
    serving: list[Asked],
    last: str | None,
    options: list[str],
    name: str,
) -> None:
    place, record = deployed
    shutil.rmtree(place.last_run, ignore_errors=True)
    if last:
        last_run(place, last)
    run(serve, "--state", str(place.root), *options)
    ((_, model),) = serving
    assert (model.name, model.digest) == (name, record.digest)
    assert (model.folder / "config.json").is_file()


def test_a_last_run_that_never_deployed_is_told_with_what_else_there_is(
    deployed: tuple[State, ModelRecord], serving: list[Asked]
) -> None:
    place, _ = deployed
    last_run(place, "products")
    with pytest.raises(UserError) as caught:
        run(serve, "--state", str(place.root))
    assert str(caught.value) == (
        "no run has deployed the service 'products' here; serve another one with --service (fovea, shop), "
        "type `fovea run` first, or give --model"
    )
    assert serving == []


@pytest.mark.parametrize(("options", "name"), [([], "fovea"), (["--service", "mine"], "mine")])
def test_a_model_that_is_given_is_served_under_the_name_that_is_given(
    deployed: tuple[State, ModelRecord], serving: list[Asked], options: list[str], name: str
) -> None:
    place, record = deployed
    uri = index_uri(ROOT, record.step, record.input_key)
    run(serve, "--state", str(place.root), "--model", uri, *options)
    ((_, model),) = serving
    assert (model.name, model.digest) == (name, record.digest)


def test_the_servers_options_are_those_of_its_settings(
    deployed: tuple[State, ModelRecord], serving: list[Asked]
) -> None:
    place, _ = deployed
    usual = ("--state", str(place.root), "--service", "shop")
    run(serve, *usual)
    run(serve, *usual, "--port", "0", "--host", "::1", "--max-batch-size", "2", "--compile")
    assert [settings for settings, _ in serving] == [
        ServerSettings(),
        ServerSettings(port=0, host="::1", max_batch_size=2, compile=True),
    ]


def test_a_wrong_option_is_refused_before_a_model_is_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^wrong options: hang_seconds = 0.0: input should be greater"):
        run(serve, "--state", str(tmp_path), "--hang-seconds", "0")


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model here"):
        run(serve, "--model", str(tmp_path))
