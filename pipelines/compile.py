"""Compilation of the pipeline to YAML for Kubeflow Pipelines and for local runs."""

import hashlib
import tempfile
from pathlib import Path
from typing import Any

from kfp import compiler
from kfp.compiler.compiler_utils import KubernetesManifestOptions

from fovea import __version__
from pipelines.cluster.settings import ClusterSettings, cluster_pipeline
from pipelines.finetune import finetune

PIPELINE_FILE = Path(__file__).with_name("finetune.yaml")
"""The compiled pipeline of local runs, under version control."""


def compile_pipeline() -> str:
    """Return the compiled pipeline of a local run; the same source gives the same bytes."""
    return _compile(finetune)


def compile_for_cluster(settings: ClusterSettings) -> str:
    """Return the compiled pipeline of a cluster, as it is uploaded; the same settings give the same bytes."""
    return _compile(cluster_pipeline(settings))


def compile_resources(settings: ClusterSettings, *, namespace: str = "") -> str:
    """Return the same as KFP's custom resources, a Pipeline and its PipelineVersion, for GitOps.

    The version's name follows from its content, since a version cannot be changed.
    """
    pipeline = cluster_pipeline(settings)
    name = pipeline.name
    version = version_of(_compile(pipeline))
    options = KubernetesManifestOptions(
        pipeline_name=name,
        pipeline_version_name=f"{name}-{version}",
        pipeline_version_display_name=version,
        namespace=namespace or None,
        include_pipeline_manifest=True,
    )
    return _compile(pipeline, kubernetes_manifest_format=True, kubernetes_manifest_options=options)


def version_of(content: str) -> str:
    """Return the name of a compiled pipeline's version: the release, and a digest of the content."""
    return f"{__version__}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def _compile(pipeline: Any, **options: Any) -> str:
    with tempfile.TemporaryDirectory(prefix="fovea-compile-") as folder:
        path = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(pipeline, str(path), **options)
        return path.read_text()
