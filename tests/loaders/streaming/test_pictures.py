"""Which members of a sample that arrives are its pictures, and how images are numbered in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from patchnpack.loaders import ErrorPolicy
from patchnpack.loaders.streaming.pictures import PictureReader, image_members, pictures_in
from tests.images import draw_image, encode_image


def test_lists_of_any_depth_and_arrays_of_four_dimensions_hold_pictures() -> None:
    clip, gray = np.zeros((3, 4, 5, 3), np.uint8), np.zeros((4, 5), np.uint8)
    found = list(pictures_in([b"a", None, (clip, [gray, None])]))
    assert found[0] == b"a"
    assert [each.shape for each in found[1:]] == [(4, 5, 3)] * 3 + [(4, 5)]
    assert list(pictures_in(None)) == list(pictures_in([])) == []


@pytest.mark.parametrize(
    ("names", "members"),
    [
        (["p10.PNG", "p2.png", "p1.jpg", "cls"], ["p1.jpg", "p2.png", "p10.PNG"]),
        (["a.jpg", "a.png", "a.b.txt"], ["a.png", "a.jpg"]),  # of one name, in the order of `image`
        (["png", "__png", "__url__", "json"], ["png"]),
    ],
)
def test_members_are_in_natural_order(names: list[str], members: list[str]) -> None:
    assert image_members(dict.fromkeys(names, b""), ["png", "jpg"]) == members


def test_images_are_numbered_without_the_bad_ones_and_files_with_them() -> None:
    drawn = [draw_image(16, 24, seed=1), draw_image(24, 16, seed=2), draw_image(24, 16, seed=3), draw_image(90, 90)]
    pages = encode_image(drawn[0], "TIFF", save_all=True, append_images=drawn[1:3])
    animation = encode_image(drawn[0], "PNG", save_all=True, append_images=[draw_image(16, 24, seed=4)])
    values: list[Any] = [b"no image", pages, drawn[3], animation, np.asarray(drawn[0])]
    reader = PictureReader(ErrorPolicy(max_pixels=1000), any_kind=False, pages="first", all_pages=True)
    pictures, runs, bad = reader.all(values, "a")
    assert pictures[:4] == values[:4]
    numbers = [(run.file, run.page, run.frames, run.number) for run in runs]
    assert numbers == [(1, 0, 1, 0), (1, 1, 1, 1), (1, 2, 1, 2), (3, 0, 2, 3), (4, 0, 1, 5)]
    assert [run.header.width for run in runs] == [16, 24, 24, 16, 16]
    assert [each.stage for each in bad] == ["header", "limit"]
    assert [each.reason.partition(":")[0] for each in bad] == [f"picture {n} of the sample" for n in (1, 3)]
