"""Print the tables of docs/packing.md from the results of `packing.py`, `filling.py` and `planning_time.py`.

`--update` replaces the tables of the page, each found by its first cell.

    python benchmarks/packing_tables.py [--results FOLDER] [--update docs/packing.md]
"""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, median

Row = dict[str, str]

RESULTS = Path(__file__).resolve().parent / "results"
COLUMNS = {  # heading: method and lookahead
    "bound": ("bound", ""),
    "`auto`, all images": ("auto", "all"),
    "`auto`, R = 1024": ("auto", "1024"),
    "`auto`, R = 256": ("auto", "256"),
    "`best_fit_decreasing`, all images": ("best_fit_decreasing", ""),
    "`best_fit`, R = 256": ("best_fit", "256"),
    "next-fit": ("next_fit", ""),
}
SPEEDS = {
    "`largest_fit`, R = 256": ("largest_fit", "256"),
    "`subset_sum`, R = 256": ("subset_sum", "256"),
    "`priced`, R = 256": ("priced", "256"),
    "`priced`, R = 1024": ("priced", "1024"),
    "`best_fit`, R = 256": ("best_fit", "256"),
    "`best_fit_decreasing`, all images": ("best_fit_decreasing", ""),
    "lightbinpack `obfd`, all images": ("lightbinpack", ""),
    "next-fit": ("next_fit", ""),
}


SETTINGS = {  # label of a row: setting of `planning_time.py`
    "native": "native",
    "`SampleSide` and `BetaDrop`; images are smaller, so a tenth as many packs": "SampleSide, BetaDrop",
    "`rescale`": "rescale",
    "five patch sizes; the planner measures each image at each size": "PatchSizes, 5 sizes",
}


def read(path: Path) -> list[Row]:
    with path.open() as file:
        return list(csv.DictReader(file))


def markdown(heading: list[str], lines: Iterable[list[str]]) -> str:
    """A Markdown table."""
    rows = ["| " + " | ".join(line) + " |" for line in (heading, *lines)]
    return "\n".join([rows[0], "|" + "---|" * len(heading), *rows[1:]])


def values(rows: list[Row], column: str, **where: str) -> list[float]:
    """The numbers of `column` in the rows whose columns are as in `where`."""
    return [float(row[column]) for row in rows if where.items() <= row.items()]


def seq_lens(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(row["seq_len"] for row in rows))


def mean_table(rows: list[Row]) -> str:
    """Mean share of filled slots by L, and the largest distance of `auto` from the bound."""
    lines = []
    for seq_len in seq_lens(rows):
        full = {
            key: values(rows, "percent_full", seq_len=seq_len, method=key[0], lookahead=key[1])
            for key in COLUMNS.values()
        }
        gap = max(b - ours for b, ours in zip(full["bound", ""], full["auto", "256"], strict=True))
        lines.append([f"{int(seq_len):,}", *(f"{mean(each):.2f} %" for each in full.values()), f"{gap:.2f}"])
    return markdown(["L, mean of all tables", *COLUMNS, "points below the bound at most, R = 256"], lines)


def input_table(rows: list[Row], seq_len: str) -> str:
    """Share of filled slots of each table at one L, and the algorithm that `auto` chooses."""
    lines = []
    for table in dict.fromkeys(row["table"] for row in rows):
        where = {"table": table, "seq_len": seq_len}
        full = [values(rows, "percent_full", **where, method=m, lookahead=r)[0] for m, r in COLUMNS.values()]
        ours = where | {"method": "auto", "lookahead": "256"}
        (chosen,) = (row["algorithm"] for row in rows if ours.items() <= row.items())
        lines.append([f"`{table}`", *(f"{each:.2f} %" for each in full), f"`{chosen}`"])
    return markdown([f"table, L = {int(seq_len):,}", *COLUMNS, "chosen at R = 256"], lines)


def speed_table(rows: list[Row]) -> str:
    """Million images/s by algorithm: slowest, median and fastest of all tables and L."""
    lines = []
    for name, (method, lookahead) in SPEEDS.items():
        speeds = values(rows, "million_images_per_second", method=method, lookahead=lookahead)
        if speeds:
            lines.append([name, *(f"{each:.1f}" for each in (min(speeds), median(speeds), max(speeds)))])
    return markdown(["million images/s", "slowest", "median", "fastest"], lines)


def planning_table(rows: list[Row]) -> str:
    """CPU seconds to plan, by setting and algorithm."""
    algorithms = list(dict.fromkeys(row["algorithm"] for row in rows))
    lines = []
    for label, setting in SETTINGS.items():
        seconds = [values(rows, "seconds", setting=setting, algorithm=algorithm)[0] for algorithm in algorithms]
        lines.append([label, *(f"{each:.1f}" for each in seconds)])
    return markdown(["setting, CPU seconds", *(f"`{algorithm}`" for algorithm in algorithms)], lines)


def fill_table(rows: list[Row]) -> str:
    """Padding by L for each fill, mean of all tables, and its cost."""
    heading = ["L, mean padding", "`none`", "`trim`", "`rescale`", "tokens `trim` drops", "images `rescale` resizes"]
    heading += ["`BetaDrop(0.5, 0.8)`, `none`", "the same, `undrop`", "drop rate with `undrop`"]
    lines = []
    for seq_len in seq_lens(rows):

        def of(column: str, fill: str, drop: str = "", seq_len: str = seq_len) -> float:
            return mean(values(rows, column, seq_len=seq_len, fill=fill, token_drop=drop))

        drop = "BetaDrop(0.5, 0.8)"
        padding = [of("percent_padding", fill) for fill in ("none", "trim", "rescale")]
        cost = [of("percent_of_tokens_lost", "trim"), of("percent_of_images_rescaled", "rescale")]
        dropped = [of("percent_padding", fill, drop) for fill in ("none", "undrop")]
        shown = [f"{each:.2f} %" for each in (*padding, *cost, *dropped)]
        lines.append([f"{int(seq_len):,}", *shown, f"{of('drop_rate', 'undrop', drop):.4f}"])
    return markdown(heading, lines)


def update(page: str, tables: Iterable[str]) -> str:
    """Return a Markdown page with each of its tables whose first cell is that of one of `tables` replaced by that one.

    Raises:
        ValueError: the page does not hold exactly one such table.
    """
    for table in tables:
        first = table.split(" | ")[0]
        pattern = re.compile(rf"^{re.escape(first)} \|.*(\n\|.*)+", re.MULTILINE)
        page, count = pattern.subn(table.replace("\\", r"\\"), page)
        if count != 1:
            raise ValueError(f"the page holds {count} tables that start with {first!r}; it must hold 1")
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--update", type=Path, help="Markdown page whose tables are replaced")
    options = parser.parse_args()
    names = ("packing", "filling", "planning_time")
    packing, filling, planning = (read(options.results / f"{name}.csv") for name in names)
    tables = [mean_table(packing), input_table(packing, "4096"), speed_table(packing)]
    tables += [planning_table(planning), fill_table(filling)]
    print(*tables, sep="\n\n")
    if options.update is not None:
        options.update.write_text(update(options.update.read_text(), tables))


if __name__ == "__main__":
    main()
