"""`fovea submit` against a stand-in for Kubeflow Pipelines' API that holds to its documents."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from fovea.errors import UserError
from pipelines.cluster.settings import ClusterSettings
from pipelines.cluster.submit import Endpoint, Pipelines, Submission, prepare
from pipelines.compile import compile_for_cluster
from pipelines.settings import validate_settings
from tests.pipelines.cluster.kfp_server import KfpServer, serve_kfp

PARAMETERS = validate_settings(
    {
        "artifact_root": "s3://models/fovea",
        "base_model": "s3://models/fovea/base.json",
        "source": "s3://feeds/products.csv",
        "experiment": "shoes",
        "num_train_epochs": 2,
        "deploy_target": "kserve",
    }
)
CLUSTER = ClusterSettings(
    image="registry.example/fovea@sha256:" + "1" * 64,
    gpu_tolerations=({"key": "gpu", "operator": "Exists"},),  # type: ignore[arg-type]
    defaults={"artifact_root": "s3://models/fovea", "experiment": "shoes"},
)
SUBMISSION = Submission(
    run_name="nightly",
    run=PARAMETERS,
    cluster=CLUSTER,
    placement=CLUSTER.placement,
    service_account="fovea-pipeline",
)
COMPILED = compile_for_cluster(CLUSTER)


@pytest.fixture(autouse=True)
def compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.cluster.submit.compile_for_cluster", lambda settings: COMPILED)


@pytest.fixture
def kfp() -> Iterator[KfpServer]:
    with serve_kfp() as server:
        yield server


def pipelines(kfp: KfpServer, **endpoint: object) -> Pipelines:
    return Pipelines(Endpoint.model_validate({"host": kfp.host, **endpoint}), wait=lambda seconds: None)


def test_a_run_of_this_very_pipeline(kfp: KfpServer) -> None:
    submitted = pipelines(kfp, namespace="team").submit(SUBMISSION)
    (run,), (version,), (pipeline,) = kfp.runs, kfp.versions, kfp.pipelines
    assert submitted.link == f"{kfp.host}/#/runs/details/{run['run_id']}"
    assert submitted.uploaded
    assert COMPILED.encode() in kfp.uploads[0]
    assert run["display_name"].startswith("nightly ")
    assert run["service_account"] == "fovea-pipeline"
    assert run["pipeline_version_reference"] == {
        "pipeline_id": pipeline["pipeline_id"],
        "pipeline_version_id": version["pipeline_version_id"],
    }
    parameters = run["runtime_config"]["parameters"]
    inputs = next(yaml.safe_load_all(COMPILED))["root"]["inputDefinitions"]["parameters"]
    assert parameters.keys() == inputs.keys()
    assert parameters["num_train_epochs"] == 2
    # Text, since KFP reads nothing from a number here.
    assert parameters["gpus"] == "1"
    assert parameters["gpu_tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    assert [experiment["display_name"] for experiment in kfp.experiments] == ["shoes"]
    assert {kfp.experiments[0]["namespace"], pipeline["namespace"]} == {"team"}


def test_a_version_is_uploaded_once(kfp: KfpServer) -> None:
    first, second = (pipelines(kfp).submit(SUBMISSION) for _ in range(2))
    assert (first.uploaded, second.uploaded) == (True, False)
    assert first.version == second.version
    assert len(kfp.uploads) == len(kfp.pipelines) == len(kfp.experiments) == 1
    assert len(kfp.runs) == len({run["display_name"] for run in kfp.runs}) == 2


def test_a_recurring_run(kfp: KfpServer) -> None:
    submitted = pipelines(kfp).submit(SUBMISSION.model_copy(update={"cron": "0 0 3 * * 1"}))
    (run,) = kfp.recurring_runs
    assert run["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * 1"}}
    assert (run["mode"], run["max_concurrency"], run["no_catchup"]) == ("ENABLE", "1", True)
    assert submitted.link.endswith(f"/#/recurringrun/details/{run['recurring_run_id']}")
    assert not kfp.runs


def test_states_are_told_when_they_change(kfp: KfpServer) -> None:
    client = pipelines(kfp)
    identity = client.submit(SUBMISSION).identity
    kfp.states = [
        [("prepare-data", "RUNNING")],
        [("prepare-data", "RUNNING")],
        [("prepare-data", "SUCCEEDED"), ("train-lora", "FAILED")],
    ]
    kfp.end, kfp.read_faults = "FAILED", [503]
    assert list(client.follow(identity)) == [
        ("prepare-data", "RUNNING"),
        ("prepare-data", "SUCCEEDED"),
        ("train-lora", "FAILED"),
        ("run", "FAILED"),
    ]


@pytest.mark.parametrize("fault", [503, 429, "drop"])
@pytest.mark.parametrize("request_number", range(4), ids=["pipeline", "version", "experiment", "run"])
def test_what_fails_for_a_moment_is_done_once(kfp: KfpServer, fault: int | str, request_number: int) -> None:
    kfp.faults = [*[None] * request_number, fault]
    pipelines(kfp).submit(SUBMISSION)
    made = (kfp.pipelines, kfp.versions, kfp.experiments, kfp.runs)
    assert [len(items) for items in made] == [1, 1, 1, 1]


def test_somebody_else_was_quicker(kfp: KfpServer) -> None:
    client = pipelines(kfp)
    client.submit(SUBMISSION)
    # As if the name had not been there when it was looked for.
    hidden = kfp._list
    answers = iter([(200, {})])
    kfp._list = lambda *arguments: next(answers, None) or hidden(*arguments)  # type: ignore[method-assign]
    client.submit(SUBMISSION)
    assert len(kfp.pipelines) == 1
    assert len(kfp.runs) == 2


def test_tokens(kfp: KfpServer, tmp_path: Path) -> None:
    kfp.token = "right"  # noqa: S105
    with pytest.raises(UserError, match=r"token is missing, expired or not known \(Unauthenticated"):
        pipelines(kfp, token="old").submit(SUBMISSION)  # noqa: S106
    pipelines(kfp, token="right").submit(SUBMISSION)  # noqa: S106
    file = tmp_path / "token"
    file.write_text("right\n")
    client = pipelines(kfp, token_file=file)
    client.submit(SUBMISSION)
    kfp.token = "renewed"  # noqa: S105
    file.write_text("renewed\n")
    client.submit(SUBMISSION)
    with pytest.raises(UserError, match="there is no token file"):
        pipelines(kfp, token_file=tmp_path / "missing")


def test_an_endpoint_that_stays_out_of_order(kfp: KfpServer) -> None:
    kfp.read_faults = [503] * 5
    with pytest.raises(UserError, match="answers 503"):
        pipelines(kfp).submit(SUBMISSION)
    with pytest.raises(UserError, match=r"cannot be reached .* check --endpoint"):
        Pipelines(Endpoint(host="http://127.0.0.1:9"), wait=lambda seconds: None).submit(SUBMISSION)
    kfp.read_faults = [403]
    with pytest.raises(UserError, match="this account may not do that"):
        pipelines(kfp).submit(SUBMISSION)
    assert not kfp.runs


def test_a_silent_endpoint_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.cluster.submit._TIMEOUT", (5, 0.1))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UserError, match=r"cannot be reached \(.*Read timed out"):
            Pipelines(Endpoint(host=host), wait=lambda seconds: None).submit(SUBMISSION)


def test_settings_stand_above_the_platforms(tmp_path: Path) -> None:
    settings = tmp_path / "mine.yaml"
    settings.write_text(
        "base_model: s3://models/b.json\nsource: s3://a.csv\nexperiment: mine\nkserve: {gpus: 0}\ngpus: 4\n"
    )
    selector = '{"pool": "a100"}'
    submission = prepare(
        CLUSTER, settings, ["gpus=2", f"gpu_node_selector={selector}", "seed=7"], run_name="a"
    )
    arguments = submission.arguments()
    assert (arguments["artifact_root"], arguments["experiment"]) == ("s3://models/fovea", "mine")
    assert arguments["gpus"] == "2"
    assert arguments["gpu_node_selector"] == {"pool": "a100"}
    assert arguments["gpu_tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    assert yaml.safe_load(arguments["settings"]) == {"kserve": {"gpus": 0}, "seed": 7}
    assert "deploy_target" not in arguments


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("deploy_target=local", "deploy_target = 'local': on a cluster it is kserve"),
        ("gpus=many", "gpus = 'many'"),
        ("gpu=1", "there is no setting 'gpu'; did you mean gpus"),
        ("gpu_tolerations=[{effect: Never}]", "gpu_tolerations.0.effect"),
    ],
)
def test_wrong_settings_are_named(override: str, told: str) -> None:
    given = ["base_model=s3://models/b.json", "source=s3://a.csv", override]
    with pytest.raises(UserError) as error:
        prepare(CLUSTER, None, given, run_name="a")
    assert told in str(error.value)
