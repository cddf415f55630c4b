from __future__ import annotations

import dataclasses
import json
import logging
import re
import time

import pytest

from patchnpack.loaders.assembly.stats import LISTED, Stats, Ticker
from patchnpack.loaders.errors import BadRow


def bad(row: int) -> BadRow:
    return BadRow(row=row, key=f"k{row}", shard="a.tar", offset=512 * row, stage="decode", reason="it is broken")


def test_new_stats_are_zero_without_dividing_by_zero() -> None:
    report = Stats().report()
    assert report["skipped"] == {"oversize": 0, "undersize": 0, "frames": 0, "where": 0, "tail": 0}
    assert report["bad"] == []
    assert all(
        value == 0
        for name, value in report.items()
        if name not in ("skipped", "bad", "bad_by_stage", "sources", "warnings")
    )


def test_rates_and_padding_follow_from_the_totals() -> None:
    report = Stats(images=30, tokens=600, slots=800, run_s=2.0).report()
    assert (report["padding"], report["images_per_s"], report["tokens_per_s"]) == (0.25, 15.0, 300.0)


def test_bad_image_is_counted_listed_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    stats = Stats()
    with caplog.at_level(logging.WARNING, "patchnpack"):
        stats.add_bad(bad(3))
    report = stats.report()
    assert report["bad_images"] == 1
    assert report["bad"] == [
        {
            "row": 3,
            "key": "k3",
            "shard": "a.tar",
            "offset": 1536,
            "page": 0,
            "stage": "decode",
            "reason": "it is broken",
        }
    ]
    assert caplog.messages == ["bad image 'k3' in a.tar at byte 1536 (decode): it is broken"]


def test_bad_image_of_a_stream_is_logged_without_an_offset(caplog: pytest.LogCaptureFixture) -> None:
    Stats().add_bad(dataclasses.replace(bad(3), offset=-1))
    assert caplog.messages == ["bad image 'k3' in a.tar (decode): it is broken"]


def test_list_of_bad_images_is_bounded_and_the_count_is_not(caplog: pytest.LogCaptureFixture) -> None:
    stats = Stats()
    for row in range(LISTED + 5):
        stats.add_bad(bad(row))
    report = stats.report()
    assert report["bad_images"] == LISTED + 5 == len(caplog.messages)
    assert [entry["row"] for entry in report["bad"]] == list(range(LISTED))


def test_report_is_a_copy_that_json_can_encode() -> None:
    stats = Stats()
    stats.add_bad(bad(1))
    report = stats.report()
    assert json.loads(json.dumps(report)) == report
    report["skipped"]["tail"] = 9
    report["bad"].clear()
    assert stats.report()["skipped"]["tail"] == 0
    assert len(stats.report()["bad"]) == 1


def test_log_line_covers_the_time_since_the_line_before(caplog: pytest.LogCaptureFixture) -> None:
    stats = Stats(images=10, tokens=1000, slots=1000)
    ticker = Ticker(stats, every=0.05)
    with caplog.at_level(logging.INFO, "patchnpack"):
        ticker.tick(0, 2)
        assert caplog.messages == []
        time.sleep(0.06)
        stats.images, stats.tokens, stats.slots, stats.wait_s = 16, 1300, 1400, 0.03
        stats.add_bad(bad(1))
        stats.cache_hits, stats.cache_misses = 3, 1
        caplog.clear()
        ticker.tick(1, 2)
        ticker.tick(1, 2)
    (line,) = caplog.messages
    assert re.fullmatch(
        r"\d+ images/s, \d+ tokens/s, 25.0% padding, 1 of 2 batches ready, the loop waited \d+.\d% of the time, 1 bad "
        r"images in total \(1 decode\), 3 of 4 shards were cached",
        line,
    )
    assert 40 < float(line.split()[0]) <= 120
