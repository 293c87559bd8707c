"""The line that says what was left out, and ``--require``, in runs of pytest of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.left_out import Missing, summary

REPOSITORY = Path(__file__).resolve().parents[1]

TESTS = """
import pytest
from tests.left_out import Missing

@pytest.fixture(scope="session")
def server():
    pytest.skip(f"{Missing.API_SERVER}; it did not start:\\n  no room")

@pytest.mark.skipif(True, reason=Missing.CHROMIUM)
@pytest.mark.parametrize("number", range(3))
def test_page(number): ...

def test_server(server): ...

@pytest.mark.xfail(reason="known")
def test_known(): assert False

def test_that_runs(): ...
"""


def run(folder: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    (folder / "test_some.py").write_text(TESTS)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    environment.pop("PYTEST_ADDOPTS", None)
    command = [sys.executable, "-m", "pytest", "-p", "tests.left_out", "-p", "no:cacheprovider", *options]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_last_line_groups_reasons_and_pytests_own_stays(tmp_path: Path, workers: int) -> None:
    finished = run(tmp_path, "-n", str(workers))
    assert finished.returncode == 0, finished.stdout
    *_, before, last = finished.stdout.splitlines()
    assert re.search(r"1 passed, 4 skipped, 1 xfailed in ", before)
    assert last == (
        f"left out: 3 tests ({Missing.CHROMIUM}); 1 test ({Missing.API_SERVER}; it did not start: no room)"
    )


def test_what_is_required_fails(tmp_path: Path) -> None:
    finished = run(tmp_path, "-n", "0", "--require", "chromium")
    assert finished.returncode == 1, finished.stdout
    assert f"skipped, but --require names it: {Missing.CHROMIUM}" in finished.stdout
    assert re.search(r"1 passed, 1 skipped, 1 xfailed, 3 errors in ", finished.stdout)
    assert finished.stdout.splitlines()[-1].startswith("left out: 1 test (no API server: ")


def test_several_are_required_by_a_part_of_the_reason(tmp_path: Path) -> None:
    finished = run(tmp_path, "-n", "0", "--require", "chromium,api-server")
    assert finished.returncode == 1, finished.stdout
    assert finished.stdout.splitlines()[-1] == "nothing was left out"


def test_only_what_is_known_can_be_required(tmp_path: Path) -> None:
    finished = run(tmp_path, "-n", "0", "--require", "chromium,chrome")
    assert finished.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--require: chrome: not one of api-server, buildah, " in finished.stderr


def test_a_run_without_skips_says_so() -> None:
    assert summary([]) == "nothing was left out"


def test_every_run_here_uses_it(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.pluginmanager.has_plugin("tests.left_out")


@pytest.mark.parametrize("missing", Missing)
def test_a_reason_says_what_is_missing_and_how_to_get_it(missing: Missing) -> None:
    assert re.fullmatch(r"no [^:]+: .+", missing)
