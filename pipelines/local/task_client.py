"""``python3`` of a local run's tasks: asks a server of `pipelines.local.task_server` to run the program.

It is started for each task, so it imports a few modules of the standard library and nothing else.
"""

import json
import os
import signal
import socket
import sys

SOCKETS = "FOVEA_TASK_SOCKETS"
PYTHON = "FOVEA_PYTHON"


def main(arguments: list[str]) -> int:
    """Run ``python3 ARGUMENTS``, in a server where one is ready and else as usual; return its exit status."""
    connection = _connect() if arguments[:1] == ["-m"] else None
    if connection is None:
        python = os.environ[PYTHON]
        os.execv(python, [python, *arguments])  # noqa: S606
    # The program has this signal too; here it would only print a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with connection:
        request = {"arguments": arguments[1:], "environment": dict(os.environ), "folder": os.getcwd()}  # noqa: PTH109
        socket.send_fds(connection, [b"\0"], [0, 1, 2])
        connection.sendall(json.dumps(request).encode())
        connection.shutdown(socket.SHUT_WR)
        status = connection.recv(16)
    return int(status) if status else 1


def _connect() -> socket.socket | None:
    folder = os.getcwd()  # noqa: PTH109
    for path in filter(None, os.environ.get(SOCKETS, "").split(os.pathsep)):
        connection = socket.socket(socket.AF_UNIX)
        try:
            # By its name alone: the whole path of a socket may be too long.
            os.chdir(os.path.dirname(path))  # noqa: PTH120
            connection.connect(os.path.basename(path))  # noqa: PTH119
            return connection
        except OSError:
            connection.close()
        finally:
            os.chdir(folder)
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
