"""A `PackingReport` and a `Sweep` as tables for a terminal."""

from __future__ import annotations

from itertools import groupby

from rich.console import Console
from rich.table import Table

from patchnpack.cli.arguments import counted
from patchnpack.packer import Packing
from patchnpack.packer.analysis.advice import Advice
from patchnpack.packer.analysis.report import PackingReport
from patchnpack.packer.analysis.sweep import Setting, Sweep


def facts(report: PackingReport, *, bad: int = 0) -> list[tuple[str, str]]:
    """What is said of one configuration, as names and sentences; a name may be empty, where a line goes on."""
    packing, dropped = report.packing, report.tokens != report.tokens_before_drop
    low, median, mean, high = report.tokens_per_image
    least, images, most = report.images_per_pack
    cheapest, cost, dearest = report.attention_per_pack
    fits = report.tokens_before_drop == report.tokens_native
    lines = [
        ("packing", f"{packing.seq_len} slots, patches of {_sizes(packing)} pixels, {packing.resolution}"),
        ("images", f"{report.images:,}"),
        ("tokens", f"{report.tokens:,}" + (f", {report.tokens_before_drop:,} before dropping" if dropped else "")),
    ]
    if not fits:
        lines.append(("", f"{report.tokens_native:,} at the images' own sizes"))
    if dropped:
        lines.append(("dropped", f"{report.drop_rate:.1%} of an image's tokens, on average"))
    lines += [
        ("tokens an image", f"{low:,} to {high:,}, median {median:,.0f}, mean {mean:,.1f}"),
        ("packs", f"{report.packs:,}"),
        ("padding", f"{report.padding:.2%} of the slots"),
        ("images a pack", f"{least} to {most}, mean {images:.2f}"),
        ("oversize", f"{report.oversize:,} images of more than {packing.seq_len} tokens" + _became(report)),
    ]
    if bad:
        lines.append(("bad images", f"{bad:,}, left out; their headers cannot be used"))
    return [
        *lines,
        ("attention a pack", f"{cheapest:,} to {dearest:,} pairs of tokens,"),
        ("", f"mean {cost:,.0f}, standard deviation {report.attention_spread:.0%} of it"),
        (f"{report.ranks} ranks", f"slowest over mean {_slowest(report.attention_imbalance)} in attention,"),
        ("", f"{_slowest(report.model_imbalance)} in a whole model of width {report.width}"),
        ("a batch", f"{counted(report.batch_size, 'pack')}, {report.batch_bytes / 2**20:.2f} MiB"),
        (
            "an epoch",
            f"{counted(report.steps, 'step')} of {report.batch_size} x {report.ranks} packs" + _filled(report),
        ),
        ("planning", f"{report.planning_seconds_per_million:.2f} s a million images, on one core"),
    ]


def print_report(report: PackingReport, console: Console, *, bad: int = 0) -> None:
    """Prints what packing makes of the images, then the same images by the usual baselines; fits 80 columns."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    for name, value in facts(report, bad=bad):
        grid.add_row(name, value)
    console.print(grid)
    console.print()

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("the same images")
    for name in ("rows", "token slots", "padding", "slots", "attention"):
        table.add_column(name, justify="right")
    packed = report.baselines[0]
    for baseline in report.baselines:
        table.add_row(
            baseline.name,
            f"{baseline.sequences:,}",
            f"{baseline.slots:,}",
            f"{baseline.padding:.2%}",
            f"{baseline.slots / packed.slots:.2f}x",
            f"{baseline.attention_cost / packed.attention_cost:.2f}x",
        )
    console.print(table)
    for baseline in report.baselines:
        if baseline.note:
            console.print(f"{baseline.name}: {baseline.note}")


def print_sweep(sweep: Sweep, advice: Advice, console: Console) -> None:
    """Prints the padding of every setting, the best one marked, and the advice; fits 80 columns with 5 lookaheads."""
    lookaheads = sorted({s.lookahead for s in sweep.settings if s.algorithm != "next_fit"})
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("patch", "slots", "too large", "MiB", "algorithm"):
        table.add_column(name, justify="left" if name == "algorithm" else "right")
    for name in [f"R={lookahead}" for lookahead in lookaheads] or ["padding"]:
        table.add_column(name, justify="right")
    last = None
    for (patch_size, seq_len, algorithm), group in groupby(
        sweep.settings, lambda s: (s.patch_size, s.seq_len, s.algorithm)
    ):
        found = {setting.lookahead: setting for setting in group}
        first = next(iter(found.values()))
        about = ["", "", "", ""]
        if (patch_size, seq_len) != last:
            share = first.oversize / sweep.images
            about = [
                str(patch_size),
                f"{seq_len:,}",
                f"{share:.1%}" if share else "0",
                f"{first.pack_bytes / 2**20:.2f}",
            ]
        last = patch_size, seq_len
        every = algorithm == "next_fit"
        cells = [_cell(found.get(1 if every else lookahead), advice) for lookahead in lookaheads or [1]]
        table.add_row(*about, algorithm, *(cells[:1] if every else cells))
    console.print(f"padding of {len(sweep.settings)} settings, in {sweep.seconds:.1f} s; R is the lookahead")
    console.print(table)
    current = ", = what is set now" if sweep.current else ""
    console.print(f"* the best{current}; too large: images of more tokens than slots; MiB: a pack in a batch")
    console.print()
    for sentence in advice.sentences:
        console.print(sentence)


def _cell(setting: Setting | None, advice: Advice) -> str:
    if setting is None:
        return ""
    mark = "*" if setting == advice.best else "=" if setting.current else " "
    text = f"{setting.padding:.2%}{mark}"
    return f"[bold]{text}[/bold]" if mark == "*" else text


def _sizes(packing: Packing) -> str:
    *others, last = map(str, packing.patch_sizes)
    return f"{', '.join(others)} or {last}" if others else last


def _slowest(slowest: tuple[float, float]) -> str:
    return f"{slowest[1]:.2f} ({slowest[0]:.2f} unbalanced)"


def _filled(report: PackingReport) -> str:
    return f", {counted(report.empty_packs, 'pack')} of the last empty" if report.empty_packs else ""


def _became(report: PackingReport) -> str:
    if not report.oversize:
        return ""
    return {
        "shrink": ", made smaller",
        "drop": ", their excess dropped",
        "skip": ", left out",
        "error": "",
    }[report.packing.oversize]
