"""A server that asks for keys is asked with the one that is mounted."""

from pathlib import Path

import httpx
import pytest

from components.deploy.targets import cluster, questions


def test_the_key_is_read_anew_for_every_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "API_KEYS", tmp_path)
    seen: list[str | None] = []

    def ask() -> None:
        with questions._client("http://server", 1.0) as client:
            request = client.build_request("GET", "/v2")
            seen.append(request.headers.get("authorization"))
            assert isinstance(request, httpx.Request)

    ask()
    (tmp_path / "deployer").write_text("first\n")
    ask()
    (tmp_path / "deployer").write_text("second\n")
    ask()
    assert seen == [None, "Bearer first", "Bearer second"]
