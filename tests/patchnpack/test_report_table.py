from __future__ import annotations

import io

import numpy as np
from rich.console import Console

from patchnpack.packer import ConstantDrop, Packing, Rows
from patchnpack.packer.report import report
from patchnpack.report_table import print_report


def _printed(packing: Packing, width: int = 80, bad: int = 0) -> str:
    rows = Rows.of_sizes(*np.random.default_rng(3).integers(48, 385, (2, 300)))
    out = io.StringIO()
    print_report(report(rows, packing), Console(file=out, width=width, highlight=False), bad=bad)
    return out.getvalue()


def test_table_fits_80_columns_and_names_every_way() -> None:
    text = _printed(Packing(seq_len=1024))
    assert max(map(len, text.splitlines())) <= 80
    for words in ("packed, subset_sum", "packed, next_fit", "padded to the longest", "resized to"):
        assert words in text
    assert "1.00x" in text


def test_bad_oversize_and_dropped_images_are_told() -> None:
    text = " ".join(_printed(Packing(seq_len=128, token_drop=ConstantDrop(0.5), oversize="skip"), bad=3).split())
    assert "3, left out; their headers cannot be used" in text
    assert "images of more than 128 tokens, left out" in text
    assert "before dropping" in text
