"""``python3`` for the tasks of a local run: passes the program to a server of `pipelines.local.task_server`.

It starts once per task, so it imports only a few modules of the standard library.
"""

import json
import os
import signal
import socket
import sys

SOCKETS = "FOVEA_TASK_SOCKETS"
PYTHON = "FOVEA_PYTHON"


def main(arguments: list[str]) -> int:
    """Run ``python3 ARGUMENTS`` in a ready server, or as usual if there is none; return its exit status."""
    connection = _connect() if arguments[:1] == ["-m"] else None
    if connection is None:
        python = os.environ[PYTHON]
        os.execv(python, [python, *arguments])  # noqa: S606
    # The program receives this signal too; here it would only print a traceback.
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
            # By its name, because the full path of a socket may be too long.
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
