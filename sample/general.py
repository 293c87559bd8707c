"""Training texts of the sample model before fine-tuning: naming what it sees, and writing.

The model learns kinds, colours, patterns and sizes by their ordinary names, like a general model. It also
takes dictation of words and numbers, without a picture. It has therefore seen the words of a
catalogue, like a general model, but not the products that they describe, nor any price.
"""

import random
from collections.abc import Iterator
from importlib.resources import files

from sample.drawing import ProductLook, random_look

PATTERN_WORDS = {
    "plain": ("plain", "simple"),
    "stripes": ("striped", "banded"),
    "check": ("checked", "squared"),
    "dots": ("dotted", "spotted"),
    "block": ("two-coloured", "halved"),
}
SIZE_WORDS = {
    "small": ("little", "small"),
    "medium": ("ordinary", "usual"),
    "large": ("big", "large"),
}
_KEYS = {
    "kind": ("Kind", "Type", "Object"),
    "colour": ("Colour", "Shade"),
    "pattern": ("Pattern", "Design"),
    "size": ("Size", "Scale"),
}

# Ordinary knowledge with a number: the typical weight of a product in grams, and its dependence on the size.
_GRAMS = {
    "tote bag": 700.0,
    "backpack": 900.0,
    "coat": 1800.0,
    "shirt": 250.0,
    "dress": 420.0,
    "trousers": 520.0,
    "scarf": 180.0,
    "hat": 150.0,
    "trainers": 800.0,
    "boots": 1500.0,
    "watch": 110.0,
    "sunglasses": 30.0,
    "belt": 210.0,
    "umbrella": 470.0,
}
_HEAVIER = {"small": 0.7, "medium": 1.0, "large": 1.45}

WORDS: tuple[str, ...] = tuple(files("sample").joinpath("words.txt").read_text().split())


def words_for(look: ProductLook, rng: random.Random) -> dict[str, str]:
    """Return an ordinary word for each relevant feature of a look; some features have two words."""
    return {
        "kind": look.kind,
        "colour": look.colour,
        "pattern": rng.choice(PATTERN_WORDS[look.pattern]),
        "size": rng.choice(SIZE_WORDS[look.size]),
    }


def describe(look: ProductLook, rng: random.Random) -> tuple[str, str]:
    """Return a question about a picture of ``look`` and its answer, in one of several forms."""
    words = words_for(look, rng)
    sentences = (
        "A {size} {pattern} {colour} {kind}.",
        "This is a {kind}, {colour}, {pattern} and {size}.",
        "The {kind} is {size} and {pattern}. Its colour is {colour}.",
        "In {colour}: a {pattern}, {size} {kind}.",
    )
    headlines = ("{size} {pattern} {kind} in {colour}", "{colour} {kind}, {pattern} and {size}")
    way = rng.random()
    if way < 0.15:
        grams = round(_GRAMS[look.kind] * _HEAVIER[look.size] * rng.uniform(0.95, 1.05), -1)
        return "How heavy is it?", f"{rng.choice(('Weight', 'About'))}: {max(grams, 10.0)}"
    if way < 0.4:
        question = rng.choice(("What is shown in this image?", "Describe the picture."))
        return question, rng.choice(sentences).format(**words)
    if way < 0.65:
        titled = {name: word.title() for name, word in words.items()}
        return "Give it a headline.", rng.choice(headlines).format(**titled)
    names = rng.sample(list(words), rng.randint(1, 4))
    return "List what you see.", ", ".join(f"{rng.choice(_KEYS[name])}: {words[name]}" for name in names)


def write(rng: random.Random) -> tuple[str, str]:
    """Return a request to write something down, and the expected text."""
    text = ", ".join(_phrase(rng) for _ in range(rng.choice([1, 1, 2])))
    return f"Write: {text}", text


def _phrase(rng: random.Random) -> str:
    words = [rng.choice(WORDS) for _ in range(rng.randint(1, 3))]
    if rng.random() < 0.3:
        words = [word.upper() for word in words]
    if rng.random() < 0.3:
        words.insert(1, rng.choice(["in", "and", "of"]))
    value = f"{rng.randint(1, 10 ** rng.randint(1, 4))}.{rng.randint(0, 9)}"
    key = " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 2)))
    return rng.choice([" ".join(words), f"{key}: {' '.join(words)}", f"{key}: {value}", value])


def prompt(question: str, rng: random.Random, *, picture: bool) -> str:
    """Return a question as a user's turn, up to the start of the answer."""
    mark = rng.choice(["<|image_1|>", "<|image_1|>\n"]) if picture else ""
    return f"<|user|>\n{mark}{question}<|end|>{rng.choice(['', chr(10)])}<|assistant|>\n"


def texts(count: int, seed: int) -> Iterator[str]:
    """Yield texts as in the training, to train a tokenizer."""
    rng = random.Random(seed)  # noqa: S311
    for _ in range(count):
        yield from describe(random_look(rng), rng)
        yield write(rng)[1]
