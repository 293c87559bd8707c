"""Start the training: torchrun with one process per GPU if the task has several, or this process."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import torch

import fovea.tracking as tracking
from components.train_lora.job import Job, Trained, run_job
from components.train_lora.report import TRAINED
from fovea.errors import UserError
from fovea.steps import Interrupted

logger = logging.getLogger("fovea.train_lora")

_REPOSITORY = Path(__file__).resolve().parents[2]
_GRACE_SECONDS = 120
"""Time for a step and the upload of its checkpoint after SIGTERM. torchrun's default is 30."""


def count_processes() -> int:
    """Return the number of processes of a training here: one for each GPU, or one."""
    return max(1, torch.cuda.device_count())


def launch(job: Job, run: tracking.Run) -> Trained:
    """Train in the job's number of processes.

    A single process writes to ``run``, which buffers what MLflow does not accept; of several, the first one
    writes to the run that the job names.

    Raises:
        UserError: a process reported an error that the user can fix, or exited without a reason.
        Interrupted: SIGTERM was received.
    """
    if job.processes == 1:
        return run_job(job, run)
    file = job.output / "job.json"
    file.write_text(job.model_dump_json())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={job.processes}", f"--shutdown-timeout={_GRACE_SECONDS}"]
    command += ["-m", "components.train_lora.worker", str(file)]
    search = os.pathsep.join(filter(None, [str(_REPOSITORY), os.environ.get("PYTHONPATH")]))
    logger.info("train_lora: %d processes, one a device", job.processes)
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": search}) as process:  # noqa: S603
        try:
            status = process.wait()
        except BaseException:
            # Usually SIGTERM: the processes save a checkpoint, and torchrun waits for them.
            process.terminate()
            try:
                process.wait(_GRACE_SECONDS + 10)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
    if status:
        raise _reason(job, status)
    return Trained.model_validate_json((job.output / TRAINED).read_text())


def _reason(job: Job, status: int) -> BaseException:
    for path in sorted(job.output.glob("error-*.txt")):
        kind, _, text = path.read_text().partition("\n")
        if kind == UserError.__name__:
            return UserError(text)
        if kind == Interrupted.__name__:
            return Interrupted(text)
    return UserError(
        f"a process of the training exited without a reason (torchrun's status {status}); if the log has no "
        "error either, the process was killed: give the task more main memory"
    )
