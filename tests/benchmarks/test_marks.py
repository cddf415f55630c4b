"""benchmarks/marks.py: only the cells determine the labels."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from patchnpack.loaders import scan

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "marks.py"
GRIDS = ((4, 3), (6, 6), (9, 4), (4, 9), (8, 32))


@pytest.fixture(scope="module")
def marks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("marks", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("grid", GRIDS)
def test_cells_determine_the_label(marks: ModuleType, grid: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        for label in range(9):
            ((x, y),) = marks.choose_cells("place", label, grid, rng)
            ninth = int((x + 0.5) / grid[0] * 3), int((y + 0.5) / grid[1] * 3)
            assert ninth == (label % 3, label // 3)
        for label in range(4):
            ((x, y),) = marks.choose_cells("steps", label, grid, rng)
            assert x == label
            assert 0 <= y < grid[1]
            first, second = marks.choose_cells("apart", label, grid, rng)
            assert abs(first[0] - second[0]) == label
            assert tuple(first) != tuple(second)


@pytest.mark.parametrize("task", ["place", "steps", "apart"])
def test_pictures_of_all_classes_share_the_same_patches(marks: ModuleType, task: str) -> None:
    grid, size = (6, 5), marks.PATCH
    kinds = set()
    for label in range(marks.CLASSES[task]):
        rng = np.random.default_rng(label)
        picture = marks.draw_picture(marks.choose_cells(task, label, grid, rng), grid, rng)
        assert picture.shape == (5 * size, 6 * size, 3)
        patches = picture.reshape(5, size, 6, size, 3).swapaxes(1, 2).reshape(30, size, size, 3)
        light = (patches >= 160).all(-1)
        plain = patches[~light.any((1, 2))]
        assert (plain == plain[0, 0, 0]).all()
        kinds.add((len(plain), *(disc.tobytes() for disc in light[light.any((1, 2))])))
    assert len(kinds) == 1


def test_shard_is_balanced_and_holds_only_its_grids(marks: ModuleType, tmp_path: Path) -> None:
    grids = ((6, 6), (4, 9))
    index = scan(marks.draw_marks(tmp_path, "place", grids, 36, (3, 0)))
    sizes = set(zip(index.width.tolist(), index.height.tolist(), strict=True))
    assert sizes == {(gw * marks.PATCH, gh * marks.PATCH) for gw, gh in grids}
    again = Path(marks.draw_marks(tmp_path / ".", "place", grids, 36, (3, 0))).read_bytes()
    assert again != Path(marks.draw_marks(tmp_path, "place", grids, 36, (3, 1))).read_bytes()


def test_grid_without_room_for_every_class_raises(marks: ModuleType) -> None:
    with pytest.raises(ValueError, match="3 x 9 patches has no room for every class; use at least 4 x 3"):
        marks.choose_cells("steps", 3, (3, 9), np.random.default_rng(0))
