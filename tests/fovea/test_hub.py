"""From a hub into the cache: one commit, digests checked. The hub is a stand-in on this machine."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from fovea.errors import UserError
from fovea.hub import download_model, is_hub_name
from tests.hub_server import HubServer, serve_hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = f"owner/model@{COMMIT}"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    folder = tmp_path / "there"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights" * 1000)
    (folder / "modeling.py").write_text("raise SystemExit")
    with serve_hub(folder, "owner/model", COMMIT) as server:
        # The library reads HF_ENDPOINT once, when it is imported.
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield server


def test_only_what_is_wanted_comes_and_only_once(hub: HubServer) -> None:
    for _ in range(2):
        folder = download_model(NAME, ("*.json", "*.safetensors"))
        assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
        assert (folder / "model.safetensors").read_bytes() == b"weights" * 1000
    assert sorted(hub.downloads) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_that_is_not_the_hubs_is_refused(hub: HubServer, name: str) -> None:
    hub.corrupt.add(name)
    with pytest.raises(UserError, match=rf"{name} differs from the hub .*download it again"):
        download_model(NAME, ("*.json", "*.safetensors"))


def test_there_is_no_such_commit_or_model(hub: HubServer) -> None:
    for name in (f"owner/model@{'f' * 40}", f"owner/other@{COMMIT}"):
        with pytest.raises(UserError, match="has no such model or commit"):
            download_model(name, ("*.json",))


def test_a_hub_that_cannot_be_reached(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="cannot be fetched from the hub"):
        download_model(NAME, ("*.json",))


@pytest.mark.parametrize(
    "text",
    ["owner/model", "owner/model@main", "model@" + COMMIT, f"owner/model@{COMMIT}0", f"a/b/c@{COMMIT}"],
)
def test_a_commit_is_asked_for(text: str) -> None:
    assert not is_hub_name(text)
    with pytest.raises(UserError, match="40 hexadecimal digits"):
        download_model(text, ("*.json",))
