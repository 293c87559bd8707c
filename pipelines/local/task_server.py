"""A server that forks Python programs from a process that has already imported their libraries.

A task of a local run takes seconds to import MLflow, torch and transformers. `task_servers` starts a server
that imports the small libraries, and returns an environment whose ``python3`` requests a fork from it. Once a
program has run for some seconds, there is real work to do: the server then forks a second one, which also
imports the large libraries, and ``python3`` uses that one when it is ready. If none is ready, ``python3`` is
this Python.

Each program runs in a separate process, with the caller's arguments, environment, folder and streams.
"""

import atexit
import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from pipelines.local import task_client

SMALL = (
    "kfp.dsl.executor_main",
    "boto3",
    "pyarrow",
    "mlflow",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "fovea.steps",
    "fovea.evaluation.intervals",
)
LARGE = ("datasets", "fovea.phi3v", "peft", "components.train_lora.train", "components.evaluate.evaluation")

_LONG_SECONDS = 2.5
"""How long a program runs before the next server is forked."""
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class TaskServers:
    """The servers of a run, and the environment whose ``python3`` uses the last one that is ready."""

    environment: dict[str, str]
    _first: "subprocess.Popen[bytes] | None" = None

    def wait(self) -> None:
        """Wait until the first server is ready, or has failed."""
        first = Path(self.environment[task_client.SOCKETS].split(os.pathsep)[-1])
        while self._first is not None and self._first.poll() is None and not first.exists():
            time.sleep(0.05)


@contextmanager
def task_servers(levels: Sequence[Sequence[str]] = (SMALL, LARGE)) -> Iterator[TaskServers]:
    """Start the first server.

    Only on Linux: elsewhere, libraries do not survive a fork.

    Args:
        levels: The modules that the first server imports, and those that each further one adds.
    """
    with tempfile.TemporaryDirectory(prefix="fovea-tasks-") as name:
        environment = _environment(Path(name), len(levels))
        if sys.platform != "linux":
            yield TaskServers(environment)
            return
        command = [sys.executable, "-m", "pipelines.local.task_server", name, *map(",".join, levels)]
        # As KFP sets it for its tasks: kfp then imports neither client nor compiler.
        with subprocess.Popen(command, env={**os.environ, "_KFP_RUNTIME": "true"}) as server:  # noqa: S603
            try:
                yield TaskServers(environment, server)
            finally:
                server.kill()


def _environment(folder: Path, levels: int) -> dict[str, str]:
    launcher = folder / "python3"
    client = Path(task_client.__file__).resolve()
    launcher.write_text(f'#!/bin/sh\nexec "${task_client.PYTHON}" -S -E "{client}" "$@"\n')
    launcher.chmod(0o700)
    sockets = [str(_socket(folder, level)) for level in reversed(range(levels))]
    return {
        "PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        task_client.PYTHON: sys.executable,
        task_client.SOCKETS: os.pathsep.join(sockets),
    }


def _socket(folder: Path, level: int) -> Path:
    return folder / f"{level}.socket"


def serve(folder: Path, levels: Sequence[Sequence[str]]) -> None:
    """Serve each level at a socket in ``folder``, the first in this process and the next in its forks.

    Returns only in the process of a program, with the caller's arguments, environment, folder and streams.
    """
    # Only NumPy and Arrow have threads here, and both libraries handle forks.
    warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
    # No process waits for these children, which wait for programs.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for level, modules in enumerate(levels):
        for module in modules:
            importlib.import_module(module)
        # A garbage collection in a program would copy each page of this memory that it visits.
        gc.collect()
        gc.freeze()
        with _listen(_socket(folder, level)) as listener:
            if not _fork_programs(listener, is_last=level + 1 == len(levels)):
                return


def _fork_programs(listener: socket.socket, is_last: bool) -> bool:
    """Fork a process for each requested program.

    Returns:
        False in the process of a program, and True in the one that serves the next level.
    """
    programs: list[int] = []
    while True:
        listener.settimeout(_LONG_SECONDS if programs and not is_last else None)
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            if any(map(psutil.pid_exists, programs)):
                is_last = True
                if os.fork() == 0:
                    _end_with_parent()
                    return True
            programs = []
            continue
        programs.append(os.fork())
        if programs[-1] == 0:
            listener.close()
            _become_program(connection)
            return False
        connection.close()


def _end_with_parent() -> None:
    """Have the kernel kill this process when its parent exits; the programs it forks are not affected."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _listen(path: Path) -> socket.socket:
    """Listen at ``path``, which appears when clients can connect."""
    listener, folder = socket.socket(socket.AF_UNIX), Path.cwd()
    # By its name, because the full path of a socket may be too long.
    os.chdir(path.parent)
    listener.bind(f"{path.name}.part")
    os.chdir(folder)
    listener.listen()
    path.with_name(f"{path.name}.part").rename(path)
    return listener


def _become_program(connection: socket.socket) -> None:
    """Fork the requested program and return in it; this process sends its exit status to the client."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request, streams = _receive(connection)
    program = os.fork()
    if program:
        for stream in streams:
            os.close(stream)
        for own in range(3):
            os.close(own)
        code = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
        # The client may be gone.
        with suppress(OSError):
            connection.sendall(str(code if code >= 0 else 128 - code).encode())
        os._exit(0)
    connection.close()
    for own, stream in enumerate(streams):
        os.dup2(stream, own)
        os.close(stream)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.argv = request["arguments"]
    # Python read the folder and PYTHONPATH when the server started.
    added = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = [request["folder"], *(path for path in added if path and path not in sys.path)]


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Return a client's request and its three standard streams."""
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    with connection.makefile("rb") as file:
        return json.load(file), list(streams)


def _run_program() -> int:
    """Run the module named in ``sys.argv``, and return its exit status as Python would."""
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as exit_:
        if isinstance(exit_.code, int | None):
            return exit_.code or 0
        print(exit_.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main(folder: str, *levels: str) -> None:
    """Serve in ``folder``; in the process of a program, exit when it has run."""
    status: list[int] = []

    def leave() -> None:
        # Bypasses the interpreter's shutdown, which would touch, and so copy, all of the server's memory.
        if status:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status[0])

    # Registered first, so called last, after the handlers of the libraries and the program.
    atexit.register(leave)
    _end_with_parent()
    serve(Path(folder), [level.split(",") for level in levels])
    status.append(_run_program())


if __name__ == "__main__":
    main(*sys.argv[1:])
