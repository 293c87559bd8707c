"""Compile the pipeline to the YAML that Kubeflow Pipelines takes, and that a local run runs too."""

import tempfile
from pathlib import Path

from kfp import compiler

from pipelines.finetune import finetune

PIPELINE_FILE = Path(__file__).with_name("finetune.yaml")
"""The compiled pipeline, under version control."""


def compile_pipeline() -> str:
    """Return the compiled pipeline; the same source gives the same bytes."""
    with tempfile.TemporaryDirectory(prefix="fovea-compile-") as folder:
        path = Path(folder) / "finetune.yaml"
        compiler.Compiler().compile(finetune, str(path))
        return path.read_text()
