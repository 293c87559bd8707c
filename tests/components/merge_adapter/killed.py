"""Runs the step again and again, each time in a process of its own that is killed: told by test_merge.

Reads lines of JSON: seconds to live (null: to the end) and the step's arguments. Answers how each ended.
"""

import json
import os
import select
import signal
import sys

import components.merge_adapter.merge  # noqa: F401 - here once, and not in every child
from components.merge_adapter.step import merge_adapter_step


def main() -> None:
    """Do as told until standard input closes."""
    for line in sys.stdin:
        told = json.loads(line)
        child = os.fork()
        if child == 0:
            merge_adapter_step(**told["arguments"])
            os._exit(0)
        if told["seconds"] is not None:
            watched = os.pidfd_open(child)
            select.select([watched], [], [], told["seconds"])  # sooner, if it has come to its end
            os.close(watched)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
