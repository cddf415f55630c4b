from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from patchnpack.packer import ConstantDrop, Frames, Packing, Rows
from patchnpack.packer.analysis.advice import advise
from patchnpack.packer.analysis.report import report
from patchnpack.packer.analysis.sweep import sweep
from patchnpack.report.table import facts, print_report, print_sweep
from tests.packer.planning.plans import random_samples


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


def test_samples_of_several_images_have_lines_of_their_own_and_single_images_none() -> None:
    rows = random_samples(200, 5)
    packing = Packing(seq_len=256, max_images=8, oversize="skip", scope="sample", frames=Frames(3, short="skip"))
    lines = dict(facts(report(rows, packing), bad=2))
    found = report(rows, packing)
    assert lines["samples"] == f"{found.samples:,}"
    assert lines["images"] == f"{3 * found.samples:,}"
    assert lines["images per sample"] == "3 to 3, mean 3.00"
    assert lines["frames"] == f"{found.skipped['frames']} samples with fewer than 3 images, skipped"
    assert lines["oversize"] == f"{found.oversize} samples with more than 256 tokens or 8 images, skipped"
    assert lines["bad images"].endswith("with the others of their samples")
    assert "within samples" in lines["attention per pack"]
    assert "million samples" in lines["planning"]
    words = dict(facts(report(Rows.of_sizes([64] * 40, [64] * 40), Packing(seq_len=64))))
    assert not {"samples", "images per sample", "tokens per sample", "samples per pack"} & words.keys()
    assert not any("sample" in text for text in words.values())


def test_a_sweep_of_samples_advises_about_samples() -> None:
    swept = sweep(random_samples(200, 5), Packing(seq_len=128, scope="sample"))
    assert swept.samples == 200
    assert {setting.samples for setting in swept.settings} == {200}
    sentences = " ".join(advise(swept).sentences)
    for words in ("All samples fit: none has more than", "or 64 images", "of 200 samples", "each sample attends only"):
        assert words in sentences
    assert not re.search(r"\d images \(", sentences), "a share counts samples"
    out = io.StringIO()
    print_sweep(swept, advise(swept), Console(file=out, width=80, highlight=False))
    assert max(map(len, out.getvalue().splitlines())) <= 80
    assert "or more than --max-images images" in " ".join(out.getvalue().split())


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
