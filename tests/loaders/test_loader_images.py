from __future__ import annotations

import io
import itertools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from patchnpack.loaders import Index, PackedImageLoader, scan
from patchnpack.packer import ConstantDrop, FitTokens, Native, PackedBatch, Packing, Square
from tests.loaders.loading import PACKING, keys_of

Check = Callable[..., None]
Contents = Callable[[PackedBatch], tuple[object, ...]]
MakeDrawn = Callable[..., Any]


pytestmark = pytest.mark.usefixtures("no_threads_left")


# Images that are left out


def spoil(drawn: Any, cut: Sequence[str] = (), headless: Sequence[str] = ()) -> None:
    """Cut images off after their headers, or remove their headers."""
    index = scan(drawn.shards)
    change: dict[str, bytes] = {}
    for i, key in enumerate(index.keys):
        data = index.reader().read(int(index.shard_of(i)), int(index.offset[i]), int(index.nbytes[i]))
        if key in cut or key in headless:
            change |= {f"{key}.{e}": data[:-40] if key in cut else b"spoilt" for e in ("jpg", "png")}
    drawn.rewrite(change)


@pytest.mark.parametrize("shuffle", [False, True])
def test_bad_images_are_counted_with_a_reason_and_others_stay_correct(
    shuffle: bool, make_drawn: MakeDrawn, check_batch: Check, caplog: pytest.LogCaptureFixture
) -> None:
    drawn = make_drawn([12, 14])
    cut, headless = ["s0i001", "s0i006", "s1i000", "s1i013"], ["s0i000", "s1i007"]
    spoil(drawn, cut, headless)
    loader = PackedImageLoader(drawn.shards, PACKING, batch_size=2, label="cls", extras=["txt"], shuffle=shuffle)
    with caplog.at_level(logging.WARNING, "patchnpack"):
        batches = list(loader)
    for batch in batches:
        check_batch(batch, drawn, loader.index, PACKING)
    assert sorted(keys_of(batches)) == sorted(set(drawn.keys) - {*cut, *headless})
    stats = loader.stats()
    assert (stats["bad_images"], stats["images"], stats["batches"]) == (6, 20, len(batches))
    assert stats["tokens"] == sum(batch.num_tokens for batch in batches)
    assert stats["slots"] == len(batches) * 2 * 64
    by_key = {bad["key"]: bad for bad in stats["bad"]}
    assert {key: bad["stage"] for key, bad in by_key.items()} == dict.fromkeys(cut, "decode") | dict.fromkeys(
        headless, "header"
    )
    for key, bad in by_key.items():
        row = loader.index.keys.index(key)
        assert bad["row"] == row
        assert bad["shard"] == drawn.shards[int(key[1])]
        assert bad["offset"] == loader.index.offset[row]
        assert bad["reason"]
        assert sum(repr(key) in message and bad["reason"] in message for message in caplog.messages) == 1


def test_bad_images_do_not_change_the_number_of_batches_or_the_rank_that_counts_them(make_drawn: MakeDrawn) -> None:
    drawn = make_drawn([12, 14])
    steps = [len(list(PackedImageLoader(drawn.shards, PACKING, batch_size=1, rank=r, world_size=3))) for r in range(3)]
    spoil(drawn, drawn.keys[3:9], drawn.keys[20:21])
    keys: list[str] = []
    bad: list[str] = []
    for rank in range(3):
        loader = PackedImageLoader(drawn.shards, PACKING, batch_size=1, rank=rank, world_size=3)
        batches = list(loader)
        assert abs(len(batches) - steps[rank]) <= 1  # the image without a header is not planned
        assert len(batches) == len(loader)
        keys += keys_of(batches)
        bad += [entry["key"] for entry in loader.stats()["bad"]]
    assert sorted(keys + bad) == sorted(drawn.keys)
    assert sorted(bad) == sorted(drawn.keys[3:9] + drawn.keys[20:21])


def test_batches_with_bad_images_are_the_same_for_any_number_of_threads(
    make_drawn: MakeDrawn, contents: Contents
) -> None:
    drawn = make_drawn([26])
    spoil(drawn, drawn.keys[::3], drawn.keys[1:2])

    def run(num_threads: int) -> tuple[object, ...]:
        loader = PackedImageLoader(
            drawn.shards, PACKING, batch_size=3, label="cls", extras=["txt"], num_threads=num_threads
        )
        return [contents(batch) for batch in loader], loader.stats()["bad"]

    assert run(1) == run(8)


def test_source_without_a_usable_image_raises_with_counts_per_reason(make_drawn: MakeDrawn, index: Index) -> None:
    drawn = make_drawn([3])
    spoil(drawn, headless=drawn.keys)
    reason = r"none of the 3 images can be used: 3 are bad, 0 filtered out by where; .*: it begins with "
    with pytest.raises(ValueError, match=reason):
        PackedImageLoader(drawn.shards, PACKING, batch_size=1)
    with pytest.raises(ValueError, match="0 are bad, 60 filtered out by where"):
        PackedImageLoader(index, PACKING, batch_size=1, where=lambda index: np.zeros(len(index), np.bool_))


@pytest.mark.parametrize("world_size", [1, 2])
def test_oversize_images_are_counted_and_skipped_on_request(world_size: int, index: Index) -> None:
    packing = PACKING.replace(seq_len=20, oversize="skip")
    tokens = -(-index.width // 8) * -(-index.height // 8)
    loaders = [
        PackedImageLoader(index, packing, batch_size=2, rank=r, world_size=world_size) for r in range(world_size)
    ]
    keys = [key for loader in loaders for key in keys_of(list(loader))]
    assert sorted(keys) == [key for key, n in zip(index.keys, tokens, strict=True) if n <= 20]
    over = int((tokens > 20).sum())
    assert sum(loader.stats()["skipped"]["oversize"] for loader in loaders) == over > 0
    assert sum(loader.stats()["oversize"] for loader in loaders) == over


def test_image_without_a_label_is_counted_and_gets_minus_100(make_drawn: MakeDrawn) -> None:
    drawn = make_drawn([6])
    drawn.rewrite({"s0i002.cls": None, "s0i004.cls": None, "s0i001.txt": None})
    loader = PackedImageLoader(drawn.shards, PACKING, batch_size=8, label="cls", extras=["txt"])
    (batch,) = loader
    for image, text in zip(batch.images(), itertools.chain(*batch.extras["txt"]), strict=True):
        assert image.label == (-100 if image.key in ("s0i002", "s0i004") else drawn.labels[image.key])
        assert text == (None if image.key == "s0i001" else drawn.texts[image.key])
    assert loader.stats()["without_label"] == 2


def test_targets_are_vectors_and_nan_if_missing(index: Index, drawn: Any) -> None:
    def target(members: dict[str, bytes]) -> list[float] | None:
        label = int(members["cls"])
        return None if label == 3 else [label, label / 2]

    loader = PackedImageLoader(index, PACKING, batch_size=4, label=target)
    without = sum(label == 3 for label in drawn.labels.values())
    for batch in loader:
        assert batch.labels.shape == (4, 7, 2)
        assert batch.labels.dtype == torch.float32
        assert batch.labels[~batch.image_mask].isnan().all()
        for image in batch.images():
            label = drawn.labels[image.key]
            assert isinstance(image.label, torch.Tensor)
            assert image.label.isnan().all() if label == 3 else image.label.tolist() == [label, label / 2]
    assert loader.stats()["without_label"] == without > 0


def test_num_classes_covers_every_label(index: Index, drawn: Any) -> None:
    def classes(label: Any, names: list[str] | None = None) -> int:
        return PackedImageLoader(index, PACKING, batch_size=2, label=label, classes=names).num_classes

    assert classes("cls") == max(drawn.labels.values()) + 1
    assert classes("cls", list("0123456789ab")) == 12
    assert classes(lambda members: [0.5] * 4) == 4
    for label in (None, lambda members: 3):
        with pytest.raises(ValueError, match=r"number of classes is unknown .*; give label=, classes="):
            classes(label)


# Channels and resolutions


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_image_mode_sets_the_channels_of_every_patch(mode: str, index: Index, drawn: Any) -> None:
    loader = PackedImageLoader(index, PACKING.replace(image_mode=mode), batch_size=4)
    images = 0
    for batch in loader:
        assert batch.patches.shape[-1] == 64 * len(mode)
        for image in batch.images():
            theirs = np.asarray(Image.fromarray(drawn.pixels[image.key]).convert(mode)).astype(int)
            height, width = theirs.shape[:2]
            ours = image.pixels()[:height, :width].astype(int)
            # Grey is the luminance in the JPEG; PIL converts from RGB, where strong colours are clipped.
            assert np.abs(ours - theirs.reshape(ours.shape)).mean() <= (1 if mode == "L" else 0)
            images += 1
    assert images == 60


@pytest.mark.parametrize(
    "resolution", [Native(edge="crop"), Native(edge="resize"), FitTokens(9), FitTokens(64, upsample=True), Square(24)]
)
def test_resized_and_cropped_images_match_pil(resolution: Any, index: Index, drawn: Any) -> None:
    packing = PACKING.replace(resolution=resolution, scaled_decode=False)
    for batch in PackedImageLoader(index, packing, batch_size=4):
        for image in batch.images():
            source = Image.fromarray(drawn.pixels[image.key])
            gw, gh = image.grid
            if resolution == Native(edge="crop"):
                left, top = (source.width - gw * 8) // 2, (source.height - gh * 8) // 2
                expected = source.crop((left, top, left + gw * 8, top + gh * 8))
            else:
                expected = source.resize((gw * 8, gh * 8), Image.Resampling.BICUBIC)
            assert np.array_equal(image.pixels(), np.asarray(expected))


@pytest.mark.parametrize("resolution", [Native(), FitTokens(16)])
def test_dropped_tokens_are_black_and_others_are_unchanged(resolution: Any, index: Index) -> None:
    whole_packing = PACKING.replace(resolution=resolution)
    whole = {
        image.key: image.pixels()
        for batch in PackedImageLoader(index, whole_packing, batch_size=4)
        for image in batch.images()
    }
    for batch in PackedImageLoader(
        index, whole_packing.replace(token_drop=ConstantDrop(0.5), fill="none"), batch_size=4
    ):
        for image in batch.images():
            gw, gh = image.grid
            assert len(image.coords) == max(1, round(gw * gh / 2))
            kept = np.zeros((gh, gw), np.bool_)
            kept[image.coords[:, 1], image.coords[:, 0]] = True
            mask = kept.repeat(8, 0).repeat(8, 1)[..., None]
            assert np.array_equal(image.pixels(), whole[image.key] * mask)


def test_grid_multiple_pads_whole_patches(index: Index, drawn: Any) -> None:
    packing = PACKING.replace(patch_size=4, grid_multiple=2, seq_len=256)
    for batch in PackedImageLoader(index, packing, batch_size=2):
        for image in batch.images():
            height, width, _ = drawn.pixels[image.key].shape
            assert image.grid == (-(-width // 8) * 2, -(-height // 8) * 2)
            canvas = image.pixels()
            assert np.array_equal(canvas[:height, :width], drawn.pixels[image.key])
            assert not canvas[height:].any()
            assert not canvas[:, width:].any()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotated_photographs_are_loaded_upright(
    orientation: int,
    tmp_path: Path,
    write_tar: Callable[..., str],
    draw_image: Callable[..., Image.Image],
    encode_image: Callable[..., bytes],
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode_image(draw_image(40, 23), "JPEG", exif=exif)
    (batch,) = PackedImageLoader(write_tar(tmp_path / "a.tar", [("a.jpg", data)]), PACKING, batch_size=1)
    (image,) = batch.images()
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert batch.image_sizes[0, 0].tolist() == list(upright.shape[1::-1])
    assert np.array_equal(image.pixels()[: upright.shape[0], : upright.shape[1]], upright)


# Real photographs

PHOTOGRAPHS = "/train-{000008..000009}.tar"


def test_photographs_are_loaded_pixel_for_pixel(clothing: str) -> None:
    index = scan(clothing + PHOTOGRAPHS)
    loader = PackedImageLoader(
        index,
        Packing(seq_len=1024, patch_size=32),
        batch_size=4,
        label="cls",
        num_threads=2,
        where=lambda index: np.arange(len(index)) % 5 == 0,
    )
    seen: list[str] = []
    for batch in loader:
        for image, row in zip(batch.images(), batch.rows[batch.image_mask].tolist(), strict=True):
            data = index.reader().read(int(index.shard_of(row)), int(index.offset[row]), int(index.nbytes[row]))
            pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
            height, width, _ = pixels.shape
            canvas = image.pixels()
            assert np.array_equal(canvas[:height, :width], pixels)
            assert not canvas[height:].any()
            assert not canvas[:, width:].any()
            assert image.key == index.keys[row]
            assert str(image.label) == index.cls[row]
            seen.append(image.key)
    assert sorted(seen) == sorted(index.keys[::5])


def test_photographs_are_identical_for_1_2_and_8_threads(clothing: str, contents: Contents) -> None:
    index = scan(clothing + PHOTOGRAPHS)
    runs = []
    for num_threads in (1, 2, 8):
        loader = PackedImageLoader(
            index, Packing(resolution=FitTokens(196)), batch_size=4, label="cls", shuffle=True, num_threads=num_threads
        )
        runs.append([contents(batch) for batch in loader])
        assert loader.stats()["images"] == 348
    assert runs[0] == runs[1] == runs[2]


def test_every_photograph_is_loaded_once_per_epoch(clothing: str) -> None:
    index = scan(clothing + "/train-{000000..000009}.tar")
    loader = PackedImageLoader(index, Packing(resolution=FitTokens(25)), batch_size=16, shuffle=True)
    keys = keys_of(list(loader))
    assert len(keys) == len(set(keys)) == 3068
    assert set(keys) == set(index.keys)
