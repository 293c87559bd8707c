"""Who may ask: keys in files, rotated while the server runs, and a rate for each."""

from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from fovea.errors import UserError
from serving.middleware.access import ApiKeys, KeyCheck
from serving.protocols.registry import PROTOCOLS

SHOP, APP, NEW = "shop-0123456789abcdef", "app-0123456789abcdefg", "new-0123456789abcdefg"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A Secret as Kubernetes mounts it: links into a folder that a link names."""
    write(tmp_path, "1", {"shop": SHOP, "app": APP + "\n"})
    for name in ("shop", "app"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    return tmp_path


def write(folder: Path, version: str, keys: dict[str, str]) -> None:
    """Put a version of the Secret in place, at once."""
    (folder / f"..{version}").mkdir()
    for name, key in keys.items():
        (folder / f"..{version}" / name).write_text(key)
    (folder / "..link").symlink_to(f"..{version}")
    (folder / "..link").replace(folder / "..data")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [1000.0]
    monkeypatch.setattr("serving.middleware.access.time.monotonic", lambda: clock[0])
    return clock


def client(keys: ApiKeys, rate: int | None = None) -> TestClient:
    async def who(request: Request) -> JSONResponse:
        return JSONResponse(request.state.notes)

    routes = [Route("/v1/models/fovea:predict", who, methods=["POST"]), Route("/openai/v1/models", who)]
    routes += [Route(path, lambda request: JSONResponse({})) for path in ("/", "/v2/health/live")]
    return TestClient(KeyCheck(Starlette(routes=routes), keys, PROTOCOLS, rate))


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_a_key_has_a_name(secret: Path, now: list[float]) -> None:
    asked = client(ApiKeys(secret))
    path = "/v1/models/fovea:predict"
    assert asked.post(path, headers=bearer(SHOP)).json() == {"key": "shop"}
    assert asked.post(path, headers={"x-api-key": APP}).json() == {"key": "app"}
    assert asked.post(path, headers={"authorization": f"bearer  {APP}"}).json() == {"key": "app"}


@pytest.mark.parametrize("headers", [{}, bearer(""), bearer("x"), bearer(SHOP[:-1]), {"authorization": SHOP}])
def test_without_a_key_there_is_no_answer(secret: Path, headers: dict[str, str], now: list[float]) -> None:
    asked = client(ApiKeys(secret))
    refused = asked.post("/v1/models/fovea:predict", headers=headers)
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert "key" in refused.json()["error"]
    assert asked.get("/openai/v1/models", headers=headers).json()["error"]["code"] == "invalid_api_key"
    assert [asked.get(path, headers=headers).status_code for path in ("/", "/v2/health/live")] == [200, 200]


def test_keys_are_rotated_while_the_server_runs(secret: Path, now: list[float]) -> None:
    keys = ApiKeys(secret)
    write(secret, "2", {"shop": NEW, "app": APP})
    assert keys.name_of(NEW) is None  # not looked for more than once a second
    now[0] += 2
    assert [keys.name_of(key) for key in (NEW, APP, SHOP)] == ["shop", "app", None]
    # One more, and one less.
    write(secret, "3", {"shop": NEW, "third": SHOP})
    (secret / "third").symlink_to("..data/third")
    now[0] += 2
    assert [keys.name_of(key) for key in (NEW, APP, SHOP)] == ["shop", None, "third"]


def test_a_bad_change_locks_nobody_out(secret: Path, now: list[float]) -> None:
    keys = ApiKeys(secret)
    write(secret, "2", {"shop": "", "app": ""})
    now[0] += 2
    assert keys.name_of(SHOP) == "shop"


def test_keys_in_one_file(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"# ours\nshop: {SHOP}\n\napp:{APP}\n")
    keys = ApiKeys(tmp_path / "keys")
    assert [keys.name_of(key) for key in (SHOP, APP, NEW)] == ["shop", "app", None]


@pytest.mark.parametrize("content", ["", "shop: short", "shop"])
def test_keys_that_are_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "keys").write_text(content)
    with pytest.raises(UserError, match=r"keys: (the key 'shop' is shorter than 16|holds no key)"):
        ApiKeys(tmp_path / "keys")
    with pytest.raises(UserError, match="cannot be read"):
        ApiKeys(tmp_path / "missing")


def test_each_key_has_its_rate(secret: Path, now: list[float]) -> None:
    keys = ApiKeys(secret)
    asked = client(keys, rate=3)

    def status(key: str) -> int:
        return asked.post("/v1/models/fovea:predict", headers=bearer(key)).status_code

    asked.app._clock = lambda: now[0]  # type: ignore[attr-defined]
    assert [status(SHOP) for _ in range(4)] == [200, 200, 200, 429]
    assert status(APP) == 200
    refused = asked.get("/openai/v1/models", headers=bearer(SHOP))
    assert refused.headers["retry-after"] == "20"
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    now[0] += 20
    assert [status(SHOP) for _ in range(2)] == [200, 429]
