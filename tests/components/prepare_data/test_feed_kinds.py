"""Real feeds and their faults, by kind: what each is read as, or the error that says what to do."""

import gzip
import io
import zipfile
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from components.prepare_data.cleaning import clean_row, read_rows
from components.prepare_data.parameters import PrepareDataParameters
from components.prepare_data.report.page import write_report
from components.prepare_data.sources.source import open_source
from components.prepare_data.sources.tables import SourceRow, read_table
from components.prepare_data.workspace import Workspace
from fovea.errors import UnusableError, UserError
from fovea.fetch.profiles import FetchProfile
from fovea.storage import Storage
from fovea.task import product_task
from fovea.yaml_text import read_yaml
from pipelines.settings import read_settings

HEADER = "product_code,title,category3_code,full_price,imageurl"
COLUMNS = HEADER.split(",")
LAMP = f"{HEADER}\nP0,Lamp,LAMPS,1.50,0.jpg\n"


def read(source: str, columns: list[str] = COLUMNS) -> list[SourceRow]:
    with open_source(source, FetchProfile(), Storage()) as found:
        return list(found.rows(columns, "imageurl" if "imageurl" in columns else columns[0]))


HIDDEN = (
    ".ipynb_checkpoints/products-checkpoint.csv",
    "._products.csv",
    ".~lock.products.csv#.csv",
    "~$products.csv",
    "_delta_log/0.jsonl",
    "deep/_temporary/part-0.csv",
)


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_folders_and_patterns_leave_out_hidden_names(place: str, tmp_path: Path, s3: str) -> None:
    base = tmp_path / "_today"
    for name in ("products.csv", "deep/products.csv", *HIDDEN):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text(LAMP)
    folder = str(base)
    if place == "s3":
        folder = f"{s3}/_today"
        Storage().upload_folder(base, f"{folder}/")
    for source in (folder, f"{folder}/", f"{folder}/**/*"):
        assert [row.values["imageurl"] for row in read(source)] == ["deep/0.jpg", "0.jpg"]
    for name in HIDDEN:
        assert len(read(f"{folder}/{name}")) == 1


def test_a_column_that_is_there_twice_is_named(tmp_path: Path) -> None:
    (tmp_path / "twice.csv").write_text(f"{HEADER},title\nP0,Right,LAMPS,1.50,0.jpg,For search engines\n")
    columns = [pyarrow.array(["1"])] * 6
    pyarrow.parquet.write_table(pyarrow.table(columns, names=[*COLUMNS, "title"]), tmp_path / "twice.parquet")
    for name in ("twice.csv", "twice.parquet"):
        with pytest.raises(UserError, match=r"more than one column title.*rename or remove"):
            read(str(tmp_path / name))
        # What is not read may be there as often as it wants.
        assert len(read(str(tmp_path / name), ["product_code", "imageurl"])) == 1


def test_a_row_of_json_with_a_name_twice_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "table.jsonl"
    path.write_text('{"title": "a", "imageurl": "1"}\n{"title": "b", "title": "c", "imageurl": "2"}\n')
    first, second = read(str(path), ["title", "imageurl"])
    assert first.values == {"title": "a", "imageurl": "1"}
    assert second.malformed == '{"title": "b", "title": "c", "imageurl": "2"}'


def test_a_name_that_is_twice_in_yaml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("seed: 1\nsource: a.csv\nseed: 2\n")
    with pytest.raises(UserError, match=r"settings\.yaml.*seed is given twice.*line 3"):
        read_settings(path)
    with pytest.raises(yaml.YAMLError, match="b is given twice"):
        read_yaml("a: {b: 1, b: 2}")
    assert read_yaml("a: &a {b: 1}\nc: {<<: *a, b: 2}") == {"a": {"b": 1}, "c": {"b": 2}}


ROWS = "".join(f"P{number},Lamp {number},LAMPS,{number}.50,{number}.jpg\n" for number in range(3))
ARRAY = '[{"title": "Lamp 0"}, {"title": "Lamp 1"}, 7, {"title": "a", "title": "b"}, {"title": "Lamp 2"}]'
GLUED = 'P0,"Curtain 140 cm,CURTAINS,29.90,0.jpg\nP1,Blind 13" wide,BLINDS,9.90,1.jpg\n'
GLUED_AND_CLOSED = 'P0,"Curtain,CURTAINS,29.90,0.jpg\nP1,Blind 13",BLINDS,9.90,1.jpg\n'
QUOTED_TITLE = '" title\n"'
LAMPS = ["Lamp 0", "Lamp 1", "Lamp 2"]


def zipped(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, "x")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "titles"),
    [
        pytest.param(gzip.compress(f"{HEADER}\n{ROWS}".encode()), LAMPS, id="gzip"),
        pytest.param(f"{HEADER}\n{ROWS}".replace(",", "\t").encode("utf-16"), LAMPS, id="UTF-16 of Excel"),
        pytest.param(f"sep=;\r\n{HEADER}\n{ROWS}".replace(",", ";").encode(), LAMPS, id="sep="),
        pytest.param(
            f"\ufeffsep=;\n{HEADER}\n{ROWS}".replace(",", ";").encode(), LAMPS, id="sep= after a mark"
        ),
        pytest.param(ARRAY.encode(), ["Lamp 0", "Lamp 1", None, None, "Lamp 2"], id="JSON array"),
        pytest.param(
            gzip.compress(ARRAY.encode("utf-16")), ["Lamp 0", "Lamp 1", None, None, "Lamp 2"], id="all"
        ),
        pytest.param(
            f"{HEADER.replace('title', QUOTED_TITLE)}\n{ROWS}".encode(),
            LAMPS,
            id="line break in header",
        ),
        pytest.param(
            f'{HEADER}\nP0,"The \\"best\\" lamp, ever",LAMPS,9.90,2.jpg\nP1,\\N,LAMPS,1,1\n{ROWS}'.encode(),
            ['The "best" lamp, ever', "", *LAMPS],
            id="backslash quotes",
        ),
        pytest.param(
            f'{HEADER}\nP0, "Big, ""old"" lamp",LAMPS,9.90,2.jpg\n{ROWS}'.encode(),
            ['Big, "old" lamp', *LAMPS],
            id="blank before a quote",
        ),
        pytest.param(f"{HEADER}\n{GLUED}{ROWS}".encode(), [None, *LAMPS], id="unclosed quote"),
        pytest.param(f"{HEADER}\n{GLUED_AND_CLOSED}{ROWS}".encode(), [None, *LAMPS], id="quote of two rows"),
        pytest.param(
            f'{HEADER}\nP0,"Big, old\nlamp, of brass",LAMPS,9.90,2.jpg\n{ROWS}'.encode(),
            ["Big, old\nlamp, of brass", *LAMPS],
            id="prose with line breaks",
        ),
        pytest.param(
            f"{HEADER},more\nP0,Lamp,LAMPS,1,0.jpg,{'x' * 9_000_000}\nP1,Vase,VASES,2,1.jpg,\n".encode(),
            ["Lamp", "Vase"],
            id="huge cell that is not read",
        ),
        pytest.param(
            f'{HEADER},more\nP0,Lamp,LAMPS,1,0.jpg,"open\nP1,Vase,VASES,2,1.jpg,closed"\n'.encode(),
            [None],
            id="unclosed quote in a column that is not read",
        ),
        pytest.param(
            f"{HEADER},more\nP0,Lamp,LAMPS,1,0.jpg,caf\xe9\n".encode("latin-1"),
            ["Lamp"],
            id="another encoding in a column that is not read",
        ),
    ],
)
def test_what_is_not_quite_csv_is_read(content: bytes, titles: list[str | None], tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_bytes(content)
    found = read(str(tmp_path / "table.csv"), ["title"])
    assert [None if row.malformed is not None else row.values["title"] for row in found] == titles


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(
            zipped("xl/workbook.xml"), r"is an Excel workbook \(\.xlsx\).*save it as CSV", id="xlsx"
        ),
        pytest.param(zipped("products.csv"), "is a ZIP archive.*unpack it", id="zip"),
        pytest.param(b"\xd0\xcf\x11\xe0\xa1\xb1", "is an Excel workbook of the old kind", id="xls"),
        pytest.param(b"BZh91AY", "is packed with bzip2.*unpack it", id="bzip2"),
        pytest.param(b"<!DOCTYPE html><html>", "is a web page", id="page"),
        pytest.param(b"\x00\x01\x02,a,b\n", "is a binary file.*save it as CSV", id="binary"),
        pytest.param(gzip.compress(LAMP.encode())[:-12], "packed with gzip and damaged", id="half of gzip"),
        pytest.param(b'[{"title": "Lamp"}, {', "is a JSON array that cannot be read", id="half of an array"),
    ],
)
def test_what_is_no_table_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(UserError, match=rf"table\.csv: (is )?{message}") as caught:
        read(str(tmp_path / "table.csv"), ["title"])
    assert "\n" not in str(caught.value)


GOOD = dict(zip(COLUMNS, ["P0", "Lamp", "LAMPS", "1.50", "0.jpg"], strict=True)) | {"currency_code": "EUR"}
PARAMETERS = PrepareDataParameters(source="table.csv")


@pytest.mark.parametrize("word", ["nan", "NaN", "NULL", "None", "N/A", "\\N", "#N/A", " null ", "<NA>"])
def test_words_that_mean_missing_are_missing_in_every_column(word: str) -> None:
    reasons = {
        "product_code": "product_code_empty",
        "title": "title_empty",
        "category3_code": "category3_code_empty",
        "full_price": "full_price_missing",
        "imageurl": "imageurl_empty",
    }
    for column, reason in reasons.items():
        with pytest.raises(UnusableError) as caught:
            clean_row(GOOD | {column: word}, product_task(), PARAMETERS)
        assert caught.value.reason == reason
    assert clean_row(GOOD | {"currency_code": word}, product_task(), PARAMETERS).currency is None
    titled = clean_row(GOOD | {"title": f"{word.strip()} lamp"}, product_task(), PARAMETERS)
    assert titled.values["product"] == f"{word.strip()} lamp"


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("H&amp;M Shirt &ndash; &quot;Slim&quot;", 'H&M Shirt \N{EN DASH} "Slim"'),
        ("MEN&#39;S", "MEN'S"),
        ("<b>Lamp</b><br/>brass", "Lamp brass"),
        ("&lt;b&gt;Lamp&lt;/b&gt;", "Lamp"),
        ('H<sub>2</sub>O <span class="x">clear</span>', "H2O clear"),
        ("I <3 lamps & R&D, 3 < 4 > 2, size <M>", "I <3 lamps & R&D, 3 < 4 > 2, size <M>"),
    ],
)
def test_html_in_labels_is_decoded(text: str, plain: str) -> None:
    row = clean_row(GOOD | {"title": text, "category3_code": text}, product_task(), PARAMETERS)
    assert (row.values["product"], row.values["category"]) == (plain, plain)
    assert row.had_markup == (text != plain)


def test_a_token_of_the_model_behind_entities_is_left_out() -> None:
    with pytest.raises(UnusableError, match="title_special_token"):
        clean_row(GOOD | {"title": "a &lt;|end|&gt; b"}, product_task(), PARAMETERS)


def test_the_report_says_in_how_many_rows_html_was_decoded(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(f"{HEADER}\n{ROWS}P3,<b>Vase</b>,A &amp; B,1.50,3.jpg\n")
    parameters = PrepareDataParameters(source=str(tmp_path / "table.csv"), currency_column="")
    with (
        Workspace(tmp_path) as workspace,
        open_source(parameters.source, FetchProfile(), Storage()) as source,
    ):
        read_rows(source, workspace, product_task(), parameters)
        assert workspace.overview.count_markup() == 1
        write_report(
            tmp_path / "report.html", workspace=workspace, task=product_task(), source="table", settings={}
        )
    assert "HTML was decoded or removed in 1 kept rows" in (tmp_path / "report.html").read_text()


def test_classes_are_taught_by_their_names(tmp_path: Path) -> None:
    features = {"imageurl": datasets.Value("string"), "kind": datasets.ClassLabel(names=["LAMPS", "SOFAS"])}
    rows = {"imageurl": ["0", "1", "2", "3"], "kind": [1, 0, None, -1]}
    table = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    table.to_parquet(tmp_path / "table.parquet")
    found = read(str(tmp_path / "table.parquet"), ["kind", "imageurl"])
    assert [row.values["kind"] for row in found] == ["SOFAS", "LAMPS", "", ""]


def test_a_header_without_rows_is_a_table_without_rows(tmp_path: Path) -> None:
    for content in (HEADER, f"{HEADER}\n", f"sep=,\n{HEADER}\n", "[]"):
        (tmp_path / "table.csv").write_text(content)
        assert content == "[]" or read(str(tmp_path / "table.csv")) == []


PIECES = st.sampled_from(
    [*'ab,;\n\r"\\ []{}:\t', "\N{NULL}", '"title"', ', "', '\\"', "é", "\ufeff", "sep=;\n"]
)


# pyarrow cannot tell of a row whose length and encoding are both wrong, and ends.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@given(
    st.one_of(
        st.binary(max_size=80), st.lists(PIECES, max_size=40).map(lambda pieces: "".join(pieces).encode())
    )
)
@example(b"")
@example(b"\x1f\x8b")
@example(b"\xff\xfea")
def test_whatever_follows_a_header_gives_rows_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    for start in (b"", b"title,price,more\n"):
        path.write_bytes(start + content)
        found, error = [], "any.csv: "
        try:
            found = list(read_table(path, "any.csv", ["title"], "title"))
        except UserError as raised:
            error = str(raised)
        assert error.startswith("any.csv: ")
        assert "\n" not in error
        assert all(row.malformed is not None or isinstance(row.values["title"], str) for row in found)
