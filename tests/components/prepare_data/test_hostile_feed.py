"""The whole step on a feed that does what no feed should: it ends, and its report says what happened."""

import csv
import functools
from pathlib import Path

import pytest
from markupsafe import escape

from components.prepare_data import pictures
from components.prepare_data.report.statistics import explain
from components.prepare_data.step import prepare_data_step
from fovea.fetch.client import FetchLimits
from fovea.steps import RunContext
from fovea.storage import Storage
from tests.components.prepare_data.hostile_feed import HOST, hostile_feed, jpeg
from tests.feed_server import FeedServer, says

GOOD_ROWS = 20


def test_the_run_ends_and_the_report_says_what_happened(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = tmp_path / "platform.yaml"
    platform.write_text(f"fetch_profiles: {{feed: {{allowed_networks: [{HOST}/32]}}}}")
    monkeypatch.setenv("FOVEA_PLATFORM", str(platform))
    limits = functools.partial(FetchLimits, idle_seconds=2, total_seconds=10, max_wait_seconds=0.2)
    monkeypatch.setattr(pictures, "FetchLimits", limits)
    good = {f"/{number}.jpg": says(jpeg(100 + number)) for number in range(GOOD_ROWS)}
    with hostile_feed(monkeypatch) as feed, FeedServer(good, HOST) as server:
        addresses = {**{server.url + path: "" for path in good}, **feed.reasons}
        with (tmp_path / "products.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["product_code", "title", "category3_code", "full_price", "imageurl"])
            for number, address in enumerate(addresses):
                writer.writerow([f"p{number}", f"Scarf {number}", "SCARVES", f"{number + 1}.00", address])
        record = prepare_data_step(
            RunContext(artifact_root=s3, run_id="run"),
            {
                "source": str(tmp_path / "products.csv"),
                "fetch_profile": "feed",
                "currency_column": "",
                "min_rows": 1,
                "test_fraction": 0.2,
                "validation_fraction": 0.2,
                "longest_side": 64,
            },
            dataset_record=tmp_path / "dataset.json",
            report=tmp_path / "report.html",
            storage=Storage(),
        )
        assert not feed.inside.asked, "the run reached an address that it must not"

    expected: dict[str, int] = {}
    for reason in addresses.values():
        if reason:
            expected[f"picture_{reason}"] = expected.get(f"picture_{reason}", 0) + 1
    kept = sum(not reason for reason in addresses.values())
    # Two addresses that show one picture are two rows of two products, so none of them is a repetition.
    assert sum(split.rows for split in record.splits.values()) == kept
    assert record.dropped == expected
    report = (tmp_path / "report.html").read_text()
    for reason in expected:
        assert reason in report
        assert str(escape(explain(reason, {})[1])) in report
    assert "<script>alert" not in report
