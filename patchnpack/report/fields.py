"""Reports as plain fields for JSON and CSV. The names are stable; docs/reports.md explains each."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

from patchnpack.packer.analysis.advice import Advice
from patchnpack.packer.analysis.report import PackingReport
from patchnpack.packer.analysis.setting import Setting, Sweep

# `PackedImageLoader.stats()` has these names too. Its values are equal after an epoch in the same order.
SHARED_WITH_STATS = (
    "samples",
    "images",
    "images_per_sample",
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
    "undersize",
    "attention_cost",
    "attention_spread",
)


def report_fields(
    report: PackingReport, *, bad_images: int = 0, without_image: int = 0, source: str = ""
) -> dict[str, Any]:
    """Convert a report to a JSON-serialisable dict.

    Args:
        report: the report of one configuration.
        bad_images: number of bad images that the report leaves out.
        without_image: number of samples of the source that have no image.
        source: what the images are from, such as the names of the shards or of a table of sizes.
    """
    packing = report.packing
    min_images, mean_images, max_images = report.images_per_pack
    min_of_sample, mean_of_sample, max_of_sample = report.images_per_sample
    min_samples, mean_samples, max_samples = report.samples_per_pack
    return {
        "source": source,
        "packing": repr(packing),
        "seq_len": packing.seq_len,
        "patch_sizes": list(packing.patch_sizes),
        "samples": report.samples,
        "images": report.images,
        "images_per_sample": mean_of_sample,
        "images_per_sample_min": min_of_sample,
        "images_per_sample_max": max_of_sample,
        "bad_images": bad_images,
        "without_image": without_image,
        "tokens_native": report.tokens_native,
        "tokens_before_drop": report.tokens_before_drop,
        "tokens": report.tokens,
        "tokens_per_image": _quartet(report.tokens_per_image),
        "tokens_per_sample": _quartet(report.tokens_per_sample),
        "drop_rate": report.drop_rate,
        "packs": report.packs,
        "padding_in_packs": report.padding,
        "images_per_pack": mean_images,
        "images_per_pack_min": min_images,
        "images_per_pack_max": max_images,
        "samples_per_pack": mean_samples,
        "samples_per_pack_min": min_samples,
        "samples_per_pack_max": max_samples,
        "oversize": report.oversize,
        "oversize_policy": packing.oversize,
        "undersize": report.undersize,
        "undersize_policy": packing.undersize,
        "skipped": dict(report.skipped),
        "attention_cost": report.attention_cost,
        "attention_per_pack": dict(zip(("min", "mean", "max"), report.attention_per_pack, strict=True)),
        "attention_spread": report.attention_spread,
        "batch_size": report.batch_size,
        "ranks": report.ranks,
        "batch_bytes": report.batch_bytes,
        "steps": report.steps,
        "empty_packs": report.empty_packs,
        "padding": report.epoch_padding,
        "attention_imbalance": _imbalance(report.attention_imbalance),
        "model_imbalance": _imbalance(report.model_imbalance),
        "width": report.width,
        "planning_seconds_per_million": report.planning_seconds_per_million,
        "pricing": None if report.pricing is None else dataclasses.asdict(report.pricing),
        "baselines": [{**dataclasses.asdict(baseline), "padding": baseline.padding} for baseline in report.baselines],
        "distributions": dataclasses.asdict(report.distributions),
    }


def sweep_fields(sweep: Sweep, advice: Advice) -> dict[str, Any]:
    """Convert a sweep and its advice to a JSON-serialisable dict."""
    return {
        "samples": sweep.samples,
        "ranks": sweep.ranks,
        "width": sweep.width,
        "seconds": sweep.seconds,
        "settings": [setting_fields(setting, advice) for setting in sweep.settings],
        "searches": [dataclasses.asdict(search) for search in sweep.searches],
        "advice": {"flags": advice.flags, "sentences": list(advice.sentences)},
    }


def setting_fields(setting: Setting, advice: Advice) -> dict[str, Any]:
    """Convert one setting of a sweep to a flat dict; `best` marks the advised setting."""
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
    """List the methods that a report compares, the configuration itself first, as rows of a table."""
    packing = report.packing
    same = {
        "seq_len": packing.seq_len,
        "patch_size": " ".join(map(str, packing.patch_sizes)),
        "samples": report.samples,
        "images": report.images,
    }
    return [{**same, **dataclasses.asdict(baseline), "padding": baseline.padding} for baseline in report.baselines]


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format rows with the same fields as CSV with a header line.

    >>> to_csv([{"seq_len": 1024, "padding": 0.5}])
    'seq_len,padding\\n1024,0.5\\n'
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _quartet(values: tuple[int, float, float, int]) -> dict[str, float]:
    return dict(zip(("min", "median", "mean", "max"), values, strict=True))


def _imbalance(imbalance: tuple[float, float]) -> dict[str, float]:
    as_packed, balanced = imbalance
    return {"as_packed": as_packed, "balanced": balanced}
