"""The workspace: what goes in comes out, and memory stays where it is."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.prepare_data.workspace import Workspace
from tests.components.prepare_data.workspaces import query


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with Workspace(tmp_path) as found:
        yield found


def add(workspace: Workspace, address: str, digest: str, jpeg: bytes) -> None:
    workspace.pictures.add(
        address, digest=digest, jpeg=jpeg, size=(4, 3), original_size=(8, 6), fingerprint=b"f"
    )


def test_pictures_are_kept_once_an_original(workspace: Workspace) -> None:
    add(workspace, "a", "1" * 64, b"one")
    add(workspace, "b", "2" * 64, b"other")
    add(workspace, "c", "1" * 64, b"one")
    assert workspace.pictures.jpeg("1" * 64) == b"one"
    assert workspace.pictures.jpeg("2" * 64) == b"other"
    places = dict(query(workspace, "SELECT address, offset FROM pictures").fetchall())
    assert places == {"a": 0, "b": 3, "c": 0}
    with pytest.raises(KeyError):
        workspace.pictures.jpeg("3" * 64)


def test_originals_lie_beside(workspace: Workspace) -> None:
    workspace.pictures.add_original("row:0", b"zero")
    workspace.pictures.add_original("row:1", b"")
    assert [workspace.pictures.original(f"row:{number}") for number in range(3)] == [b"zero", b"", None]
    workspace.pictures.add_original("row:2", b"two")
    assert workspace.pictures.original("row:2") == b"two"


def test_rows_are_counted_by_reason_and_by_split(workspace: Workspace) -> None:
    raw = {"title": "Écharpe", "full_price": 1390.5}
    for number in range(4):
        workspace.rows.add(number, raw, product=f"p{number // 2}", address="a", values={"product": "É"})
    workspace.rows.add(4, {"line": "x"}, reason="malformed_line")
    workspace.pictures.add_unusable("b", "not_found", "404")
    query(workspace, "UPDATE rows SET split = 'train' WHERE reason IS NULL")
    query(workspace, "UPDATE rows SET reason = 'duplicate' WHERE number = 3")
    assert workspace.rows.dropped_by_reason() == {"duplicate": 1, "malformed_line": 1}
    assert workspace.rows.kept_by_split() == {"train": (3, 2)}
    stored = query(workspace, 'SELECT raw, "values" FROM rows WHERE number = 0').fetchone()
    assert [json.loads(text) for text in stored] == [raw, {"product": "É"}]
