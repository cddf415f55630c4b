"""A report as plain fields, for JSON and CSV: names that stay. docs/reports.md says what each is."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

from patchnpack.packer.analysis.advice import Advice
from patchnpack.packer.analysis.report import PackingReport
from patchnpack.packer.analysis.sweep import Setting, Sweep

# What `PackedImageLoader.stats()` tells by the same name; equal once an epoch of the same order has ended.
SHARED_WITH_STATS = (
    "images",
    "tokens_native",
    "tokens_before_drop",
    "tokens",
    "drop_rate",
    "packs",
    "empty_packs",
    "padding",
    "padding_in_packs",
    "images_per_pack",
    "oversize",
    "attention_cost",
    "attention_spread",
)


def report_fields(report: PackingReport, *, bad_images: int = 0) -> dict[str, Any]:
    """One configuration, JSON-able."""
    packing = report.packing
    least, mean, most = report.images_per_pack
    return {
        "packing": repr(packing),
        "seq_len": packing.seq_len,
        "patch_sizes": list(packing.patch_sizes),
        "images": report.images,
        "bad_images": bad_images,
        "tokens_native": report.tokens_native,
        "tokens_before_drop": report.tokens_before_drop,
        "tokens": report.tokens,
        "tokens_per_image": dict(zip(("min", "median", "mean", "max"), report.tokens_per_image, strict=True)),
        "drop_rate": report.drop_rate,
        "packs": report.packs,
        "padding_in_packs": report.padding,
        "images_per_pack": mean,
        "images_per_pack_min": least,
        "images_per_pack_max": most,
        "oversize": report.oversize,
        "oversize_policy": packing.oversize,
        "skipped": {"oversize": report.skipped},
        "attention_cost": report.attention_cost,
        "attention_per_pack": dict(zip(("min", "mean", "max"), report.attention_per_pack, strict=True)),
        "attention_spread": report.attention_spread,
        "batch_size": report.batch_size,
        "ranks": report.ranks,
        "batch_bytes": report.batch_bytes,
        "steps": report.steps,
        "empty_packs": report.empty_packs,
        "padding": report.epoch_padding,
        "attention_imbalance": _twice(report.attention_imbalance),
        "model_imbalance": _twice(report.model_imbalance),
        "width": report.width,
        "planning_seconds_per_million": report.planning_seconds_per_million,
        "baselines": [{**dataclasses.asdict(baseline), "padding": baseline.padding} for baseline in report.baselines],
        "distributions": dataclasses.asdict(report.distributions),
    }


def sweep_fields(sweep: Sweep, advice: Advice) -> dict[str, Any]:
    """A sweep, JSON-able."""
    return {
        "images": sweep.images,
        "ranks": sweep.ranks,
        "width": sweep.width,
        "seconds": sweep.seconds,
        "settings": [setting_fields(setting, advice) for setting in sweep.settings],
        "advice": {"flags": advice.flags, "sentences": list(advice.sentences)},
    }


def setting_fields(setting: Setting, advice: Advice) -> dict[str, Any]:
    """One line of a sweep."""
    return {
        **dataclasses.asdict(setting),
        "slots": setting.slots,
        "padding": setting.padding,
        "images_per_pack": setting.images_per_pack,
        "saved_next_fit": setting.saved_next_fit,
        "saved_longest": setting.saved_longest,
        "saved_bucketed": setting.saved_bucketed,
        "best": setting == advice.best,
    }


def baseline_rows(report: PackingReport) -> list[dict[str, Any]]:
    """The baselines of a report, the configuration itself first, as rows of a table."""
    packing = report.packing
    same = {"seq_len": packing.seq_len, "patch_size": " ".join(map(str, packing.patch_sizes)), "images": report.images}
    return [{**same, **dataclasses.asdict(baseline), "padding": baseline.padding} for baseline in report.baselines]


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of the same fields as CSV, with a header.

    >>> to_csv([{"seq_len": 1024, "padding": 0.5}])
    'seq_len,padding\\n1024,0.5\\n'
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _twice(slowest: tuple[float, float]) -> dict[str, float]:
    return {"as_packed": slowest[0], "balanced": slowest[1]}
