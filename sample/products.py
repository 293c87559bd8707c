"""The products of the sample catalogue, whose titles, categories and prices depend on their looks.

The catalogue has its own words for what a general model calls a green checked coat, so that there is
something to learn; each word describes one visible feature, so that it can be learned.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from sample.drawing import ProductLook, random_look, seeded

CURRENCY = "USD"
EUROS = 0.92
"""The price of a dollar in euros."""
PRICE_NOISE = 0.05
"""Standard deviation of the logarithm of prices around the usual one: half are within 3.4 per cent."""
DISCOUNT_RATE = 0.15
DISCOUNTS = (0.9, 0.8, 0.7, 0.6)


@dataclass(frozen=True)
class _Line:
    """The catalogue's data on a kind of product."""

    name: str
    category: str
    department: str
    share: float
    """Share of the catalogue's products."""
    price: float
    """Price of a plain, medium-sized one, in dollars."""
    abroad: tuple[str, str, str]
    """Its name in Japanese, Russian and Arabic."""
    worn: bool = False
    """Whether its sizes are lengths."""


_LINES: dict[str, _Line] = {
    "tote bag": _Line("Tote", "BAGS", "LEATHER", 0.075, 1180, ("トートバッグ", "Сумка", "حقيبة")),
    "backpack": _Line("Rucksack", "BAGS", "LEATHER", 0.075, 1060, ("リュックサック", "Рюкзак", "حقيبة ظهر")),
    "coat": _Line("Overcoat", "OUTERWEAR", "CLOTHING", 0.09, 1720, ("コート", "Пальто", "معطف"), worn=True),
    "shirt": _Line("Shirt", "SHIRTS", "CLOTHING", 0.09, 430, ("シャツ", "Рубашка", "قميص"), worn=True),
    "dress": _Line("Dress", "DRESSES", "CLOTHING", 0.09, 980, ("ドレス", "Платье", "فستان"), worn=True),
    "trousers": _Line("Trousers", "TROUSERS", "CLOTHING", 0.09, 590, ("ズボン", "Брюки", "بنطال"), worn=True),
    "scarf": _Line("Scarf", "ACCESSORIES", "SOFT", 0.04, 350, ("マフラー", "Шарф", "وشاح"), worn=True),
    "hat": _Line("Fedora", "ACCESSORIES", "SOFT", 0.04, 310, ("帽子", "Шляпа", "قبعة")),
    "trainers": _Line("Sneakers", "SHOES", "SHOES", 0.075, 640, ("スニーカー", "Кроссовки", "حذاء رياضي")),
    "boots": _Line("Boots", "SHOES", "SHOES", 0.075, 890, ("ブーツ", "Сапоги", "جزمة")),
    "watch": _Line("Watch", "WATCHES", "HARD", 0.09, 1450, ("腕時計", "Часы", "ساعة")),
    "sunglasses": _Line("Sunglasses", "EYEWEAR", "HARD", 0.09, 280, ("サングラス", "Очки", "نظارة شمسية")),
    "belt": _Line("Belt", "ACCESSORIES", "LEATHER", 0.04, 260, ("ベルト", "Ремень", "حزام")),
    "umbrella": _Line("Umbrella", "ACCESSORIES", "SOFT", 0.04, 330, ("傘", "Зонт", "مظلة")),
}
CATEGORIES: tuple[str, ...] = tuple(sorted({line.category for line in _LINES.values()}))

# Each word with its factor on the price.
_COLOURS: dict[str, tuple[str, float]] = {
    "black": ("Ink", 1.06),
    "white": ("Chalk", 1.0),
    "red": ("Garnet", 1.04),
    "orange": ("Ember", 0.96),
    "yellow": ("Saffron", 0.94),
    "green": ("Fern", 1.0),
    "blue": ("Lagoon", 1.02),
    "purple": ("Damson", 1.08),
    "pink": ("Peony", 0.98),
    "brown": ("Umber", 1.04),
}
_PATTERNS: dict[str, tuple[str, float]] = {
    "plain": ("", 1.0),
    "stripes": ("Regatta", 1.08),
    "check": ("Tattersall", 1.25),
    "dots": ("Confetti", 1.12),
    "block": ("Harlequin", 1.18),
}
_SIZES: dict[str, tuple[str, float]] = {
    "small": ("Mini", 0.85),
    "medium": ("", 1.0),
    "large": ("Grand", 1.2),
}
_LENGTHS: dict[str, str] = {"small": "Cropped", "medium": "", "large": "Longline"}


def title_of(look: ProductLook) -> str:
    """Return the product's title, at most five words: the same for all products that look the same."""
    line = _LINES[look.kind]
    size = _LENGTHS[look.size] if line.worn else _SIZES[look.size][0]
    words = (size, _PATTERNS[look.pattern][0], line.name, "in", _COLOURS[look.colour][0])
    return " ".join(word for word in words if word)


def category_of(look: ProductLook) -> str:
    """Return the product's category3_code."""
    return _LINES[look.kind].category


def department_of(look: ProductLook) -> str:
    """Return the product's category2_code."""
    return _LINES[look.kind].department


def usual_price(look: ProductLook) -> float:
    """Return the price that the look determines, in dollars, without noise and rounding."""
    factors = (_COLOURS[look.colour][1], _PATTERNS[look.pattern][1], _SIZES[look.size][1])
    return _LINES[look.kind].price * math.prod(factors)


Expectation = Literal["keep", "parse", "drop"]
FlawName = Literal[
    "dead_link",
    "truncated_file",
    "html_instead_of_picture",
    "duplicate_row",
    "missing_price",
    "thousands_separator",
    "greyscale",
    "cmyk",
    "alpha",
    "exif_rotation",
    "very_wide",
    "very_small",
    "non_latin_title",
    "script_in_title",
]


@dataclass(frozen=True)
class Flaw:
    """A deliberate flaw of some rows, as in real feeds, and how a preparation of data should treat it."""

    name: FlawName
    rate: float
    """Share of all rows; at least one row has it."""
    expected: Expectation
    description: str


FLAWS: tuple[Flaw, ...] = (
    Flaw("dead_link", 0.015, "drop", "imageurl answers 404."),
    Flaw("truncated_file", 0.01, "drop", "The picture's file ends after 30 to 70 per cent of its bytes."),
    Flaw("html_instead_of_picture", 0.01, "drop", "imageurl answers 200 with a web page."),
    Flaw(
        "duplicate_row", 0.02, "drop", "The row stands in the file before, byte for byte; the first is kept."
    ),
    Flaw("missing_price", 0.01, "drop", "All four price columns are empty."),
    Flaw("thousands_separator", 0.02, "parse", "Prices of 1,000 and more are written as in 1,390.00."),
    Flaw("greyscale", 0.01, "keep", "A JPEG with one channel, of a black or a white product."),
    Flaw("cmyk", 0.01, "keep", "A JPEG with the four channels of print."),
    Flaw("alpha", 0.015, "keep", "A PNG that is transparent around the product."),
    Flaw(
        "exif_rotation",
        0.015,
        "keep",
        "The picture is stored turned; its EXIF orientation says how to right it.",
    ),
    Flaw("very_wide", 0.005, "keep", "A banner of 1800 x 300 pixels."),
    Flaw("very_small", 0.005, "drop", "A thumbnail of 16 to 24 pixels a side: nothing can be seen on it."),
    Flaw("non_latin_title", 0.003, "keep", "The title is Japanese, Russian or Arabic."),
    Flaw("script_in_title", 0.0003, "keep", "The title ends in a <script> element, to be shown as text."),
)


@dataclass(frozen=True)
class Product:
    """A product of the catalogue."""

    code: str
    look: ProductLook
    title: str
    line: str
    """Its category1_code: the target group."""
    full_price: float
    price: float
    """After the discount, if there is one."""
    width: int
    height: int
    """Size of its picture, in pixels."""
    flaw: FlawName | None


def flaw_count(flaw: Flaw, rows: int) -> int:
    """Return the number of a catalogue's rows with the flaw."""
    return max(1, round(flaw.rate * rows))


def make_products(rows: int, seed: int) -> Iterator[Product]:
    """Yield the products of a catalogue of `rows` rows, some of which occur twice; the same for a seed.

    A product has at most one flaw.
    """
    counts = {flaw.name: flaw_count(flaw, rows) for flaw in FLAWS}
    count = rows - counts.pop("duplicate_row")
    rng = seeded(seed, "catalogue")
    codes = rng.sample(range(10**7, 10**8), count)
    flaws: list[FlawName] = [name for name, number in counts.items() for _ in range(number)]
    flawed = dict(zip(rng.sample(range(count), len(flaws)), flaws, strict=True))
    for index, code in enumerate(codes):
        yield _make_product(str(code), flawed.get(index), seeded(seed, "product", index))


def _make_product(code: str, flaw: FlawName | None, rng: random.Random) -> Product:
    look, full_price = _look_and_price(flaw, rng)
    title = title_of(look)
    if flaw == "non_latin_title":
        title = rng.choice(_LINES[look.kind].abroad)
    if flaw == "script_in_title":
        title += " <script>alert(1)</script>"
    discount = rng.choice(DISCOUNTS) if rng.random() < DISCOUNT_RATE else 1.0
    width, height = _frame(flaw, rng)
    return Product(
        code=code,
        look=look,
        title=title,
        line=rng.choice(("WOMEN", "MEN")),
        full_price=full_price,
        price=round(full_price * discount, 2),
        width=width,
        height=height,
        flaw=flaw,
    )


def _look_and_price(flaw: FlawName | None, rng: random.Random) -> tuple[ProductLook, float]:
    """Draw a look to which the flaw can apply, and its price."""
    # Without colours only black and white are distinguishable; a white product cut out on white is invisible.
    colours = [name for name in _COLOURS if flaw != "greyscale" or name in ("black", "white")]
    if flaw == "alpha":
        colours.remove("white")
    while True:
        kind = rng.choices(list(_LINES), [line.share for line in _LINES.values()])
        look = random_look(rng, kind, colours)
        full_price = round(usual_price(look) * math.exp(rng.gauss(0, PRICE_NOISE)), -1)
        if flaw != "thousands_separator" or full_price >= 1000:
            return look, full_price


def _frame(flaw: FlawName | None, rng: random.Random) -> tuple[int, int]:
    """Return width and height of a picture: 300 to 640 pixels, except for two flaws."""
    if flaw == "very_wide":
        return 1800, 300
    if flaw == "very_small":
        side = rng.randint(16, 24)
        return side, side
    short = rng.randint(300, 480)
    ratio = rng.choices((1.0, 1.25, 4 / 3), (0.5, 0.25, 0.25))[0]
    long = round(short * ratio)
    # Shops use tall frames for tall products; here one in four is turned, so that the frame reveals nothing.
    return (long, short) if rng.random() < 0.25 else (short, long)
