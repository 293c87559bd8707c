import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipelines.local.task_client import SOCKETS
from pipelines.local.task_server import task_servers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="libraries do not survive a fork elsewhere")

PROGRAM = '''
"""Says where it runs and what it was given."""
import os, sys, time
if sys.argv[1:] == ["fail"]:
    raise ValueError("a wrong argument")
if sys.argv[1:] == ["leave"]:
    sys.exit(7)
if sys.argv[1:] == ["say why"]:
    sys.exit("because")
if sys.argv[1:] == ["wait"]:
    print(os.getpid(), flush=True)
    time.sleep(60)
if sys.argv[1:] == ["modules"]:
    print("statistics" in sys.modules, "colorsys" in sys.modules)
    sys.exit()
import atexit
atexit.register(print, "at exit")
print(sys.argv[1:], os.environ["WORD"], os.getcwd(), sys.stdin.read(), "statistics" in sys.modules)
print("to the other stream", file=sys.stderr)
'''


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("programs")
    (folder / "said_program.py").write_text(PROGRAM)
    return folder


@pytest.fixture(scope="module")
def environment(programs: Path) -> Iterator[dict[str, str]]:
    """The environment of a server that is ready; it imported a module that Python itself does not."""
    with task_servers([["statistics"]]) as servers:
        servers.wait()
        yield {**os.environ, **servers.environment, "PYTHONPATH": str(programs), "WORD": "hello"}


def wait_for(path: Path) -> None:
    until = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < until, f"{path} does not appear"
        time.sleep(0.02)


def python(environment: dict[str, str], *arguments: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["python3", "-m", "said_program", *arguments],
        env=environment,
        cwd=folder,
        input="from stdin",
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_program_has_the_callers_arguments_environment_folder_and_streams(
    environment: dict[str, str], tmp_path: Path
) -> None:
    ended = python(environment, "one", "two words", folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"['one', 'two words'] hello {tmp_path} from stdin True\nat exit\n"
    assert ended.stderr == "to the other stream\n"


@pytest.mark.parametrize(
    ("argument", "status", "said"),
    [("leave", 7, ""), ("say why", 1, "because\n"), ("fail", 1, "ValueError: a wrong argument\n")],
)
def test_a_program_ends_with_its_own_status(
    environment: dict[str, str], tmp_path: Path, argument: str, status: int, said: str
) -> None:
    ended = python(environment, argument, folder=tmp_path)
    assert ended.returncode == status
    assert ended.stderr.endswith(said)


def test_programs_run_beside_each_other_and_a_killed_one_is_told(
    environment: dict[str, str], tmp_path: Path
) -> None:
    command = ["python3", "-m", "said_program", "wait"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as waiting:
        assert waiting.stdout is not None
        program = int(waiting.stdout.readline())
        assert python(environment, folder=tmp_path).returncode == 0
        os.kill(program, signal.SIGKILL)
        assert waiting.wait(timeout=30) == 128 + signal.SIGKILL


def test_without_a_ready_server_python_runs_as_usual(programs: Path, tmp_path: Path) -> None:
    with task_servers([["no_such_module"]]) as servers:
        servers.wait()
        environment = {**os.environ, **servers.environment, "PYTHONPATH": str(programs), "WORD": "hello"}
        ended = python(environment, folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"[] hello {tmp_path} from stdin False\nat exit\n"


def test_a_call_without_a_module_runs_as_usual(environment: dict[str, str]) -> None:
    ended = subprocess.run(
        ["python3", "-c", "import sys; print('statistics' in sys.modules)"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.stdout == "False\n"


def test_a_long_program_starts_the_next_server_and_all_end_with_the_block(
    programs: Path, tmp_path: Path
) -> None:
    with task_servers([["statistics"], ["colorsys"]]) as servers:
        servers.wait()
        large, small = map(Path, servers.environment[SOCKETS].split(os.pathsep))
        environment = {**os.environ, **servers.environment, "PYTHONPATH": str(programs), "WORD": "hello"}
        assert python(environment, folder=tmp_path).returncode == 0
        assert not large.exists()
        command = ["python3", "-m", "said_program", "wait"]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as waiting:
            wait_for(large)
            assert python(environment, "modules", folder=tmp_path).stdout == "True True\n"
            assert waiting.stdout is not None
            os.kill(int(waiting.stdout.readline()), signal.SIGKILL)
    assert not small.parent.exists()
    until = time.monotonic() + 10
    while any(str(small.parent) in line for line in command_lines()):
        assert time.monotonic() < until
        time.sleep(0.02)


def command_lines() -> list[str]:
    return [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
