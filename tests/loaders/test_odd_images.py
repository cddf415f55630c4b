"""Odd files in loaders and streams: warnings and further pages are counted, and only damage is bad."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from patchnpack.loaders import ErrorPolicy, Job, PackedImageLoader, pack_stream, scan
from patchnpack.loaders.imaging.readers.boxed import heif
from patchnpack.loaders.imaging.readers.video import reader as video_reader
from patchnpack.loaders.order import row_filter
from patchnpack.loaders.sources import shard_source
from patchnpack.packer import PackedBatch, Packing
from tests.images import draw_image, encode_image, write_tar
from tests.loaders.imaging.readers.odd_jpegs import between_segments, zero_se
from tests.loaders.imaging.readers.video.videos import video

PACKING = Packing(seq_len=64, patch_size=16)
IMAGES = "jpg;png;gif;tif;heic"
WARNINGS = {"extraneous bytes": 2, "scan parameters": 1}


def pages(kind: str) -> bytes:
    """A file of three pages."""
    first, *others = (draw_image(40, 30, seed) for seed in range(3))
    return encode_image(first, kind, save_all=True, append_images=others)


def members() -> dict[str, bytes]:
    """Eight images: two clean, two odd JPEGs, three of several pages, and one that is cut."""
    jpeg = encode_image(draw_image(40, 30), quality=90)
    return {
        "a.jpg": jpeg,
        "b.jpg": zero_se(jpeg),
        "c.jpg": between_segments(jpeg),
        "d.gif": pages("GIF"),
        "e.tif": pages("TIFF"),
        "f.png": pages("PNG"),
        "g.jpg": between_segments(jpeg[:-100]),
        "h.jpg": between_segments(jpeg),
        "i.png": encode_image(draw_image(40, 30), "PNG"),
    }


@pytest.fixture
def shard(tmp_path: Path) -> str:
    return write_tar(tmp_path / "odd.tar", [*members().items()])


def first_page(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def pixels_of(batches: list[PackedBatch]) -> dict[str, np.ndarray]:
    return {image.key: image.pixels()[:30, :40] for batch in batches for image in batch.images()}


def as_loader(shard: str, **options: Any) -> tuple[list[PackedBatch], dict[str, Any]]:
    loader = PackedImageLoader(shard, PACKING, batch_size=2, image=IMAGES, **options)
    return list(loader), loader.stats()


def as_workers(shard: str, **options: Any) -> tuple[list[PackedBatch], dict[str, Any]]:
    loader = PackedImageLoader(shard, PACKING, batch_size=1, image=IMAGES, **options)
    batches = list(DataLoader(loader.as_dataset(), batch_size=None, num_workers=2))
    return batches, loader.stats()


def as_stream(shard: str, **options: Any) -> tuple[list[PackedBatch], dict[str, Any]]:
    samples = [{"__key__": name[0], name[2:]: data} for name, data in members().items()]
    stream = pack_stream(samples, PACKING, batch_size=2, image=IMAGES, **options)
    return list(stream), stream.stats()


def as_packed(shard: str, **options: Any) -> tuple[list[PackedBatch], dict[str, Any]]:
    out = str(Path(shard).parent / "packed")
    Job(source=scan(shard, image=IMAGES), out=out, packing=PACKING, store="patches", **options).run()
    loader = PackedImageLoader(out, batch_size=2)
    return list(loader), loader.stats()


@pytest.mark.parametrize("load", [as_loader, as_workers, as_stream, as_packed])
def test_odd_files_are_used_and_counted_and_cut_ones_are_bad(load: Callable[..., Any], shard: str) -> None:
    batches, stats = load(shard)
    found = pixels_of(batches)
    assert sorted(found) == [*"abcdefhi"]
    for name, data in members().items():
        if name[0] in found:
            assert np.array_equal(found[name[0]], first_page(data)), name
    assert stats["warnings"] == WARNINGS
    assert (stats["multi_page"], stats["images"], stats["bad_images"]) == (3, 8, 1)


@pytest.mark.parametrize("load", [as_loader, as_workers, as_stream, as_packed])
def test_pages_error_makes_files_of_several_pages_bad(load: Callable[..., Any], shard: str) -> None:
    batches, stats = load(shard, pages="error")
    assert sorted(pixels_of(batches)) == [*"abchi"]
    assert (stats["multi_page"], stats["images"], stats["bad_images"]) == (0, 5, 4)
    if stats["bad"]:  # worker processes keep theirs
        reasons = [row.reason if not isinstance(row, dict) else row["reason"] for row in stats["bad"]]
        assert sum("it has 3 pages or frames, and pages is 'error'" in reason for reason in reasons) == 3


def test_three_of_a_hundred_odd_photographs_do_not_stop_a_run(tmp_path: Path) -> None:
    jpeg = encode_image(draw_image(16, 16))
    odd = [zero_se(jpeg), between_segments(jpeg)]
    files = [(f"{i:04d}.jpg", odd[i // 30 % 2] if i % 30 == 0 else jpeg) for i in range(1200)]
    _, stats = as_loader(write_tar(tmp_path / "many.tar", files), errors=ErrorPolicy(on_error="raise"))
    assert stats["images"] == 1200
    assert stats["warnings"] == {"scan parameters": 20, "extraneous bytes": 20}


def test_unknown_choice_of_pages_is_refused_with_the_known_ones(shard: str) -> None:
    for load in (as_loader, as_stream, as_packed):
        with pytest.raises(ValueError, match=r"pages is 'all'; it must be 'first', which .* or 'error'"):
            load(shard, pages="all")


def test_state_is_refused_where_pages_leaves_out_other_rows(shard: str) -> None:
    first, error = (
        PackedImageLoader(shard, PACKING, batch_size=2, image=IMAGES, pages=pages) for pages in ("first", "error")
    )
    with pytest.raises(ValueError, match=r"9 samples used.*this loader has 6; where=, decode=, pages="):
        error.load_state_dict(first.state_dict())


def test_heic_without_pillow_heif_is_bad_with_the_command_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    image = draw_image(40, 30)
    pillow_heif.from_pillow(image).save(file)
    shard = write_tar(tmp_path / "h.tar", [("a.heic", file.getvalue()), ("b.jpg", encode_image(image))])
    batches, stats = as_loader(shard)
    assert (len(pixels_of(batches)), stats["bad_images"]) == (2, 0)
    for module in (heif, shard_source):
        monkeypatch.setattr(module, "has_heif", lambda: False)
    batches, stats = as_loader(shard)  # with the index of before
    assert [*pixels_of(batches)] == ["b"]
    assert "pip install 'patchnpack[heif]'" in stats["bad"][0]["reason"]
    stream = pack_stream([(file.getvalue(), 0), (encode_image(image), 1)], PACKING, batch_size=1)
    assert [batch.labels[batch.image_mask].tolist() for batch in stream] == [[1]]
    assert "pip install 'patchnpack[heif]'" in stream.stats()["bad"][0]["reason"]


def test_a_video_is_its_first_frame_where_its_extension_is_asked_for_and_bad_without_pyav(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [("a.mp4", video("h264")), ("b.jpg", encode_image(draw_image(40, 30)))]
    shard = write_tar(tmp_path / "v.tar", members)
    loader = PackedImageLoader(shard, PACKING, batch_size=2, image="jpg;mp4")
    assert len(pixels_of(list(loader))) == 2
    assert (loader.stats()["bad_images"], loader.stats()["multi_page"]) == (0, 1)
    for module in (video_reader, row_filter):
        monkeypatch.setattr(module, "has_av", lambda: False)
    loader = PackedImageLoader(shard, PACKING, batch_size=2, image="jpg;mp4")  # with the index of before
    assert [*pixels_of(list(loader))] == ["b"]
    assert "pip install 'patchnpack[video]'" in loader.stats()["bad"][0]["reason"]
    stream = pack_stream([(data, 0) for _, data in members], PACKING, batch_size=1)
    assert sum(int(batch.image_mask.sum()) for batch in stream) == 1
    assert "pip install 'patchnpack[video]'" in stream.stats()["bad"][0]["reason"]


@pytest.mark.parametrize("load", [as_loader, as_workers, as_stream, as_packed])
def test_files_of_several_pages_are_counted_in_batches_without_a_bad_image(
    load: Callable[..., Any], shard: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = {name: data for name, data in members().items() if name[0] in "abcdefhi"}
    monkeypatch.setattr(f"{__name__}.members", lambda: good)
    write_tar(Path(shard), list(good.items()))
    _, stats = load(shard)
    assert (stats["multi_page"], stats["images"], stats["bad_images"]) == (3, 8, 0)
