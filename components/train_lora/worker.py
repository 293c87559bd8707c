"""One of several processes of a training, started by torchrun: ``… .worker job.json``."""

import os
import sys
from pathlib import Path

import fovea.tracking as tracking
from components.train_lora.job import Job, run_job
from fovea.errors import UserError
from fovea.steps import Interrupted, configure_logging


def main() -> int:
    """Run the job in the given file, and record the reason if it fails."""
    configure_logging()
    job = Job.model_validate_json(Path(sys.argv[1]).read_text())
    is_first = os.environ["RANK"] == "0"
    run = tracking.Run.of(job.mlflow) if is_first else tracking.Run(None, None)
    try:
        run_job(job, run)
    except (UserError, Interrupted) as error:
        told = job.output / f"error-{os.environ['RANK']}.txt"
        told.write_text(f"{type(error).__name__}\n{error}")
        return 1
    finally:
        run.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
