import os
import signal
import subprocess
import sys

import psutil
import pytest

from pipelines.local.processes import ending_with_block, interruptible

FAMILY = """
import os, subprocess, sys, time
children = [
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True),
    subprocess.Popen(["sh", "-c", "sleep 600 & wait"]),
]
print(os.getpid(), *(child.pid for child in children), flush=True)
time.sleep(600)
"""


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_nothing_outlives_the_block() -> None:
    with ending_with_block([sys.executable, "-c", FAMILY], dict(os.environ)) as process:
        assert process.stdout is not None
        family = [int(pid) for pid in process.stdout.readline().split()]
        grandchildren = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    assert [pid for pid in family + grandchildren if alive(pid)] == []


def test_what_will_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.local.processes._GRACE_SECONDS", 0.2)
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print('up', flush=True); time.sleep(600)"
    )
    with ending_with_block([sys.executable, "-c", code], dict(os.environ)) as process:
        assert process.stdout is not None
        process.stdout.readline()
    assert process.returncode == -signal.SIGKILL


def test_what_ends_by_itself_is_left_to() -> None:
    with ending_with_block([sys.executable, "-c", "print('done')"], dict(os.environ)) as process:
        assert process.stdout is not None
        assert process.stdout.read() == "done\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_a_block_like_ctrl_c(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(number)
    assert signal.getsignal(number) == before


def test_kfp_ends_when_the_process_that_started_it_is_killed() -> None:
    code = """
import os, subprocess, sys
child = subprocess.Popen(
    [sys.executable, "-c", "from pipelines.local.kfp_runner import _end_with_parent; _end_with_parent()"],
    stdin=subprocess.PIPE, start_new_session=True,
)
print(child.pid, flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    psutil.wait_procs([child], timeout=20)
    assert not alive(child.pid)
