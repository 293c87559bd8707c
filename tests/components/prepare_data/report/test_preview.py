"""What the first rows of a table tell about all of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from components.prepare_data.parameters import PrepareDataParameters
from components.prepare_data.report.page import write_report
from components.prepare_data.report.preview import SPEEDS, Preview, Training, estimate, look_at
from components.prepare_data.workspace import Workspace
from fovea.errors import UserError
from fovea.task import product_task
from tests.components.prepare_data import workspaces
from tests.tiny_model import write_tiny_model

USES = {"product": "title", "category": "category3_code", "full_price": "full_price", "picture": "imageurl"}


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with Workspace(tmp_path) as found:
        yield found


def preview_of(workspace: Workspace, *, rows: int | None = 230, own_speed: float | None = None) -> Preview:
    return estimate(
        workspace,
        product_task(),
        uses=USES,
        rows=rows,
        num_crops=4,
        training_share=0.8,
        epochs=2.0,
        own_speed=own_speed,
    )


def test_the_rest_is_taken_to_be_like_the_first_rows(workspace: Workspace) -> None:
    workspaces.fill(workspace)
    found = preview_of(workspace, own_speed=10.0)
    assert (found.counts.read, found.counts.kept, found.kept, found.training_rows) == (23, 20, 200, 160)
    assert found.counted
    assert found.tokens is not None
    assert found.tokens.total == sum(780 + number for number in range(20))
    total = 160 * 2 * found.tokens.total / 20
    assert found.trainings[-1].hours == pytest.approx(total / 10 / 3600)
    assert [training.hours for training in found.trainings[:2]] == pytest.approx(
        [total / speed.tokens_per_second / 3600 for speed in SPEEDS]
    )
    assert preview_of(workspace, rows=None).kept == 20


def test_without_a_tokenizer_the_picture_is_exact_and_the_text_a_guess(workspace: Workspace) -> None:
    workspaces.fill(workspace)
    workspaces.query(workspace, "UPDATE rows SET tokens = NULL")
    found = preview_of(workspace)
    assert not found.counted
    assert found.tokens is not None
    # A square picture takes 757 tokens at four crops.
    assert 757 + 20 < found.tokens.least <= found.tokens.most < 757 + 90


def test_columns_are_shown_with_what_they_hold(workspace: Workspace) -> None:
    workspaces.fill(workspace)
    uses = {use.use: use for use in preview_of(workspace).columns}
    assert uses["product"].column == "title"
    assert uses["product"].examples == ("Scarf 0", "Scarf 1", "Scarf 2")
    assert uses["category"].examples == ("CATEGORY 0", "CATEGORY 1", "CATEGORY 2")


@pytest.mark.parametrize("dropped", [0, 3])
def test_a_preview_without_usable_rows(workspace: Workspace, tmp_path: Path, dropped: int) -> None:
    for number in range(dropped):
        workspaces.add_dropped(workspace, number, "full_price_missing")
    found = preview_of(workspace)
    assert (found.kept, found.training_rows, found.tokens) == (0, 0, None)
    assert all(training.hours == 0 for training in found.trainings)
    write_report(
        tmp_path / "a.html", workspace=workspace, task=product_task(), source="a", settings={}, preview=found
    )
    assert f"0 of {dropped} rows that were looked at" in (tmp_path / "a.html").read_text()


def test_the_page_shows_it(workspace: Workspace, tmp_path: Path) -> None:
    workspaces.fill(workspace)
    workspaces.query(workspace, "UPDATE rows SET split = NULL")
    found = preview_of(workspace, rows=None)
    write_report(
        tmp_path / "a.html", workspace=workspace, task=product_task(), source="a", settings={}, preview=found
    )
    page = (tmp_path / "a.html").read_text()
    assert "20 of 23 rows that were looked at could be trained on" in page
    assert "What the columns are taken for" in page
    assert SPEEDS[0].basis.split(":")[1] in page
    assert "no leak" not in page
    assert "Pictures that look alike" not in page


@pytest.fixture
def feed(tmp_path: Path) -> str:
    """A folder with a table of 30 rows, of which the second has no price and the third no picture."""
    (tmp_path / "feed" / "images").mkdir(parents=True)
    lines = ["product_code,title,category3_code,full_price,currency_code,imageurl"]
    for number in range(30):
        price = "" if number == 1 else f"{100 + number}.00"
        lines.append(f"p{number},Scarf {number},SCARVES,{price},USD,images/{number}.jpg")
        if number != 2:
            (tmp_path / "feed" / "images" / f"{number}.jpg").write_bytes(workspaces.jpeg(number, 64))
    lines.append("p3,Scarf 3,SCARVES,103.00,USD,images/3.jpg")
    (tmp_path / "feed" / "table.csv").write_text("\n".join(lines))
    return str(tmp_path / "feed" / "table.csv")


def test_a_table_is_looked_at_without_storing_anything(feed: str) -> None:
    parameters = PrepareDataParameters(source=feed)
    with look_at(parameters, rows=10, epochs=1.0) as look:
        assert (look.preview.counts.read, look.preview.counts.kept, look.preview.rows) == (10, 8, 31)
        assert look.preview.kept == round(31 * 0.8)
        assert {each.reason: each.example for each in look.preview.left_out} == {
            "full_price_missing": "",
            "picture_not_found": "images/2.jpg: file not found",
        }
        assert [use.use for use in look.preview.columns] == [
            "product",
            "category",
            "full price",
            "picture",
            "same product",
            "currency",
        ]
        first, second = look.examples(2)
        assert first.answer == "Product: Scarf 0, Category: SCARVES, Full Price: 100.0"
        assert second.answer == "Product: Scarf 3, Category: SCARVES, Full Price: 103.0"
        assert first.picture.size == (64, 64)


def test_all_rows_are_looked_at_where_there_are_no_more(feed: str) -> None:
    with look_at(PrepareDataParameters(source=feed), rows=1000, epochs=1.0) as look:
        assert look.preview.counts.dropped == {
            "duplicate": 1,
            "full_price_missing": 1,
            "picture_not_found": 1,
        }
    with look_at(PrepareDataParameters(source=feed, max_rows=5), rows=1000, epochs=1.0) as look:
        assert (look.preview.counts.read, look.preview.rows) == (5, 5)


def test_tokens_are_counted_with_a_models_tokenizer(feed: str, tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model")
    parameters = PrepareDataParameters(source=feed, num_crops=1)
    with look_at(parameters, rows=10, epochs=1.0, base_model=str(tmp_path / "model")) as look:
        assert look.preview.counted
        assert look.preview.tokens is not None
        assert look.preview.tokens.count == 8


def test_a_base_model_that_is_not_there_is_an_error(feed: str, tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="not a folder with a tokenizer"),
        look_at(PrepareDataParameters(source=feed), rows=10, epochs=1.0, base_model=str(tmp_path)),
    ):
        pass


def test_pictures_that_take_too_long_are_not_waited_for(feed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.prepare_data.report.preview._PICTURE_SECONDS", 0.0)
    with look_at(PrepareDataParameters(source=feed), rows=30, epochs=1.0) as look:
        # What was left out before, and none that only was not waited for.
        assert look.preview.counts.read < 30
        assert "full_price_missing" in look.preview.counts.dropped
        assert "picture_timeout" not in look.preview.counts.dropped


@pytest.mark.parametrize(
    ("hours", "expected"), [(0.0, "0 min"), (0.25, "15 min"), (1.0, "1.0 h"), (1234.56, "1,234.6 h")]
)
def test_times_are_readable(hours: float, expected: str) -> None:
    assert Training(SPEEDS[0], hours).duration == expected
