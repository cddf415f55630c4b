"""A `PackingReport` as tables for a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from patchnpack.packer import Packing
from patchnpack.packer.report import PackingReport


def print_report(report: PackingReport, console: Console, *, bad: int = 0) -> None:
    """Prints what packing makes of the images, then the same images by the usual ways; fits 80 columns."""
    packing = report.packing
    low, median, mean, high = report.tokens_an_image
    facts = Table.grid(padding=(0, 2, 0, 0))
    for name, value in (
        ("packing", f"{packing.seq_len} slots, patches of {_sizes(packing)} pixels, {packing.resolution}"),
        ("images", f"{report.images:,}"),
        ("tokens", f"{report.tokens:,}" + _dropped(report)),
        ("tokens an image", f"{low:,} to {high:,}, median {median:,.0f}, mean {mean:,.1f}"),
        ("packs", f"{report.packs:,}"),
        ("padding", f"{report.padding:.2%} of the slots"),
        (
            "images a pack",
            f"{report.images_a_pack[0]} to {report.images_a_pack[2]}, mean {report.images_a_pack[1]:.2f}",
        ),
        ("oversize", f"{report.oversize:,} images of more than {packing.seq_len} tokens" + _became(report)),
        *([("bad images", f"{bad:,}, left out; their headers cannot be used")] if bad else []),
        (f"{report.ranks} ranks", f"slowest over mean {_slowest(report.slowest_attention)} in attention,"),
        ("", f"{_slowest(report.slowest_model)} in a whole model of width {report.width}"),
        ("planning", f"{report.plan_s_a_million:.2f} s a million images, on one core"),
    ):
        facts.add_row(name, value)
    console.print(facts)
    console.print()

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("the same images")
    for name in ("rows", "token slots", "padding", "slots"):
        table.add_column(name, justify="right")
    for way in report.ways:
        table.add_row(
            way.name,
            f"{way.sequences:,}",
            f"{way.slots:,}",
            f"{way.padding:.2%}",
            f"{way.slots / report.ways[0].slots:.2f}x",
        )
    console.print(table)
    for way in report.ways:
        if way.note:
            console.print(f"{way.name}: {way.note}")


def _sizes(packing: Packing) -> str:
    *others, last = map(str, packing.patch_sizes)
    return f"{', '.join(others)} or {last}" if others else last


def _slowest(slowest: tuple[float, float]) -> str:
    return f"{slowest[1]:.2f} ({slowest[0]:.2f} unbalanced)"


def _dropped(report: PackingReport) -> str:
    if report.tokens == report.tokens_before_drop:
        return ""
    return f", {report.tokens_before_drop:,} before dropping"


def _became(report: PackingReport) -> str:
    if not report.oversize:
        return ""
    return {
        "shrink": ", made smaller",
        "drop": ", their excess dropped",
        "skip": ", left out",
        "error": "",
    }[report.packing.oversize]
