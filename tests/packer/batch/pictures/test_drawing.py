"""`draw_packs` shows every patch in its slot and every image rebuilt, with dropped patches hatched."""

import base64
import dataclasses
import io
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from patchnpack.packer import PackedBatch
from patchnpack.packer.batch.pictures import canvas, drawing, overlays
from patchnpack.packer.batch.pictures.drawing import draw_html, draw_packs
from tests.images import cut_patches

P = 16


def batch_of(
    packs: list[list[np.ndarray]], seq_len: int, *, keep: float = 1.0, keys: str = "image", gap: int = 0
) -> PackedBatch:
    """Pack images (H, W, C), whose sides are multiples of P, each followed by `gap` empty slots."""
    B, K, C = len(packs), max(1, *map(len, packs)), next(image for pack in packs for image in pack).shape[2]
    batch: dict[str, Any] = {
        "patches": torch.zeros(B, seq_len, P * P * C, dtype=torch.uint8),
        "segment_ids": torch.zeros(B, seq_len, dtype=torch.int32),
        "coords": torch.zeros(B, seq_len, 2, dtype=torch.int32),
        "grids": torch.zeros(B, K, 2, dtype=torch.int32),
        "image_sizes": torch.zeros(B, K, 2, dtype=torch.int32),
        "image_mask": torch.zeros(B, K, dtype=torch.bool),
        "labels": torch.full((B, K), -100),
        "rows": torch.full((B, K), -1),
    }
    rng = np.random.default_rng(0)
    for b, pack in enumerate(packs):
        used = 0
        for j, image in enumerate(pack):
            gh, gw = image.shape[0] // P, image.shape[1] // P
            kept = np.sort(rng.permutation(gh * gw)[: max(1, round(keep * gh * gw))])
            slots = slice(used, used + len(kept))
            tokens = cut_patches(image, P)[kept]
            batch["patches"][b, slots] = torch.from_numpy(tokens)
            batch["segment_ids"][b, slots] = j + 1
            batch["coords"][b, slots] = torch.from_numpy(np.stack((kept % gw, kept // gw), 1).astype(np.int32))
            batch["grids"][b, j] = torch.tensor((gw, gh))
            batch["image_mask"][b, j] = True
            batch["labels"][b, j] = j
            used += len(kept) + gap
    names = [[f"{keys}-{b}-{j}" for j in range(len(pack))] for b, pack in enumerate(packs)]
    return PackedBatch(**batch, keys=names, patch_size=P)


def noise(gw: int, gh: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 255, (gh * P, gw * P, channels), np.uint8)


def plain(gw: int, gh: int, colour: tuple[int, ...]) -> np.ndarray:
    return np.full((gh * P, gw * P, len(colour)), colour, np.uint8)


def colour_code(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.int64) @ (65536, 256, 1)


def holds(picture: Image.Image, part: np.ndarray) -> bool:
    """Whether `part` occurs somewhere in the picture, pixel for pixel."""
    whole, part = colour_code(np.asarray(picture)), colour_code(part)
    windows = np.lib.stride_tricks.sliding_window_view(whole, part.shape[1], axis=1)
    ys, xs = np.nonzero((windows[: len(whole) - len(part) + 1] == part[0]).all(-1))
    return any(
        np.array_equal(whole[y : y + part.shape[0], x : x + part.shape[1]], part) for y, x in zip(ys, xs, strict=True)
    )


@pytest.mark.parametrize(("count", "room"), [(16, 416), (260, 640), (1000, 416), (1600, 1500)])
def test_slots_show_their_patches_in_reading_order(count: int, room: int) -> None:
    colours = np.stack((np.arange(count) % 40 * 6 + 3, np.arange(count) // 40 * 6 + 3, np.full(count, 77)), -1)
    patches = np.broadcast_to(colours[:, None, None].astype(np.uint8), (count, P, P, 3))
    strip = drawing._strip(patches, np.repeat([1, 2], [count // 2, count - count // 2]), room)
    first = {code: at for at, code in reversed(list(enumerate(colour_code(np.asarray(strip)).ravel().tolist())))}
    where = [first[code] for code in colour_code(colours).tolist()]
    assert where == sorted(where)


def test_image_drawn_at_its_own_size_is_rebuilt_pixel_for_pixel() -> None:
    images = [noise(3, 2), noise(2, 5, seed=1)]
    picture = draw_packs(batch_of([images], 20))
    assert all(holds(picture, image) for image in images)


@pytest.mark.parametrize("scale", [10, P])
def test_dropped_tokens_are_hatched_without_darkening_neighbours(scale: int) -> None:
    (image,) = batch_of([[plain(6, 5, (250, 250, 250))]], 40, keep=0.5).images()
    thumb = (
        np.asarray(overlays.thumbs(image, overlays.Overlays(), scale)[0])
        .reshape(5, scale, 6, scale, 3)
        .transpose(0, 2, 1, 3, 4)
    )
    hatched = (thumb == canvas.STROKE).all(-1).any((2, 3))
    kept = np.zeros((5, 6), bool)
    x, y = image.coords.numpy().T
    kept[y, x] = True
    assert np.array_equal(hatched, ~kept)
    assert (thumb[kept] > 235).all()


def test_legend_names_dropped_tokens_only_where_there_are_some() -> None:
    def legend(keep: float) -> bytes:
        return draw_packs(batch_of([[noise(4, 4)]], 16, keep=keep)).crop((0, 0, 1600, 100)).tobytes()

    assert legend(0.5) == legend(0.75) != legend(1.0)


def test_padding_is_hatched_wherever_it_lies() -> None:
    images = [plain(2, 2, (9, 99, 199)), plain(3, 2, (199, 99, 9))]

    def strokes(gap: int) -> int:
        return int((np.asarray(draw_packs(batch_of([images], 10 + 2 * gap, gap=gap))) == canvas.STROKE).all(-1).sum())

    legend = strokes(0)
    assert strokes(3) > 2 * legend
    assert strokes(6) > strokes(3)


def test_images_of_one_sample_are_outlined_together_and_name_their_frames() -> None:
    plain_batch = batch_of([[noise(2, 2, seed=i) for i in range(4)], [noise(3, 2)]], 32)
    batch = dataclasses.replace(
        plain_batch,
        samples=torch.tensor([[1, 2, 2, 2], [1, 0, 0, 0]], dtype=torch.int32),
        frames=torch.tensor([[0, 0, 1, 2], [0, 0, 0, 0]], dtype=torch.int32),
    )
    picture, without = draw_packs(batch), draw_packs(plain_batch)
    (top, left), (bottom, right) = _outline(batch)
    box = picture.crop((left, top, right, bottom))
    assert all(holds(box, noise(2, 2, seed=i)) for i in (1, 2, 3))
    assert not holds(box, noise(2, 2, seed=0))
    assert picture.height > without.height
    other = dataclasses.replace(batch, frames=batch.frames * 2)
    assert draw_packs(other).tobytes() != picture.tobytes(), "a frame's number is not written"
    narrow = draw_packs(batch, width=480)  # the outlined images need two rows
    assert narrow.height > picture.height


def test_a_sample_that_fits_into_a_row_is_not_split() -> None:
    batch = batch_of([[noise(2, 2, seed=i) for i in range(8)]], 32)
    alone, halves = (
        dataclasses.replace(batch, samples=torch.tensor([numbers], dtype=torch.int32))
        for numbers in ([1, 2, 3, 4, 5, 5, 5, 5], [1, 1, 1, 1, 2, 2, 2, 2])
    )
    faint = [(np.asarray(draw_packs(each, width=800)) == canvas.FAINT).all(-1).sum(1) > 300 for each in (alone, halves)]
    assert faint[0].sum() == 2, "one outline, with an upper and a lower side"
    assert faint[1].sum() == 4


def _outline(batch: PackedBatch) -> tuple[tuple[int, int], tuple[int, int]]:
    """Upper left and lower right corner of the only outline: its sides are the longest runs of its colour."""
    faint = (np.asarray(draw_packs(batch)) == canvas.FAINT).all(-1)
    rows = np.flatnonzero(faint.sum(1) > 300)
    (columns,) = np.nonzero(faint[rows[0]])
    return (int(rows[0]), int(columns[0])), (int(rows[-1]) + 1, int(columns[-1]) + 1)


def test_empty_pack_is_drawn_as_padding() -> None:
    assert draw_packs(batch_of([[plain(2, 2, (1, 2, 3))], []], 8)).height > 0


def test_only_the_first_packs_are_drawn() -> None:
    batch = batch_of([[noise(2, 2)], [plain(2, 2, (1, 200, 3))], [noise(2, 2)]], 4)
    shown = (1, 200, 3)
    assert (np.asarray(draw_packs(batch, max_packs=2)) == shown).all(-1).any()
    assert not (np.asarray(draw_packs(batch, max_packs=1)) == shown).all(-1).any()


def test_same_batch_gives_same_picture() -> None:
    first, second = (draw_packs(batch_of([[noise(9, 7), noise(3, 8)]], 128, keep=0.7)) for _ in range(2))
    assert first.mode == "RGB"
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("width", [480, 800, 1600])
def test_picture_has_the_requested_width(width: int) -> None:
    assert draw_packs(batch_of([[noise(30, 2), noise(2, 30)] * 3], 512), width=width).width == width


def test_grey_patches_are_drawn_grey() -> None:
    image = noise(3, 3, channels=1)
    assert holds(draw_packs(batch_of([[image]], 9)), image.repeat(3, axis=2))


def test_transparent_pixels_show_white() -> None:
    image = noise(3, 3, channels=4)
    image[:24, :, 3], image[24:, :, 3] = 255, 0
    shown = image[..., :3].copy()
    shown[24:] = 255
    assert holds(draw_packs(batch_of([[image]], 9)), shown)


def test_neighbouring_images_have_different_colours_and_their_number_is_written_once() -> None:
    segments = np.repeat([1, 2, 3, 0, 4, 0], [100, 3, 1, 20, 60, 16])
    runs = [run for line in drawing._runs(segments, 40, 16) for run in line]
    assert [number for *_, number, labelled in runs if labelled] == [1, 2, 0, 4, 0]
    assert sum(end - start for start, end, *_ in runs) == 200
    assert all(canvas.colour_of(number) != canvas.colour_of(number + 1) for number in range(1, 20))


def test_label_waits_for_the_first_line_with_room() -> None:
    segments = np.repeat([1, 2], [9, 20])
    lines = drawing._runs(segments, 10, 16)
    assert [[(number, labelled) for *_, number, labelled in line] for line in lines] == [
        [(1, True), (2, False)],
        [(2, True)],
        [(2, False)],
    ]


@settings(max_examples=200, deadline=None)
@given(length=st.integers(1, 40_000), room=st.integers(416, 4000))
def test_slots_fit_the_line_and_every_line_holds_some(length: int, room: int) -> None:
    n, s = drawing._slots(length, room)
    assert 1 <= n * s <= room
    assert s >= min(drawing._MIN_SLOT, room // n)
    assert (-(-length // n) - 1) * n < length


def test_class_names_are_written_if_given() -> None:
    batch = batch_of([[noise(2, 2), noise(2, 2)]], 8)
    names = draw_packs(batch, classes=["cat", "dog"])
    assert names.height > draw_packs(batch).height
    assert names.tobytes() != draw_packs(batch, classes=["cat", "cow"]).tobytes()
    batch.labels[:] = -100
    draw_packs(batch, classes=[])


def test_label_without_a_name_is_refused_with_its_key() -> None:
    with pytest.raises(ValueError, match=r"'image-0-1' has label 1, but classes names only 1"):
        draw_packs(batch_of([[noise(2, 2), noise(2, 2)]], 8), classes=["cat"])


@pytest.mark.parametrize(
    ("options", "message"), [({"max_packs": 0}, "max_packs is 0"), ({"width": 100}, "width is 100 pixels.*480")]
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_packs(batch_of([[noise(2, 2)]], 4), **options)


def test_any_number_of_bands_is_drawn() -> None:
    for channels in (2, 5):
        assert draw_packs(batch_of([[noise(2, 2, channels=channels)]], 4)).mode == "RGB"


def test_long_keys_keep_both_ends() -> None:
    assert drawing._shorten("short") == "short"
    assert drawing._shorten("folder/photograph-000123") == "fold...-000123"


def test_line_break_in_a_key_does_not_break_the_caption() -> None:
    broken, plain_key = (draw_packs(batch_of([[noise(2, 2)]], 4, keys=key)) for key in ("a\nb", "a?b"))
    assert broken.tobytes() == plain_key.tobytes()


@pytest.mark.parametrize("key", ["衣服", "x" * 500])
@pytest.mark.parametrize("freetype", [True, False])
def test_any_key_can_be_written_with_and_without_freetype(
    key: str, freetype: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if freetype and not features.check("freetype2"):
        pytest.skip("this PIL was built without FreeType")
    monkeypatch.setattr(features, "check", lambda feature: freetype)
    canvas.font.cache_clear()
    picture = draw_packs(batch_of([[noise(2, 2)]], 4, keys=key))
    canvas.font.cache_clear()
    assert picture.size[0] == 1600


def test_drawing_imports_no_plotting_library() -> None:
    code = "import sys, patchnpack.packer.batch.pictures.drawing; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_notebook_shows_the_first_packs_as_a_picture_beside_the_text() -> None:
    batch = batch_of([[noise(4, 4)], [noise(3, 4)], [noise(2, 2)]], 16, keys="<b>&")
    page = batch._repr_html_()
    found = re.search(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert found is not None
    picture = Image.open(io.BytesIO(base64.b64decode(found[1])))
    expected = draw_packs(batch, max_packs=2, width=960)
    assert picture.size == expected.size
    difference = np.asarray(picture, np.int16) - np.asarray(expected.convert("RGB"), np.int16)
    assert np.abs(difference).mean() < 12
    assert "PackedBatch of 3 packs with 16 token slots, 66.6 % full" in page
    assert "src" not in page.replace(found[0], "")  # nothing else is loaded


def test_a_notebook_shows_any_number_of_bands() -> None:
    batch = batch_of([[noise(2, 2, channels=2)]], 4)
    assert "data:image/jpeg" in draw_html(batch)
