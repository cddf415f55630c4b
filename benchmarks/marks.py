"""Draw pictures whose class only positions reveal.

Each picture has light discs, each in a patch of its own, on one dark colour. The class depends on the task:

* place: in which ninth of the picture the disc lies, of 3 x 3; tests fractions of the picture's sides.
* steps: how many patches lie between the left edge and the disc, 0 to 3; tests counting from an edge.
* apart: how many columns apart two discs are, 0 to 3, whatever their rows; tests relative positions of patches.

A patch looks the same at every picture size: it holds a disc or nothing. Only the number of patches and the positions
of the discs differ. At every size the classes are equally frequent and have equally many discs. A model that does not
see positions therefore sees the same patches in every class, and is right only by chance.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from webdataset import TarWriter

# gw, gh patches across and down; P pixels of a patch's side

PATCH = 8
CLASSES = {"place": 9, "steps": 4, "apart": 4}

Grid = tuple[int, int]


def choose_cells(task: str, label: int, grid: Grid, rng: np.random.Generator) -> NDArray[np.int64]:
    """Choose cells (n, 2) as (x, y) for the discs of a picture: two for the task "apart", one for the others.

    Raises:
        ValueError: the grid (gw, gh) is smaller than 4 x 3, so it has no room for every class.

    >>> choose_cells("place", 5, (9, 6), np.random.default_rng(0)) // (3, 2)  # the middle row's right cell
    array([[2, 1]])
    >>> first, second = choose_cells("apart", 3, (9, 4), np.random.default_rng(0))
    >>> int(abs(first - second)[0])
    3
    """
    gw, gh = grid
    if gw < 4 or gh < 3:
        raise ValueError(f"a grid of {gw} x {gh} patches has no room for every class; use at least 4 x 3")
    cells: NDArray[np.int64] = np.stack(np.meshgrid(np.arange(gw), np.arange(gh)), -1).reshape(-1, 2)
    if task == "apart":
        columns = np.abs(cells[:, None, 0] - cells[:, 0])
        pairs = np.argwhere(np.triu(columns == label, 1))
        discs = pairs[rng.integers(len(pairs))]
    else:
        found = cells[:, 0] if task == "steps" else (2 * cells + 1) * 3 // (2 * np.array(grid)) @ (1, 3)
        discs = rng.choice(np.flatnonzero(found == label), 1)
    chosen: NDArray[np.int64] = cells[discs]
    return chosen


def draw_picture(discs: NDArray[np.int64], grid: Grid, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw a picture, uint8 (gh * P, gw * P, 3), with a disc in each of the cells (n, 2).

    >>> draw_picture(np.array([[0, 2]]), (5, 3), np.random.default_rng(0)).shape
    (24, 40, 3)
    """
    gw, gh = grid
    picture = np.empty((gh, PATCH, gw, PATCH, 3), np.uint8)
    picture[:] = rng.integers(10, 80, 3)
    distance = np.arange(PATCH) - (PATCH - 1) / 2
    inside = np.hypot(distance, distance[:, None]) < PATCH / 2
    for x, y in discs.tolist():
        picture[y, :, x][inside] = rng.integers(160, 256, 3)
    return picture.reshape(gh * PATCH, gw * PATCH, 3)


def draw_marks(folder: Path, task: str, grids: Sequence[Grid], count: int, seed: tuple[int, ...]) -> str:
    """Write a shard of `count` PNG pictures: classes in turn, each picture on a random grid of `grids`.

    Returns:
        The path of the shard, which holds the seed.
    """
    path = str(folder / f"marks-{'-'.join(map(str, seed))}.tar")
    with TarWriter(path, encoder=False, mtime=0) as shard:
        for i in range(count):
            rng = np.random.default_rng((*seed, i))
            label, grid = i % CLASSES[task], grids[int(rng.integers(len(grids)))]
            png = io.BytesIO()
            Image.fromarray(draw_picture(choose_cells(task, label, grid, rng), grid, rng)).save(png, "PNG")
            shard.write({"__key__": f"{i:06d}", "png": png.getvalue(), "cls": str(label).encode()})
    return path
