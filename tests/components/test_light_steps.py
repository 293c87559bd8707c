"""A step that finds its result loads no torch: the second run of an unchanged pipeline takes seconds."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module",
    [
        "components.prepare_data.step",
        "components.train_lora.step",
        "components.merge_adapter.step",
        "components.evaluate.step",
        "pipelines.lifecycle.preflight",
    ],
)
def test_a_step_loads_nothing_heavy_before_there_is_work(module: str) -> None:
    heavy = "{'torch', 'transformers', 'peft', 'datasets', 'mlflow'}"
    code = f"import sys, {module}; sys.exit(', '.join({heavy} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
