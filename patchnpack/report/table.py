"""Tables of a `PackingReport` and a `Sweep` for a terminal."""

from __future__ import annotations

from itertools import groupby

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from patchnpack.packer import Packing
from patchnpack.packer.analysis.advice import Advice
from patchnpack.packer.analysis.report import PackingReport, Pricing
from patchnpack.packer.analysis.setting import Setting, Sweep
from patchnpack.packer.text import counted


def facts(report: PackingReport, *, bad: int = 0, without_image: int = 0, source: str = "") -> list[tuple[str, str]]:
    """List the facts of one configuration as (name, text) pairs; an empty name continues the line above.

    Args:
        report: the report of the configuration.
        bad: number of bad images that the report leaves out.
        without_image: number of samples of the source that have no image.
        source: what the images are from, such as the names of the shards; "" leaves the line out.
    """
    packing, drops_tokens = report.packing, report.tokens != report.tokens_before_drop
    several, item = report.item == "sample", report.item
    min_cost, mean_cost, max_cost = report.attention_per_pack
    lines = [
        *([("source", source)] if source else []),
        ("packing", f"{packing.seq_len} slots, patch size {_sizes(packing)}, {packing.views or packing.resolution}"),
        *([("", str(packing.frames))] if packing.frames else []),
        *([("samples", f"{report.samples:,}")] if several else []),
        ("images", f"{report.images:,}"),
        *([("images per sample", _range(report.images_per_sample))] if several else []),
        ("tokens", f"{report.tokens:,}" + (f", {report.tokens_before_drop:,} before dropping" if drops_tokens else "")),
    ]
    if report.tokens_before_drop != report.tokens_native:
        lines.append(("", f"{report.tokens_native:,} at native resolution"))
    if drops_tokens:
        lines.append(("dropped", f"{report.drop_rate:.1%} of an image's tokens on average"))
    lines += [
        ("tokens per image", _quartet(report.tokens_per_image)),
        *([("tokens per sample", _quartet(report.tokens_per_sample))] if several else []),
        ("packs", f"{report.packs:,}"),
        ("padding", f"{report.padding:.2%} of the slots"),
        *([("samples per pack", _range(report.samples_per_pack))] if several else []),
        ("images per pack", _range(report.images_per_pack)),
        ("oversize", f"{counted(report.oversize, item)} with more than {_limit(report)}" + _fate(report)),
    ]
    if report.undersize:
        fate = {"pad": "padded or enlarged to one", "skip": "skipped", "error": ""}[packing.undersize]
        small = "with an image smaller than a patch" if several else "smaller than a patch"
        lines.append(("undersize", f"{counted(report.undersize, item)} {small}, {fate}"))
    if packing.frames and (few := report.skipped.get("frames")):
        lines.append(("frames", f"{counted(few, 'sample')} with fewer than {packing.frames.count} images, skipped"))
    if bad:
        others = ", with the others of their samples" if several else ""
        lines.append(("bad images", f"{bad:,}, left out because their headers or sizes are unusable{others}"))
    if without_image:
        lines.append(("without image", f"{counted(without_image, 'sample')}, left out"))
    return [
        *lines,
        ("attention per pack", f"{min_cost:,} to {max_cost:,} pairs of tokens{_within(packing, several)},"),
        ("", f"mean {mean_cost:,.0f}, standard deviation {report.attention_spread:.0%} of the mean"),
        (
            "load imbalance",
            f"over {counted(report.ranks, 'rank')}: {_imbalance(report.attention_imbalance)} in attention,",
        ),
        ("", f"{_imbalance(report.model_imbalance)} in a model of width {report.width}"),
        ("batch", f"{counted(report.batch_size, 'pack')}, {report.batch_bytes / 2**20:.2f} MiB"),
        (
            "epoch",
            f"{counted(report.steps, 'step')} of {report.batch_size} x {report.ranks} packs" + _empty(report),
        ),
        ("planning", f"{report.planning_seconds_per_million:.2f} s per million {item}s on one core"),
        *_pricing(report.pricing),
    ]


def _pricing(pricing: Pricing | None) -> list[tuple[str, str]]:
    if pricing is None:
        return []
    grouped = f" in {pricing.groups:,} groups" if pricing.groups < pricing.token_counts else ""
    return [("prices", f"{counted(pricing.token_counts, 'token count')}{grouped}, {pricing.seconds:.2f} s")]


def print_report(
    report: PackingReport, console: Console, *, bad: int = 0, without_image: int = 0, source: str = ""
) -> None:
    """Print the facts of a configuration, then the cost of the baselines; fits 80 columns."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column()
    grid.add_column(overflow="fold")  # a long path must not end in dots
    for name, value in facts(report, bad=bad, without_image=without_image, source=source):
        grid.add_row(name, escape(value))
    console.print(grid)
    console.print()

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("method")
    for name in ("rows", "token slots", "padding", "relative", "attention"):
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
    """Print the padding of every setting, then the advice; fits 80 columns with up to 5 lookaheads."""
    lookaheads = sorted({s.lookahead for s in sweep.settings if s.algorithm != "next_fit"})
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("patch", "slots", "oversize", "MiB", "algorithm"):
        table.add_column(name, justify="left" if name == "algorithm" else "right")
    for name in [f"R={lookahead}" for lookahead in lookaheads] or ["padding"]:
        table.add_column(name, justify="right")
    last = None
    for (patch_size, seq_len, algorithm), group in groupby(
        sweep.settings, lambda s: (s.patch_size, s.seq_len, s.algorithm)
    ):
        by_lookahead = {setting.lookahead: setting for setting in group}
        first = next(iter(by_lookahead.values()))
        columns = ["", "", "", ""]
        if (patch_size, seq_len) != last:
            share = first.oversize / sweep.samples
            columns = [
                str(patch_size),
                f"{seq_len:,}",
                f"{share:.1%}" if share else "0",
                f"{first.pack_bytes / 2**20:.2f}",
            ]
        last = patch_size, seq_len
        next_fit = algorithm == "next_fit"  # it has no lookahead, so one cell stands for all
        cells = [_cell(by_lookahead.get(1 if next_fit else lookahead), advice) for lookahead in lookaheads or [1]]
        table.add_row(*columns, algorithm, *(cells[:1] if next_fit else cells))
    console.print(f"padding of {len(sweep.settings)} settings, computed in {sweep.seconds:.1f} s; R is the lookahead")
    console.print(table)
    current = ", = current setting" if sweep.current else ""
    console.print(f"* best setting{current}; oversize: {_oversize(sweep)}; MiB per pack")
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


def _imbalance(imbalance: tuple[float, float]) -> str:
    as_packed, balanced = imbalance
    return f"{balanced:.2f} ({as_packed:.2f} unbalanced)"


def _empty(report: PackingReport) -> str:
    return f", {counted(report.empty_packs, 'empty pack')} in the last" if report.empty_packs else ""


def _range(values: tuple[int, float, int]) -> str:
    low, mean, high = values
    return f"{low:,} to {high:,}, mean {mean:,.2f}"


def _quartet(values: tuple[int, float, float, int]) -> str:
    low, median, mean, high = values
    return f"{low:,} to {high:,}, median {median:,.0f}, mean {mean:,.1f}"


def _limit(report: PackingReport) -> str:
    """What an oversize image or sample has more of."""
    images = f" or {counted(report.packing.max_images, 'image')}" if report.item == "sample" else ""
    return f"{report.packing.seq_len} tokens{images}"


def _within(packing: Packing, several: bool) -> str:
    return f" within {packing.scope}s" if several else ""


def _oversize(sweep: Sweep) -> str:
    images = ", or more than --max-images images" if sweep.item == "sample" else ""
    return f"{sweep.item}s with more tokens than slots{images}"


def _fate(report: PackingReport) -> str:
    """What happens to oversize images or samples."""
    if not report.oversize:
        return ""
    return {
        "shrink": ", shrunk",
        "drop": ", excess tokens dropped",
        "skip": ", skipped",
        "error": "",
    }[report.packing.oversize]
