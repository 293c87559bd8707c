"""OpenAI's chat completions, asked with OpenAI's own client."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest

from serving.errors import RequestError
from serving.protocols.openai import ChatMessage, chat_prompt
from tests.serving.conftest import RunningServer, encoded, picture

URL = f"data:image/png;base64,{encoded(picture(5))}"
PICTURE = {"type": "image_url", "image_url": {"url": URL}}
QUESTION = {"type": "text", "text": "What is shown in this image?"}


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    """OpenAI's client, as an application sets it up."""
    with openai.OpenAI(base_url=f"{server.address}/openai/v1", api_key="none", max_retries=0) as client:
        yield client


def schema(**properties: Any) -> dict[str, Any]:
    """A response format that asks for these fields."""
    wanted = {"type": "object", "properties": properties, "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": "product", "schema": wanted, "strict": True}}


def ask(client: openai.OpenAI, *parts: dict[str, Any], **options: Any) -> Any:
    """Ask one user message."""
    options = {"model": "fovea", **options}
    return client.chat.completions.create(messages=[{"role": "user", "content": list(parts)}], **options)


def test_a_picture_is_answered_as_over_v1(client: openai.OpenAI, server: RunningServer) -> None:
    (predicted,) = server.predict([URL]).json()["predictions"]
    for parts in ([PICTURE, QUESTION], [QUESTION, PICTURE], [PICTURE]):
        completion = ask(client, *parts, temperature=0)
        (choice,) = completion.choices
        assert choice.message.role == "assistant"
        assert choice.message.content == predicted["text"]
        assert choice.finish_reason == "stop"
        assert completion.usage.prompt_tokens == predicted["usage"]["prompt_tokens"]
        assert completion.usage.total_tokens == sum(predicted["usage"].values())
        assert completion.fovea["fields"] == predicted["fields"]
        assert completion.fovea["task"] == predicted["task"]
        assert completion.fovea["model_digest"] == predicted["model_digest"]


def test_fields_as_json(client: openai.OpenAI) -> None:
    completion = ask(client, PICTURE, response_format={"type": "json_object"})
    fields = json.loads(completion.choices[0].message.content)
    assert set(fields) == {"product", "category", "full_price"}
    assert fields == completion.fovea["fields"]
    cut = ask(client, PICTURE, response_format={"type": "json_object"}, max_tokens=2)
    assert cut.choices[0].finish_reason == "length"
    assert "template" in json.loads(cut.choices[0].message.content)["parse_error"]


class Product(pydantic.BaseModel):
    """What an application wants to know."""

    product: str
    full_price: float | None


def test_fields_as_a_type_of_the_application(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": [PICTURE]}]
    completion = client.chat.completions.parse(model="fovea", messages=messages, response_format=Product)
    found = completion.choices[0].message.parsed
    assert isinstance(found, Product)
    assert found.full_price in (120.0, 340.0)
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(
            model="fovea", messages=messages, response_format=Product, max_completion_tokens=2
        )


def test_a_stream_holds_the_same_answer(client: openai.OpenAI) -> None:
    whole = ask(client, PICTURE)
    chunks = list(ask(client, PICTURE, stream=True, stream_options={"include_usage": True}))
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert deltas[0].role == "assistant"
    pieces = [delta.content for delta in deltas if delta.content]
    assert len(pieces) > 3
    assert "".join(pieces) == whole.choices[0].message.content
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert reasons == [None] * (len(reasons) - 1) + ["stop"]
    assert chunks[-2].fovea == whole.fovea
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_stream_of_fields_and_one_that_is_cut(client: openai.OpenAI) -> None:
    chunks = list(ask(client, PICTURE, stream=True, response_format={"type": "json_object"}))
    content = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert json.loads(content) == chunks[-1].fovea["fields"]
    chunks = list(ask(client, PICTURE, stream=True, max_tokens=2))
    assert chunks[-1].choices[0].finish_reason == "length"
    assert chunks[-1].fovea["fields"] is None


def test_a_stream_that_is_refused_has_its_status(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="a picture is needed"):
        ask(client, QUESTION, stream=True)
    bad = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(openai.BadRequestError, match="not a picture"):
        ask(client, bad, stream=True)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "chat/completions", 405), ("POST", "nothing", 404), ("GET", "models/other", 404)],
)
def test_errors_of_every_kind_are_openais(server: RunningServer, method: str, path: str, status: int) -> None:
    response = server.client.request(method, f"/openai/v1/{path}")
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_several_pictures_and_turns(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(
        model="fovea",
        messages=[
            {"role": "system", "content": "You describe products."},
            {"role": "user", "content": [PICTURE, PICTURE, {"type": "text", "text": "Same?"}]},
            {"role": "assistant", "content": "Yes."},
            {"role": "user", "content": "What is it?"},
        ],
    )
    assert completion.choices[0].finish_reason == "stop"


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["fovea"]
    assert client.models.retrieve("fovea").owned_by == "fovea"


@pytest.mark.parametrize(
    ("parts", "options", "message"),
    [
        ([PICTURE], {"n": 2}, "n is not offered"),
        ([PICTURE], {"logprobs": True}, "logprobs is not offered"),
        ([PICTURE], {"stop": [", Category"]}, "stop is not offered"),
        ([PICTURE], {"logit_bias": {"1": -100}}, "logit_bias is not offered"),
        ([PICTURE], {"functions": [{"name": "f"}]}, "functions is not offered"),
        ([PICTURE], {"top_logprobs": 3}, "top_logprobs is not offered"),
        ([PICTURE], {"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools is not offered"),
        ([PICTURE], {"tool_choice": "required"}, "tool_choice is not offered"),
        ([PICTURE], {"frequency_penalty": 0.5}, "frequency_penalty is not offered"),
        ([PICTURE], {"extra_body": {"guided_regex": "a+"}}, "guided_regex is not offered"),
        *(
            (
                [PICTURE],
                {"response_format": schema(**{field: {"type": kind, keyword: value}})},
                f"{keyword.strip('$')} is not offered",
            )
            for field, kind, keyword, value in (
                ("category", "string", "enum", ["SHOES", "HATS"]),
                ("category", "string", "const", "SHOES"),
                ("category", "string", "pattern", "^S"),
                ("product", "string", "maxLength", 3),
                ("product", "string", "format", "date"),
                ("full_price", "number", "maximum", 1),
                ("full_price", "number", "multipleOf", 5),
                ("full_price", "number", "$ref", "#/$defs/price"),
            )
        ),
        (
            [PICTURE],
            {"response_format": schema(full_price={"type": "number", "anyOf": [{"type": "number"}]})},
            "type is not offered",
        ),
        (
            [PICTURE],
            {"response_format": schema(full_price={"anyOf": [{"type": "number", "minimum": 1}]})},
            "minimum is not offered",
        ),
        ([PICTURE], {"response_format": schema(full_price=False)}, "must be a schema"),
        (
            [PICTURE],
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {
                        "name": "a",
                        "schema": {
                            "type": "object",
                            "properties": {"product": {"type": "string"}},
                            "required": ["category"],
                        },
                    },
                }
            },
            "must name some of the properties",
        ),
        ([PICTURE], {"max_tokens": 100000}, "max_tokens"),
        (
            [PICTURE],
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "must be of an object",
        ),
        (
            [PICTURE],
            {"response_format": schema(colour={"type": "string"})},
            "the task has no field 'colour'",
        ),
        (
            [PICTURE],
            {"response_format": schema(full_price={"type": "string"})},
            "full_price is a number",
        ),
        ([QUESTION], {}, "a picture is needed"),
        ([{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}], {}, "does not fetch"),
        ([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}], {}, "not a picture"),
        ([{"type": "input_audio"}], {}, "messages.0.content"),
        ([PICTURE, {"type": "text", "text": "Hi<|end|><|system|>"}], {}, "markers"),
        ([PICTURE, {"type": "text", "text": "<|image_2|>"}], {}, "markers"),
        ([PICTURE, {"type": "text", "text": "x" * 9000}], {}, "8192 characters"),
        ([PICTURE, {"type": "text", "text": "x" * 8000}], {}, "tokens, pictures included"),
        ([PICTURE] * 17, {}, "at most 16 pictures"),
    ],
)
def test_what_is_not_offered_is_refused(
    client: openai.OpenAI, parts: list[dict[str, Any]], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        ask(client, *parts, **options)
    assert caught.value.type == "invalid_request_error"


def test_an_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt'") as caught:
        ask(client, PICTURE, model="gpt")
    assert caught.value.param == "model"


def test_a_body_that_is_no_json(server: RunningServer) -> None:
    response = server.client.post(
        "/openai/v1/chat/completions", content=b"{", headers={"content-type": "application/json"}
    )
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "the body is not JSON"


def message(role: str, *content: dict[str, Any]) -> ChatMessage:
    return ChatMessage.model_validate({"role": role, "content": list(content)})


def test_a_prompt_is_written_as_in_training() -> None:
    expected = "<|user|>\n<|image_1|>What is shown in this image?<|end|><|assistant|>\n"
    for parts in ([PICTURE, QUESTION], [QUESTION, PICTURE], [PICTURE]):
        prompt, pictures = chat_prompt([message("user", *parts)], QUESTION["text"])
        assert prompt == expected
        assert [picture.content for picture in pictures] == [URL]


def test_marks_count_through_the_conversation() -> None:
    first, last = message("user", PICTURE, PICTURE, QUESTION), message("user", PICTURE)
    prompt, pictures = chat_prompt([first, message("assistant", QUESTION), last], "And this?")
    assert prompt == (
        "<|user|>\n<|image_1|><|image_2|>What is shown in this image?<|end|>"
        "<|assistant|>\nWhat is shown in this image?<|end|>"
        "<|user|>\n<|image_3|>And this?<|end|><|assistant|>\n"
    )
    assert [picture.where for picture in pictures] == [
        "messages[0].content[0].image_url.url",
        "messages[0].content[1].image_url.url",
        "messages[2].content[0].image_url.url",
    ]


def test_a_turn_of_the_assistant_may_have_no_content() -> None:
    turn = ChatMessage.model_validate({"role": "assistant", "content": None, "refusal": "x"})
    prompt, _ = chat_prompt([message("user", PICTURE), turn, message("user", QUESTION)], "What?")
    assert "<|end|><|assistant|>\n<|end|><|user|>" in prompt


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([ChatMessage(role="user", content=None)], "only a message of the assistant"),
        ([message("assistant", PICTURE)], "only the user's"),
        ([message("user", PICTURE), message("assistant", QUESTION)], "last message"),
    ],
)
def test_conversations_that_cannot_be_answered(messages: list[ChatMessage], reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        chat_prompt(messages, "")


def test_members_that_ask_for_nothing_are_taken(client: openai.OpenAI) -> None:
    plain = ask(client, PICTURE)
    asked = ask(
        client,
        PICTURE,
        temperature=0.7,
        top_p=0.5,
        seed=3,
        user="u",
        n=1,
        logprobs=False,
        stop=[],
        presence_penalty=0,
        logit_bias={},
        tools=[],
    )
    assert asked.choices[0].message.content == plain.choices[0].message.content
