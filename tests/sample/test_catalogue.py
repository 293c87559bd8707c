import csv
import errno
import fcntl
import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageOps, ImageStat

from fovea.errors import UserError
from sample import catalogue
from sample.catalogue import COLUMNS, PLACEHOLDER, write_catalogue
from sample.drawing import render, seeded
from sample.products import FLAWS, make_products

ROWS = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_catalogue(tmp_path_factory.mktemp("sample") / "catalogue", ROWS, seed=1).folder


@pytest.fixture(scope="module")
def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "products.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def flaws(folder: Path) -> dict[str, Any]:
    return {flaw["name"]: flaw for flaw in json.loads((folder / "flaws.json").read_text())["flaws"]}


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def picture_path(folder: Path, row: dict[str, str]) -> Path:
    assert row["imageurl"].startswith(PLACEHOLDER + "/images/")
    return folder / row["imageurl"].removeprefix(PLACEHOLDER + "/")


def test_the_csv_has_the_columns_and_the_rows(folder: Path, table: list[dict[str, str]]):
    header = (folder / "products.csv").read_text(encoding="utf-8").splitlines()[0]
    assert tuple(header.split(",")) == COLUMNS
    assert header == (
        "website_name,competence_date,country_code,currency_code,brand,category1_code,category2_code,"
        "category3_code,product_code,title,itemurl,imageurl,full_price,price,full_price_eur,price_eur,flg_discount"
    )
    assert len(table) == ROWS
    for row in table:
        assert row["title"]
        assert row["currency_code"] == "USD"
        if row["full_price"]:
            full, price, full_eur = (
                float(row[name].replace(",", "")) for name in ("full_price", "price", "full_price_eur")
            )
            assert row["flg_discount"] == str(int(price < full))
            assert full_eur == pytest.approx(full * 0.92, abs=0.01)


def test_the_side_file_lists_every_flaw_with_its_rows(
    folder: Path, table: list[dict[str, str]], flaws: dict[str, Any]
):
    assert [flaw.name for flaw in FLAWS] == list(flaws)
    for flaw in FLAWS:
        listed = flaws[flaw.name]
        assert (listed["rate"], listed["expected"]) == (flaw.rate, flaw.expected)
        assert listed["count"] == len(listed["rows"]) >= 1
        assert [table[index]["product_code"] for index in listed["rows"]] == listed["product_codes"]
    flawed = [index for flaw in flaws.values() for index in flaw["rows"]]
    assert len(flawed) == len(set(flawed))


def rows_with(flaw: str, table: list[dict[str, str]], flaws: dict[str, Any]) -> list[dict[str, str]]:
    return [table[index] for index in flaws[flaw]["rows"]]


def test_rows_are_as_the_side_file_says(table: list[dict[str, str]], flaws: dict[str, Any]):
    lines = [tuple(row.values()) for row in table]
    repeated = [index for index, line in enumerate(lines) if line in lines[:index]]
    assert repeated == flaws["duplicate_row"]["rows"]
    prices = ("full_price", "price", "full_price_eur", "price_eur")
    without = [index for index, row in enumerate(table) if not any(row[name] for name in prices)]
    assert without == flaws["missing_price"]["rows"]
    separated = [index for index, row in enumerate(table) if "," in row["full_price"]]
    assert separated == flaws["thousands_separator"]["rows"]
    foreign = [index for index, row in enumerate(table) if not row["title"].isascii()]
    assert foreign == flaws["non_latin_title"]["rows"]
    scripts = [index for index, row in enumerate(table) if "<script>" in row["title"]]
    assert scripts == flaws["script_in_title"]["rows"]


def test_pictures_are_as_the_side_file_says(folder: Path, table: list[dict[str, str]], flaws: dict[str, Any]):
    def opened(flaw: str) -> list[Image.Image]:
        return [Image.open(picture_path(folder, row)) for row in rows_with(flaw, table, flaws)]

    assert not any(picture_path(folder, row).exists() for row in rows_with("dead_link", table, flaws))
    for row in rows_with("html_instead_of_picture", table, flaws):
        assert picture_path(folder, row).read_bytes().startswith(b"<!DOCTYPE html>")
    for picture in opened("truncated_file"):
        with pytest.raises(OSError, match="truncated"):
            picture.load()
    assert {picture.mode for picture in opened("greyscale")} == {"L"}
    assert {picture.mode for picture in opened("cmyk")} == {"CMYK"}
    assert {(picture.mode, picture.format) for picture in opened("alpha")} == {("RGBA", "PNG")}
    assert {picture.getexif()[0x0112] for picture in opened("exif_rotation")} <= {3, 6, 8}
    assert {picture.size for picture in opened("very_wide")} == {(1800, 300)}
    assert max(max(picture.size) for picture in opened("very_small")) <= 24


def test_all_other_pictures_are_plain_jpegs(folder: Path, table: list[dict[str, str]], flaws: dict[str, Any]):
    special = {
        code for flaw in flaws.values() if flaw["name"] != "duplicate_row" for code in flaw["product_codes"]
    }
    for row in table:
        if row["product_code"] not in special:
            with Image.open(picture_path(folder, row)) as picture:
                picture.load()
                assert (picture.format, picture.mode) == ("JPEG", "RGB")
                assert 300 <= min(picture.size) <= max(picture.size) <= 640


@pytest.mark.parametrize("flaw", ["exif_rotation", "cmyk"])
def test_a_picture_that_is_kept_shows_its_product_once_it_is_decoded(folder: Path, flaw: str):
    for product in make_products(ROWS, 1):
        if product.flaw == flaw:
            meant = render(product.look, product.width, product.height, seeded(1, "picture", product.code))
            with Image.open(folder / "images" / f"{product.code}.jpg") as picture:
                shown = ImageOps.exif_transpose(picture).convert("RGB")
            assert shown.size == meant.size
            assert max(ImageStat.Stat(ImageChops.difference(shown, meant)).mean) < 6


def test_the_same_seed_gives_the_same_bytes_whatever_the_number_of_workers(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(catalogue, "_POOL_FROM", 1)
    calls: list[tuple[int, int]] = []
    write_catalogue(tmp_path / "pool", ROWS, seed=1, workers=2, progress=lambda *call: calls.append(call))
    assert digests(tmp_path / "pool") == digests(folder)
    assert calls == [(done, len(calls)) for done in range(1, len(calls) + 1)]


def test_another_seed_gives_other_products(folder: Path, tmp_path: Path):
    write_catalogue(tmp_path / "other", ROWS, seed=2)
    first, second = digests(folder), digests(tmp_path / "other")
    assert not set(first.values()) & {
        value for name, value in second.items() if name.endswith((".csv", ".png"))
    }
    assert set(first) & set(second) == {"products.csv", "flaws.json", "catalogue.json"}


def test_a_catalogue_that_is_there_is_reused(folder: Path):
    before = digests(folder)
    summary = write_catalogue(folder, ROWS, seed=1)
    assert summary.reused
    assert digests(folder) == before
    assert list(folder.parent.iterdir()) == [folder], "nothing is left beside it"


def test_something_else_in_the_folder_is_left_alone(folder: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"rows 60, seed 1.* requested: .*seed 2.*--out"):
        write_catalogue(folder, ROWS, seed=2)
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match=r"something other.*--out"):
        write_catalogue(tmp_path, ROWS)
    with pytest.raises(UserError, match="something other"):
        write_catalogue(tmp_path / "letter.txt", ROWS)
    assert (tmp_path / "letter.txt").read_text() == "dear"


def test_a_catalogue_that_was_changed_is_not_reused(tmp_path: Path):
    out = write_catalogue(tmp_path / "changed", ROWS).folder
    next((out / "images").iterdir()).unlink()
    with pytest.raises(UserError, match="has been changed"):
        write_catalogue(out, ROWS)


def test_an_empty_folder_is_filled_and_a_killed_writers_leftovers_are_cleared(folder: Path, tmp_path: Path):
    (tmp_path / "new").mkdir()
    leftover = tmp_path / ".new.partial" / "images"
    leftover.mkdir(parents=True)
    (leftover / "half.jpg").write_bytes(b"half")
    write_catalogue(tmp_path / "new", ROWS, seed=1)
    assert digests(tmp_path / "new") == digests(folder)


def test_a_second_writer_is_sent_away(tmp_path: Path):
    partial = tmp_path / ".new.partial"
    partial.mkdir()
    (partial / "being-written").touch()
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="Another process"):
            write_catalogue(tmp_path / "new", ROWS)
    finally:
        os.close(descriptor)
    assert (partial / "being-written").exists()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk is full"),
        (
            PermissionError(errno.EACCES, "Permission denied", "images"),
            "Cannot write images .Permission denied",
        ),
    ],
)
def test_a_disk_that_refuses_is_said_so_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, expected: str
):
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(catalogue, "_draw", refuse)
    with pytest.raises(UserError, match=expected):
        write_catalogue(tmp_path / "new", ROWS)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_writer_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(catalogue, "_POOL_FROM", 1)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_catalogue(tmp_path / "new", ROWS, progress=interrupt, workers=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("rows", "seed"), [(39, 0), (-1, 0), (60, -1)])
def test_rows_and_seed_out_of_range_are_refused(tmp_path: Path, rows: int, seed: int):
    with pytest.raises(UserError):
        write_catalogue(tmp_path / "new", rows, seed)
    assert list(tmp_path.iterdir()) == []


def test_files_are_written_as_unicode(folder: Path, flaws: dict[str, Any]):
    text = (folder / "products.csv").read_bytes().decode("utf-8")
    assert len(list(csv.reader(io.StringIO(text)))) == ROWS + 1
