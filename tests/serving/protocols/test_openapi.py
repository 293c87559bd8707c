"""The OpenAPI document is true: what it describes is what is answered, and nothing asked is a fault."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from starlette.testclient import TestClient

from serving.publish import published
from tests.serving.conftest import REPOSITORY, encoded, picture
from tests.serving.in_process import CALIBRATION, application, load

GOOD = encoded(picture(1))
FAULTS = {500, 502, 503}

Json = dict[str, Any]


@pytest.fixture(scope="module")
def client(model_folder: Path) -> Iterator[TestClient]:
    with application(load(model_folder), calibration=CALIBRATION) as found:
        yield found


@pytest.fixture(scope="module")
def document(client: TestClient) -> Json:
    found: Json = client.get("/openapi.json").json()
    return found


def test_the_document_is_valid(document: Json) -> None:
    validate(document)


def test_the_published_document_is_of_these_routes() -> None:
    document = published()
    validate(document)
    written = json.loads((REPOSITORY / "docs" / "openapi.json").read_text())
    assert written == document, "write it again: make openapi"


def check(document: Json, method: str, template: str, response: Any) -> None:
    """Hold a response against what is said of it."""
    assert response.status_code not in FAULTS, response.text
    described = document["paths"][template][method.lower()]["responses"]
    assert str(response.status_code) in described, f"{response.status_code} is not described: {response.text}"
    content = described[str(response.status_code)].get("content", {})
    kind = response.headers["content-type"].partition(";")[0]
    assert kind in content
    if kind == "application/json":
        schema = {**content[kind]["schema"], "components": document["components"]}
        Draft202012Validator(schema).validate(response.json())


def of_the_model(template: str) -> str:
    """The path of the model that is served."""
    return (
        template.replace("{model_version}", "1").replace("{model_name}", "fovea").replace("{model}", "fovea")
    )


def operations(document: Json) -> list[tuple[str, str]]:
    return [(method, path) for path, found in document["paths"].items() for method in found]


def test_every_route_answers_as_described(client: TestClient, document: Json) -> None:
    chat = {
        "model": "fovea",
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{GOOD}"}}],
            }
        ],
    }
    tensor = {"name": "image", "shape": [2], "datatype": "BYTES", "data": [GOOD, "!"]}
    good: dict[str, list[Json]] = {
        "/v1/models/{model_name}:predict": [
            {"instances": [{"image": {"b64": each}} for each in (GOOD, "!")]}
        ],
        "/v2/models/{model_name}/infer": [{"inputs": [tensor]}],
        "/v2/models/{model_name}/versions/{model_version}/infer": [{"inputs": [tensor]}],
        "/openai/v1/chat/completions": [
            chat,
            {**chat, "stream": True},
            {**chat, "response_format": {"type": "json_object"}, "max_tokens": 2},
        ],
    }
    for method, template in operations(document):
        path = of_the_model(template)
        for body in good.get(template, [None]) if method == "post" else [None]:
            response = client.request(method, path, json=body)
            assert response.status_code == 200, (template, response.text)
            check(document, method, template, response)
        if "{" in template:
            missing = client.request(method, template.replace("{model_name}", "x").replace("{model}", "x"))
            assert missing.status_code == 404
            check(document, method, template, missing)


# Requests that follow the schemas, or nearly.

junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
texts = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["fovea", GOOD, f"data:image/png;base64,{GOOD}", "data:,", "http://127.0.0.1/", "<|end|>", "\ud800"]
    ),
)


def following(schema: Json, document: Json, depth: int = 0) -> st.SearchStrategy[Any]:
    """Values that follow a schema, of which now and then a part does not."""
    return st.integers(0, 11).flatmap(lambda luck: junk if luck == 0 else _exact(schema, document, depth))


def _exact(schema: Json, document: Json, depth: int) -> st.SearchStrategy[Any]:
    def inner(part: Json) -> st.SearchStrategy[Any]:
        return following(part, document, depth + 1)

    if "$ref" in schema:
        return _exact(document["components"]["schemas"][schema["$ref"].rpartition("/")[2]], document, depth)
    for name in ("anyOf", "oneOf"):
        if name in schema:
            return st.one_of([inner(part) for part in schema[name]])
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    return _of_type(schema, inner, depth)


def _of_type(schema: Json, inner: Any, depth: int) -> st.SearchStrategy[Any]:
    match schema.get("type"):
        case "object" if "properties" in schema:
            required = set(schema.get("required", []))
            parts = {name: inner(part) for name, part in schema["properties"].items()}
            return st.fixed_dictionaries(
                {name: part for name, part in parts.items() if name in required},
                optional={name: part for name, part in parts.items() if name not in required},
            )
        case "array":
            most = min(schema.get("maxItems", 3), 3)
            return st.lists(inner(schema.get("items", {})), min_size=min(1, most), max_size=most)
        case "string":
            return texts
        case "integer":
            return st.integers(schema.get("minimum", -3), min(schema.get("maximum", 40), 40))
        case "number":
            return st.floats(schema.get("minimum", -1), schema.get("maximum", 2))
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
    return junk if depth < 8 else st.none()


class Asked:
    """What is sent: JSON that nearly follows the schema, its text cut or garbled, or any bytes."""

    def __init__(self, document: Json) -> None:
        self.document = document
        self.posts = [path for method, path in operations(document) if method == "post"]

    def strategy(self) -> st.SearchStrategy[tuple[str, bytes, dict[str, str]]]:
        return st.sampled_from(self.posts).flatmap(
            lambda path: st.tuples(st.just(path), self._bodies(path), self._headers())
        )

    def _bodies(self, path: str) -> st.SearchStrategy[bytes]:
        content = self.document["paths"][path]["post"]["requestBody"]["content"]
        values = following(content["application/json"]["schema"], self.document)
        written = values.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass"))
        cut = st.tuples(written, st.integers(0, 200)).map(lambda pair: pair[0][: -1 - pair[1]])
        return st.integers(0, 9).flatmap(
            lambda luck: st.binary(max_size=60) if luck == 0 else cut if luck == 1 else written
        )

    def _headers(self) -> st.SearchStrategy[dict[str, str]]:
        plain = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=12)
        return st.fixed_dictionaries(
            {},
            optional={
                "content-type": st.sampled_from(["application/json", "text/plain"]) | plain,
                "inference-header-content-length": plain | st.integers(-2, 300).map(str),
                "x-request-timeout": st.sampled_from(["5", "inf", "-1"]) | plain,
                "x-request-id": plain,
                "authorization": plain,
                "accept": plain,
            },
        )


def storm(client: TestClient, document: Json, examples: int) -> Counter[int]:
    """Send requests; return how often each status came."""
    seen: Counter[int] = Counter()

    @seed(8)
    @settings(max_examples=examples, database=None, suppress_health_check=list(HealthCheck))
    @given(asked=Asked(document).strategy())
    def send(asked: tuple[str, bytes, dict[str, str]]) -> None:
        template, body, headers = asked
        path = of_the_model(template)
        response = client.post(path, content=body, headers=headers)
        if response.status_code == 504 and "x-request-timeout" in headers:
            return
        check(document, "post", template, response)
        seen[response.status_code] += 1

    send()
    return seen


def test_no_request_is_a_fault(client: TestClient, document: Json) -> None:
    seen = storm(client, document, 150)
    assert seen[400] > 50


@pytest.mark.prove
@pytest.mark.timeout(3600)
def test_ten_thousand_requests_are_no_fault(client: TestClient, document: Json) -> None:
    seen = storm(client, document, 10_000)
    print(dict(seen))
    assert seen[400] > 3000
    assert seen[200] > 10
