"""The state folder of local runs, and the lock that prevents a second run."""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fovea.errors import UserError

_FREE_BYTES = 1 << 30
_LONGEST_TEMPORARY = 70
"""Worker processes create sockets in this folder, and the path of a socket is limited to 107 bytes."""


@dataclass(frozen=True)
class State:
    """The paths below a state folder, ``.fovea`` by default."""

    root: Path

    @property
    def sample(self) -> Path:
        """The sample catalogues and the sample model."""
        return self.root / "sample"

    @property
    def s3(self) -> Path:
        """The buckets of the embedded S3 server, as plain files."""
        return self.root / "s3"

    @property
    def mlflow(self) -> Path:
        """MLflow's store."""
        return self.root / "mlflow.db"

    @property
    def cache(self) -> Path:
        """Payloads downloaded from S3, by digest; can be removed at any time."""
        return self.root / "cache"

    @property
    def kfp(self) -> Path:
        """The output of kfp.local for each run: the records passed between tasks."""
        return self.root / "kfp"

    @property
    def temporary(self) -> Path:
        """Temporary files of the current run; emptied when it starts and stops."""
        folder = self.root / "tmp"
        if len(os.fsencode(folder)) <= _LONGEST_TEMPORARY:
            return folder
        name = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"fovea-{name}"

    @property
    def last_run(self) -> Path:
        """Summary, report and log of the last run."""
        return self.root / "last-run"

    @property
    def platform(self) -> Path:
        """The platform's configuration for local runs."""
        return self.root / "platform.yaml"

    @property
    def catalogue_port(self) -> Path:
        """The port at which the sample catalogue was last served."""
        return self.root / "catalogue-port"


def write_whole(path: Path, text: str) -> Path:
    """Write a file atomically: it is complete or absent, even if this process is killed."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    return part.replace(path)


@contextmanager
def claim(root: Path) -> Iterator[State]:
    """Lock a state folder for the block, with an empty folder for temporary files.

    Raises:
        UserError: another run uses it, it cannot be written, or the disk is nearly full.
    """
    state = State(root.absolute())
    try:
        state.root.mkdir(parents=True, exist_ok=True)
        lock = (state.root / "lock").open("a+")
    except OSError as error:
        raise UserError(
            f"{state.root}: cannot be written ({error.strerror}); choose another --state"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UserError(
                f"{state.root}: another run (process {lock.read().strip() or 'unknown'}) is using it; "
                "wait for it, or choose another --state"
            ) from None
        _check_disk(state.root)
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        shutil.rmtree(state.temporary, ignore_errors=True)
        state.temporary.mkdir(mode=0o700)
        try:
            yield state
        finally:
            shutil.rmtree(state.temporary, ignore_errors=True)


def _check_disk(root: Path) -> None:
    free = shutil.disk_usage(root).free
    if free < _FREE_BYTES:
        raise UserError(
            f"{root}: the disk has {free / 1e9:.1f} GB free, a run needs {_FREE_BYTES / 1e9:.1f}; "
            "free some, or choose another --state"
        )
