"""A real API server for the session's tests, one for all workers."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from filelock import FileLock

from tests.left_out import Missing

ENVTEST = Path(__file__).resolve().parents[3] / "shared" / "envtest"
"""Scripts that start etcd and kube-apiserver with KServe's CRDs, where a checkout has them beside it."""


@contextmanager
def api_server(folder: Path) -> Iterator[Path]:
    """Give the kubeconfig of a server that the workers share: the first starts it, the last stops it.

    A running one is taken where ``USE_EXISTING_CLUSTER`` is ``true`` and ``KUBECONFIG`` names it, the
    convention of controller-runtime's envtest.
    """
    if os.environ.get("USE_EXISTING_CLUSTER") == "true":
        yield Path(os.environ["KUBECONFIG"])
        return
    if not (ENVTEST / "start.sh").is_file():
        pytest.skip(Missing.API_SERVER)
    if missing := [name for name in ("curl", "kubectl", "openssl", "xz") if shutil.which(name) is None]:
        pytest.skip(f"{Missing.API_SERVER}; to start it, install {', '.join(missing)}")
    state, run = folder / "envtest.json", folder / "envtest"
    with FileLock(folder / "envtest.lock"):
        users = json.loads(state.read_text()) if state.exists() else 0
        if users == 0:
            _start(run)
        state.write_text(json.dumps(users + 1))
    try:
        yield run / "kubeconfig"
    finally:
        with FileLock(folder / "envtest.lock"):
            users = json.loads(state.read_text()) - 1
            state.write_text(json.dumps(users))
            if users == 0:
                _stop(run)


def _start(run: Path) -> None:
    crds = sorted(path for kind in ("kserve", "kfp") for path in (ENVTEST / "crds" / kind).glob("*.yaml"))
    command = [ENVTEST / "start.sh", run, "--controllers", "--strict", *crds]
    # The script calls python3 and imports yaml.
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    started = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    kubeconfig = run / "kubeconfig"
    if started.returncode == 0:
        return
    # On a busy machine the aggregated API may take longer than the script waits.
    check = ["kubectl", "--kubeconfig", kubeconfig, "wait", "--for=condition=Available", "--timeout=120s"]
    waited = subprocess.run(
        [*check, "apiservice/v1beta1.serving.kserve.io"], check=False, capture_output=True, text=True
    )
    if waited.returncode:
        _stop(run)
        pytest.skip(f"{Missing.API_SERVER}; it did not start: {(started.stderr + waited.stderr)[-300:]}")


def _stop(run: Path) -> None:
    # Nobody wants its state any more, and a graceful end takes a quarter of a minute.
    for file in run.glob("*.pid"):
        with suppress(ProcessLookupError):
            os.kill(int(file.read_text()), signal.SIGKILL)
    subprocess.run([ENVTEST / "stop.sh", run], check=False, capture_output=True)
