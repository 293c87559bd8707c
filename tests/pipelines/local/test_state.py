import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fovea.errors import UserError
from pipelines.local.state import claim


def test_a_second_run_is_kept_out_and_told_by_whom(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from pipelines.local.state import claim
with claim(Path({str(tmp_path)!r})):
    print("mine", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "mine\n"
        with pytest.raises(UserError, match=f"process {other.pid}"), claim(tmp_path):
            pass
        other.kill()
    with claim(tmp_path) as state:
        assert state.root == tmp_path


def test_temporary_files_of_a_killed_run_are_cleared(tmp_path: Path) -> None:
    (tmp_path / "tmp" / "half").mkdir(parents=True)
    with claim(tmp_path) as state:
        assert list(state.temporary.iterdir()) == []
    assert not state.temporary.exists()


def test_a_deep_state_folder_leaves_room_for_the_sockets_of_workers(tmp_path: Path) -> None:
    with claim(tmp_path / ("deep/" * 20)) as state:
        assert len(str(state.temporary)) <= 70
        assert state.temporary.is_dir()
    assert not state.temporary.exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"), claim(tmp_path / "file" / "state"):
        pass


def test_a_disk_that_is_nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=3 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"has 0\.0 GB free, a run needs"), claim(tmp_path):
        pass
