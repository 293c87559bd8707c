"""What the first rows of a table tell about all of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from components.prepare_data.preview import SPEEDS, Preview, tell
from components.prepare_data.report import write_report
from components.prepare_data.workspace import Workspace
from fovea.task import product_task
from tests.components.prepare_data import workspaces

USES = {"product": "title", "category": "category3_code", "full_price": "full_price", "picture": "imageurl"}


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with Workspace(tmp_path) as found:
        yield found


def told(workspace: Workspace, *, rows: int | None = 230, own_speed: float | None = None) -> Preview:
    return tell(
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
    found = told(workspace, own_speed=10.0)
    assert (found.counts.read, found.counts.kept, found.kept, found.training_rows) == (23, 20, 200, 160)
    assert found.counted
    assert found.tokens is not None
    assert found.tokens.total == sum(780 + number for number in range(20))
    total = 160 * 2 * found.tokens.total / 20
    assert found.trainings[-1].hours == pytest.approx(total / 10 / 3600)
    assert [training.hours for training in found.trainings[:2]] == pytest.approx(
        [total / speed.tokens_per_second / 3600 for speed in SPEEDS]
    )
    assert told(workspace, rows=None).kept == 20


def test_without_a_tokenizer_the_picture_is_exact_and_the_text_a_guess(workspace: Workspace) -> None:
    workspaces.fill(workspace)
    workspace.db.execute("UPDATE rows SET tokens = NULL")
    found = told(workspace)
    assert not found.counted
    assert found.tokens is not None
    # A square picture takes 757 tokens at four crops.
    assert 757 + 20 < found.tokens.least <= found.tokens.most < 757 + 90


def test_columns_are_shown_with_what_they_hold(workspace: Workspace) -> None:
    workspaces.fill(workspace)
    uses = {use.use: use for use in told(workspace).columns}
    assert uses["product"].column == "title"
    assert uses["product"].examples == ("Scarf 0", "Scarf 1", "Scarf 2")
    assert uses["category"].examples == ("CATEGORY 0", "CATEGORY 1", "CATEGORY 2")


@pytest.mark.parametrize("dropped", [0, 3])
def test_nothing_that_can_be_used_is_told_too(workspace: Workspace, tmp_path: Path, dropped: int) -> None:
    for number in range(dropped):
        workspaces.add_dropped(workspace, number, "full_price_missing")
    found = told(workspace)
    assert (found.kept, found.training_rows, found.tokens) == (0, 0, None)
    assert all(training.hours == 0 for training in found.trainings)
    write_report(
        tmp_path / "a.html", workspace=workspace, task=product_task(), source="a", settings={}, preview=found
    )
    assert f"0 of {dropped} first rows" in (tmp_path / "a.html").read_text()


def test_the_page_shows_it(workspace: Workspace, tmp_path: Path) -> None:
    workspaces.fill(workspace)
    workspace.db.execute("UPDATE rows SET split = NULL")
    found = told(workspace, rows=None)
    write_report(
        tmp_path / "a.html", workspace=workspace, task=product_task(), source="a", settings={}, preview=found
    )
    page = (tmp_path / "a.html").read_text()
    assert "20 of 23 first rows could be trained on" in page
    assert "What the columns are taken for" in page
    assert SPEEDS[0].basis.split(":")[1] in page
    assert "no leak" not in page
    assert "Pictures that show the same" not in page
