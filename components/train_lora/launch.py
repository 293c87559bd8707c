"""One process a GPU: started by torchrun where the task has several, else the training runs right here."""

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
"""So long a step and the upload of its checkpoint may take after SIGTERM. torchrun's own limit is 30."""


def count_processes() -> int:
    """Return how many processes a training has here: one for each GPU, or one."""
    return max(1, torch.cuda.device_count())


def launch(job: Job, run: tracking.Run) -> Trained:
    """Train in as many processes as the job says.

    A process alone writes to ``run``, which keeps what MLflow does not take; of several, the first one writes
    to the run that the job names.

    Raises:
        UserError: what a process says that a user can mend; or it ended without saying why.
        Interrupted: SIGTERM came.
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
            # SIGTERM, as a rule: the processes save a checkpoint, and torchrun waits for them.
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
        f"a process of the training ended without saying why (torchrun's status {status}); the log has its "
        "last words, and without any it was killed: give the task more main memory"
    )
