"""Images smaller than a patch, from the shards to the batch: padded, left out and counted, or refused by name."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from patchnpack import (
    ErrorPolicy,
    FitTokens,
    Native,
    PackedImageLoader,
    Packing,
    PatchSizes,
    RandomResizedCrop,
    SampleSide,
    Square,
    pack_stream,
)
from patchnpack.cli.main import app
from patchnpack.loaders import Job, report_of, scan
from tests.images import draw_image, encode_image, write_tar
from tests.loaders.loading import keys_of

SIZES = [(8, 8), (64, 48), (15, 40), (1, 1), (100, 33), (1, 90), (40, 40), (12, 5), (16, 16)]
TINY = ["k0", "k3", "k7"]  # at patch size 16
PACKING = Packing(seq_len=64, patch_size=16)
POLICIES = [
    Native(),
    Native(edge="crop"),
    Native(edge="resize"),
    FitTokens(9),
    FitTokens(9, edge="pad", upsample=True),
    SampleSide(low=8, high=60),
    RandomResizedCrop(),
    RandomResizedCrop(max_tokens=4),
    Square(32),
]


@pytest.fixture(params=["JPEG", "PNG"])
def shard(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Nine images, three of them smaller than a patch, with labels."""
    members: list[tuple[str, bytes]] = []
    for i, size in enumerate(SIZES):
        extension = "jpg" if request.param == "JPEG" else "png"
        members += [(f"k{i}.{extension}", encode_image(draw_image(*size, seed=i), request.param))]
        members += [(f"k{i}.cls", str(i % 3).encode())]
    return write_tar(tmp_path / "s.tar", members)


@pytest.mark.parametrize("resolution", POLICIES, ids=str)
def test_a_loader_pads_tiny_images_by_default_in_every_policy(shard: str, resolution: Any) -> None:
    loader = PackedImageLoader(shard, PACKING.replace(resolution=resolution), batch_size=2, label="cls")
    for epoch in range(3):
        batches = list(loader)
        assert sorted(keys_of(batches)) == [f"k{i}" for i in range(len(SIZES))], epoch
        assert all(batch.grids[batch.image_mask].min() >= 1 for batch in batches)
    stats = loader.stats()
    assert (stats["images"], stats["bad_images"], stats["skipped"]["undersize"]) == (27, 0, 0)
    assert stats["undersize"] == 3 * (5 if resolution == Native(edge="crop") else 3)


def test_padding_is_black_and_the_pixels_are_the_image(shard: str) -> None:
    (batch,) = PackedImageLoader(shard, PACKING, batch_size=1)
    for image in batch.images():
        width, height = SIZES[int(image.key[1:])]
        pixels = image.pixels()
        assert not pixels[height:].any()
        assert not pixels[:, width:].any()
        want = np.asarray(draw_image(width, height, seed=int(image.key[1:])), np.int16)
        assert np.abs(pixels[:height, :width] - want).mean() < 30  # JPEG changes noise


def test_skip_leaves_them_out_and_counts_them_on_each_rank(shard: str) -> None:
    packing = PACKING.replace(undersize="skip")
    loaders = [PackedImageLoader(shard, packing, batch_size=1, rank=rank, world_size=2) for rank in range(2)]
    keys = [key for loader in loaders for key in keys_of(list(loader))]
    assert sorted(keys) == [f"k{i}" for i in range(len(SIZES)) if f"k{i}" not in TINY]
    assert sum(loader.stats()["undersize"] for loader in loaders) == 3
    assert sum(loader.stats()["skipped"]["undersize"] for loader in loaders) == 3
    assert report_of(PackedImageLoader(shard, packing, batch_size=1)).skipped == {"oversize": 0, "undersize": 3}


@pytest.mark.parametrize("on_error", ["skip", "raise"])
def test_error_names_the_first_before_anything_starts_whatever_on_error_says(shard: str, on_error: Any) -> None:
    for packing in (PACKING, PACKING.replace(algorithm="next_fit"), PACKING.replace(patch_size=PatchSizes((8, 16)))):
        with pytest.raises(ValueError, match=r"row 0 of 8x8 pixels is .* \(3 of 9 rows are\).*the first is 'k0' in"):
            PackedImageLoader(
                shard, packing.replace(undersize="error"), batch_size=1, errors=ErrorPolicy(on_error=on_error)
            )
    loader = PackedImageLoader(shard, PACKING, batch_size=1, errors=ErrorPolicy(on_error=on_error))
    assert len(keys_of(list(loader))) == 9


def test_a_state_of_another_treatment_is_refused(shard: str) -> None:
    state = PackedImageLoader(shard, PACKING, batch_size=1).state_dict()
    with pytest.raises(ValueError, match=r"packing\.undersize = 'pad', this loader has 'skip'"):
        PackedImageLoader(shard, PACKING.replace(undersize="skip"), batch_size=1).load_state_dict(state)


@pytest.mark.parametrize("store", ["images", "patches"])
@pytest.mark.parametrize("undersize", ["pad", "skip"])
def test_a_packed_folder_counts_what_its_shards_count(
    shard: str, store: Any, undersize: Any, tmp_path: Path, contents: Callable[..., object]
) -> None:
    packing = PACKING.replace(undersize=undersize, patch_size=PatchSizes((8, 16)))
    job = Job(
        source=scan(shard), out=str(tmp_path / "out"), packing=packing, store=store, label="cls", epochs=2, block=2
    )
    assert job.run()
    theirs = PackedImageLoader(shard, packing, batch_size=2, label="cls", block=2)
    ours = PackedImageLoader(tmp_path / "out", batch_size=2)
    for _ in range(2):
        assert list(map(contents, ours)) == list(map(contents, theirs))
    for what in ("images", "undersize", "skipped"):
        assert ours.stats()[what] == theirs.stats()[what], what
    assert ours.stats()["undersize"] == 6
    assert report_of(ours).skipped["undersize"] == (3 if undersize == "skip" else 0)


def test_report_train_and_pack_take_the_flag(shard: str, tmp_path: Path) -> None:
    run = CliRunner().invoke
    for flag, line in (
        ("pad", "3 images smaller than a patch, padded or enlarged to one"),
        ("skip", "a patch, skipped"),
    ):
        found = run(app, ["report", shard, "--seq-len", "64", "--undersize", flag])
        assert found.exit_code == 0, found.output
        assert line in " ".join(found.output.split())
    assert "undersize" not in run(app, ["report", shard, "--seq-len", "64", "--patch-size", "1"]).output
    refused = run(app, ["report", shard, "--seq-len", "64", "--undersize", "error"])
    assert refused.exit_code != 0
    packed = run(app, ["pack", shard, "-o", str(tmp_path / "out"), "--seq-len", "64", "--undersize", "skip"])
    assert packed.exit_code == 0, packed.output
    wrong = run(app, ["report", shard, "--undersize", "drop"])
    assert wrong.exit_code != 0


@pytest.mark.parametrize("resolution", POLICIES, ids=str)
@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (1, 1), (3, 2)])
def test_a_line_of_pixels_is_decoded_in_every_policy(size: tuple[int, int], resolution: Any) -> None:
    images: list[Any] = [draw_image(*size), np.asarray(draw_image(*size))]
    images += [encode_image(draw_image(*size), kind) for kind in ("JPEG", "PNG")]
    for orientation in (1, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        images.append(encode_image(draw_image(*size), "JPEG", exif=exif))
    for scaled in (True, False):
        packing = PACKING.replace(resolution=resolution, scaled_decode=scaled)
        stream = pack_stream([(image, i) for i, image in enumerate(images)], packing, batch_size=1)
        labels = [label for batch in stream for label in batch.labels[batch.image_mask].tolist()]
        assert sorted(labels) == list(range(len(images)))
        assert stream.stats()["bad_images"] == 0


def test_a_crop_is_the_pixels_of_its_box(tmp_path: Path) -> None:
    images = {f"k{i}": draw_image(210 + i, 195, seed=i) for i in range(4)}
    shard = write_tar(tmp_path / "s.tar", [(f"{key}.png", encode_image(image, "PNG")) for key, image in images.items()])
    packing = PACKING.replace(seq_len=256, resolution=RandomResizedCrop())
    loader = PackedImageLoader(shard, packing, batch_size=1)
    plans = [pack.images for pack in loader.steps().order.packs(0)]
    boxes = {row: box for plan in plans if plan for row, box in zip(plan.row.tolist(), plan.box.tolist(), strict=True)}
    found = [image for batch in loader for image in batch.images()]
    assert len(found) == 4
    for image in found:
        left, top, width, height = boxes[int(image.key[1:])]
        whole = np.asarray(images[image.key])
        np.testing.assert_array_equal(image.pixels(), whole[top : top + height, left : left + width])


def test_an_image_without_pixels_is_bad_and_not_tiny() -> None:
    file = io.BytesIO()
    draw_image(20, 20).save(file, "PNG")
    empty = bytearray(file.getvalue())
    empty[16:20] = bytes(4)
    stream = pack_stream([(bytes(empty), 0), (np.zeros((0, 5, 3), np.uint8), 1)], PACKING, batch_size=1)
    assert list(stream) == []
    assert (stream.stats()["bad_images"], stream.stats()["undersize"]) == (2, 0)


def test_a_source_of_tiny_images_only_says_so(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", [(f"k{i}.png", encode_image(draw_image(8, 8), "PNG")) for i in range(3)])
    with pytest.raises(ValueError, match=r"3 are smaller than a patch and undersize is 'skip'. .*undersize='pad'"):
        PackedImageLoader(shard, PACKING.replace(undersize="skip"), batch_size=1)
