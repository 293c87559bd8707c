"""Write the sample catalogue: a CSV, its pictures, and a list of the deliberate flaws of its rows.

A catalogue is a folder:

    products.csv      one row per product, with the columns of `COLUMNS`
    images/           the pictures, named by product code
    flaws.json        for each flaw its rate, its rows and how a preparation of the data should treat them
    catalogue.json    rows, seed and version, to recognise the catalogue, and the CSV's digest

The URLs in products.csv start with `PLACEHOLDER`, an unused address: the address at which a catalogue will be
served is unknown when it is written, and its bytes depend only on rows and seed. `CatalogueServer` inserts
its address.
"""

import csv
import errno
import fcntl
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from fovea.errors import UserError
from fovea.memory import reuse_freed_memory
from sample.drawing import render, render_cutout, seeded
from sample.products import (
    CURRENCY,
    EUROS,
    FLAWS,
    Product,
    category_of,
    department_of,
    flaw_count,
    make_products,
)

CATALOGUE_VERSION = 2
"""Raise it when the same rows and seed give different bytes."""

PLACEHOLDER = "http://catalogue.invalid"
MIN_ROWS = 40
JPEG_QUALITY = 88
COLUMNS = (
    "website_name",
    "competence_date",
    "country_code",
    "currency_code",
    "brand",
    "category1_code",
    "category2_code",
    "category3_code",
    "product_code",
    "title",
    "itemurl",
    "imageurl",
    "full_price",
    "price",
    "full_price_eur",
    "price_eur",
    "flg_discount",
)

# The transformation of a stored picture by its EXIF orientation.
_STORED_TURNED = {
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}
_ORIENTATION = 0x0112
_POOL_FROM = 200
"""The number of products from which worker processes save more time than they take to start."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class CatalogueSummary:
    """The counts of a catalogue."""

    folder: Path
    rows: int
    seed: int
    products: int
    """Distinct products, including flawed ones."""
    usable: int
    """Distinct products that a preparation of the data should keep."""
    reused: bool
    """Whether it existed already."""


def write_catalogue(
    out: Path,
    rows: int = 3040,
    seed: int = 0,
    progress: Progress | None = None,
    workers: int | None = None,
) -> CatalogueSummary:
    """Write the sample catalogue to the folder `out`, or reuse it if it exists.

    It is written next to `out` and renamed at the end, so `out` is never incomplete. The bytes
    depend on `rows` and `seed`, not on the number of workers.

    Args:
        out: a folder that is missing or empty, or contains the same catalogue.
        rows: of products.csv, at least 40.
        seed: 0 or more; each seed gives another catalogue.
        progress: called with the number of finished pictures, and the total.
        workers: number of drawing processes; None for the number of cores.

    Raises:
        UserError: `out` contains something else, another process is writing it, the disk is full, or
            `rows` or `seed` is out of range.
    """
    if rows < MIN_ROWS:
        raise UserError(
            f"A sample catalogue of {rows} rows is too small for all its flaws: use {MIN_ROWS} or more."
        )
    if seed < 0:
        raise UserError(f"The seed is {seed}: give 0 or a positive number.")
    products = list(make_products(rows, seed))
    usable = rows - sum(flaw_count(flaw, rows) for flaw in FLAWS if flaw.expected == "drop")
    reused = _is_there(out, rows, seed)
    if not reused:
        try:
            with _partial_folder(out) as folder:
                _write(folder, products, rows, seed, progress, workers or os.cpu_count() or 1)
        except OSError as error:
            raise _as_user_error(error, out) from error
    return CatalogueSummary(out, rows, seed, len(products), usable, reused)


def _is_there(out: Path, rows: int, seed: int) -> bool:
    """Return whether `out` is this catalogue; raise an error if it contains something else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    choices = "choose another folder with --out, or remove it"
    try:
        found = json.loads((out / "catalogue.json").read_bytes())
        digest = _sha256((out / "products.csv").read_bytes())
        pictures = sum(1 for _ in (out / "images").iterdir())
    except (OSError, ValueError):
        raise UserError(f"{out} contains something other than a sample catalogue: {choices}.") from None
    wanted = {"version": CATALOGUE_VERSION, "rows": rows, "seed": seed}
    if (described := {key: found.get(key) for key in wanted}) != wanted:
        was, is_asked = (
            ", ".join(f"{key} {value}" for key, value in each.items()) for each in (described, wanted)
        )
        raise UserError(f"{out} contains another sample catalogue ({was}; requested: {is_asked}): {choices}.")
    if (digest, pictures) != (found.get("products_sha256"), found.get("pictures")):
        raise UserError(f"The sample catalogue in {out} has been changed since it was written: {choices}.")
    return True


@contextmanager
def _partial_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder next to `out`, renamed to `out` at the end and removed on an error.

    A lock on the folder prevents a second writer; the folder of a killed writer is not locked, and is
    cleared.
    """
    out = out.absolute()
    partial = out.parent / f".{out.name}.partial"
    partial.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The previous holder of the lock may have renamed the folder since it was opened here.
            if os.fstat(descriptor).st_ino != partial.stat().st_ino:
                raise BlockingIOError
        except (BlockingIOError, FileNotFoundError):
            raise UserError(
                f"Another process is writing {out}: wait for it, or choose another --out."
            ) from None
        try:
            for leftover in partial.iterdir():
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            yield partial
            partial.rename(out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    finally:
        os.close(descriptor)


def _as_user_error(error: OSError, out: Path) -> UserError:
    if error.errno == errno.ENOSPC:
        return UserError(
            f"The disk is full at {out.absolute().parent}: free some space, or choose another --out."
        )
    return UserError(
        f"Cannot write {error.filename or out} ({error.strerror or error}): choose another --out."
    )


def _write(
    folder: Path, products: Sequence[Product], rows: int, seed: int, progress: Progress | None, workers: int
) -> None:
    (folder / "images").mkdir()
    with closing(_draw_all(folder / "images", products, seed, workers)) as drawn:
        for done, _ in enumerate(drawn, start=1):
            if progress:
                progress(done, len(products))
    listed = _with_duplicates(products, rows, seed)
    table = _as_csv(listed)
    (folder / "products.csv").write_bytes(table)
    _write_json(folder / "flaws.json", {"rows": rows, "seed": seed, "flaws": _side_file(listed, rows)})
    description = {
        "version": CATALOGUE_VERSION,
        "rows": rows,
        "seed": seed,
        "pictures": sum(1 for _ in (folder / "images").iterdir()),
        "products_sha256": _sha256(table),
    }
    _write_json(folder / "catalogue.json", description)


def _draw_all(images: Path, products: Sequence[Product], seed: int, workers: int) -> Generator[str]:
    """Write all pictures, yielding each product's code when its picture is finished."""
    if workers == 1 or len(products) < _POOL_FROM:
        for product in products:
            yield _draw(images, product, seed)
        return
    # Spawned, not forked: the caller may have threads and locks of libraries that do not survive a fork.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        count = len(products)
        yield from pool.map(_draw, [images] * count, products, [seed] * count, chunksize=16)
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Ignore Ctrl-C, because the parent stops its workers, and exit if the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    reuse_freed_memory()
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _picture_name(product: Product) -> str:
    return f"{product.code}.png" if product.flaw == "alpha" else f"{product.code}.jpg"


def _draw(images: Path, product: Product, seed: int) -> str:
    data = _picture(product, seed)
    if data is not None:
        (images / _picture_name(product)).write_bytes(data)
    return product.code


def _picture(product: Product, seed: int) -> bytes | None:
    """Return the response of the product's imageurl; None for a dead link."""
    rng = seeded(seed, "picture", product.code)
    match product.flaw:
        case "dead_link":
            return None
        case "html_instead_of_picture":
            return b"<!DOCTYPE html>\n<html><body><h1>This picture has moved</h1></body></html>\n"
        case "alpha":
            return _encoded(render_cutout(product.look, product.width, product.height, rng), "PNG")
    picture = render(product.look, product.width, product.height, rng)
    match product.flaw:
        case "greyscale":
            return _encoded(picture.convert("L"), "JPEG")
        case "cmyk":
            return _encoded(picture.convert("CMYK"), "JPEG")
        case "exif_rotation":
            orientation = rng.choice(list(_STORED_TURNED))
            return _encoded(picture.transpose(_STORED_TURNED[orientation]), "JPEG", orientation)
        case "truncated_file":
            data = _encoded(picture, "JPEG")
            return data[: round(len(data) * rng.uniform(0.3, 0.7))]
    return _encoded(picture, "JPEG")


def _encoded(picture: Image.Image, kind: str, orientation: int | None = None) -> bytes:
    exif = Image.Exif()
    if orientation is not None:
        exif[_ORIENTATION] = orientation
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=JPEG_QUALITY, exif=exif)
    return buffer.getvalue()


def _with_duplicates(products: Sequence[Product], rows: int, seed: int) -> list[Product]:
    """Return the products as rows; some without another flaw occur a second time, anywhere further down."""
    rng = seeded(seed, "duplicates")
    listed = list(products)
    sound = [product for product in products if product.flaw is None]
    for product in rng.sample(sound, rows - len(products)):
        listed.insert(rng.randint(listed.index(product) + 1, len(listed)), product)
    return listed


def _as_csv(listed: Sequence[Product]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_row(product) for product in listed)
    return text.getvalue().encode()


def _row(product: Product) -> dict[str, str]:
    prices = {
        "full_price": product.full_price,
        "price": product.price,
        "full_price_eur": round(product.full_price * EUROS, 2),
        "price_eur": round(product.price * EUROS, 2),
    }
    return {
        "website_name": "Fovea Sample",
        "competence_date": "2025-01-15",
        "country_code": "USA",
        "currency_code": CURRENCY,
        "brand": "Fovea Sample",
        "category1_code": product.line,
        "category2_code": department_of(product.look),
        "category3_code": category_of(product.look),
        "product_code": product.code,
        "title": product.title,
        "itemurl": f"{PLACEHOLDER}/items/{product.code}",
        "imageurl": f"{PLACEHOLDER}/images/{_picture_name(product)}",
        **{column: _price(value, product) for column, value in prices.items()},
        "flg_discount": str(int(product.price < product.full_price)),
    }


def _price(value: float, product: Product) -> str:
    if product.flaw == "missing_price":
        return ""
    return f"{value:,.2f}" if product.flaw == "thousands_separator" else repr(value)


def _side_file(listed: Sequence[Product], rows: int) -> list[dict[str, object]]:
    """Return the entries of flaws.json; rows are counted from 0, without the header."""
    seen: Counter[str] = Counter()
    found: dict[str, list[int]] = {flaw.name: [] for flaw in FLAWS}
    for index, product in enumerate(listed):
        if seen[product.code]:
            found["duplicate_row"].append(index)
        elif product.flaw:
            found[product.flaw].append(index)
        seen[product.code] += 1
    return [
        {
            **asdict(flaw),
            "count": flaw_count(flaw, rows),
            "rows": found[flaw.name],
            "product_codes": [listed[index].code for index in found[flaw.name]],
        }
        for flaw in FLAWS
    ]


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
