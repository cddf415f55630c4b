"""Colours, hatching and text of the pictures of packs."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, ImageDraw, features

from patchnpack.packer.batch.pictures import canvas


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_opaque_pixels_keep_their_colours_and_transparent_ones_become_white(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (6, 5, channels), np.uint8)
    expected = pixels[..., :3].repeat(3 if channels == 1 else 1, axis=2)
    if channels == 4:
        pixels[:3, :, 3], pixels[3:, :, 3] = 255, 0
        expected[3:] = 255
    picture = canvas.rgb(pixels)
    assert picture.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(picture), expected)


def test_hatching_is_grey_repeats_every_8_pixels_and_slants_either_way() -> None:
    there, back = canvas.hatch(16, 24), canvas.hatch(16, 24, back=True)
    assert there.shape == (16, 24, 3)
    assert there.dtype == np.uint8
    for pattern in (there, back):
        np.testing.assert_array_equal(pattern[:, :16], pattern[:, 8:])
        assert {canvas.GROUND, canvas.STROKE} <= {tuple(colour) for colour in pattern.reshape(-1, 3).tolist()}
    np.testing.assert_array_equal(there[1:, :-1], there[:-1, 1:])
    np.testing.assert_array_equal(back[1:, 1:], back[:-1, :-1])


def test_neighbouring_numbers_have_other_colours_and_text_stands_out_from_each() -> None:
    numbers = range(1, 20)
    assert all(canvas.colour_of(one) != canvas.colour_of(other) for one, other in pairwise(numbers))
    for colour in map(canvas.colour_of, numbers):
        text = canvas.text_on(colour)
        assert text in (canvas.INK, canvas.PAPER)
        assert abs(np.dot(text, (0.299, 0.587, 0.114)) - np.dot(colour, (0.299, 0.587, 0.114))) > 70


def test_text_that_a_font_cannot_show_is_written_with_question_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda feature: True)
    assert canvas.printable("a\nb 衣é") == "a?b 衣é"
    monkeypatch.setattr(features, "check", lambda feature: False)
    assert canvas.printable("a\nb 衣é") == "a?b ?é"


def test_writing_returns_where_the_text_ends() -> None:
    picture = Image.new("RGB", (200, 30), canvas.PAPER)
    end = canvas.write(ImageDraw.Draw(picture), 10, 5, "patch", 12, canvas.INK)
    drawn = np.flatnonzero((np.asarray(picture) != 255).any((0, 2)))
    assert 10 <= drawn[0] < drawn[-1] <= end < 200
