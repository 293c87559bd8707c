"""The outlines of the sample products, drawn from polygons in a separate coordinate system for each kind.

A product hangs from the origin: x runs from -width/2 to width/2 and y from 0 (top) to height (bottom), in
units of about the width of a bag. `SHAPES` maps a kind's name to its `Shape`. A size changes the proportions,
not only the scale, so that it is visible in any framing.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

Point = tuple[float, float]
Colour = tuple[int, int, int]

PATTERNS: tuple[str, ...] = ("plain", "stripes", "check", "dots", "block")
FEW_PATTERNS = ("plain", "stripes", "block")
BLACK: Colour = (24, 24, 28)
METAL: Colour = (198, 188, 160)
OFF_WHITE: Colour = (240, 238, 232)


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """Return the colour that is `share` of the way from `first` to `second`."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def ellipse(x: float, y: float, rx: float, ry: float, start: float = 0, end: float = 360) -> list[Point]:
    """Return points of an ellipse's arc around (x, y), from angle `start` to `end` in degrees; 90 is down."""
    steps = max(6, round(abs(end - start) / 9))
    angles = (math.radians(start + (end - start) * step / steps) for step in range(steps + 1))
    return [(x + rx * math.cos(angle), y + ry * math.sin(angle)) for angle in angles]


def rounded(left: float, top: float, right: float, bottom: float, radius: float) -> list[Point]:
    """Return points of a rectangle with round corners."""
    return [
        *ellipse(right - radius, top + radius, radius, radius, -90, 0),
        *ellipse(right - radius, bottom - radius, radius, radius, 0, 90),
        *ellipse(left + radius, bottom - radius, radius, radius, 90, 180),
        *ellipse(left + radius, top + radius, radius, radius, 180, 270),
    ]


def mirrored(right_half: Sequence[Point]) -> list[Point]:
    """Return a symmetric outline from its right half, given from top to bottom."""
    return [*right_half, *((-x, y) for x, y in reversed(right_half))]


def smooth(points: Sequence[Point]) -> list[Point]:
    """Return a closed Catmull-Rom curve through the points."""
    curve: list[Point] = []
    count = len(points)
    for index in range(count):
        before, start, end, after = (points[(index + step) % count] for step in (-1, 0, 1, 2))
        for t in (0.0, 0.2, 0.4, 0.6, 0.8):
            x, y = (_spline(t, *along) for along in zip(before, start, end, after, strict=True))
            curve.append((x, y))
    return curve


def _spline(t: float, a: float, b: float, c: float, d: float) -> float:
    return 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t * t + (3 * b - a - 3 * c + d) * t**3)


class Pen:
    """Draws a product in its own coordinates onto a layer: a picture and the mask of the covered area.

    The picture is filled with the patterned cloth first, so a cloth part only opens the mask.
    This is fast, and requires a fixed order of a shape's parts: cloth first, other materials over it.
    """

    def __init__(
        self,
        size: tuple[int, int],
        unit: float,
        centre: Point,
        rotation: float,
        mirror: bool,
        cloth: Colour,
        trim: Colour,
    ):
        """Create a layer of `size` pixels, `unit` pixels per unit, with `centre` (in units) in its middle."""
        self.picture = Image.new("RGB", size, cloth)
        self.mask = Image.new("L", size, 0)
        self.cloth_colour = cloth
        self.trim = trim
        dark = sum(cloth) < 200
        self.edge = mix(cloth, (255, 255, 255), 0.28) if dark else mix(cloth, (0, 0, 0), 0.42)
        self.inside = mix(cloth, (0, 0, 0), 0.5)
        self._unit = unit
        self._centre = centre
        self._middle = (size[0] / 2, size[1] / 2)
        angle = math.radians(rotation)
        self._cos, self._sin = math.cos(angle), math.sin(angle)
        self._flip = -1.0 if mirror else 1.0
        self._opaque = ImageDraw.Draw(self.picture)
        self._blend = ImageDraw.Draw(self.picture, "RGBA")
        self._cover = ImageDraw.Draw(self.mask)

    def _place(self, points: Sequence[Point]) -> list[Point]:
        placed = []
        for x, y in points:
            across = (x - self._centre[0]) * self._flip * self._unit
            down = (y - self._centre[1]) * self._unit
            turned = (across * self._cos - down * self._sin, across * self._sin + down * self._cos)
            placed.append((self._middle[0] + turned[0], self._middle[1] + turned[1]))
        return placed

    def _pixels(self, width: float) -> int:
        return max(1, round(width * self._unit))

    def tint(self, points: Sequence[Point], colour: Colour, opacity: float = 1.0) -> None:
        """Colour a part of the picture without extending the mask: a pattern, a shade, a fold."""
        self._blend.polygon(self._place(points), fill=(*colour, round(255 * opacity)))

    def cloth(self, points: Sequence[Point], outline: float = 0.012) -> None:
        """Cover a part with the patterned cloth."""
        self._cover.polygon(self._place(points), fill=255)
        if outline:
            self.seam([*points, points[0]], outline)

    def solid(self, points: Sequence[Point], colour: Colour, outline: float = 0.012) -> None:
        """Cover a part with a plain material."""
        placed = self._place(points)
        self._cover.polygon(placed, fill=255)
        self._opaque.polygon(placed, fill=colour)
        self.seam([*points, points[0]], outline, mix(colour, (0, 0, 0), 0.35))

    def stroke(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        """Cover a line of the given width."""
        placed = self._place(points)
        pixels = self._pixels(width)
        self._cover.line(placed, fill=255, width=pixels, joint="curve")
        self._opaque.line(placed, fill=colour, width=pixels, joint="curve")

    def seam(self, points: Sequence[Point], width: float = 0.012, colour: Colour | None = None) -> None:
        """Draw a line on the covered area."""
        placed = self._place(points)
        self._opaque.line(placed, fill=colour or self.edge, width=self._pixels(width), joint="curve")

    def hole(self, points: Sequence[Point]) -> None:
        """Remove a part from the mask: the background shows through it."""
        self._cover.polygon(self._place(points), fill=0)


@dataclass(frozen=True)
class Shape:
    """How a kind of product is drawn.

    `widths` and `heights` have one entry for each of the three sizes, in units. `sideways` turns stripes and
    colour blocks by 90 degrees, for cloth that is longer than it is tall. The cloth starts at `cloth_top`.
    `patterns` are those that are distinguishable on the available cloth.
    """

    widths: tuple[float, float, float]
    heights: tuple[float, float, float]
    draw: Callable[[Pen, float, float], None]
    sideways: bool = False
    cloth_top: float = 0.0
    patterns: tuple[str, ...] = PATTERNS


def _tote(pen: Pen, width: float, height: float) -> None:
    top, half = 0.42, width / 2
    pen.cloth([(-half * 0.88, top), (half * 0.88, top), (half, height), (-half, height)])
    pen.tint([(half * 0.55, top), (half, top), (half, height), (half * 0.6, height)], (0, 0, 0), 0.12)
    pen.seam([(-half, top + 0.05), (half, top + 0.05)])
    for x in (-0.23, 0.23):
        pen.stroke([(x, top), (x, top + min(0.3, (height - top) * 0.6))], 0.055, pen.trim)
    pen.stroke([(0.23, top), *ellipse(0, top, 0.23, 0.38, 0, -180), (-0.23, top)], 0.055, pen.trim)


def _backpack(pen: Pen, width: float, height: float) -> None:
    half, top = width / 2 - 0.12, 0.1
    for side in (-1, 1):
        strap = ellipse(half - 0.02, height * 0.58, 0.1, height * 0.3, -85, 85)
        pen.stroke([(side * x, y) for x, y in strap], 0.06, pen.trim)
    body = mirrored(
        [
            (0.0, top),
            *ellipse(half - 0.26, top + 0.26, 0.26, 0.26, -90, 0),
            (half, height - 0.1),
            *ellipse(half - 0.1, height - 0.1, 0.1, 0.1, 0, 90),
        ]
    )
    pen.cloth(body)
    pen.stroke(ellipse(0, top + 0.02, 0.13, 0.1, 180, 360), 0.045, pen.trim)
    pocket = top + (height - top) * 0.52
    pen.tint(rounded(-half + 0.07, pocket, half - 0.07, height - 0.05, 0.07), (255, 255, 255), 0.14)
    outline = rounded(-half + 0.07, pocket, half - 0.07, height - 0.05, 0.07)
    pen.seam([*outline, outline[0]], 0.02)
    pen.seam(ellipse(0, top + 0.42, half - 0.05, 0.34, 180, 360), 0.02)
    pen.solid(rounded(-0.05, pocket - 0.05, 0.05, pocket + 0.09, 0.02), pen.trim)


def _coat(pen: Pen, width: float, height: float) -> None:
    hem = 0.31 + 0.06 * height
    sleeve = [(0.28, 0.06), (0.38, 0.3), (0.5, 0.72), (0.36, 0.76), (0.26, 0.34)]
    pen.cloth(mirrored([(0.1, 0), *sleeve, (hem, height)]))
    for side in (-1, 1):
        pen.seam([(side * 0.26, 0.34), (side * 0.25, 0.12)])
        pen.seam([(side * 0.48, 0.64), (side * 0.34, 0.68)], 0.02)
        fall = [(side * 0.26, 0.34), (side * 0.14, 0.34), (side * 0.2, height), (side * hem, height)]
        pen.tint(fall, (0, 0, 0), 0.1)
        lapel = [(side * 0.1, 0.0), (side * 0.19, 0.17), (side * 0.12, 0.2), (0.0, 0.42), (side * 0.02, 0.14)]
        pen.solid(lapel, mix(pen.cloth_colour, (0, 0, 0), 0.3))
    pen.solid([(-0.08, 0), (0.08, 0), (0, 0.16)], OFF_WHITE)
    pen.seam([(0, 0.42), (0, height)], 0.02)
    for y in (0.46, 0.6):
        for x in (-0.08, 0.08):
            pen.solid(ellipse(x, y, 0.024, 0.024), pen.trim)
    belt = [(-0.275, 0.52), (0.275, 0.52), (0.275, 0.57), (-0.275, 0.57)]
    pen.solid(belt, mix(pen.cloth_colour, (0, 0, 0), 0.45))


def _shirt(pen: Pen, width: float, height: float) -> None:
    pen.cloth(mirrored([(0.12, 0), (0.3, 0.06), (0.52, 0.28), (0.41, 0.4), (0.29, 0.28), (0.29, height)]))
    for side in (-1, 1):
        pen.seam([(side * 0.29, 0.28), (side * 0.28, 0.07)])
        pen.seam([(side * 0.49, 0.25), (side * 0.385, 0.37)], 0.02)
        pen.solid([(side * 0.12, 0), (side * 0.16, 0.12), (side * 0.06, 0.15), (0, 0.07)], OFF_WHITE)
    pen.solid([(-0.11, 0), (0.11, 0), (0, 0.07)], pen.inside)
    pen.seam([(-0.03, 0.08), (-0.03, height)])
    pen.seam([(0.03, 0.08), (0.03, height)])
    buttons = max(3, round(height / 0.17))
    for step in range(buttons):
        pen.solid(ellipse(0, 0.16 + (height - 0.24) * step / (buttons - 1), 0.016, 0.016), OFF_WHITE)


def _dress(pen: Pen, width: float, height: float) -> None:
    hem, waist = width / 2, 0.4
    bodice = [(0, 0.16), (0.09, 0.0), (0.15, 0.0), (0.17, 0.14), (0.2, 0.2), (0.14, waist)]
    pen.cloth(mirrored([*bodice, (hem, height)]))
    for share in (-0.6, -0.25, 0.2, 0.55):
        pleat = [(0.14 * share, waist), (hem * (share + 0.16), height), (hem * share, height)]
        pen.tint(pleat, (0, 0, 0), 0.16)
    pen.solid(mirrored([(0.148, waist - 0.035), (0.15, waist + 0.025)]), pen.trim)


def _trousers(pen: Pen, width: float, height: float) -> None:
    half = width / 2
    pen.cloth(mirrored([(0, 0), (0.24, 0), (0.29, 0.24), (half, height), (0.07, height), (0.0, 0.36)]))
    for side in (-1, 1):
        pen.seam([(side * 0.245, 0.08), (side * 0.17, 0.22)], 0.016)
        crease = [(side * 0.16, 0.3), (side * 0.2, 0.3), (side * 0.2, height), (side * 0.185, height)]
        pen.tint(crease, (0, 0, 0), 0.16)
    pen.solid([(-0.24, 0), (0.24, 0), (0.25, 0.065), (-0.25, 0.065)], mix(pen.cloth_colour, (0, 0, 0), 0.3))
    pen.solid(ellipse(0, 0.033, 0.02, 0.02), pen.trim)
    pen.seam([(0, 0.07), (0, 0.36)], 0.016)


def _scarf(pen: Pen, width: float, height: float) -> None:
    ends = (
        [(-0.3, 0.24), (-0.02, 0.3), (-0.06, height - 0.1), (-0.36, height - 0.1)],
        [(0.3, 0.24), (0.0, 0.3), (0.1, height - 0.22), (0.38, height - 0.22)],
    )
    for end in ends:
        pen.cloth(end)
        (right, bottom), (left, _) = end[2], end[3]
        for step in range(8):
            x = left + (right - left) * (step + 0.5) / 8
            pen.stroke([(x, bottom - 0.01), (x, bottom + 0.1)], 0.018, pen.edge)
    pen.cloth(ellipse(0, 0.2, 0.38, 0.2))
    pen.solid(ellipse(0, 0.13, 0.25, 0.09), pen.inside)
    pen.seam(ellipse(0, 0.16, 0.3, 0.15, 20, 160), 0.016)
    pen.tint([(-0.14, 0.36), (-0.08, 0.36), (-0.16, height - 0.1), (-0.22, height - 0.1)], (0, 0, 0), 0.16)
    pen.tint([(0.14, 0.36), (0.2, 0.34), (0.26, height - 0.22), (0.2, height - 0.22)], (0, 0, 0), 0.16)


def _hat(pen: Pen, width: float, height: float) -> None:
    pen.cloth(ellipse(0, height - 0.14, width / 2, 0.14))
    pen.tint(ellipse(0, height - 0.09, width / 2.3, 0.08), (0, 0, 0), 0.14)
    base = [(0.37, height - 0.2), (0.3, height - 0.14), (0, height - 0.1)]
    pen.cloth(mirrored([(0, 0.05), (0.1, 0.01), (0.24, 0.0), (0.31, 0.07), *base]))
    band = mirrored([(0, height - 0.24), (0.355, height - 0.3), *base])
    pen.solid(band, pen.trim)
    pen.seam(ellipse(0, 0.0, 0.16, 0.1, 20, 160))


def _trainers(pen: Pen, width: float, height: float) -> None:
    sole = height - 0.44
    heel = [(-0.3, 0.46), (-0.57, 0.42), (-0.58, 0.2), (-0.56, 0.02)]
    toe = [(0.36, 0.24), (0.55, 0.32), (0.59, 0.44), (0.2, 0.46)]
    pen.cloth(smooth([*heel, (-0.4, 0.06), (-0.2, 0.05), (-0.06, 0.0), (0.1, 0.14), *toe]))
    pen.solid(ellipse(-0.36, 0.06, 0.17, 0.045), pen.inside)
    for step in range(4):
        x, y = -0.06 + step * 0.09, 0.05 + step * 0.045
        pen.stroke([(x - 0.05, y + 0.08), (x + 0.03, y)], 0.03, OFF_WHITE)
    pen.tint([(0.36, 0.24), (0.55, 0.3), (0.6, 0.46), (0.3, 0.46)], (0, 0, 0), 0.1)
    front, back = (
        ellipse(x, height - 0.05, 0.05, 0.05, turn, turn + 90) for x, turn in ((0.58, 0), (-0.56, 90))
    )
    pen.solid([(-0.6, 0.42), (0.61, 0.42), *front, *back], OFF_WHITE, 0.016)
    if sole > 0.1:
        pen.seam([(-0.58, 0.44 + sole * 0.55), (0.6, 0.44 + sole * 0.55)], 0.02, (150, 150, 150))


def _boots(pen: Pen, width: float, height: float) -> None:
    ankle, foot = height - 0.5, height - 0.08
    instep = [*ellipse(0.08, ankle, 0.13, 0.14, 180, 90), (0.26, ankle + 0.18)]
    toe = ellipse(0.26, foot - 0.12, 0.2, 0.12, -80, 90)
    pen.cloth([(-0.46, 0), (-0.04, 0), (-0.05, ankle), *instep, *toe, (-0.46, foot), (-0.43, ankle)])
    pen.tint([(-0.22, 0), (-0.14, 0), (-0.16, ankle), (-0.22, ankle)], (255, 255, 255), 0.16)
    pen.seam([(-0.46, 0.07), (-0.04, 0.07)], 0.02)
    heel = [(-0.18, foot + 0.03), (-0.2, height), (-0.47, height)]
    pen.solid([(-0.47, foot - 0.02), (0.47, foot - 0.02), (0.46, foot + 0.03), *heel], BLACK)
    strap = [(-0.45, ankle + 0.05), (-0.04, ankle + 0.02), (0.0, ankle + 0.09), (-0.45, ankle + 0.13)]
    pen.solid(strap, pen.trim)
    pen.solid(rounded(-0.14, ankle + 0.01, -0.04, ankle + 0.13, 0.02), METAL)


def _watch(pen: Pen, width: float, height: float) -> None:
    middle, radius = height / 2, width / 2 - 0.06
    pen.cloth([(-0.19, 0), (0.19, 0), (0.23, middle), (0.19, height), (-0.19, height), (-0.23, middle)])
    pen.solid(rounded(-0.21, 0.0, 0.21, 0.05, 0.02), METAL)
    pen.solid(rounded(radius - 0.02, middle - 0.05, radius + 0.05, middle + 0.05, 0.02), METAL)
    pen.solid(ellipse(0, middle, radius, radius), METAL, 0.016)
    pen.solid(ellipse(0, middle, radius * 0.82, radius * 0.82), OFF_WHITE)
    for hour in range(0, 360, 30):
        ends = [ellipse(0, middle, radius * reach, radius * reach, hour, hour)[0] for reach in (0.66, 0.76)]
        pen.seam(ends, 0.02, BLACK)
    pen.seam([(0, middle), (0, middle - radius * 0.6)], 0.025, BLACK)
    pen.seam([(0, middle), (radius * 0.38, middle + radius * 0.2)], 0.03, BLACK)


def _sunglasses(pen: Pen, width: float, height: float) -> None:
    reach = height / 2
    for side in (-1, 1):
        pen.cloth([(side * 0.56, 0.02), (side * 0.75, 0.0), (side * 0.75, 0.13), (side * 0.56, 0.14)], 0)
        pen.cloth([(side * x, y) for x, y in rounded(0.02, 0, 0.7, height, min(0.3, reach))])
    bridge = reach * 0.5
    pen.cloth(mirrored([(0.12, bridge), (0.12, bridge + 0.1)]), 0)
    pen.hole(mirrored([(0.04, bridge + 0.1), (0.1, height)]))
    for side in (-1, 1):
        lens = [(side * x, y) for x, y in rounded(0.15, 0.13, 0.57, height - 0.13, min(0.2, reach - 0.131))]
        pen.solid(lens, (44, 46, 54))
        x = side * 0.36
        glint = [(x - 0.12, 0.14), (x - 0.02, 0.14), (x - 0.1, height - 0.14), (x - 0.2, height - 0.14)]
        pen.tint(glint, (255, 255, 255), 0.18)


def _belt(pen: Pen, width: float, height: float) -> None:
    band, rx, ry = height - 0.42, width / 2 - 0.02, 0.19
    front = ellipse(0, 0.2, rx, ry, 180, 0)
    pen.cloth([*front, *reversed([(x, y + band) for x, y in front])], 0.016)
    back = ellipse(0, 0.2, rx, ry, 180, 360)
    # The inside of the back, down to where the front hides it.
    seen = [(x, min(y + band * 0.8, 0.4 - y)) for x, y in back]
    pen.solid([*back, *reversed(seen)], pen.inside)
    pen.tint([*front[:6], *reversed([(x, y + band) for x, y in front[:6]])], (0, 0, 0), 0.16)
    pen.tint([*front[-6:], *reversed([(x, y + band) for x, y in front[-6:]])], (0, 0, 0), 0.16)
    for x in (0.25, 0.33):
        pen.solid(ellipse(x, 0.36 + band / 2, 0.014, 0.014), BLACK)
    top, bottom = 0.36, 0.39 + band
    frame = rounded(-0.13, top, 0.13, bottom, 0.03)
    pen.seam([*frame, frame[0], frame[1]], 0.045, METAL)
    pen.stroke([*frame, frame[0], frame[1]], 0.045, METAL)
    pen.seam([(-0.02, (top + bottom) / 2), (0.13, (top + bottom) / 2)], 0.03, METAL)


def _umbrella(pen: Pen, width: float, height: float) -> None:
    half, rim = width / 2, 0.52
    pen.stroke([(0, 0.0), (0, rim)], 0.03, BLACK)
    scallops: list[Point] = []
    for index in range(4):
        centre = half - half / 4 - index * half / 2
        scallops += ellipse(centre, rim, half / 4, 0.07, 0, -180)
    pen.cloth([*ellipse(0, rim, half, 0.46, 180, 360), *scallops])
    for x in (-half / 2, 0.0, half / 2):
        pen.seam([(x, rim), (x * 0.8, rim - 0.3), (0, 0.06)], 0.014)
    side = ellipse(0, rim, half, 0.46, -60, 0)
    pen.tint([(0, 0.06), *side, (half / 2, rim), (half * 0.4, 0.3)], (0, 0, 0), 0.12)
    pen.stroke([(0, rim - 0.05), (0, height - 0.12)], 0.035, BLACK)
    pen.stroke([(0, height - 0.14), *ellipse(0.09, height - 0.11, 0.09, 0.09, 180, 0)], 0.05, pen.trim)


SHAPES: dict[str, Shape] = {
    "tote bag": Shape((1.0, 1.0, 1.0), (0.86, 1.22, 1.7), _tote, cloth_top=0.42),
    "backpack": Shape((0.9, 0.9, 0.9), (0.76, 1.1, 1.56), _backpack),
    "coat": Shape((1.0, 1.0, 1.0), (0.76, 1.12, 1.66), _coat),
    "shirt": Shape((1.04, 1.04, 1.04), (0.6, 0.9, 1.32), _shirt),
    "dress": Shape((0.62, 0.78, 0.94), (0.74, 1.12, 1.66), _dress),
    "trousers": Shape((0.72, 0.62, 0.66), (0.58, 1.05, 1.66), _trousers),
    "scarf": Shape((0.8, 0.8, 0.8), (0.82, 1.18, 1.74), _scarf),
    "hat": Shape((0.95, 1.35, 1.85), (0.74, 0.74, 0.74), _hat),
    "trainers": Shape((1.24, 1.24, 1.24), (0.53, 0.67, 0.88), _trainers, sideways=True),
    "boots": Shape((0.96, 0.96, 0.96), (0.72, 1.1, 1.62), _boots),
    "watch": Shape((0.6, 0.8, 1.08), (1.5, 1.5, 1.5), _watch),
    "sunglasses": Shape((1.5, 1.5, 1.5), (0.38, 0.56, 0.84), _sunglasses, True, patterns=FEW_PATTERNS),
    "belt": Shape((1.2, 1.2, 1.2), (0.56, 0.69, 0.88), _belt, sideways=True),
    "umbrella": Shape((0.8, 1.2, 1.8), (1.3, 1.3, 1.3), _umbrella, sideways=True),
}
