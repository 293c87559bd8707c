"""Scores of fields from the tokens of an answer, however a tokenizer cuts it."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fovea.field_scores import field_scores
from fovea.task import product_task

TASK = product_task()
ANSWER = "Product: Wool scarf, Category: SCARVES, Full Price: 120.5"


class Pieces:
    """A tokenizer whose token i is piece i, in bytes. As with SentencePiece, the first space goes."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    def __call__(self, tokens: list[int]) -> str:
        return b"".join(self.pieces[token] for token in tokens).decode(errors="replace").removeprefix(" ")


def scored(
    pieces: list[bytes], logprobs: list[float], text: str = ANSWER, ended: bool = True
) -> dict[str, float]:
    spans = TASK.spans(text)
    assert spans is not None
    decode = Pieces(pieces)
    tokens = list(range(len(pieces)))
    assert decode(tokens) == text
    return field_scores(text, spans, tokens, logprobs, decode, ended=ended)


PIECES = [b" Product", b":", b" Wool", b" sc", b"arf", b",", b" Category:", b" SCARVES", b",", b" Full"]
PIECES += [b" Price:", b" 1", b"2", b"0", b".", b"5"]


def test_a_field_has_its_tokens_and_the_one_that_ends_it() -> None:
    scores = scored(PIECES, [-(2.0**-place) for place in range(17)])
    expected = {"product": (2, 5), "category": (7, 8), "full_price": (11, 16)}
    assert scores == {
        name: pytest.approx(-sum(2.0**-place for place in range(first, last + 1)))
        for name, (first, last) in expected.items()
    }


def test_a_token_across_an_edge_counts_as_the_fields() -> None:
    pieces = [b" Product: W", b"ool scarf, Cate", b"gory: SCARVES, Full Price: 120.", b"5"]
    assert scored(pieces, [-1.0, -2.0, -4.0, -8.0, -16.0]) == {
        "product": -3.0,
        "category": -4.0,
        "full_price": -28.0,
    }


def test_a_field_that_was_cut_off_has_no_score() -> None:
    scores = scored(PIECES, [-1.0] * 16, ended=False)
    assert scores == {"product": -4.0, "category": -2.0}


def test_characters_of_several_tokens() -> None:
    text = ANSWER.replace("Wool", "é").replace("120.5", "9.5")
    first, second = "é".encode()[:1], "é".encode()[1:]
    pieces = [b" Product: ", first, second, b" scarf", b", Category: SCARVES, Full Price: ", b"9.5"]
    scores = scored(pieces, [-1.0, -2.0, -4.0, -8.0, -16.0, -32.0, -64.0], text)
    assert scores == {"product": -30.0, "category": -16.0, "full_price": -96.0}


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_what_is_no_number_gives_no_score(value: float) -> None:
    scores = scored(PIECES, [-1.0] * 7 + [value] + [-1.0] * 9)
    assert set(scores) == {"product", "full_price"}


@given(
    title=st.text(st.characters(codec="utf-8", categories=("L", "N", "Zs")), min_size=1, max_size=12),
    cuts=st.sets(st.integers(1, 90)),
)
def test_however_it_is_cut_a_fields_score_is_of_the_tokens_that_touch_it(title: str, cuts: set[int]) -> None:
    title = title.strip() or "x"
    if not title.isprintable():
        title = "x"
    text = f"Product: {title}, Category: SCARVES, Full Price: 120.5"
    data = (" " + text).encode()
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    pieces = [data[one:other] for one, other in itertools.pairwise(edges)]
    scores = scored(pieces, [-1.0] * (len(pieces) + 1), text)
    spans = TASK.spans(text)
    assert spans is not None
    for name, (start, end) in spans.items():
        # In bytes, with the space before, up to the character behind the field or the end of the answer.
        first, last = 1 + len(text[:start].encode()), 1 + len(text[: end + 1].encode())
        touched = sum(one < last and other > first for one, other in itertools.pairwise(edges))
        assert scores[name] == -(touched + (name == "full_price"))


def test_spans_follow_the_parser() -> None:
    text = f"  {ANSWER} \n"
    spans = TASK.spans(text)
    assert spans is not None
    assert {name: text[start:end] for name, (start, end) in spans.items()} == {
        "product": "Wool scarf",
        "category": "SCARVES",
        "full_price": "120.5",
    }
    assert TASK.spans("a scarf") is None
