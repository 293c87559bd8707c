"""The overlay `dev` without a cluster: its S3 server, sample and MLflow are started as it says."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from pipelines.local.s3 import find_rclone, free_port
from tests.manifests.kustomize import Object, build, pod_specs


def container(workload: str) -> Object:
    (found,) = pod_specs(build("overlays/dev"))[workload]["containers"]
    return found


def environment(**own: str) -> dict[str, str]:
    """With the image's commands on the PATH."""
    bins = f"{Path(sys.executable).parent}{os.pathsep}{find_rclone().parent}"
    return {
        **os.environ,
        "PATH": f"{bins}{os.pathsep}{os.environ['PATH']}",
        "RCLONE_CONFIG": os.devnull,
        **own,
    }


@contextmanager
def running(command: list[str], address: str, **own: str) -> Iterator[None]:
    """Run a server for the block, once it answers anything."""
    process = subprocess.Popen(command, env=environment(**own), start_new_session=True)
    deadline = time.monotonic() + 120
    try:
        while True:
            try:
                httpx.get(address, timeout=5)
                break
            except httpx.TransportError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.prove
def test_the_sample_comes_into_the_s3_server(tmp_path: Path) -> None:
    port, keys = free_port(), {"AWS_ACCESS_KEY_ID": "fovea", "AWS_SECRET_ACCESS_KEY": "secret"}
    serve = [
        word.replace("/data", str(tmp_path / "data")).replace(":9000", f"127.0.0.1:{port}")
        for word in container("Deployment/fovea-s3")["command"]
    ]
    auth = next(each for each in container("Deployment/fovea-s3")["env"] if each["name"] == "RCLONE_AUTH_KEY")
    for name, value in keys.items():
        auth["value"] = auth["value"].replace(f"$({name})", value)
    job = container("Job/fovea-sample")
    # The model takes minutes and has tests of its own.
    script = "\n".join(line for line in job["args"][0].splitlines() if "model" not in line)
    program = f"{sys.executable} -P -m cli.main "
    script = script.replace("/scratch", str(tmp_path)).replace("fovea ", program, 1)
    own = {each["name"]: each["value"] for each in job["env"]}
    own |= {"RCLONE_S3_ENDPOINT": f"http://127.0.0.1:{port}", "HOME": str(tmp_path), **keys}
    with running(serve, f"http://127.0.0.1:{port}", RCLONE_AUTH_KEY=auth["value"]):
        command = [*job["command"], script]
        done = subprocess.run(command, env=environment(**own), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "source: s3://fovea/catalogue/products.csv" in done.stdout
    table = (tmp_path / "data" / "fovea" / "catalogue" / "products.csv").read_text()
    assert "images/" in table
    assert "catalogue.invalid" not in table


@pytest.mark.prove
def test_mlflow_answers_to_the_names_that_it_is_asked_by(tmp_path: Path) -> None:
    port, mlflow = free_port(), container("Deployment/fovea-mlflow")
    words = [*mlflow["command"], *mlflow["args"]]
    changes = {"--host=0.0.0.0": "--host=127.0.0.1", "--port=5000": f"--port={port}"}
    command = [changes.get(word, word).replace("/data/", f"{tmp_path}/") for word in words]
    settings = {each["name"]: each["value"] for each in mlflow["env"]}
    url = f"http://127.0.0.1:{port}"
    with running(command, f"{url}/health", **{**settings, "HOME": str(tmp_path)}):
        probe = mlflow["livenessProbe"]["httpGet"]
        headers = {each["name"]: each["value"] for each in probe["httpHeaders"]}
        assert httpx.get(url + probe["path"], headers=headers).status_code == 200
        search = f"{url}/api/2.0/mlflow/experiments/search?max_results=5"
        answers = {
            host: httpx.get(search, headers={"Host": host}) for host in ("fovea-mlflow:5000", "other:5000")
        }
    assert {host: answer.status_code for host, answer in answers.items()} == {
        "fovea-mlflow:5000": 200,
        "other:5000": 403,
    }
    assert json.loads(answers["fovea-mlflow:5000"].text)["experiments"]
