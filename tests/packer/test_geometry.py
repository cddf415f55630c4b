from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from patchnpack.packer import Geometry


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    width, height = draw(st.tuples(st.integers(1, 5000), st.integers(1, 5000)))
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    box = (left, top, draw(st.integers(1, width - left)), draw(st.integers(1, height - top)))
    size = draw(st.tuples(st.integers(1, 3000), st.integers(1, 3000)))
    grid = draw(st.tuples(st.integers(1, 200), st.integers(1, 200)))
    flip = draw(st.tuples(st.booleans(), st.booleans()))
    return Geometry((width, height), box, size, flip, grid, draw(st.integers(1, 32)))


@given(geometries(), st.lists(st.tuples(st.floats(-100, 6000), st.floats(-100, 6000)), min_size=1))
@settings(deadline=None)
def test_to_source_inverts_to_image(geometry: Geometry, points: list[tuple[float, float]]) -> None:
    there = geometry.to_image(points)
    assert there.dtype == np.float64
    np.testing.assert_allclose(geometry.to_source(there), points, rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(geometry.to_image(geometry.to_source(points)), points, rtol=1e-9, atol=1e-6)


@given(geometries())
@settings(deadline=None)
def test_the_corners_of_the_box_become_those_of_the_resized_part(geometry: Geometry) -> None:
    left, top, width, height = geometry.box
    (right, bottom), offset = np.array(geometry.size), geometry.offset
    corners = geometry.to_image([[left, top], [left + width, top + height]]) + offset
    want = [[0, 0], [right, bottom]]
    for axis, mirrored in enumerate(geometry.flip):
        if mirrored:
            want[0][axis], want[1][axis] = want[1][axis], want[0][axis]
    np.testing.assert_allclose(corners, want, rtol=1e-12, atol=1e-9)


def test_a_centre_crop_cuts_half_of_the_rest_off_and_padding_cuts_nothing() -> None:
    geometry = Geometry((45, 30), (0, 0, 45, 30), (45, 30), (False, False), (2, 2), 16)
    assert (geometry.offset, geometry.extent) == ((6, 0), (32, 30))
    assert geometry.to_image([[6, 0], [38, 30]]).tolist() == [[0, 0], [32, 30]]


def test_a_mirrored_image_is_cut_off_after_mirroring() -> None:
    geometry = Geometry((45, 32), (0, 0, 45, 32), (45, 32), (True, False), (2, 2), 16)
    assert geometry.to_image([[39, 0]]).tolist() == [[0, 0]]  # 45 - 39 = 6 = offset
