"""A catalogue of one's own, with other column names, after a run whose model was deployed."""

import csv
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from kfp import dsl
from PIL import Image

from components.deploy.component import deploy
from components.deploy.history import present_deployment
from components.evaluate.component import evaluate, find_champion
from components.gate.component import gate
from components.merge_adapter.component import merge_adapter
from components.prepare_data.component import prepare_data
from components.train_lora.component import train_lora
from fovea import tracking
from fovea.champion import ALIAS
from fovea.errors import UserError
from fovea.models import import_model
from fovea.records import EvaluationRecord, ModelRecord, read_record
from fovea.steps import RunContext
from fovea.storage import Storage, index_uri
from pipelines.form import to_arguments
from pipelines.lifecycle.component import preflight
from pipelines.settings import COMPONENTS, RunSettings, validate_settings
from tests.pipelines.local_runs import SETTINGS, Folder
from tests.tiny_model import write_tiny_model

SAMPLES_COLUMNS = ("product_code", "title", "category3_code", "full_price", "currency_code", "imageurl")
OWN_COLUMNS = ("sku", "name", "kind", "amount", "money", "photo")
NAMED = {
    "product_column": "sku",
    "title_column": "name",
    "category_column": "kind",
    "price_column": "amount",
    "currency_column": "money",
    "image_column": "photo",
}
SUBJECTS = ("base", "champion", "challenger")
ANSWER = "Product: Red Bag, Category: BAGS, Full Price: 100.0"
"""What the tiny model says whatever it is shown: it cannot learn, so the gate asks little."""
LENIENT = {
    "gate_rules": "{defaults: false, rules: [{name: readable, metric: parse_rate, at_least: 0.9, "
    "min_samples: 1}]}",
    "max_new_tokens": 20,
    "learning_rate": 0,
}


def write_table(folder: Path, columns: Sequence[str], first: int) -> str:
    """Write 60 products, numbered from ``first``, as products.csv, with their pictures beside it."""
    folder.mkdir()
    rows = []
    for number in range(first, first + 60):
        blocks = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(blocks.repeat(14, 0).repeat(14, 1)).save(folder / f"{number}.png")
        category = "BAGS" if number % 2 else "SHOES"
        rows.append((f"p{number}", f"Item {number}", category, f"{100 + number}.0", "USD", f"{number}.png"))
    path = folder / "products.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return str(path)


@dataclass(frozen=True)
class Run:
    """A run in this process: the components of the graph, with the run's settings."""

    folder: Path
    settings: RunSettings

    def train(self) -> None:
        """Run what comes before the evaluation."""
        base, dataset, adapter = map(self.handed, ("base", "dataset", "adapter"))
        self._call(preflight, base=base)
        report = self.handed("report.html")
        self._call(prepare_data, base=base, dataset=dataset, report=report)
        self._call(train_lora, base=base, dataset=dataset, adapter=adapter, report=report)
        self._call(merge_adapter, base=base, adapter=adapter, model=self.handed("model"))

    def judge(self) -> None:
        """Evaluate what was trained, beside base and champion, and let the gate decide."""
        base, champion, model, dataset = map(self.handed, ("base", "champion", "model", "dataset"))
        self._call(find_champion, champion=champion)
        evaluations = {subject: self.handed(f"{subject}-evaluation") for subject in SUBJECTS}
        for subject, asked in zip(SUBJECTS, (base, champion, model), strict=True):
            self._call(
                evaluate,
                model=asked,
                dataset=dataset,
                evaluation=evaluations[subject],
                metrics=self.handed("metrics"),
                confusion=dsl.ClassificationMetrics(),
                subject=subject,
            )
        decision, report = self.handed("decision"), self.handed("gate.md")
        verdict = self._call(gate, **evaluations, model=model, decision=decision, report=report)
        assert verdict.passed, verdict.reason

    def deploy(self) -> None:
        """Deploy what was judged."""
        verdict = self._call(
            deploy,
            model=self.handed("model"),
            evaluation=self.handed("challenger-evaluation"),
            dataset=self.handed("dataset"),
            decision=self.handed("decision"),
            deployment=self.handed("deployment"),
        )
        assert verdict.deployed, verdict.reason

    def handed(self, name: str) -> dsl.Metrics:
        """Return an artifact: the file that a component hands to the next one."""
        return dsl.Metrics(uri=str(self.folder / name))

    def model(self, name: str) -> ModelRecord:
        """Return the model's record that was handed over under a name."""
        return read_record(self.handed(name).path, ModelRecord)

    def _call(self, component: Any, **own: Any) -> Any:
        name = component.python_func.__name__
        given = {**to_arguments(self.settings), "run_id": self.folder.name}
        if name in COMPONENTS:
            given["parameters"] = self.settings.parameters(name)
        wanted = inspect.signature(component.python_func).parameters
        return component.python_func(**{name: value for name, value in given.items() if name in wanted} | own)


@pytest.fixture
def begin(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Run]]:
    """Begin a run, with MLflow and a base model that can only say `ANSWER`."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    base = write_tiny_model(tmp_path / "base", num_crops=1, answer=ANSWER)
    record = import_model(base, RunContext(artifact_root=s3, run_id="import"), Storage())
    base_uri = index_uri(s3, record.step, record.input_key)

    def begin(run_id: str, **settings: object) -> Run:
        (tmp_path / run_id).mkdir()
        own = {"artifact_root": s3, "base_model": base_uri, "max_steps": 1, **settings}
        return Run(tmp_path / run_id, validate_settings({**SETTINGS, **LENIENT, **own}))

    yield begin
    mlflow.set_tracking_uri(None)


@pytest.mark.prove
def test_a_table_with_other_columns_is_compared_with_the_champion_and_deployed(
    begin: Callable[..., Run], s3: str, tmp_path: Path
) -> None:
    sample = begin("sample", source=write_table(tmp_path / "sample-table", SAMPLES_COLUMNS, first=0))
    sample.train()
    # What a deployment leaves in MLflow. Two servers would take longer than all the rest.
    tracking.tag_model_version(sample.model("model").mlflow, {}, alias=ALIAS)
    own_table = write_table(tmp_path / "own-table", OWN_COLUMNS, first=60)

    stated = begin("stated", source=own_table, currencies="state", **NAMED)
    with pytest.raises(
        UserError, match=r"champion of registered_model_name fovea answers another task .* field cu"
    ):
        stated.train()
    left = [uri.rpartition("/")[2] for uri in Storage().list(f"{s3}/runs/stated/")]
    assert sorted(left) == ["failure.json", "started.json"]

    own = begin("own", source=own_table, **NAMED)
    own.train()
    own.judge()
    champion, model = own.model("champion"), own.model("model")
    assert champion.digest == sample.model("model").digest
    assert champion.task is not None
    assert model.task is not None
    assert champion.task != model.task
    assert champion.task.digest == model.task.digest
    evaluation = read_record(own.handed("champion-evaluation").path, EvaluationRecord)
    assert evaluation.model_digest == champion.digest
    own.deploy()
    document = present_deployment(Storage(), s3, "fovea")
    assert document is not None
    assert (document.run_id, document.model.digest) == ("own", model.digest)
    assert tracking.version_source("fovea", ALIAS) == model.uri


@pytest.mark.prove
@pytest.mark.timeout(3600)
def test_whole_runs_on_an_own_table_after_one_on_the_sample(tmp_path: Path) -> None:
    folder = Folder(tmp_path, answer=ANSWER)
    deployments = folder.state / "s3" / "fovea" / "deployments"
    sample = folder.run(**LENIENT)
    assert sample.returncode == 0, sample.stdout + sample.stderr
    assert folder.summary["endpoint"]["service"] == "fovea"
    samples_deployment = (deployments / "fovea.json").read_bytes()

    # By default it has names of its own, and leaves the sample's service alone.
    own = {**LENIENT, "source": write_table(tmp_path / "own", OWN_COLUMNS, first=0), **NAMED}
    alone = folder.run(**own)
    assert alone.returncode == 0, alone.stdout + alone.stderr
    assert "names: experiment products, registered_model_name products, service_name products" in alone.stdout
    assert folder.summary["endpoint"]["service"] == "products"
    assert "champion" not in folder.summary["models"]
    assert (deployments / "fovea.json").read_bytes() == samples_deployment

    # On request it is compared with the sample's champion, and takes its place.
    names = {"registered_model_name": "fovea", "service_name": "fovea"}
    compared = folder.run(**own, **names)
    assert compared.returncode == 0, compared.stdout + compared.stderr
    assert folder.summary["models"]["champion"]["figures"]["parse_rate"] == 1.0
    assert folder.summary["endpoint"]["service"] == "fovea"
    assert (deployments / "fovea.json").read_bytes() != samples_deployment

    # Another task does not begin.
    stated = folder.run(**own, **names, currencies="state")
    assert stated.returncode == 1, stated.stdout + stated.stderr
    assert stated.stderr.startswith(
        "failed in preflight: the champion of registered_model_name fovea answers another task than "
        "this run's: "
    )
    assert "Give this run another registered_model_name and another service_name" in stated.stderr
    assert folder.summary["steps"] == {}
