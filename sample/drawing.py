"""Draw pictures of fictional products that a small model can read.

The relevant features (kind, colour, pattern, size) stay visible when a picture is shrunk to 64 pixels:
silhouettes differ, colours are far apart, patterns repeat six times over a product and sizes change its
proportions. The rest (background, framing, light, second colour, trim) is noise that a reader must ignore.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageFilter

from sample.shapes import PATTERNS, SHAPES, Colour, Pen, Shape, ellipse, mix

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "KINDS",
    "PATTERNS",
    "SECOND_COLOURS",
    "SIZES",
    "ProductLook",
    "random_look",
    "render",
    "render_cutout",
    "seeded",
]

KINDS: tuple[str, ...] = tuple(SHAPES)
COLOURS: dict[str, Colour] = {
    "black": (30, 30, 34),
    "white": (243, 241, 235),
    "red": (200, 28, 38),
    "orange": (242, 132, 28),
    "yellow": (246, 208, 52),
    "green": (38, 132, 66),
    "blue": (36, 88, 190),
    "purple": (118, 52, 152),
    "pink": (246, 148, 186),
    "brown": (112, 68, 36),
}
SIZES: tuple[str, ...] = ("small", "medium", "large")
BACKGROUNDS: tuple[str, ...] = ("white", "grey", "pastel", "gradient", "studio", "linen")

# A pattern's second colour cannot be mistaken for the first: neutral with colours, grey with black and white.
_SECOND: dict[str, Colour] = {
    "white": COLOURS["white"],
    "black": COLOURS["black"],
    "sand": (226, 204, 164),
    "silver": (172, 172, 176),
    "grey": (128, 128, 132),
}
SECOND_COLOURS: dict[str, tuple[str, ...]] = {
    "black": ("silver",),
    "white": ("grey",),
    "red": ("white", "black", "sand"),
    "orange": ("white", "black"),
    "yellow": ("white", "black"),
    "green": ("white", "black", "sand"),
    "blue": ("white", "sand"),
    "purple": ("white", "sand"),
    "pink": ("white", "black"),
    "brown": ("white", "sand"),
}
_TRIMS: tuple[Colour, ...] = ((152, 102, 62), (58, 50, 48), (214, 200, 176), (120, 120, 126))
_PASTELS: tuple[Colour, ...] = (
    (212, 226, 242),
    (242, 222, 226),
    (220, 236, 220),
    (246, 236, 212),
    (228, 222, 242),
)


@dataclass(frozen=True)
class ProductLook:
    """The visible features of a product: first those that title and price depend on, then the others."""

    kind: str
    colour: str
    pattern: str
    size: str
    second: str
    """The pattern's second colour, a key of its own small palette; unused for plain products."""
    trim: Colour
    """Handles, bands and buttons."""
    background: str
    backdrop: Colour
    """The tint of a pastel, gradient, studio or linen background."""
    scale: float
    """The fraction of the frame that the product fills, 0 to 1."""
    offset: tuple[float, float]
    """The product's position in the free space around it, -1 to 1 in each direction."""
    rotation: float
    """Degrees, clockwise."""
    mirror: bool
    light: float
    """Exposure: 1 leaves colours unchanged."""


def seeded(*parts: int | str) -> random.Random:
    """Return a separate random generator for each combination of parts, the same on every machine."""
    return random.Random("/".join(map(str, parts)))  # noqa: S311 -- drawing, not cryptography


def random_look(
    rng: random.Random, kinds: Sequence[str] = KINDS, colours: Sequence[str] = tuple(COLOURS)
) -> ProductLook:
    """Draw a random look, with a kind and colour from those given, all features evenly distributed.

    A white product is never on a white background.
    """
    kind = rng.choice(kinds)
    colour = rng.choice(colours)
    background = rng.choice(BACKGROUNDS if colour != "white" else BACKGROUNDS[1:])
    return ProductLook(
        kind=kind,
        colour=colour,
        pattern=rng.choice(SHAPES[kind].patterns),
        size=rng.choice(SIZES),
        second=rng.choice(SECOND_COLOURS[colour]),
        trim=rng.choice(_TRIMS),
        background=background,
        backdrop=rng.choice(_PASTELS),
        scale=rng.uniform(0.82, 0.94),
        offset=(rng.uniform(-0.14, 0.14), rng.uniform(-0.14, 0.14)),
        rotation=rng.uniform(-4, 4),
        mirror=rng.random() < 0.5,
        light=rng.uniform(0.93, 1.05),
    )


def render(look: ProductLook, width: int, height: int, rng: random.Random) -> Image.Image:
    """Draw the product on its background.

    Args:
        look: what to draw.
        width: of the picture in pixels, at least 16.
        height: of the picture in pixels, at least 16. The time is proportional to width x height.
        rng: for the folds, and the grain of the background.

    Returns:
        An RGB picture of width x height.
    """
    product, place = _product(look, width, height, rng)
    picture = _background(look, width, height, rng)
    mask = product.getchannel("A")
    _cast_shadow(picture, mask, place, strength=0.45 if look.background == "studio" else 0.28)
    picture.paste(product, place, mask)
    return picture


def render_cutout(look: ProductLook, width: int, height: int, rng: random.Random) -> Image.Image:
    """Draw only the product: an RGBA picture of width x height, transparent around the product."""
    product, place = _product(look, width, height, rng)
    picture = Image.new("RGBA", (width, height), (255, 255, 255, 0))
    picture.paste(product, place)
    return picture


def _product(
    look: ProductLook, width: int, height: int, rng: random.Random
) -> tuple[Image.Image, tuple[int, int]]:
    """Return the product as an RGBA layer, and the position of its upper left corner in the frame."""
    shape = SHAPES[look.kind]
    size = SIZES.index(look.size)
    wide, tall = shape.widths[size], shape.heights[size]
    angle = math.radians(abs(look.rotation))
    box_wide = wide * math.cos(angle) + tall * math.sin(angle)
    box_tall = wide * math.sin(angle) + tall * math.cos(angle)
    unit = look.scale * min(width / box_wide, height / box_tall)
    layer_wide, layer_tall = (math.ceil(extent * unit) + 4 for extent in (box_wide, box_tall))
    # Drawn at twice the size and scaled down, to smooth the edges.
    pen = Pen(
        size=(2 * layer_wide, 2 * layer_tall),
        unit=2 * unit,
        centre=(0, tall / 2),
        rotation=look.rotation,
        mirror=look.mirror,
        cloth=_lit(COLOURS[look.colour], look.light),
        trim=_lit(look.trim, look.light),
    )
    _weave(pen, look, shape, wide, tall)
    _fold(pen, wide, tall, rng)
    shape.draw(pen, wide, tall)
    layer = pen.picture.reduce(2)
    layer.paste((0, 0, 0), None, _shade(layer.size))
    layer.putalpha(pen.mask.reduce(2))
    free_wide, free_tall = (width - box_wide * unit) / 2, (height - box_tall * unit) / 2
    place = (
        round(width / 2 + look.offset[0] * free_wide - layer_wide / 2),
        round(height / 2 + look.offset[1] * free_tall - layer_tall / 2),
    )
    return layer, place


def _lit(colour: Colour, light: float) -> Colour:
    red, green, blue = (min(255, round(value * light)) for value in colour)
    return red, green, blue


def _weave(pen: Pen, look: ProductLook, shape: Shape, wide: float, tall: float) -> None:
    """Draw the pattern over the whole cloth."""
    colour = _lit(_SECOND[look.second], look.light)
    period = max(wide, tall) / 6.5
    left, right, top, bottom = -wide / 2 - 0.1, wide / 2 + 0.1, -0.1, tall + 0.1
    check = look.pattern == "check"
    # Where the two directions of a check cross, the second colour is denser: three tones, as in woven cloth.
    opacity, thickness = (0.65, 0.37 * period) if check else (1.0, 0.4 * period)
    if check or (look.pattern == "stripes" and not shape.sideways):
        for y in _steps(top, bottom, period):
            pen.tint([(left, y), (right, y), (right, y + thickness), (left, y + thickness)], colour, opacity)
    if check or (look.pattern == "stripes" and shape.sideways):
        for x in _steps(left, right, period):
            pen.tint([(x, top), (x + thickness, top), (x + thickness, bottom), (x, bottom)], colour, opacity)
    if look.pattern == "dots":
        for row, y in enumerate(_steps(top, bottom, period * 0.86)):
            for x in _steps(left + (row % 2) * period / 2, right, period):
                pen.tint(ellipse(x, y, period * 0.27, period * 0.27), colour)
    if look.pattern == "block":
        start, middle = (0.0, top) if shape.sideways else (left, 0.4 * shape.cloth_top + 0.6 * tall)
        pen.tint([(start, middle), (right, middle), (right, bottom), (start, bottom)], colour)


def _steps(start: float, end: float, step: float) -> list[float]:
    return [start + step * index for index in range(math.ceil((end - start) / step))]


def _fold(pen: Pen, wide: float, tall: float, rng: random.Random) -> None:
    """Draw a few soft creases at random places."""
    for _ in range(3):
        x, lean, breadth = rng.uniform(-wide / 2, wide / 2), rng.uniform(-0.15, 0.15), rng.uniform(0.02, 0.05)
        shade = (0, 0, 0) if rng.random() < 0.5 else (255, 255, 255)
        y = rng.uniform(0, tall * 0.6)
        end = y + tall * rng.uniform(0.25, 0.5)
        pen.tint([(x, y), (x + lean + breadth, end), (x + lean - breadth, end)], shade, 0.1)


def _shade(size: tuple[int, int]) -> Image.Image:
    """Return the shading of a product by light from the upper left, as a mask."""
    ramp = Image.new("L", (4, 2))
    ramp.putdata((0, 0, 9, 33, 9, 15, 27, 51))
    return ramp.resize(size, Image.Resampling.BILINEAR)


def _cast_shadow(picture: Image.Image, mask: Image.Image, place: tuple[int, int], strength: float) -> None:
    """Darken the area under and behind the product, softly."""
    small = (max(1, mask.width // 8), max(1, mask.height // 8))
    blur = max(1.0, min(small) / 20)
    margin = math.ceil(3 * blur)
    shadow = Image.new("L", (small[0] + 2 * margin, small[1] + 2 * margin), 0)
    shadow.paste(mask.resize(small, Image.Resampling.BOX), (margin, margin))
    shadow = shadow.filter(ImageFilter.GaussianBlur(blur)).point([round(v * strength) for v in range(256)])
    shadow = shadow.resize((mask.width + 16 * margin, mask.height + 16 * margin), Image.Resampling.BILINEAR)
    shift = max(1, round(max(mask.size) * 0.02))
    at = (place[0] - 8 * margin + shift // 2, place[1] - 8 * margin + shift)
    picture.paste((20, 20, 30), at, shadow)


def _background(look: ProductLook, width: int, height: int, rng: random.Random) -> Image.Image:
    if look.background == "white":
        return Image.new("RGB", (width, height), (255, 255, 255))
    if look.background == "grey":
        return Image.new("RGB", (width, height), (190, 192, 194))
    if look.background == "pastel":
        return Image.new("RGB", (width, height), look.backdrop)
    if look.background == "linen":
        return _linen(mix(look.backdrop, (206, 196, 178), 0.6), width, height, rng)
    dark = mix(look.backdrop, (128, 130, 138), 0.6)
    if look.background == "gradient":
        ramp = Image.new("RGB", (2, 2))
        ramp.putdata([look.backdrop, mix(look.backdrop, dark, 0.5), mix(look.backdrop, dark, 0.6), dark])
        return ramp.resize((width, height), Image.Resampling.BILINEAR)
    wall = mix(look.backdrop, (206, 208, 210), 0.7)
    studio = Image.new("RGB", (1, 8))
    studio.putdata(
        [wall, wall, wall, wall, mix(wall, dark, 0.25), mix(wall, dark, 0.75), mix(wall, dark, 0.4), wall]
    )
    return studio.resize((width, height), Image.Resampling.BILINEAR)


def _linen(colour: Colour, width: int, height: int, rng: random.Random) -> Image.Image:
    """Draw a woven background: noise stretched along both threads."""
    across = Image.frombytes("L", (6, 96), rng.randbytes(576)).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    down = Image.frombytes("L", (96, 6), rng.randbytes(576)).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    grain = Image.blend(across, down, 0.5)
    channels = [
        grain.point([max(0, value - 14 + grey * 28 // 255) for grey in range(256)]) for value in colour
    ]
    return Image.merge("RGB", channels)
