"""The charts of a report as inline SVG with a title and a description; colours are CSS variables of the page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from patchnpack.packer.analysis.histogram import Histogram
from patchnpack.packer.analysis.report import PackingReport
from patchnpack.packer.analysis.setting import MAX_OVERSIZE, Sweep

# matplotlib draws with these placeholder colours. In the SVG each becomes a CSS variable that the page sets for light,
# dark and print.
_VARIABLES = {
    "#010101": "--ink",
    "#020202": "--faint",
    "#030303": "--rule",
    "#040404": "--paper",
    "#0a0a01": "--series-1",
    "#0a0a02": "--series-2",
    "#0a0a03": "--series-3",
    "#0a0a04": "--series-4",
    "#0a0a05": "--series-5",
    "#0a0a06": "--series-6",
    "#0b0b01": "--soft",
}
_INK, _FAINT, _RULE, _PAPER, *_SERIES, _SOFT = _VARIABLES
_MARKERS = "osD^vP"
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "patchnpack",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _FAINT,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": _RULE,
    "grid.linewidth": 0.8,
    "xtick.color": _FAINT,
    "xtick.labelcolor": _INK,
    "ytick.color": _FAINT,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
    "path.simplify": True,
}
_NAME = re.compile(r'(\bid="|xlink:href="#|url\(#)')
_THOUSANDS = FuncFormatter(lambda value, _: f"{value:,.0f}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """One chart of the page.

    Attributes:
        name: the id of its figure in the page.
        title: the title.
        caption: the sentence below the chart.
        text: the description for screen readers.
        svg: the chart, with title and description inside.
    """

    name: str
    title: str
    caption: str
    text: str
    svg: Markup


def charts(report: PackingReport, sweep: Sweep) -> list[Chart]:
    """Draw all charts in the order of the page; a chart with nothing to show is left out."""
    makers: list[Callable[[], Chart | None]] = [
        lambda: _baselines(report),
        lambda: _tokens(report),
        lambda: _tokens_per_sample(report),
        lambda: _images_per_sample(report),
        lambda: _padding(sweep),
        lambda: _images_per_pack(report),
        lambda: _fill(report),
        lambda: _attention(report),
        lambda: _aspects(report),
        lambda: _drops(report),
        lambda: _packs(report),
    ]
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]  # its keys are a long Literal
        return [chart for make in makers if (chart := make()) is not None]


@contextmanager
def _axes(height: float = 2.9) -> Iterator[tuple[Figure, Axes]]:
    figure = Figure(figsize=(6.4, height), layout="constrained")
    FigureCanvasSVG(figure)
    yield figure, figure.add_subplot()


def _chart(figure: Figure, name: str, title: str, caption: str, text: str | None = None) -> Chart:
    """Convert a figure to a chart; the caption is the description unless `text` is given."""
    text = caption if text is None else text
    out = io.StringIO()
    metadata: dict[str, Any] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(out, format="svg", transparent=True, metadata=metadata)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    svg = _NAME.sub(lambda match: f"{match[0]}{name}-", svg)
    view = re.search(r'viewBox="[^"]+"', svg)
    assert view is not None
    head = (
        f'<svg {view[0]} role="img" aria-labelledby="{name}-title {name}-desc" xmlns="http://www.w3.org/2000/svg" '
        f'xmlns:xlink="http://www.w3.org/1999/xlink"><title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-desc">{escape(text)}</desc>'
    )
    return Chart(name=name, title=title, caption=caption, text=text, svg=Markup(head + svg[svg.index(">") + 1 :]))


def _bars(axes: Axes, histogram: Histogram, colour: str = _SERIES[0]) -> None:
    edges = np.array(histogram.edges)
    axes.bar(edges[:-1], histogram.counts, np.diff(edges), align="edge", color=colour, edgecolor=_PAPER, linewidth=0.6)
    axes.set_xlim(edges[0], edges[-1])
    axes.yaxis.set_major_formatter(_THOUSANDS)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))


def _baselines(report: PackingReport) -> Chart:
    baselines = report.baselines[::-1]
    with _axes(0.7 + 0.36 * len(baselines)) as (figure, axes):
        tokens = np.array([baseline.tokens for baseline in baselines])
        slots = np.array([baseline.slots for baseline in baselines])
        at, scale = np.arange(len(baselines)), report.baselines[0].slots
        axes.barh(at, tokens / scale, color=_SERIES[0], height=0.66, label="tokens")
        padding: dict[str, Any] = {"color": _PAPER, "edgecolor": _SERIES[0], "hatch": "////", "linewidth": 0.8}
        axes.barh(at, (slots - tokens) / scale, left=tokens / scale, height=0.66, label="padding", **padding)
        for y, baseline in enumerate(baselines):
            words = f"{baseline.slots / scale:.2f}x, {baseline.padding:.1%}"
            axes.annotate(words, (baseline.slots / scale, y), (4, 0), textcoords="offset points", va="center", size=9)
        axes.set_yticks(at, [baseline.name for baseline in baselines])
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False)
        axes.set_xlim(0, 1.28 * (slots / scale).max())
        axes.set_xlabel("token slots relative to this configuration, and share of padding")
        axes.legend(loc="lower right", ncols=2, bbox_to_anchor=(1, 1), borderaxespad=0)
    words = "; ".join(
        f"{baseline.name}: {baseline.slots:,} slots, {baseline.padding:.1%} padding" for baseline in report.baselines
    )
    caption = "The last two methods resize the images." if any(baseline.resized for baseline in baselines) else ""
    return _chart(figure, "baselines", "Token slots by method", caption, words + ".")


def _tokens(report: PackingReport) -> Chart:
    return _token_counts(
        "tokens", "image", report.images, report.tokens_per_image, report.distributions.tokens_per_image
    )


def _tokens_per_sample(report: PackingReport) -> Chart | None:
    if report.item == "image":
        return None
    histogram = report.distributions.tokens_per_sample
    return _token_counts("samples", "sample", report.samples, report.tokens_per_sample, histogram)


def _token_counts(
    name: str, item: str, count: int, tokens: tuple[int, float, float, int], histogram: Histogram
) -> Chart:
    low, median, mean, high = tokens
    with _axes() as (figure, axes):
        _bars(axes, histogram)
        axes.axvline(median, color=_SERIES[1], linewidth=1.6)
        axes.annotate(
            f" median {median:,.0f} ",
            (median, 1),
            xycoords=("data", "axes fraction"),
            ha="left" if median < (low + high) / 2 else "right",
            va="bottom",
            color=_SERIES[1],
        )
        axes.set_xlabel(f"tokens per {item}")
        axes.set_ylabel(f"{item}s")
        axes.xaxis.set_major_formatter(_THOUSANDS)
    words = f"{count:,} {item}s with {low:,} to {high:,} tokens, median {median:,.0f}, mean {mean:,.0f}."
    return _chart(figure, name, f"Tokens per {item}", words)


def _images_per_sample(report: PackingReport) -> Chart | None:
    if report.item == "image":
        return None
    low, mean, high = report.images_per_sample
    with _axes() as (figure, axes):
        _bars(axes, report.distributions.images_per_sample)
        axes.set_xlabel("images per sample")
        axes.set_ylabel("samples")
        _whole_bins(axes, report.distributions.images_per_sample)
    words = f"{report.samples:,} samples of {low} to {high} images, mean {mean:.2f}."
    return _chart(figure, "images_per_sample", "Images per sample", words)


def _padding(sweep: Sweep) -> Chart:
    own = min(sweep.packing.patch_sizes)
    settings = [s for s in sweep.settings if s.patch_size == own]
    lengths = sorted({s.seq_len for s in settings})
    search = next((search for search in sweep.searches if search.patch_size == own), None)
    words = []
    with _axes(3.3) as (figure, axes):
        if search is not None:
            tried = np.array(search.padding)
            axes.plot(tried[:, 0], tried[:, 1], ".", color=_FAINT, markersize=3, label="search")
        for number, algorithm in enumerate(dict.fromkeys(s.algorithm for s in settings)):
            best = [
                min(
                    (s for s in settings if s.algorithm == algorithm and s.seq_len == n),
                    key=lambda s: s.packs,
                    default=None,
                )
                for n in lengths
            ]
            found = [s for s in best if s is not None]
            fair = [s.oversize <= MAX_OVERSIZE * sweep.samples for s in found]
            x, y = [s.seq_len for s in found], [s.padding for s in found]
            colour = _SERIES[number % len(_SERIES)]
            axes.plot(x, y, color=colour, linewidth=1.8, label=algorithm)
            for filled in (True, False):
                at = [i for i, is_fair in enumerate(fair) if is_fair == filled]
                axes.plot(
                    [x[i] for i in at],
                    [y[i] for i in at],
                    _MARKERS[number % len(_MARKERS)],
                    color=colour,
                    markerfacecolor=colour if filled else _PAPER,
                    markersize=6,
                )
            words.append(f"{algorithm}: " + ", ".join(f"{b:.1%} at {a:,}" for a, b in zip(x, y, strict=True)))
        axes.set_xscale("log", base=2)
        first = [s.seq_len for s in settings if s.current] + ([search.advised] if search else [])
        labels = _apart(first + lengths)
        axes.xaxis.set_major_locator(FixedLocator(labels))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(_THOUSANDS)
        spread = np.diff(np.log2(labels)).min(initial=1) / max(1.0, np.log2(labels[-1] / labels[0]))
        if spread < 0.12:  # neighbouring labels would touch
            axes.tick_params(axis="x", labelrotation=45)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_xlabel(f"sequence length in slots; hollow markers: over 1 % of the {sweep.item}s are longer")
        axes.set_ylabel("padding")
        axes.legend(loc="lower left", ncols=4, bbox_to_anchor=(0, 1), borderaxespad=0)
    title, caption = f"Padding by sequence length, patch size {own}", "Each algorithm at its best lookahead."
    if search is not None:
        caption += f" Dots: the {len(search.padding)} lengths of the search, each with its best algorithm."
    return _chart(figure, "padding", title, caption, f"{caption} {'; '.join(words)}.")


def _apart(lengths: Sequence[int]) -> list[int]:
    """The lengths in ascending order without those whose labels would cover an earlier one's."""
    least = 0.04 * np.log2(max(lengths) / min(lengths))
    kept: list[int] = []
    for length in lengths:
        if all(abs(np.log2(length / other)) > least for other in kept):
            kept.append(length)
    return sorted(kept)


def _images_per_pack(report: PackingReport) -> Chart:
    low, mean, high = report.images_per_pack
    with _axes() as (figure, axes):
        _bars(axes, report.distributions.images_per_pack)
        axes.set_xlabel("images per pack")
        axes.set_ylabel("packs")
        _whole_bins(axes, report.distributions.images_per_pack)
    return _chart(
        figure, "images", "Images per pack", f"{report.packs:,} packs with {low} to {high} images, mean {mean:.2f}."
    )


def _whole_bins(axes: Axes, histogram: Histogram) -> None:
    """Put a label below the middle of each bin if every bin is one number and there are few bins."""
    edges = histogram.edges
    if edges[1] - edges[0] == 1 and len(edges) <= 24:
        empty = max(0, 8 - len(histogram.counts)) / 2  # a single bar should not fill the chart
        axes.set_xlim(edges[0] - empty, edges[-1] + empty)
        axes.set_xticks([edge + 0.5 for edge in edges[:-1]], [f"{edge:.0f}" for edge in edges[:-1]])
        axes.tick_params(axis="x", length=0)


def _fill(report: PackingReport) -> Chart:
    lowest, mean = np.array(report.distributions.fill).T
    with _axes() as (figure, axes):
        x = (np.arange(len(mean)) + 0.5) / len(mean) * report.packs
        axes.fill_between(x, lowest, mean, color=_SOFT, linewidth=0, label="lowest to mean")
        axes.plot(x, mean, color=_SERIES[0], linewidth=1.4, label="mean")
        axes.set_ylim(0, 1.02)
        axes.set_xlim(0, report.packs)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.xaxis.set_major_formatter(_THOUSANDS)
        axes.set_xlabel(f"packs in order, in {len(mean)} groups" if len(mean) < report.packs else "packs in order")
        axes.set_ylabel("slots filled")
        axes.legend(loc="lower left", ncols=2, bbox_to_anchor=(0, 1), borderaxespad=0)
    words = f"{1 - report.padding:.1%} of the slots are filled; the emptiest pack is {lowest.min():.1%} full."
    return _chart(figure, "fill", "Fill of packs in order", words)


def _attention(report: PackingReport) -> Chart:
    low, mean, high = report.attention_per_pack
    with _axes() as (figure, axes):
        _bars(axes, report.distributions.attention_per_pack)
        axes.axvline(mean, color=_SERIES[1], linewidth=1.6)
        axes.set_xlabel("sum of squared token counts in millions; the line marks the mean")
        axes.set_ylabel("packs")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1e6:g}"))
    words = (
        f"{low:,} to {high:,} pairs of tokens per pack, mean {mean:,.0f}, standard deviation "
        f"{report.attention_spread:.0%} of the mean."
    )
    return _chart(figure, "attention", "Attention cost per pack", words)


def _aspects(report: PackingReport) -> Chart:
    histogram = report.distributions.aspect
    with _axes() as (figure, axes):
        _bars(axes, histogram)
        axes.set_xscale("log", base=2)
        names = ((0.25, "1:4"), (0.5, "1:2"), (0.75, "3:4"), (1, "1:1"), (4 / 3, "4:3"), (2, "2:1"), (4, "4:1"))
        axes.xaxis.set_major_locator(FixedLocator([value for value, _ in names]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels([name for _, name in names])
        axes.set_xlabel("width : height")
        axes.set_ylabel("images")
    counts, edges = np.array(histogram.counts), np.array(histogram.edges)
    tall, wide = counts[edges[1:] <= 1.001].sum() / counts.sum(), counts[edges[:-1] >= 1.09].sum() / counts.sum()
    words = f"{tall:.0%} of the images are taller than wide; {wide:.0%} are at least a tenth wider than tall."
    return _chart(figure, "aspects", "Aspect ratios", words)


def _drops(report: PackingReport) -> Chart | None:
    if report.tokens == report.tokens_before_drop:
        return None
    with _axes() as (figure, axes):
        _bars(axes, report.distributions.drop_rate)
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.set_xlabel("share of an image's tokens that are dropped")
        axes.set_ylabel("images")
    return _chart(figure, "drops", "Token drop", f"On average {report.drop_rate:.1%} of an image's tokens are dropped.")


def _packs(report: PackingReport) -> Chart:
    packs, seq_len = report.distributions.packs, report.packing.seq_len
    with _axes(0.7 + 0.3 * len(packs)) as (figure, axes):
        for row, pack in enumerate(packs):
            left = 0
            for number, tokens in enumerate(pack):
                colour = _SERIES[number % len(_SERIES)]
                axes.barh(row, tokens, left=left, height=0.74, color=colour, edgecolor=_PAPER, linewidth=0.8)
                if tokens > seq_len / 14:
                    axes.text(left + tokens / 2, row, f"{tokens}", ha="center", va="center", size=8, color=_PAPER)
                left += tokens
            axes.barh(
                row, seq_len - left, left=left, height=0.74, color="none", edgecolor=_FAINT, hatch="////", linewidth=0
            )
        axes.set_ylim(len(packs) - 0.5, -0.5)
        axes.set_xlim(0, seq_len)
        axes.set_yticks(range(len(packs)), [f"pack {row + 1}" for row in range(len(packs))])
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False)
        axes.xaxis.set_major_formatter(_THOUSANDS)
        axes.set_xlabel("slots; each block is one image with its token count, hatching is padding")
    words = "; ".join(f"pack {row + 1}: {len(pack)} images, {sum(pack)} tokens" for row, pack in enumerate(packs))
    caption = f"{len(packs)} packs of {seq_len:,} slots. No {report.item} is split across packs."
    return _chart(figure, "packs", "The first packs", caption, f"{caption} {words}.")
