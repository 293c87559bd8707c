"""Run the compiled pipeline with kfp.local: ``python -m pipelines.local.kfp_runner PIPELINE ARGUMENTS ROOT``.

It runs in a separate process because kfp.local prints to the terminal, keeps global state, and starts its
tasks in its own process group: the parent can stop this group and with it the whole run.
"""

import json
import os
import signal
import sys
import threading
import warnings
from pathlib import Path

from pipelines.local.task_server import TaskServers, task_servers


def main(pipeline: str, arguments: str, root: str) -> int:
    """Run ``pipeline``, a compiled file, with the arguments in a JSON file; return the exit status."""
    # These warnings are expected: the image has no Python in its name, and display names are not shown here.
    warnings.filterwarnings("ignore", message="You may be attemping to run a task", category=RuntimeWarning)
    warnings.filterwarnings("ignore", message="Task '.*': settings", category=UserWarning)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with task_servers() as servers:
        # Found by the PATH: kfp puts ``sys.executable`` into a shell script without quotes.
        sys.executable = "python3"
        return _run(pipeline, arguments, root, servers)


def _run(pipeline: str, arguments: str, root: str, servers: TaskServers) -> int:
    # Imported here: importing kfp takes a second, in which the server also imports it for the tasks.
    from kfp import components, local

    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=root, raise_on_error=True)
    run = components.load_component_from_file(pipeline)
    servers.wait()
    os.environ.update(servers.environment)
    try:
        run(**json.loads(Path(arguments).read_text()))
    except RuntimeError as error:
        # kfp's error only names a task; the task has logged the reason.
        print(error, flush=True)
        return 1
    return 0


def _end_with_parent() -> None:
    """Stop this process's group, including tasks, when the parent is gone and its pipe closes."""
    while sys.stdin.buffer.read(4096):
        pass
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
