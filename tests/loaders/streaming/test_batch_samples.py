"""The rows that a plan needs of the samples that wait."""

from __future__ import annotations

from typing import Any

import pytest

from patchnpack.loaders import ErrorPolicy
from patchnpack.loaders.shards.sample_rule import sample_rule
from patchnpack.loaders.streaming.batch_samples import rows_of
from patchnpack.loaders.streaming.grouping import Group
from patchnpack.loaders.streaming.samples import Sample, SampleReader
from tests.images import draw_image, encode_image


def arrived(values: list[Any], *, members: bool = True) -> list[Sample]:
    rule = sample_rule("members") if members else None
    reader = SampleReader("png", None, None, (), ErrorPolicy(), rule=rule)
    found = [reader.read({"png": value}) for value in values]
    assert all(isinstance(each, Sample) for each in found)
    return found  # type: ignore[return-value]


def test_rows_of_single_images_have_no_places_in_samples() -> None:
    data = encode_image(draw_image(16, 24), "PNG")
    rows = rows_of([Group([each]) for each in arrived([data, draw_image(8, 9)], members=False)], stream=3)
    assert (rows.row.tolist(), rows.row_id.tolist()) == ([0, 1], [3 << 32, 3 << 32 | 1])
    assert (rows.width.tolist(), rows.height.tolist()) == ([16, 8], [24, 9])
    assert (rows.page, rows.frames, rows.offsets) == (None, None, None)
    assert rows.bytes_per_pixel is not None
    assert rows.bytes_per_pixel.tolist() == [len(data) / (16 * 24), 0]


def test_rows_of_samples_say_which_images_are_one_and_share_the_bytes_of_their_file() -> None:
    drawn = [draw_image(16, 16, seed=i) for i in range(3)]
    animation = encode_image(drawn[0], "PNG", save_all=True, append_images=drawn[1:])
    first, second, third = arrived([[animation, drawn[0]], [drawn[1]], [drawn[2], drawn[1]]])
    rows = rows_of([Group([first]), Group([second, third])], stream=0, several=True)
    assert rows.row.tolist() == [0, 0, 1, 2, 2]
    assert rows.offsets is not None
    assert rows.frames is not None
    assert rows.page is not None
    assert rows.offsets.tolist() == [0, 2, 5]
    assert rows.frames.tolist() == [3, 1, 1, 1, 1]
    assert rows.page.tolist() == [0, 3, 0, 0, 1]
    assert rows.bytes_per_pixel is not None
    assert rows.bytes_per_pixel.tolist() == pytest.approx([len(animation) / (3 * 16 * 16), 0, 0, 0, 0])
