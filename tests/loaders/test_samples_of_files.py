"""Samples whose images lie in one file or are members of one sample of a tar: pages, frames and members."""

from __future__ import annotations

import io
import logging
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from patchnpack import ErrorPolicy, Frames, PackedImageLoader, RandomResizedCrop, Views, pack_stream
from patchnpack.packer import PackedBatch
from tests.images import draw_image, join_patches, read_tar, rewrite_tar, write_tar
from tests.loaders.documents import PACKING, Documents, conserved


def tiff_of(pages: Sequence[np.ndarray]) -> bytes:
    file = io.BytesIO()
    first, *others = map(Image.fromarray, pages)
    first.save(file, "TIFF", save_all=True, append_images=others)
    return file.getvalue()


@pytest.fixture
def tiffs(tmp_path: Path) -> tuple[str, dict[str, list[np.ndarray]]]:
    """A tar of 6 TIFFs of 1 to 6 pages of mixed sizes, and their pages."""
    rng = np.random.default_rng(0)
    pages = {
        f"t{i}": [
            np.asarray(draw_image(int(rng.integers(8, 40)), int(rng.integers(8, 40)), seed=10 * i + j))
            for j in range(i + 1)
        ]
        for i in range(6)
    }
    members = [(f"{name}.tif", tiff_of(of_file)) for name, of_file in pages.items()]
    labels = [(f"{name}.cls", str(i).encode()) for i, name in enumerate(pages)]
    return write_tar(
        tmp_path / "tiffs.tar", [member for pair in zip(members, labels, strict=True) for member in pair]
    ), pages


def check_pages(batches: Sequence[PackedBatch], pages: dict[str, list[np.ndarray]]) -> dict[str, list[int]]:
    """Assert that each image has the pixels of its page; return the frames of each sample."""
    found: dict[str, list[int]] = {}
    for batch in batches:
        images = iter(batch.images())
        for b, keys in enumerate(batch.keys):
            for j, key in enumerate(keys):
                frame = int(batch.frames[b, j])
                found.setdefault(key, []).append(frame)
                pixels = pages[key][frame]
                image = next(images)
                assert image.label == int(key[1:])
                canvas = join_patches(image.patches.numpy(), image.coords.numpy(), image.grid, 8)
                assert np.array_equal(canvas[: pixels.shape[0], : pixels.shape[1]], pixels), (key, frame)
    return found


def test_pages_of_a_file_are_a_sample_of_one_read(tiffs: tuple[str, dict[str, list[np.ndarray]]]) -> None:
    shard, pages = tiffs
    loader = PackedImageLoader(shard, PACKING, batch_size=1, sample="members", label="cls", shuffle=True)
    batches = list(loader)
    assert check_pages(batches, pages) == {name: list(range(len(of_file))) for name, of_file in pages.items()}
    stats = loader.stats()
    assert (stats["samples"], stats["images"], stats["multi_page"]) == (6, 21, 0)
    chosen = PackedImageLoader(
        shard,
        PACKING.replace(frames=Frames(2, how="stride:2", short="skip")),
        batch_size=1,
        sample="members",
        label="cls",
    )
    of_chosen = {name: of_file[::2] for name, of_file in pages.items()}
    assert check_pages(list(chosen), of_chosen) == {f"t{i}": [0, 1] for i in range(2, 6)}
    assert chosen.stats()["skipped"]["frames"] == 2


@pytest.mark.parametrize("on_bad", ["sample", "image"])
def test_bad_page_of_a_file_is_named_by_its_number(
    tiffs: tuple[str, dict[str, list[np.ndarray]]], on_bad: Any, tmp_path: Path
) -> None:
    shard, pages = tiffs
    rewrite_tar(shard, {"t4.tif": _without_pixels(dict(read_tar(shard))["t4.tif"], 2)})
    loader = PackedImageLoader(
        shard, PACKING, batch_size=1, sample="members", label="cls", errors=ErrorPolicy(on_bad=on_bad)
    )
    found = check_pages(list(loader), pages)
    stats = loader.stats()
    assert [(bad["key"], bad["page"], bad["stage"]) for bad in stats["bad"]] == [("t4", 2, "decode")]
    if on_bad == "sample":
        assert "t4" not in found
        assert (stats["images"], stats["bad_images"], stats["left_out"], stats["bad_samples"]) == (16, 1, 4, 1)
    else:
        assert found["t4"] == [0, 1, 3, 4]
        assert (stats["images"], stats["bad_images"], stats["left_out"], stats["bad_samples"]) == (20, 1, 0, 0)


class Items:
    """Files of three pages with a label and a text, of which page 0 of item 1 has no pixels."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, i: int) -> dict[str, Any]:
        data = tiff_of([np.asarray(draw_image(16, 24, seed=page)) for page in range(3)])
        return {"image": _without_pixels(data, 0) if i == 1 else data, "label": i, "txt": f"the text of {i}"}


def test_pages_of_an_item_keep_its_label_and_members_where_the_first_page_is_bad() -> None:
    loader = PackedImageLoader(
        Items(),
        PACKING,
        batch_size=1,
        sample="members",
        label="label",
        extras=["txt"],
        errors=ErrorPolicy(on_bad="image"),
    )
    (batch,) = loader
    assert batch.frames[batch.image_mask].tolist() == [0, 1, 2, 1, 2, 0, 1, 2]
    labels = [0, 0, 0, 1, 1, 2, 2, 2]
    assert batch.labels[batch.image_mask].tolist() == labels
    assert batch.extras["txt"] == [[f"the text of {label}" for label in labels]]
    assert (loader.stats()["without_label"], loader.stats()["bad_images"]) == (0, 1)


def _without_pixels(data: bytes, page: int) -> bytes:
    """A TIFF whose pixels of one page lie behind its end."""
    changed = bytearray(data)
    at = struct.unpack_from("<I", data, 4)[0]
    for _ in range(page):
        (count,) = struct.unpack_from("<H", data, at)
        (at,) = struct.unpack_from("<I", data, at + 2 + 12 * count)
    (count,) = struct.unpack_from("<H", data, at)
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        if struct.unpack_from("<H", data, entry)[0] == 273:  # StripOffsets
            struct.pack_into("<I", changed, entry + 8, len(data) + 1000)
    return bytes(changed)


def test_members_of_a_tar_are_a_sample_with_one_label(tmp_path: Path) -> None:
    documents = Documents(tmp_path, (9, 8), members=True)
    for world_size in (1, 3):
        ranks = [
            PackedImageLoader(
                documents.shards,
                PACKING,
                batch_size=1,
                sample="members",
                label="cls",
                extras=["txt"],
                shuffle=True,
                rank=rank,
                world_size=world_size,
            )
            for rank in range(world_size)
        ]
        batches = [batch for loader in ranks for batch in loader]
        found: dict[str, list[int]] = {}
        for batch in batches:
            images = iter(batch.images())
            for b, keys in enumerate(batch.keys):
                for j, key in enumerate(keys):
                    frame, image = int(batch.frames[b, j]), next(images)
                    found.setdefault(key, []).append(frame)
                    pixels = documents.pages[key][frame]
                    canvas = join_patches(image.patches.numpy(), image.coords.numpy(), image.grid, 8)
                    assert np.array_equal(canvas[: pixels.shape[0], : pixels.shape[1]], pixels)
                    assert image.label == documents.labels[key]
                    assert batch.extras["txt"][b][j] == f"the text of {key}"
        assert found == {name: list(range(len(pages))) for name, pages in documents.pages.items()}
        total = conserved([loader.stats() for loader in ranks])
        assert (total["samples"], total["images"]) == (17, documents.num_images)


def test_decode_function_gets_files_of_one_page(tmp_path: Path, tiffs: tuple[str, dict[str, list[np.ndarray]]]) -> None:
    shard, pages = tiffs
    given: list[bytes] = []

    def decode(data: bytes) -> np.ndarray:
        given.append(data)
        with Image.open(io.BytesIO(data)) as file:
            return np.asarray(file.convert("RGB"))

    loader = PackedImageLoader(shard, PACKING, batch_size=1, sample="members", label="cls", decode=decode)
    batches = list(loader)
    assert check_pages(batches, pages) == {name: list(range(len(of_file))) for name, of_file in pages.items()}
    assert given == [dict(read_tar(shard))["t0.tif"]]
    views = Views(
        (2, RandomResizedCrop(scale=(0.25, 1.0), max_tokens=16)),
        (3, RandomResizedCrop(scale=(0.05, 0.25), max_tokens=4)),
    )
    loader = PackedImageLoader(
        shard, PACKING.replace(views=views, max_images=64), batch_size=1, sample="members", label="cls", decode=decode
    )
    given.clear()
    assert sum(batch.num_images for batch in loader) == 5 * 21
    assert len(given) == 1


def test_frames_of_an_animation_come_from_one_row(tmp_path: Path) -> None:
    drawn = [draw_image(24, 16, seed=i, mode="P") for i in range(6)]
    file = io.BytesIO()
    drawn[0].save(file, "GIF", save_all=True, append_images=drawn[1:], loop=0)
    with Image.open(file) as gif:
        frames = []
        for number in range(6):
            gif.seek(number)
            frames.append(np.asarray(gif.convert("RGB")))
    shard = write_tar(tmp_path / "clips.tar", [("g1.gif", file.getvalue()), ("g1.cls", b"1")])
    for how, chosen in (("first", [0, 1, 2]), ("stride:2", [0, 2, 4])):
        loader = PackedImageLoader(
            shard, PACKING.replace(frames=Frames(3, how=how)), batch_size=1, sample="members", label="cls"
        )
        assert len(loader.index) == 1
        assert check_pages(list(loader), {"g1": [frames[number] for number in chosen]}) == {"g1": [0, 1, 2]}
        assert (loader.stats()["samples"], loader.stats()["images"]) == (1, 3)


@pytest.mark.parametrize("kind", ["shard", "folder", "data set", "stream"])
def test_frames_that_cannot_be_read_are_counted_and_warned_of_once(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    moving = bytes(imagecodecs.jpegxl_encode(np.stack([np.full((16, 16, 3), 60 * i, np.uint8) for i in range(3)])))
    still = bytes(imagecodecs.jpegxl_encode(np.zeros((16, 16, 3), np.uint8)))
    gif = io.BytesIO()
    frames = [Image.new("L", (16, 16), 99 * i) for i in range(2)]
    frames[0].save(gif, "GIF", save_all=True, append_images=frames[1:])
    files = {"a.jxl": still, "b.jxl": moving, "c.jxl": moving, "d.gif": gif.getvalue()}
    options: dict[str, Any] = {"batch_size": 1, "sample": "members"}
    source: Any
    if kind == "folder":
        (tmp_path / "files").mkdir()
        for name, data in files.items():
            (tmp_path / "files" / name).write_bytes(data)
        source = tmp_path / "files"
    elif kind in ("data set", "stream"):
        source = [([data], 0) for data in files.values()]
    else:
        source = write_tar(tmp_path / "s.tar", list(files.items()))
    with caplog.at_level(logging.WARNING, "patchnpack"):
        made = pack_stream if kind == "stream" else PackedImageLoader
        loader: Any = made(source, PACKING, **options)
        assert sum(batch.num_images for batch in loader) == 5
    warned = [record.getMessage() for record in caplog.records if "more pages or frames" in record.getMessage()]
    assert len(warned) == 1
    assert "animated WebP" in warned[0]
    if kind != "stream":
        assert warned[0].startswith("2 files have")
    assert loader.stats()["multi_page"] == 2
