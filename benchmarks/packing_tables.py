"""Print the tables of docs/packing.md, in Markdown, from the results of `packing.py` and `filling.py`.

python benchmarks/packing_tables.py [--results FOLDER]
"""

from __future__ import annotations

import argparse
import csv
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
    return markdown(["L", *COLUMNS, "points below the bound at most, R = 256"], lines)


def input_table(rows: list[Row], seq_len: str) -> str:
    """Share of filled slots of each table at one L, and the algorithm that `auto` chooses."""
    lines = []
    for table in dict.fromkeys(row["table"] for row in rows):
        where = {"table": table, "seq_len": seq_len}
        full = [values(rows, "percent_full", **where, method=m, lookahead=r)[0] for m, r in COLUMNS.values()]
        ours = where | {"method": "auto", "lookahead": "256"}
        (chosen,) = (row["algorithm"] for row in rows if ours.items() <= row.items())
        lines.append([f"`{table}`", *(f"{each:.2f} %" for each in full), f"`{chosen}`"])
    return markdown([f"sizes, L = {int(seq_len):,}", *COLUMNS, "chosen at R = 256"], lines)


def speed_table(rows: list[Row]) -> str:
    """Million images/s by algorithm: slowest, median and fastest of all tables and L."""
    lines = []
    for name, (method, lookahead) in SPEEDS.items():
        speeds = values(rows, "million_images_per_second", method=method, lookahead=lookahead)
        if speeds:
            lines.append([name, *(f"{each:.1f}" for each in (min(speeds), median(speeds), max(speeds)))])
    return markdown(["algorithm, million images/s", "slowest", "median", "fastest"], lines)


def fill_table(rows: list[Row]) -> str:
    """Padding by L for each fill, mean of all tables, and its cost."""
    heading = ["L", "`none`", "`trim`", "`rescale`", "tokens `trim` drops", "images `rescale` resizes"]
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    packing, filling = read(options.results / "packing.csv"), read(options.results / "filling.csv")
    print(mean_table(packing), input_table(packing, "4096"), speed_table(packing), fill_table(filling), sep="\n\n")


if __name__ == "__main__":
    main()
