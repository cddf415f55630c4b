from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from patchnpack.loaders.targets.tokens import cut, majority, means
from patchnpack.packer.geometry import Geometry

P, FILL = 3, 9
_SIDES = st.integers(1, 12)


@st.composite
def _cases(draw: st.DrawFn) -> tuple[np.ndarray, Geometry, np.ndarray]:
    """Values (h, w, 1), a grid of fewer or more patches, and some of its positions."""
    width, height = draw(_SIDES), draw(_SIDES)
    grid = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    values = draw(npst.arrays(np.int16, (height, width, 1), elements=st.integers(-2, 2)))
    places = [(x, y) for y in range(grid[1]) for x in range(grid[0])]
    kept = sorted(draw(st.sets(st.sampled_from(places), min_size=1)), key=lambda at: at[::-1])
    size = width, height
    return values, Geometry(size, (0, 0, *size), size, (False, False), grid, P), np.array(kept, np.int32)


def _seen(values: np.ndarray, geometry: Geometry, at: np.ndarray) -> list[list[float]]:
    """The values of a token, row by row; `FILL` beyond the image."""
    left, top = geometry.offset
    height, width, _ = values.shape
    rows = [top + at[1] * P + row for row in range(P)]
    columns = [left + at[0] * P + column for column in range(P)]
    return [[float(values[y, x, 0]) if y < height and x < width else FILL for x in columns] for y in rows]


@given(_cases())
def test_a_token_holds_the_values_of_its_pixels_and_fill_beyond_the_image(
    case: tuple[np.ndarray, Geometry, np.ndarray],
) -> None:
    values, geometry, coords = case
    slots = np.concatenate([np.zeros((2, 2), np.int32), coords])
    out = np.full((len(slots) + 1, P * P), 77, np.int16)
    cut(values, geometry, FILL, slots, out, 2, len(coords))
    assert (out[[0, 1, -1]] == 77).all()
    for token, at in zip(out[2:], coords, strict=False):
        assert token.tolist() == np.ravel(_seen(values, geometry, at)).tolist()


@given(_cases())
def test_majority_is_the_most_frequent_value_of_the_image_and_of_equals_the_smallest(
    case: tuple[np.ndarray, Geometry, np.ndarray],
) -> None:
    values, geometry, coords = case
    for found, at in zip(majority(values, geometry, FILL, coords), coords, strict=True):
        counts = Counter(value for value in np.ravel(_seen(values, geometry, at)).tolist() if value != FILL)
        best = max(counts.values(), default=0)
        assert found == min((value for value, n in counts.items() if n == best), default=FILL)


@given(_cases())
def test_means_leave_out_what_lies_beyond_the_image(case: tuple[np.ndarray, Geometry, np.ndarray]) -> None:
    values, geometry, coords = case
    for found, at in zip(means(values.astype(np.float32), geometry, FILL, coords), coords, strict=True):
        inside = [value for value in np.ravel(_seen(values, geometry, at)).tolist() if value != FILL]
        assert np.isclose(found[0], np.mean(inside) if inside else FILL)
