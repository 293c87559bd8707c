"""Workspaces as a preparation leaves them, without preparing anything."""

import hashlib
import io
import random
import sqlite3
from collections.abc import Sequence

from PIL import Image

from components.prepare_data.workspace import Workspace

SPLITS = ("train", "train", "train", "validation", "test")


def query(workspace: Workspace, sql: str, parameters: Sequence[object] = ()) -> sqlite3.Cursor:
    """Run SQL on a workspace, to set or read what no method of it does."""
    return workspace._db.execute(sql, parameters)


def digest(text: object) -> str:
    return hashlib.sha256(str(text).encode()).hexdigest()


def jpeg(seed: int, side: int = 32, *, noise: bool = False) -> bytes:
    rng = random.Random(seed)  # noqa: S311 - no secret
    picture = Image.new("RGB", (side, side), (rng.randrange(256), rng.randrange(256), rng.randrange(256)))
    if noise:
        picture = Image.frombytes("RGB", (side, side), rng.randbytes(3 * side * side))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def raw(number: int, title: str) -> dict[str, str]:
    return {
        "product_code": f"p{number}",
        "title": title,
        "category3_code": f"CATEGORY {number % 3}",
        "full_price": f"{100 + number}.00",
        "imageurl": f"images/{number}.jpg",
    }


def add_kept(
    workspace: Workspace,
    number: int,
    *,
    title: str = "Scarf",
    category: str | None = None,
    price: float | None = None,
    tokens: int | None = None,
    split: str | None = None,
    picture: bytes | None = None,
) -> None:
    """Add a kept row of product ``p{number}`` with a separate picture."""
    data = picture or jpeg(number)
    address = f"images/{number}.jpg"
    workspace.pictures.add(
        address, digest=digest(number), jpeg=data, size=(32, 32), original_size=(64, 64), fingerprint=b""
    )
    values = {
        "product": title,
        "category": category or f"CATEGORY {number % 3}",
        "full_price": price or 100.0 + number,
    }
    workspace.rows.add(
        number, raw(number, title), product=f"p{number}", address=address, values=values, currency="USD"
    )
    query(
        workspace,
        "UPDATE rows SET row_id = ?, split = ?, tokens = ? WHERE number = ?",
        (digest(f"row {number}")[:24], split or SPLITS[number % 5], tokens or 780 + number, number),
    )


def add_dropped(workspace: Workspace, number: int, reason: str, *, title: str = "Scarf") -> None:
    workspace.rows.add(number, raw(number, title), product=f"p{number}", reason=reason)


def fill(workspace: Workspace, rows: int = 20, *, title: str = "Scarf") -> None:
    """Add kept rows, two of them one group, and three that were left out."""
    for number in range(rows):
        add_kept(workspace, number, title=f"{title} {number}")
    workspace.products.add_group(["p0", "p1"], too_large=False)
    workspace.prints.link(digest(0), digest(1), "near")
    add_dropped(workspace, rows, "full_price_missing", title=title)
    add_dropped(workspace, rows + 1, "full_price_missing", title=title)
    workspace.pictures.add_unusable(
        "images/gone.jpg", "not_found", "https://u:pw@host/x?sig=abc: answers 404"
    )
    gone = {**raw(rows + 2, title), "imageurl": "images/gone.jpg"}
    workspace.rows.add(rows + 2, gone, product="gone", address="images/gone.jpg", reason="picture_not_found")
