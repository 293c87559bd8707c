"""The whole step: from a table and pictures to shards and a record on a real S3 server."""

import csv
import functools
import hashlib
import io
import json
import logging
import random
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from typer.testing import CliRunner

from components.__main__ import make_app
from components.prepare_data.component import prepare_data
from components.prepare_data.step import prepare_data_step
from components.prepare_data.tokens import tokenizer_digest
from fovea.errors import UserError
from fovea.models import import_model
from fovea.records import DatasetRecord, ModelRecord, read_record, write_record
from fovea.steps import RunContext
from fovea.storage import Storage
from fovea.task import product_task
from sample.catalogue import write_catalogue
from sample.server import CatalogueServer
from tests.tiny_model import write_tiny_model

SMALL = {"min_rows": 1, "test_fraction": 0.2, "validation_fraction": 0.2, "longest_side": 64}
COLUMNS = ("product_code", "title", "category3_code", "full_price", "currency_code", "imageurl")


@functools.cache
def storage() -> Storage:
    """One client for all tests: making one takes longer than most of them, and the server stays the same."""
    return Storage()


def jpeg(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (80, 60), (number % 256, number // 256, 99)).save(buffer, "JPEG")
    return buffer.getvalue()


def good_row(number: int) -> dict[str, str]:
    return {
        "product_code": f"p{number}",
        "title": f"Scarf {number}",
        "category3_code": "SCARVES" if number % 2 else "BAGS",
        "full_price": f"{100 + number}.00",
        "currency_code": "USD",
        "imageurl": f"images/{number}.jpg",
    }


def write_table(path: Path, rows: list[dict[str, str]]) -> str:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


@pytest.fixture
def feed(tmp_path: Path) -> Path:
    """A folder with a sound table of thirty products."""
    (tmp_path / "feed" / "images").mkdir(parents=True)
    for number in range(30):
        (tmp_path / "feed" / "images" / f"{number}.jpg").write_bytes(jpeg(number))
    write_table(tmp_path / "feed" / "table.csv", [good_row(number) for number in range(30)])
    return tmp_path / "feed"


@contextmanager
def served(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The folder over HTTP, with a fetch profile ``local`` that allows it."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

    class Server(ThreadingHTTPServer):
        # A connection that does not fit in the queue comes back a second later.
        request_queue_size = 128

    allow_loopback(monkeypatch, tmp_path)
    with Server(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def allow_loopback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "platform.yaml").write_text("fetch_profiles: {local: {allowed_networks: [127.0.0.0/8]}}")
    monkeypatch.setenv("FOVEA_PLATFORM", str(tmp_path / "platform.yaml"))


def prepare(
    root: str, source: str, run_id: str = "run", base_record: Path | None = None, **parameters: Any
) -> DatasetRecord:
    context = RunContext(artifact_root=root, run_id=run_id)
    return prepare_data_step(
        context,
        {**SMALL, "source": source, **parameters},
        "/dev/null",
        base_record=base_record,
        storage=storage(),
    )


def report(root: str, name: str) -> dict[str, Any]:
    return json.loads(storage().read_bytes(f"{root}/runs/{name}"))  # type: ignore[no-any-return]


def load(record: DatasetRecord, tmp_path: Path) -> dict[str, datasets.Dataset]:
    folder = storage().download(record)
    return {
        split: datasets.load_dataset(
            "parquet",
            data_files=sorted(map(str, folder.glob(f"{split}-*.parquet"))),
            split="train",
            cache_dir=str(tmp_path / "datasets"),
        )
        for split in record.splits
    }


@pytest.fixture(scope="session")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "catalogue"
    write_catalogue(folder, rows=120, seed=3, workers=1)
    return folder


def test_every_flaw_of_the_sample_catalogue_is_dealt_with(
    catalogue: Path, s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    allow_loopback(monkeypatch, tmp_path)
    with CatalogueServer(catalogue) as server:
        record = prepare(s3, server.catalogue_url, fetch_profile="local", longest_side=100)
    flaws = {flaw["name"]: flaw for flaw in json.loads((catalogue / "flaws.json").read_text())["flaws"]}
    reasons = {
        "dead_link": "picture_not_found",
        "truncated_file": "picture_damaged",
        "html_instead_of_picture": "picture_not_a_picture",
        "duplicate_row": "duplicate",
        "missing_price": "full_price_missing",
        "very_small": "picture_too_small",
    }
    assert {name for name, flaw in flaws.items() if flaw["expected"] == "drop"} == reasons.keys()
    assert record.dropped == {reason: flaws[name]["count"] for name, reason in reasons.items()}

    listed = list(csv.DictReader((catalogue / "products.csv").open()))
    lost = {code for name in reasons if name != "duplicate_row" for code in flaws[name]["product_codes"]}
    wanted = {row["product_code"]: row for row in listed if row["product_code"] not in lost}
    kept = {row["product_id"]: row for split in load(record, tmp_path).values() for row in split}
    assert kept.keys() == wanted.keys()
    for code, row in kept.items():
        assert row["product"] == wanted[code]["title"]
        assert row["category"] == wanted[code]["category3_code"]
        assert row["full_price"] == float(wanted[code]["full_price"].replace(",", ""))
        assert row["image"].mode == "RGB"
        assert max(row["image"].size) == 100
    assert record.currency == "USD"
    assert sum(record.categories.values()) == len(kept)


def test_the_shards_are_read_by_datasets_as_they_are(feed: Path, s3: str, tmp_path: Path) -> None:
    record = prepare(s3, str(feed / "table.csv"))
    splits = load(record, tmp_path)
    assert sum(len(split) for split in splits.values()) == 30
    for name, split in splits.items():
        assert isinstance(split.features["image"], datasets.Image)
        assert split.column_names == [
            "row_id",
            "product_id",
            "product_group",
            "image",
            "product",
            "category",
            "full_price",
            "currency",
        ]
        assert (len(split), len(set(split["product_id"]))) == (
            record.splits[name].rows,
            record.splits[name].products,
        )
        for row in split:
            number = int(row["product_id"][1:])
            task = product_task()
            assert task.parse(task.answer(row)).fields == {
                "product": f"Scarf {number}",
                "category": good_row(number)["category3_code"],
                "full_price": 100.0 + number,
            }
            assert row["image"].size == (64, 48)
            assert abs(row["image"].getpixel((5, 5))[0] - number) < 4
    assert record.categories == {"BAGS": 15, "SCARVES": 15}
    assert record.longest_side == 64


def test_the_same_rows_give_the_same_bytes(feed: Path, s3: str) -> None:
    first = prepare(f"{s3}/a", str(feed / "table.csv"), fetch_concurrency=1)
    rows = [good_row(number) for number in range(30)]
    random.Random(0).shuffle(rows)  # noqa: S311 - no secret
    other = prepare(f"{s3}/b", write_table(feed / "other.csv", rows), fetch_concurrency=16)
    assert first.files == other.files
    assert first.digest == other.digest


def test_an_unchanged_table_is_not_prepared_again(
    feed: Path, s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever port it is served on, as long as its addresses are relative."""
    records = []
    for run in ("one", "two"):
        with served(feed, monkeypatch, tmp_path) as url:
            records.append(prepare(s3, f"{url}/table.csv", run, fetch_profile="local"))
    assert records[0] == records[1]
    assert [report(s3, f"{run}/prepare_data.json")["reused"] for run in ("one", "two")] == [False, True]

    changed = [good_row(number) for number in range(29)]
    prepare(s3, write_table(feed / "table.csv", changed), "three", fetch_profile="default")
    assert not report(s3, "three/prepare_data.json")["reused"]


def test_other_columns_of_the_same_table_are_prepared_again(feed: Path, s3: str) -> None:
    rows = [good_row(number) | {"name": f"Shawl {number}"} for number in range(30)]
    source = write_table(feed / "table.csv", rows)
    by_parameter = [prepare(s3, source), prepare(s3, source, title_column="name")]
    by_task = [
        prepare_data_step(
            RunContext(artifact_root=s3, run_id="run"),
            {**SMALL, "source": source},
            "/dev/null",
            task=task,
            storage=storage(),
        )
        for task in (product_task(), product_task("name"))
    ]
    assert by_task[0] == by_parameter[0]
    assert len({record.input_key for record in (*by_parameter, *by_task)}) == 3
    for one, other in (by_parameter, by_task):
        assert one.task.digest == other.task.digest
        assert one.digest != other.digest


def test_a_larger_feed_moves_no_product(feed: Path, s3: str, tmp_path: Path) -> None:
    small = prepare(s3, write_table(feed / "small.csv", [good_row(number) for number in range(20)]))
    large = prepare(s3, str(feed / "table.csv"))

    def where(record: DatasetRecord) -> dict[tuple[str, str], str]:
        loaded = load(record, tmp_path)
        return {(row["product_id"], row["row_id"]): name for name, split in loaded.items() for row in split}

    assert where(small).items() <= where(large).items()


def test_products_with_the_same_picture_stay_together(feed: Path, s3: str, tmp_path: Path) -> None:
    rows = [good_row(number) for number in range(30)]
    for number in range(0, 30, 2):
        (feed / "images" / f"copy-{number}.jpg").write_bytes(jpeg(number + 1))
        rows[number]["imageurl"] = f"images/copy-{number}.jpg"
    loaded = load(prepare(s3, write_table(feed / "table.csv", rows)), tmp_path)
    where = {row["product_id"]: name for name, split in loaded.items() for row in split}
    groups = {row["product_id"]: row["product_group"] for split in loaded.values() for row in split}
    for number in range(0, 30, 2):
        pair = [f"p{number}", f"p{number + 1}"]
        assert where[pair[0]] == where[pair[1]]
        assert groups[pair[0]] == groups[pair[1]]
    assert all(groups[group] == group <= product for product, group in groups.items())
    assert 3 <= len(set(groups.values())) <= 15
    assert len(set(where.values())) == 3


def test_repetitions_are_dropped_and_variants_kept(feed: Path, s3: str) -> None:
    rows = [good_row(number) for number in range(30)]
    (feed / "images" / "again.jpg").write_bytes(jpeg(3))
    again = [rows[1], {**rows[2], "full_price": "$102"}, {**rows[3], "imageurl": "images/again.jpg"}]
    variants = [{**rows[4], "imageurl": "images/5.jpg"}, {**rows[6], "title": "Another title"}]
    record = prepare(s3, write_table(feed / "table.csv", [*rows, *again, *variants]))
    assert record.dropped == {"duplicate": 3}
    assert sum(split.rows for split in record.splits.values()) == 32
    assert sum(split.products for split in record.splits.values()) == 30


def test_every_row_is_kept_or_counted(feed: Path, s3: str, caplog: pytest.LogCaptureFixture) -> None:
    rows = [good_row(number) for number in range(30)]
    rows[0]["title"] = "<|end|>"
    rows[1]["full_price"] = "on request"
    rows[2]["imageurl"] = "../table.csv"
    rows[3]["imageurl"] = "table.csv"
    rows[4]["product_code"] = ""
    path = Path(write_table(feed / "table.csv", rows))
    path.write_text(path.read_text() + "one,two\n")
    with caplog.at_level(logging.INFO, "fovea"):
        record = prepare(s3, str(path))
    assert record.dropped == {
        "full_price_unreadable": 1,
        "malformed_line": 1,
        "picture_forbidden_address": 1,
        "picture_not_a_picture": 1,
        "product_code_empty": 1,
        "title_special_token": 1,
    }
    assert sum(split.rows for split in record.splits.values()) == 25
    said = [line.removeprefix("prepare_data: ") for line in caplog.messages]
    assert "column full_price is used for full price: 100.00 · on request · 102.00" in said
    early = [line for line in said if "before pictures are fetched" in line]
    assert len(early) == 1
    assert early[0].startswith("31 rows; left out ")
    assert early[0].endswith(
        ("full_price_unreadable 1", "malformed_line 1", "product_code_empty 1", "_token 1")
    )


def test_shards_have_a_bounded_number_of_rows(
    feed: Path, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("components.prepare_data.shards.ROWS_PER_SHARD", 5)
    monkeypatch.setattr("components.prepare_data.shards._ROWS_PER_GROUP", 2)
    record = prepare(s3, str(feed / "table.csv"))
    shards = Counter(entry.path.split("-")[0] for entry in record.files)
    assert shards["train"] == -(-record.splits["train"].rows // 5)
    assert sum(len(split) for split in load(record, tmp_path).values()) == 30


def test_a_table_in_s3_with_its_pictures_beside_it(feed: Path, s3: str) -> None:
    storage().upload_folder(feed, f"{s3}/feed/")
    local = prepare(f"{s3}/a", str(feed / "table.csv"))
    assert prepare(f"{s3}/b", f"{s3}/feed/table.csv").digest == local.digest


def test_a_share_of_zero_makes_no_split_too_small(feed: Path, s3: str) -> None:
    record = prepare(s3, str(feed / "table.csv"), validation_fraction=0, test_fraction=0)
    assert record.splits["train"].rows == 30
    assert {entry.path for entry in record.files} == {"README.md", "train-00000.parquet"}


def test_only_the_first_rows_on_request(feed: Path, s3: str) -> None:
    record = prepare(s3, str(feed / "table.csv"), max_rows=20)
    assert sum(split.rows for split in record.splits.values()) == 20


def test_no_currency_column(feed: Path, s3: str) -> None:
    rows = [{k: v for k, v in good_row(number).items() if k != "currency_code"} for number in range(30)]
    record = prepare(s3, write_table(feed / "table.csv", rows), currency_column="")
    assert record.currency is None


def test_parquet_with_the_pictures_themselves(feed: Path, s3: str, tmp_path: Path) -> None:
    """The same rows give the same dataset, wherever their pictures are and whatever the table is."""
    rows = [good_row(number) for number in range(30)]
    inside = [
        {**row, "imageurl": (feed / row["imageurl"]).read_bytes(), "full_price": float(row["full_price"])}
        for row in rows
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(inside), feed / "table.parquet")
    (feed / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    beside = prepare(f"{s3}/a", str(feed / "table.csv"))
    for number, name in enumerate(("table.parquet", "table.jsonl")):
        found = prepare(f"{s3}/{number}", str(feed / name))
        assert [entry for entry in found.files if entry.path != "README.md"] == [
            entry for entry in beside.files if entry.path != "README.md"
        ]


def test_several_currencies_converted_or_stated(feed: Path, s3: str, tmp_path: Path) -> None:
    rows = [good_row(number) | {"rate": "1"} for number in range(30)]
    rows[3] |= {"currency_code": "EUR", "rate": "1.25"}
    rows[4] |= {"currency_code": "EUR", "rate": ""}
    source = write_table(feed / "table.csv", rows)
    converted = prepare(s3, source, currencies="convert", rate_column="rate", target_currency="USD")
    assert (converted.currency, converted.dropped) == ("USD", {"rate_missing": 1})
    kept = {row["product_id"]: row for split in load(converted, tmp_path).values() for row in split}
    assert (kept["p3"]["full_price"], kept["p3"]["currency"]) == (103 * 1.25, "USD")
    stated = prepare(s3, source, currencies="state")
    assert (stated.currency, stated.dropped) == (None, {})
    assert "currency" in stated.task.fields
    kept = {row["product_id"]: row for split in load(stated, tmp_path).values() for row in split}
    assert stated.task.answer(kept["p4"]).endswith("Full Price: 104.0 EUR")


def test_tomorrows_feed_moves_nothing_although_pictures_now_resemble_each_other(
    feed: Path, s3: str, tmp_path: Path
) -> None:
    """New rows get the split of the rows they look like, or are left out if those are in two splits."""
    for number in range(30):
        picture = Image.effect_noise((80, 60), 90 + number).convert("RGB").resize((320, 240))
        picture.save(feed / "images" / f"{number}.jpg", quality=95)
    first = prepare(s3, str(feed / "table.csv"))
    where = {row["product_id"]: name for name, split in load(first, tmp_path).items() for row in split}
    train, test = (
        next(product for product, name in where.items() if name == wanted) for wanted in ("train", "test")
    )

    def copy(product: str, name: str) -> str:
        with Image.open(feed / "images" / f"{product[1:]}.jpg") as picture:
            picture.resize((160, 120)).save(feed / "images" / name, quality=70)
        return f"images/{name}"

    new = [
        good_row(40) | {"imageurl": copy(test, "a.jpg")},
        good_row(41) | {"imageurl": copy(train, "b.jpg")},
        good_row(41) | {"imageurl": copy(test, "c.jpg")},
    ]
    rows = [good_row(number) for number in range(30)]
    second = prepare(s3, write_table(feed / "table.csv", [*new, *rows]))
    assert second.dropped == {"near_duplicates_in_two_splits": 2}
    again = {row["product_id"]: name for name, split in load(second, tmp_path).items() for row in split}
    assert again == {**where, "p40": "test"}
    assert second.groups is not None
    assert (second.groups.groups, second.groups.broken_up) == (1, 0)


def change(rows: list[dict[str, str]], **changes: str) -> list[dict[str, str]]:
    return [row | changes for row in rows]


ROWS = [good_row(number) for number in range(30)]


@pytest.mark.parametrize(
    ("rows", "parameters", "message"),
    [
        (ROWS, {"image_column": "picture"}, "no column picture; there are product_code, title"),
        ([], {}, "no row can be used"),
        (change(ROWS, title=""), {}, "no row can be used .title_empty 30."),
        ([*change(ROWS[:2], currency_code="EUR"), *ROWS[2:]], {}, "USD in 28 rows, EUR in 2 rows"),
        (
            ROWS,
            {"min_rows": 12},
            r"too few rows for a split \(validation has \d+, test has \d+; min_rows is 12",
        ),
        (change(ROWS, imageurl="http://127.0.0.1/x.jpg"), {}, "Left out: picture_forbidden_address 30"),
        (ROWS, {"fetch_profile": "intranet"}, "intranet"),
        (ROWS, {"test_fraction": 0.9}, "must add up to less than 1"),
        (ROWS, {"longest_side": 5, "min_rows": 0}, "longest_side.*min_rows"),
        (ROWS, {"sources": 1}, "sources"),
    ],
)
def test_one_clear_error(
    rows: list[dict[str, str]], parameters: dict[str, Any], message: str, feed: Path, s3: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        prepare(s3, write_table(feed / "table.csv", rows), **parameters)
    assert "\n" not in str(caught.value)
    assert report(s3, "run/failure.json") == {
        "task": "prepare_data",
        "error": str(caught.value),
        "kind": "user",
        "traceback": "",
    }
    assert not list(storage().list(f"{s3}/index/"))


def test_an_s3_that_refuses_is_one_clear_error(feed: Path, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    context = RunContext(artifact_root=s3, run_id="run")
    wanted = {**SMALL, "source": str(feed / "table.csv")}
    with pytest.raises(UserError, match=r"S3 refuses access \(\w+\); check the credentials") as caught:
        prepare_data_step(context, wanted, "/dev/null", storage=Storage())
    assert "\n" not in str(caught.value)


def test_gives_up_early_when_no_picture_can_be_had(feed: Path, s3: str) -> None:
    rows = [{**good_row(number), "imageurl": f"images/no-{number}.jpg"} for number in range(250)]
    with pytest.raises(UserError, match=r"none of the first 200 pictures .*not_found 200"):
        prepare(s3, write_table(feed / "table.csv", rows))


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("base"), num_crops=4)


@pytest.fixture
def base(base_folder: Path, s3: str, tmp_path: Path) -> Path:
    """The record of a tiny base model in S3."""
    record = import_model(base_folder, RunContext(artifact_root=s3, run_id="base"), storage())
    write_record(record, tmp_path / "base.json")
    return tmp_path / "base.json"


def test_the_component_runs_the_step(feed: Path, s3: str, base: Path, tmp_path: Path) -> None:
    target, report = tmp_path / "out" / "dataset", tmp_path / "out" / "report"
    for run_id in ("r1", "r2"):
        prepare_data.python_func(
            base=SimpleNamespace(path=str(base)),
            dataset=SimpleNamespace(path=str(target)),
            report=SimpleNamespace(path=str(report)),
            artifact_root=s3,
            run_id=run_id,
            parameters=SMALL | {"source": str(feed / "table.csv")},
        )
        record = read_record(target, DatasetRecord)
        assert record.run_id == "r1", "the second run reuses the first one's, report and all"
        assert "<html" in report.read_text()
        report.unlink()
    digest = hashlib.sha256((feed / "table.csv").read_bytes()).hexdigest()
    assert record.parents["source"] == f"sha256:{digest}"
    assert record.tokens is not None
    assert record.tokens.num_crops == 4
    assert 30 * record.tokens.median <= record.tokens.total <= 30 * record.tokens.longest < 30 * 4096


def test_only_what_decides_the_lengths_of_a_base_model_counts(feed: Path, s3: str, base: Path) -> None:
    """Other weights make no other dataset, another number of crops may."""
    record = read_record(base, ModelRecord)
    other = record.model_copy(update={"files": tuple(reversed(record.files)), "architecture": "Other"})
    assert tokenizer_digest(other) == tokenizer_digest(record)
    first = prepare(s3, str(feed / "table.csv"), "one", base_record=base)
    again = prepare(s3, str(feed / "table.csv"), "two", base_record=base, num_crops=1)
    assert first.input_key != again.input_key
    assert first.tokens is not None
    assert again.tokens is not None
    assert again.tokens.longest < first.tokens.longest


def test_what_does_not_fit_the_context_is_left_out_and_never_cut(
    feed: Path, s3: str, base_folder: Path, tmp_path: Path
) -> None:
    rows = [good_row(number) for number in range(30)]
    rows[3]["title"] = "Scarf " + "very " * 30 + "long"
    short = Path(shutil.copytree(base_folder, tmp_path / "short"))
    config = json.loads((short / "config.json").read_text()) | {"original_max_position_embeddings": 200}
    (short / "config.json").write_text(json.dumps(config))
    model = import_model(short, RunContext(artifact_root=s3, run_id="short"), storage())
    base = tmp_path / "short.json"
    write_record(model, base)
    record = prepare(s3, write_table(feed / "table.csv", rows), base_record=base)
    assert record.dropped == {"too_long_for_context": 1}
    assert record.tokens is not None
    assert record.tokens.longest <= 200


def test_the_command(feed: Path, s3: str, tmp_path: Path) -> None:
    target = tmp_path / "dataset.json"
    command = [
        "prepare_data",
        "--artifact-root",
        s3,
        "--dataset",
        str(target),
        "--min-rows",
        "1",
        "--test-fraction",
        "0.2",
    ]
    command += ["--report", str(tmp_path / "report.html")]
    done = CliRunner().invoke(make_app(), [*command, "--source", str(feed / "table.csv")])
    assert done.exit_code == 0, done.output
    assert read_record(target, DatasetRecord).splits["test"].rows > 0
    assert (tmp_path / "report.html").stat().st_size < 5_000_000
    failed = CliRunner().invoke(make_app(), [*command, "--source", str(feed / "no.csv")])
    assert failed.exit_code == 1
    assert failed.stderr.startswith("prepare_data: ")
    assert failed.stderr.count("\n") == 1


ODD_ROWS = {
    "half an emoji": ({"title": "Lamp \ud83d"}, "title_invalid_text"),
    "half an emoji in an address": ({"imageurl": "\ud83d.jpg"}, "imageurl_invalid_text"),
    "a port above 65535": ({"imageurl": "http://93.184.216.34:99999/a.jpg"}, "picture_invalid_url"),
    "a host that IDNA refuses": ({"imageurl": "http://xn--/a.jpg"}, "picture_invalid_url"),
    "an address longer than a file name": ({"imageurl": "x" * 300 + ".jpg"}, "picture_invalid_url"),
    "s3 without a key": ({"imageurl": "s3://a.jpg"}, "picture_invalid_url"),
    "NUL in a name": ({"imageurl": "a\0b.jpg"}, "picture_invalid_url"),
}
"""A fault in one row, and the reason that it is counted under."""


def test_no_odd_row_ends_a_preparation(s3: str, feed: Path) -> None:
    odd = [good_row(100 + number) | change for number, (change, _) in enumerate(ODD_ROWS.values())]
    table = feed / "table.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in [*map(good_row, range(30)), *odd]))
    record = prepare(s3, str(table))
    assert sum(split.rows for split in record.splits.values()) == 30
    assert record.dropped == Counter(reason for _, reason in ODD_ROWS.values())
