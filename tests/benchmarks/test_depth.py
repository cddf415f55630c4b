from __future__ import annotations

from pathlib import Path

from tests.benchmarks.test_planning import run


def test_a_contrast_below_one_step_of_8_bits_is_learned_at_16(tmp_path: Path) -> None:
    deep, shallow = run("depth.py", tmp_path / "out.csv", "--quick")
    assert float(deep["accuracy"]) > 0.95
    assert float(shallow["accuracy"]) < 0.8
