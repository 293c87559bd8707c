"""The benchmark of training steps runs, with the smallest model."""

from pathlib import Path

import pytest

from benchmarks.train import WAYS, Setting, measure_way, table, write_rows


@pytest.mark.prove
def test_a_way_is_measured(tmp_path: Path) -> None:
    setting = Setting("cpu", "tiny", "float32", pictures=4, steps=3)
    write_rows(tmp_path, 8, setting.size)
    ways = {way.name: way for way in WAYS}
    assert len(ways) == len(WAYS)
    rows = [measure_way(setting, ways[name], 4, tmp_path) for name in ("plain: Trainer on the twin", "ours")]
    for row in rows:
        assert row.seconds is not None
        assert row.seconds > 0
        assert row.first_step is not None
        assert row.tokens == rows[0].tokens
    assert rows[0].waiting is None
    assert rows[1].waiting is not None
    assert table(setting, rows).row_count == 2
