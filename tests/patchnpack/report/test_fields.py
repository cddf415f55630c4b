from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from patchnpack.loaders.assembly.stats import Stats
from patchnpack.packer import ConstantDrop, Packing, Rows
from patchnpack.packer.analysis.advice import advise
from patchnpack.packer.analysis.report import report
from patchnpack.packer.analysis.sweep import sweep
from patchnpack.report.fields import (
    SHARED_WITH_STATS,
    baseline_rows,
    report_fields,
    setting_fields,
    sweep_fields,
    to_csv,
)
from tests.packer.planning.plans import random_samples

ROWS = Rows.of_sizes(*np.random.default_rng(3).integers(48, 385, (2, 300)))
PACKING = Packing(seq_len=512, token_drop=ConstantDrop(0.2))
DOCS = Path(__file__).resolve().parents[3] / "docs" / "reports.md"


def plain(value: Any) -> Any:
    """The value with tuples as lists; fails on what JSON would change or refuse, such as numpy scalars and NaN."""
    if type(value) is dict:
        assert all(type(name) is str for name in value)
        return {name: plain(inner) for name, inner in value.items()}
    if type(value) in (list, tuple):
        return [plain(inner) for inner in value]
    assert value is None or type(value) in (bool, int, float, str), f"{value!r} is a {type(value)}"
    assert type(value) is not float or math.isfinite(value)
    return value


def test_fields_are_plain_json_types_and_cover_the_report() -> None:
    found = report(ROWS, PACKING)
    fields = report_fields(found, bad_images=4, without_image=5)
    assert repr(json.loads(json.dumps(fields, allow_nan=False))) == repr(plain(fields))
    assert (fields["bad_images"], fields["without_image"]) == (4, 5)
    assert fields["padding_in_packs"] == found.padding
    assert fields["baselines"][0]["slots"] == found.packs * 512
    assert {field.name for field in dataclasses.fields(found)} <= fields.keys()


def test_sweep_fields_mark_exactly_one_best_setting() -> None:
    swept = sweep(ROWS, PACKING)
    advice = advise(swept)
    fields = json.loads(json.dumps(sweep_fields(swept, advice), allow_nan=False))
    assert repr(fields) == repr(plain(sweep_fields(swept, advice)))
    assert [s["best"] for s in fields["settings"]].count(True) == 1
    assert [s["current"] for s in fields["settings"]].count(True) == 1
    assert fields["advice"]["sentences"] == list(advice.sentences)
    best = next(s for s in fields["settings"] if s["best"])
    assert best["padding"] == 1 - best["tokens"] / best["slots"]


def test_csv_round_trip_preserves_the_rows() -> None:
    swept = sweep(ROWS, PACKING)
    rows = [setting_fields(s, advise(swept)) for s in swept.settings]
    back = list(csv.DictReader(io.StringIO(to_csv(rows))))
    assert [{name: str(value) for name, value in row.items()} for row in rows] == back
    baselines = list(csv.DictReader(io.StringIO(to_csv(baseline_rows(report(ROWS, PACKING))))))
    assert [row["name"] for row in baselines][:3] == ["packed, subset_sum", "packed, next_fit", "padded to the longest"]


def test_fields_count_samples_and_their_images() -> None:
    rows = random_samples(200, 5)
    fields = report_fields(report(rows, PACKING))
    assert rows.offsets is not None
    counts = np.diff(rows.offsets)
    assert (fields["samples"], fields["images"]) == (200, len(rows.row))
    assert fields["images_per_sample"] == counts.mean()
    assert (fields["images_per_sample_min"], fields["images_per_sample_max"]) == (1, 5)
    assert fields["samples_per_pack"] == 200 / fields["packs"]
    assert sum(fields["distributions"]["images_per_sample"]["counts"]) == 200
    assert sum(fields["distributions"]["tokens_per_sample"]["counts"]) == 200
    assert fields["tokens_per_sample"]["mean"] == fields["tokens"] / 200
    assert {row["samples"] for row in baseline_rows(report(rows, PACKING))} == {200}


def test_fields_shared_with_stats_exist_in_both() -> None:
    fields, stats = report_fields(report(ROWS, PACKING)), Stats().report()
    for name in SHARED_WITH_STATS:
        assert name in fields
        assert name in stats


def test_every_field_is_documented() -> None:
    named = set(re.findall(r"`(\w+)`", DOCS.read_text(encoding="utf-8")))
    swept = sweep(ROWS, PACKING)
    fields = report_fields(report(ROWS, PACKING))
    wanted = {*fields, *fields["baselines"][0], *fields["distributions"], *sweep_fields(swept, advise(swept))}
    wanted |= set(setting_fields(swept.settings[0], advise(swept))) | set(SHARED_WITH_STATS)
    assert sorted(wanted - named) == []
