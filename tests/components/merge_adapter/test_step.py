import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from components.merge_adapter.lora import LoraAdapter
from components.merge_adapter.merge import merge_folders
from components.merge_adapter.step import merge_adapter_step
from components.merge_adapter.verify import verify
from fovea import tracking
from fovea.errors import UserError
from fovea.inference import Predictor
from fovea.phi3v import Phi3VForCausalLM
from fovea.records import AdapterRecord, MlflowReference, ModelRecord, ModelReference, now, write_record
from fovea.storage import Storage
from fovea.task import Task, product_task
from tests.tiny_model import write_tiny_model

TARGETS = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
EPSILON = {"float32": 1e-5, "bfloat16": 2**-7.99}


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return Phi3VForCausalLM.from_pretrained(folder, dtype=dtype)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def write_adapter(base: Path, folder: Path, **config: Any) -> Path:
    torch.manual_seed(1)
    model = get_peft_model(
        load(base), LoraConfig(r=4, lora_alpha=24, target_modules=TARGETS, init_lora_weights=False, **config)
    )
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny model in float32 in one file, and in bfloat16 in several."""
    folder = tmp_path_factory.mktemp("bases")
    write_tiny_model(folder / "float32")
    shutil.copytree(folder / "float32", folder / "bfloat16")
    (folder / "bfloat16" / "model.safetensors").unlink()
    load(folder / "float32", torch.bfloat16).save_pretrained(folder / "bfloat16", max_shard_size="3MB")
    return {"float32": folder / "float32", "bfloat16": folder / "bfloat16"}


@pytest.fixture(scope="module")
def adapters(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        "plain": write_adapter(bases["float32"], folder / "plain"),
        "rslora": write_adapter(bases["float32"], folder / "rslora", use_rslora=True),
    }


@pytest.fixture
def adapter(adapters: dict[str, Path], tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(adapters["plain"], tmp_path / "adapter"))


@pytest.mark.parametrize("kind", ["plain", "rslora"])
def test_the_merge_is_pefts(
    bases: dict[str, Path], adapters: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    merge_folders(bases["float32"], adapters[kind], tmp_path)
    expected = PeftModel.from_pretrained(load(bases["float32"]), adapters[kind]).merge_and_unload()
    merged = tensors(tmp_path)
    assert merged.keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block", [1, 1000, 1 << 20], ids=["by rows", "by some rows", "whole"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_changed_tensors_are_rounded_once_and_others_not_touched(
    bases: dict[str, Path],
    adapters: dict[str, Path],
    dtype: str,
    block: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("components.merge_adapter.shards._BLOCK", block)
    changed = merge_folders(bases[dtype], adapters["plain"], tmp_path)
    before, after = tensors(bases[dtype]), tensors(tmp_path)
    lora = load_file(adapters["plain"] / "adapter_model.safetensors")
    assert len(changed) == len(lora) // 2 == 8
    for name, weight in before.items():
        assert after[name].dtype == weight.dtype
        key = "base_model.model." + name.removesuffix(".weight")
        if name in changed:
            exact = (
                weight.double()
                + 6.0 * lora[f"{key}.lora_B.weight"].double() @ lora[f"{key}.lora_A.weight"].double()
            )
            assert not torch.equal(after[name], weight)
            torch.testing.assert_close(after[name].double(), exact, rtol=EPSILON[dtype], atol=1e-6)
            # One rounding is the nearest value, but where float32's own error crosses a tie.
            missed = (after[name] != exact.to(weight.dtype)).float().mean()
            assert dtype == "float32" or missed < 0.001
        else:
            assert torch.equal(after[name].view(torch.uint8), weight.view(torch.uint8))


def test_files_and_layout_are_the_bases(
    bases: dict[str, Path], adapters: dict[str, Path], tmp_path: Path
) -> None:
    merge_folders(bases["bfloat16"], adapters["plain"], tmp_path)
    shards = sorted(path.name for path in bases["bfloat16"].glob("*.safetensors"))
    assert len(shards) > 1
    assert sorted(path.name for path in tmp_path.iterdir()) == shards
    for name in shards:
        one, other = (bases["bfloat16"] / name).read_bytes(), (tmp_path / name).read_bytes()
        header = 8 + int.from_bytes(one[:8], "little")
        assert one[:header] == other[:header]
        assert len(one) == len(other)
        with safe_open(tmp_path / name, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}


def edit(adapter: Path, changes: dict[str, Any]) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


QKV = "base_model.model.model.layers.0.self_attn.qkv_proj"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{QKV}.lora_A.weight": torch.zeros(4, 63)}, "does not fit"),
        ({f"{QKV}.lora_A.weight": torch.zeros(5, 64)}, "does not fit"),
        ({f"{QKV}.lora_A.weight": torch.full((4, 64), torch.nan)}, "not finite"),
        ({f"{QKV}.lora_A.weight": None}, "lacks lora_A or lora_B"),
        ({f"{QKV}.lora_magnitude_vector": torch.zeros(4)}, "not part of a plain LoRA"),
        ({"layers.0.lora_A.weight": torch.zeros(4, 64)}, "not part of a plain LoRA"),
        (
            {
                "base_model.model.model.layers.9.self_attn.qkv_proj.lora_A.weight": torch.zeros(4, 64),
                "base_model.model.model.layers.9.self_attn.qkv_proj.lora_B.weight": torch.zeros(192, 4),
            },
            "layers.9.self_attn.qkv_proj.weight, which the adapter changes",
        ),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_before_anything_is_written(
    bases: dict[str, Path], adapter: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = adapter / "adapter_model.safetensors"
    changed = {**load_file(path), **changes}
    save_file({name: tensor for name, tensor in changed.items() if tensor is not None}, path)
    (tmp_path / "merged").mkdir()
    with pytest.raises(UserError, match=message):
        merge_folders(bases["float32"], adapter, tmp_path / "merged")
    assert not list((tmp_path / "merged").iterdir())


@pytest.mark.parametrize(
    "changes",
    [
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"alpha_pattern": {"qkv_proj": 1}},
        {"bias": "all"},
        {"peft_type": "IA3"},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "pissa_niter_16"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "corda"},
        {"init_lora_weights": "loftq"},
        {"init_lora_weights": "eva"},
        {"init_lora_weights": "lora_ga"},
        {"loftq_config": {"loftq_bits": 4}},
        {"corda_config": {"corda_method": "kpm"}},
        {"eva_config": {"rho": 2.0}},
        {"alora_invocation_tokens": [32006]},
        {"arrow_config": {"top_k": 1}},
        {"use_qalora": True},
        {"use_bdlora": {"nblocks": 2}},
        {"a_feature_of_next_year": 0.5},
    ],
)
def test_what_is_not_plain_lora_is_refused_by_name(adapter: Path, changes: dict[str, Any]) -> None:
    edit(adapter, changes)
    ((name, value),) = changes.items()
    with pytest.raises(UserError) as caught:
        LoraAdapter.load(adapter)
    assert f"adapter_config.json: only plain LoRA is merged, but this adapter has {name}=" in str(
        caught.value
    )
    assert json.dumps(value) in str(caught.value)


@pytest.mark.parametrize("changes", [{"r": 0}, {"lora_alpha": None}])
def test_a_scaling_that_is_none_is_refused(adapter: Path, changes: dict[str, Any]) -> None:
    edit(adapter, changes)
    with pytest.raises(UserError, match=r"adapter_config\.json: has no usable r and lora_alpha"):
        LoraAdapter.load(adapter)


@pytest.mark.parametrize(
    "options",
    [{}, {"init_lora_weights": "gaussian"}, {"init_lora_weights": False}, {"exclude_modules": "lm_head"}],
)
def test_what_peft_writes_of_plain_lora_is_taken(adapter: Path, options: dict[str, Any]) -> None:
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["qkv_proj"], **options).to_dict()
    edit(adapter, {**config, "peft_type": "LORA", "target_modules": ["qkv_proj"]})
    assert LoraAdapter.load(adapter).scaling == 2.0


def test_damaged_files_are_refused(adapter: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="train the adapter again"):
        LoraAdapter.load(adapter)
    (adapter / "adapter_config.json").write_text("[]")
    with pytest.raises(UserError, match="train the adapter again"):
        LoraAdapter.load(adapter)


@pytest.mark.parametrize(("dtype", "stored"), [("float32", "F32"), ("bfloat16", "BF16")])
def test_verification_tells_a_right_merge_from_a_wrong_one(
    bases: dict[str, Path], adapter: Path, tmp_path: Path, dtype: str, stored: str
) -> None:
    merged = Path(shutil.copytree(bases[dtype], tmp_path / "merged"))
    # An update of a few per cent, as training makes it.
    edit(adapter, {"lora_alpha": 0.4})
    merge_folders(bases[dtype], adapter, merged)
    assert verify(bases[dtype], adapter, merged, product_task(), stored) < 0.02
    edit(adapter, {"lora_alpha": 4.0})
    with pytest.raises(UserError, match="the merge is wrong"):
        verify(bases[dtype], adapter, merged, product_task(), stored)


class Inputs:
    """A base and an adapter in S3, and their records as files."""

    def __init__(self, root: str, base: Path, adapter: Path, folder: Path) -> None:
        self.root, self.folder = root, folder
        storage = Storage()
        made: dict[str, Any] = {
            "step_version": 1,
            "input_key": "0" * 64,
            "parameters": {},
            "parents": {},
            "created_at": now(),
            "run_id": "run-0",
        }
        self.base = ModelRecord(
            step="import_model",
            uri=f"{root}/base/",
            files=storage.upload_folder(base, f"{root}/base/"),
            architecture="Phi3VForCausalLM",
            num_crops=4,
            **made,
        )
        self.adapter = AdapterRecord(
            step="train_lora",
            uri=f"{root}/adapter/",
            files=storage.upload_folder(adapter, f"{root}/adapter/"),
            base=ModelReference(digest=self.base.digest, record_uri=f"{root}/index/base.json"),
            dataset_digest=f"sha256:{'d' * 64}",
            task=product_task(),
            num_crops=2,
            steps=1,
            epochs=1.0,
            train_loss=1.0,
            validation_loss=None,
            mlflow=MlflowReference(experiment_id="1", run_id="mlflow-run"),
            **made,
        )
        write_record(self.base, folder / "base.json")
        write_record(self.adapter, folder / "adapter.json")

    def merge(self, run_id: str = "run-1", **parameters: Any) -> ModelRecord:
        return merge_adapter_step(
            adapter_record=self.folder / "adapter.json",
            base_record=self.folder / "base.json",
            model_record=self.folder / "model.json",
            artifact_root=self.root,
            run_id=run_id,
            parameters=parameters,
        )


@pytest.fixture
def inputs(s3: str, bases: dict[str, Path], adapters: dict[str, Path], tmp_path: Path) -> Inputs:
    base = Path(shutil.copytree(bases["bfloat16"], tmp_path / "base"))
    (base / "modeling_phi3_v.py").write_text("raise SystemExit")
    (base / "LICENSE").write_text("A licence")
    adapter = Path(shutil.copytree(adapters["plain"], tmp_path / "adapter"))
    edit(adapter, {"lora_alpha": 0.4})
    return Inputs(s3, base, adapter, tmp_path)


def test_the_step_makes_a_model_that_loads_and_registers_it(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered: list[Any] = []

    def register(name: str, uri: str, reference: MlflowReference, tags: dict[str, str]) -> MlflowReference:
        registered.append((name, uri, tags["fovea.model"]))
        return reference.model_copy(update={"model_name": name, "model_version": str(len(registered))})

    monkeypatch.setattr(tracking, "register_model", register)
    record = inputs.merge(registered_model_name="shoes")
    assert registered == [("shoes", record.uri, record.digest)]
    assert record.mlflow is not None
    assert record.mlflow.model_version == "1"
    assert record.adapter_digest == inputs.adapter.digest
    assert record.base == inputs.adapter.base
    assert record.num_crops == 2
    assert ModelRecord.from_json((inputs.folder / "model.json").read_text()) == record

    merged, base = Storage().download(record), inputs.folder / "base"
    names = {path.name for path in merged.iterdir()}
    assert not any(name.endswith(".py") for name in names)
    taken = {path.name for path in base.iterdir() if path.suffix != ".py"}
    assert names == taken | {"task.json", "README.md"}
    card = (merged / "README.md").read_text()
    assert all(digest in card for digest in (record.base.digest, record.adapter_digest))
    for name in names - {"README.md", "task.json", "generation_config.json", "preprocessor_config.json"}:
        if not name.endswith(".safetensors"):
            assert (merged / name).read_bytes() == (base / name).read_bytes()
    generation = json.loads((merged / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [32007, 32000]
    assert generation["pad_token_id"] == 32000
    processor = json.loads((merged / "preprocessor_config.json").read_text())
    assert processor.pop("num_crops") == 2
    original = json.loads((base / "preprocessor_config.json").read_text())
    assert processor == {name: value for name, value in original.items() if name != "num_crops"}
    predictor = Predictor.load(merged)
    assert predictor.task == Task.load(merged) == product_task()
    assert predictor.num_crops == 2

    # Again: the model is there, under whatever name it is to be registered.
    again = inputs.merge("run-2", registered_model_name="bags")
    assert (again.digest, again.uri) == (record.digest, record.uri)
    assert registered[1][0] == "bags"


class Killer:
    """Runs the step in processes that it kills."""

    def __init__(self, inputs: Inputs) -> None:
        script = Path(__file__).with_name("killed.py")
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[3]),
            "MLFLOW_TRACKING_URI": "",
            "TMPDIR": str(inputs.folder),
        }
        self._process = subprocess.Popen(
            [sys.executable, str(script)], stdin=PIPE, stdout=PIPE, text=True, env=environment
        )
        self._arguments = {
            "adapter_record": str(inputs.folder / "adapter.json"),
            "base_record": str(inputs.folder / "base.json"),
            "model_record": str(inputs.folder / "model.json"),
            "artifact_root": inputs.root,
            "parameters": {"verify_merge": False},
        }

    def run(self, run_id: str, seconds: float | None = None) -> int:
        """Run the step for so long at most; return how it ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        told = {"seconds": seconds, "arguments": {**self._arguments, "run_id": run_id}}
        self._process.stdin.write(json.dumps(told) + "\n")
        self._process.stdin.flush()
        while not (line := self._process.stdout.readline()).strip().lstrip("-").isdigit():
            assert line, "the process has ended"
        return int(line)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.mark.parametrize("kills", [2, pytest.param(60, marks=pytest.mark.prove)])
def test_killed_half_way_nothing_half_written_is_ever_found(inputs: Inputs, kills: int) -> None:
    lot, storage, found = random.Random(kills), Storage(), list[str]()  # noqa: S311
    killer = Killer(inputs)
    try:
        started = time.monotonic()
        assert killer.run("whole") == 0
        whole = time.monotonic() - started
        storage.delete(storage.list(f"{inputs.root}/index/"))
        for number in range(kills):
            status = killer.run(f"killed-{number}", lot.uniform(0, whole))
            found = list(storage.list(f"{inputs.root}/index/"))
            assert status in (0, -signal.SIGKILL)
            assert status != 0 or found
            for uri in found:
                # What is found is whole: every file is there with its digest.
                record = ModelRecord.from_json(storage.read_bytes(uri))
                storage.download(record, cache=inputs.folder / f"cache-{number}")
                storage.delete([uri])  # so that the next one has work to do
        assert killer.run("last") == 0
    finally:
        killer.close()
    record = ModelRecord.from_json((inputs.folder / "model.json").read_text())
    assert Storage().find_by_payload(record.uri) == record
    payloads = {uri.rsplit("/", 1)[0] + "/" for uri in storage.list(f"{inputs.root}/merge_adapter/")}
    for uri in payloads - {record.uri}:
        with pytest.raises(UserError, match="no record in the index"):
            storage.find_by_payload(uri)


def test_without_tracking_the_training_run_is_still_known(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert inputs.merge(verify_merge=False).mlflow == inputs.adapter.mlflow


def test_another_base_is_refused_by_digest(inputs: Inputs) -> None:
    other = inputs.base.model_copy(update={"num_crops": 16})
    # A copy keeps the digest that was computed before.
    write_record(ModelRecord.from_json(other.to_json()), inputs.folder / "base.json")
    with pytest.raises(UserError, match="was trained on the base"):
        inputs.merge()
    failure = json.loads(Storage().read_bytes(f"{inputs.root}/runs/run-1/failure.json"))
    assert failure["kind"] == "user"


def test_the_same_inputs_give_the_same_bytes(
    bases: dict[str, Path], adapters: dict[str, Path], tmp_path: Path
) -> None:
    digests = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        merge_folders(bases["float32"], adapters["plain"], tmp_path / name)
        digests.append(hashlib.sha256((tmp_path / name / "model.safetensors").read_bytes()).hexdigest())
    assert digests[0] == digests[1]
