import pytest
from hypothesis import given
from hypothesis import strategies as st

from sample.general import texts
from sample.model import FIRST_SPECIAL_ID, VOCABULARY_SIZE
from sample.tokenizer import count_learned, make_tokenizer

TOKENIZER = make_tokenizer(texts(200, seed=0), size=600)
# A marker in a text is that marker, and some swallow the white space behind them.
WRITABLE = st.text(st.characters(codec="utf-8")).filter(lambda text: "<" not in text)


def ids(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False).input_ids)


@given(WRITABLE)
def test_any_text_comes_back(text: str) -> None:
    numbers = ids(text)
    assert TOKENIZER.decode(numbers) == text.replace("▁", " ")
    assert all(number < FIRST_SPECIAL_ID for number in numbers)
    assert TOKENIZER.unk_token_id not in numbers


@given(st.from_regex(r"[0-9]{1,12}\.[0-9]{1,2}", fullmatch=True))
def test_digits_stand_alone(price: str) -> None:
    assert TOKENIZER.convert_ids_to_tokens(ids(price)) == list(price)
    pieces = TOKENIZER.convert_ids_to_tokens(ids(f"Full Price: {price}"))
    assert "".join(pieces[-len(price) :]) == price


def test_no_learned_piece_holds_digits() -> None:
    learned = [name for name, number in TOKENIZER.get_vocab().items() if number >= 259]
    ordinary = [name for name in learned if not name.startswith("<")]
    assert not [name for name in ordinary if len(name) > 1 and any(sign.isdigit() for sign in name)]


def test_special_tokens_have_phi3s_ids() -> None:
    expected = {
        "<unk>": 0,
        "<s>": 1,
        "</s>": 2,
        "<|endoftext|>": 32000,
        "<|assistant|>": 32001,
        "<|system|>": 32006,
        "<|end|>": 32007,
        "<|user|>": 32010,
        "<|image|>": 32044,
    }
    assert {name: TOKENIZER.convert_tokens_to_ids(name) for name in expected} == expected
    assert all(ids(name) == [number] for name, number in expected.items())
    assert TOKENIZER("a").input_ids[0] == 1
    assert TOKENIZER.pad_token_id == TOKENIZER.eos_token_id == 32000


def test_every_id_has_a_name_of_its_own() -> None:
    names = TOKENIZER.convert_ids_to_tokens(list(range(32045)))
    assert None not in names
    assert len(set(names)) == 32045 < VOCABULARY_SIZE
    assert count_learned(TOKENIZER) == 600


@pytest.mark.parametrize("word", ["Colour", "Category"])
def test_frequent_words_are_short(word: str) -> None:
    assert len(ids(f" {word}")) < len(word)
