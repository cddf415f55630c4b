from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from patchnpack.packer import ConstantDrop, Packing, Rows
from patchnpack.packer.analysis.advice import advise
from patchnpack.packer.analysis.report import report
from patchnpack.packer.analysis.sweep import sweep
from patchnpack.report.table import print_report, print_sweep


def _printed(packing: Packing, width: int = 80, **left_out: Any) -> str:
    rows = Rows.of_sizes(*np.random.default_rng(3).integers(48, 385, (2, 300)))
    out = io.StringIO()
    print_report(report(rows, packing), Console(file=out, width=width, highlight=False), **left_out)
    return out.getvalue()


def test_table_fits_80_columns_and_names_every_method() -> None:
    text = _printed(Packing(seq_len=1024))
    assert max(map(len, text.splitlines())) <= 80
    for words in (
        "packed, subset_sum",
        "packed, next_fit",
        "padded to the longest",
        "bucketed",
        "fitted",
        "resized to",
    ):
        assert words in text
    assert "1.00x" in text


def test_table_reports_bad_images_oversize_images_and_token_drop() -> None:
    text = " ".join(
        _printed(Packing(seq_len=128, token_drop=ConstantDrop(0.5), oversize="skip"), bad=3, without_image=5).split()
    )
    assert re.search(r"bad images +3\b", text)
    assert "without image 5 samples, left out" in text
    assert "without image" not in _printed(Packing(seq_len=128))
    assert re.search(r"oversize .* more than 128 tokens, skipped", text)
    assert "before dropping" in text


@pytest.mark.parametrize("lookaheads", [(64,), (64, 256, 1024, 4096, 16384)])
def test_a_sweep_fits_80_columns_and_marks_the_best_and_the_current_setting(lookaheads: tuple[int, ...]) -> None:
    rows = Rows.of_sizes(*np.random.default_rng(3).integers(48, 385, (2, 300)))
    swept = sweep(rows, Packing(seq_len=64, lookahead=64), lookaheads=lookaheads)
    out = io.StringIO()
    print_sweep(swept, advise(swept), Console(file=out, width=80, highlight=False))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    table = text[: text.index("* best setting")]
    assert len(re.findall(r"%\*", table)) == 1
    assert len(re.findall(r"%=", table)) == 1
    assert len(re.findall(r"%", table)) >= 5 * (1 + 2 * len(lookaheads))
    for sentence in advise(swept).sentences:
        assert sentence in " ".join(text.split())


def test_a_sweep_of_next_fit_alone_has_one_column() -> None:
    rows = Rows.of_sizes([64] * 40, [64] * 40)
    swept = sweep(rows, Packing(seq_len=64, algorithm="next_fit"), algorithms=["next_fit"])
    out = io.StringIO()
    print_sweep(swept, advise(swept), Console(file=out, width=80, highlight=False))
    assert "R=" not in out.getvalue()
    assert "0.00%" in out.getvalue()
