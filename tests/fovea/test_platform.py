"""The platform's configuration."""

from pathlib import Path

import pytest

from fovea.errors import UserError
from fovea.fetch.profiles import FetchProfile, SecretHeader, host_matches
from fovea.platform import DEFAULT_PATH, Platform, load_platform

TEXT = """
contact: data@shop.example
fetch_profiles:
  intranet:
    allowed_networks: [10.20.0.0/16]
    allowed_hosts: ["*.shop.internal"]
    proxy: http://proxy.shop.internal:3128
    headers:
      - {name: Authorization, value_file: /secrets/feed, hosts: [feed.shop.internal]}
  partner:
    contact: partners@shop.example
"""


def test_profiles_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "platform.yaml"
    path.write_text(TEXT)
    monkeypatch.setenv("FOVEA_PLATFORM", str(path))
    platform = load_platform()
    assert platform.fetch_profile("intranet").allowed_hosts == ("*.shop.internal",)
    assert platform.fetch_profile("default") == FetchProfile(contact="data@shop.example")
    assert platform.fetch_profile("partner").contact == "partners@shop.example"
    with pytest.raises(UserError, match=r"'other' is not configured.*intranet"):
        platform.fetch_profile("other")


def test_without_a_file_the_defaults_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FOVEA_PLATFORM", raising=False)
    if not DEFAULT_PATH.exists():
        assert load_platform() == Platform()


@pytest.mark.parametrize(
    "text",
    [
        "fetch_profiles: {a: {proxy: 'http://user:hush@proxy:3128'}}",
        "fetch_profiles: {a: {proxy: 'proxy:3128'}}",
        "fetch_profiles: {a: {headers: [{name: 'A: b', value_file: /x, hosts: [h]}]}}",
        "fetch_profiles: {a: {headers: [{name: A, value_file: /x, hosts: []}]}}",
        "fetch_profiles: {a: {headers: [{name: A, value: hush, hosts: [h]}]}}",
        'contact: "me\\r\\nX-Header: 1"',
        "fetch_profiles: {a: {allowed_networks: [here]}}",
        "{",
    ],
)
def test_what_is_no_configuration(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "platform.yaml"
    path.write_text(text)
    monkeypatch.setenv("FOVEA_PLATFORM", str(path))
    with pytest.raises(UserError, match=r"platform\.yaml") as caught:
        load_platform()
    assert "hush" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "patterns", "expected"),
    [
        ("feed.shop.internal", ("feed.shop.internal",), True),
        ("FEED.shop.internal.", ("feed.Shop.internal",), True),
        ("a.b.shop.internal", ("*.shop.internal",), True),
        ("shop.internal", ("*.shop.internal",), False),
        ("evilshop.internal", ("*.shop.internal",), False),
        ("feed.shop.internal.evil.example", ("*.shop.internal", "feed.shop.internal"), False),
        ("", ("*.shop.internal",), False),
        ("anything", (), False),
    ],
)
def test_hosts_are_matched_whole(host: str, patterns: tuple[str, ...], expected: bool) -> None:
    assert host_matches(host, patterns) is expected


def header(path: Path) -> SecretHeader:
    return SecretHeader(name="X-Key", value_file=path, hosts=("feed.test",))


def test_the_value_of_a_secret_header(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("Bearer abc\n")
    assert header(tmp_path / "key").value() == "Bearer abc"
    assert "abc" not in repr(header(tmp_path / "key"))


@pytest.mark.parametrize("content", [None, b"", b"\n", b"one\ntwo-hush", b"caf\xe9-hush", b"a\0hush"])
def test_a_secret_that_is_none_is_told_without_telling_it(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    with pytest.raises(UserError, match="X-Key") as caught:
        header(tmp_path / "key").value()
    assert "hush" not in str(caught.value)
    assert caught.value.__cause__ is None
