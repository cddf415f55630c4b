"""benchmarks/packing.py, filling.py and packing_tables.py on a few images: their figures are right, and limits hold."""

from __future__ import annotations

import csv
import importlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from patchnpack.packer import Rows, pack_lengths
from patchnpack.packer.binpacking.algorithms import CHOICES

Load = Callable[[str], ModuleType]
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SIZES = [(500, 375), (500, 375), (375, 500), (333, 500), (1200, 900), (64, 200), (90, 60)]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Import a benchmark as scripts import each other; the modules are gone after the test."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module
    for file in BENCHMARKS.glob("*.py"):
        sys.modules.pop(file.stem, None)


def run(script: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    missing = str(folder / "none-000000.tar")
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / script), "--shards", missing, "--sizes", str(folder), *options],
        capture_output=True,
        text=True,
        check=False,
    )


def write_sizes(folder: Path) -> None:
    (folder / "pictures.csv").write_text("width,height\n" + "".join(f"{w},{h}\n" for w, h in SIZES))


def print_tables(*options: str) -> list[str]:
    script = str(BENCHMARKS / "packing_tables.py")
    done = subprocess.run([sys.executable, script, *options], capture_output=True, text=True, check=True)
    return done.stdout.strip().split("\n\n")


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_results_are_complete_and_plausible(tmp_path: Path) -> None:
    write_sizes(tmp_path)
    results = tmp_path / "results"
    for name in ("packing", "filling"):
        out = str(results / f"{name}.csv")
        done = run(f"{name}.py", tmp_path, "--quick", "--images", "2000", "--out", out)
        assert done.returncode in (0, 1), done.stderr  # of so few images, the last packs count
        assert (done.returncode == 1) == ("FAILED" in done.stderr)
        assert "none-000000.tar is skipped" in done.stdout
    rows = read(results / "packing.csv")
    assert {(row["table"], row["seq_len"], row["images"]) for row in rows} == {
        ("pictures", "1024", "2000"),
        ("pictures", "4096", "2000"),
    }
    bound = {row["seq_len"]: int(row["packs"]) for row in rows if row["method"] == "bound"}
    assert all(int(row["packs"]) >= bound[row["seq_len"]] for row in rows)
    for row in read(results / "filling.csv"):
        assert 0 <= float(row["percent_padding"]) < 50
        assert float(row["largest_change"]) <= (0.0501 if row["fill"] == "rescale" else 0)
        assert (float(row["percent_of_tokens_lost"]) > 0) <= (row["fill"] == "trim")
        if row["token_drop"]:
            assert abs(float(row["drop_rate"]) - 0.5) < 0.02
    shutil.copy(BENCHMARKS / "results" / "planning_time.csv", results)
    tables = print_tables("--results", str(results))
    assert len(tables) == 5
    assert all(len({line.count("|") for line in table.splitlines() if line}) == 1 for table in tables)


@pytest.mark.parametrize("script", ["packing.py", "filling.py"])
def test_without_tables_the_script_says_so_and_writes_nothing(script: str, tmp_path: Path) -> None:
    done = run(script, tmp_path, "--out", str(tmp_path / "out.csv"))
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path} is skipped" in done.stdout
    assert not (tmp_path / "out.csv").exists()
    done = run(script, tmp_path, "--images", "0")
    assert done.returncode == 2
    assert "--images is 0; give at least 1" in done.stderr


def test_row_of_auto_is_what_pack_lengths_gives(load: Load) -> None:
    packing = load("packing")
    lengths = np.random.default_rng(0).integers(300, 1024, 3000)
    rows = list(packing.measure("drawn", lengths, 1024, None))
    found = packing.by_input(rows)["drawn", 1024]
    assert found["auto", "256"]["algorithm"] != CHOICES[0]
    for lookahead in (256, 1024, 3000):
        packs = len(pack_lengths(lengths, 1024, max_items=10**6, lookahead=lookahead)[1]) - 1
        row = found["auto", str(lookahead) if lookahead < 3000 else "all"]
        assert row["packs"] == packs
        assert row["percent_full"] == pytest.approx(100 * lengths.sum() / packs / 1024, abs=1e-4)


def row(method: str, lookahead: str, full: float, algorithm: str, speed: float) -> dict[str, Any]:
    values = {"table": "pictures", "seq_len": 1024, "method": method, "lookahead": lookahead}
    return values | {"algorithm": algorithm, "percent_full": full, "million_images_per_second": speed}


def input_rows(**changes: Any) -> list[dict[str, Any]]:
    """Rows of one input that meet every limit, except for `changes`: METHOD_LOOKAHEAD = share of filled slots."""
    full = {"bound_": 99.0, "best_fit_decreasing_": 98.95, "auto_all": 98.95}
    for lookahead in ("256", "1024"):
        full |= {f"{method}_{lookahead}": 98.9 for method in ("subset_sum", "largest_fit", "priced", "auto")}
    speed, rows = changes.pop("speed", 5.0), []
    for key, value in (full | changes).items():
        method, lookahead = key.rsplit("_", 1)
        rows.append(row(method, lookahead, value, "priced" if method == "auto" else method, speed))
    return rows


@pytest.mark.parametrize(
    ("changes", "sentences"),
    [
        ({}, []),
        (
            {"auto_all": 98.89},
            [
                "pictures, L = 1024, lookahead all: auto is 0.110 points below bound; the limit is 0.1",
                "pictures, L = 1024, lookahead all: auto is 0.060 points below best_fit_decreasing; the limit is 0.0",
            ],
        ),
        (
            {"subset_sum_256": 98.96},
            ["pictures, L = 1024, lookahead 256: auto chooses priced and loses 0.060 points; the limit is 0.05"],
        ),
        (
            {"bound_": 99.04, "auto_1024": 98.88},
            ["all tables, lookahead 1024: auto is 0.160 points below bound on average; the limit is 0.15"],
        ),
        (
            {"speed": 0.9},
            [
                f"pictures, L = 1024, lookahead {lookahead}: priced packs 0.90 million images/s; the limit is 1.0"
                for lookahead in (256, 1024)
            ],
        ),
    ],
    ids=["none", "everything in view", "choice", "mean", "speed"],
)
def test_each_missed_limit_is_named(changes: dict[str, Any], sentences: list[str], load: Load) -> None:
    assert list(load("packing").failures(input_rows(**changes))) == sentences


def test_fill_that_needs_more_packs_is_named(load: Load) -> None:
    filling = load("filling")
    width, height = np.array(SIZES)[np.random.default_rng(0).integers(0, len(SIZES), 500)].T
    rows = list(filling.measure("pictures", Rows.of_sizes(width, height), 1024))
    assert [row["fill"] for row in rows] == ["none", "trim", "rescale", "none", "undrop"]
    assert not list(filling.failures(rows))
    rows[1]["packs"] = rows[0]["packs"] + 1
    (sentence,) = filling.failures(rows)
    assert sentence.startswith(f"pictures, L = 1024: trim needs {rows[1]['packs']} packs; the limit is")


def test_docs_show_the_recorded_results() -> None:
    page = (BENCHMARKS.parent / "docs" / "packing.md").read_text()
    for table in print_tables():
        assert table in page, "run python benchmarks/packing_tables.py --update docs/packing.md"


def test_update_replaces_each_table_and_refuses_a_page_without_it(load: Load) -> None:
    tables = load("packing_tables")
    new = tables.markdown(["L", "full"], [["1,024", "99 %"], ["2,048", "98 %"]])
    page = "before\n\n| L | full |\n|---|---|\n| 1,024 | 90 % |\n\nafter\n"
    assert tables.update(page, [new]) == f"before\n\n{new}\n\nafter\n"
    with pytest.raises(ValueError, match="the page holds 0 tables"):
        tables.update("before\n", [new])
