"""`sample="members"`: each page of a TIFF is a row, all frames of an animation or a video are one."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from patchnpack.loaders import Index, load_index, open_index, save_index, scan, update_index
from patchnpack.loaders.shards.opener import ShardOpener
from tests.images import draw_image, encode_image, write_tar
from tests.loaders.datasets.test_lists import opened
from tests.loaders.index.samples.rows import jpeg


def tiff(*widths: int) -> bytes:
    """A TIFF with a page of each width."""
    first, *others = (draw_image(width, 20) for width in widths)
    return encode_image(first, "TIFF", save_all=True, append_images=others)


def gif(frames: int) -> bytes:
    first, *others = (draw_image(30, 20, seed=i) for i in range(frames))
    return encode_image(first, "GIF", save_all=True, append_images=others)


def columns(index: Index) -> tuple[list[int], list[int], list[int], list[int]]:
    """First rows of the samples; and width, first page and frames of each row."""
    samples: Any = index.samples
    return samples.starts.tolist(), index.width.tolist(), samples.page.tolist(), samples.frames.tolist()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of a JPEG, a TIFF of three pages, a GIF of four frames and a file that is no image."""
    (tmp_path / "in").mkdir()
    files = {"a.jpg": jpeg(10, 20), "b.tif": tiff(11, 12, 13), "c.gif": gif(4), "d.jpg": b"no image"}
    for name, data in files.items():
        (tmp_path / "in" / name).write_bytes(data)
    return tmp_path / "in"


EXPECTED = [0, 1, 4, 5, 6], [10, 11, 12, 13, 30, 0], [0, 0, 1, 2, 0, 0], [1, 1, 1, 1, 4, 1]


def test_pages_of_a_folder_are_samples_of_their_files(folder: Path, tmp_path: Path) -> None:
    opener = ShardOpener(tmp_path / "cache")
    index = open_index(folder, sample="members", opener=opener)
    assert columns(index) == EXPECTED
    assert list(index.keys) == ["a", "b", "b", "b", "c", "d"]
    assert list(index.bad) == [5]
    assert index.pages.tolist()[:5] == [1] * 5
    assert [index.name_of(row) for row in (0, 1, 3)] == ["a", "b", "b, page 3"]
    assert columns(open_index(folder, sample="members", opener=opener)) == EXPECTED
    plain = open_index(folder, opener=opener)
    assert (plain.samples, plain.pages.tolist()) == (None, [1, 3, 4, 1])


@pytest.mark.parametrize("name", ["index.parquet", "index.arrow"])
def test_unchanged_files_keep_their_pages(folder: Path, name: str) -> None:
    path = folder.parent / name
    assert update_index(folder, path, sample="members")[2] == 4
    (folder / "a.jpg").write_bytes(jpeg(40, 20))
    (folder / "aa.tif").write_bytes(tiff(50, 51))
    _, index, read = update_index(folder, path, sample="members")
    assert read == 2
    assert columns(index) == (
        [0, 1, 3, 6, 7, 8],
        [40, 50, 51, 11, 12, 13, 30, 0],
        [0, 0, 1, 0, 1, 2, 0, 0],
        [1, 1, 1, 1, 1, 1, 4, 1],
    )
    assert columns(load_index(path)) == columns(index)
    assert list(index.bad) == [7]
    (folder / "b.tif").write_bytes(jpeg(60, 20))
    _, index, read = update_index(folder, path, sample="members")
    assert (read, columns(index)[1]) == (1, [40, 50, 51, 60, 30, 0])
    assert update_index(folder, path)[1].samples is None


def test_pages_of_members_follow_each_other(tmp_path: Path) -> None:
    members = [("a.p2.tif", tiff(12, 13)), ("a.p1.tif", tiff(10, 11)), ("a.p3.gif", gif(3)), ("b.gif", gif(2))]
    index = scan(write_tar(tmp_path / "a.tar", members), sample="members")
    assert columns(index) == ([0, 5, 6], [10, 11, 12, 13, 30, 30], [0, 1, 0, 1, 0, 0], [1, 1, 1, 1, 3, 2])
    assert repr(index).startswith("Index of 9 images in 2 samples (members)")
    assert len(set(index.offset[:2].tolist())) == len(set(index.digest[:2].tolist())) == 1
    assert index.name_of(1) == "a.p1.tif, page 2"
    save_index(index, tmp_path / "index.parquet")
    assert columns(load_index(tmp_path / "index.parquet")) == columns(index)


def test_pages_of_a_data_set_are_one_sample(tmp_path: Path) -> None:
    pictures = [[tiff(10, 11), jpeg(12, 20)], [gif(5)]]
    lists = [[{"bytes": data, "path": None} for data in row] for row in pictures]
    features = datasets.Features({"pages": datasets.List(datasets.Image()), "label": datasets.Value("int64")})
    data = datasets.Dataset.from_dict({"pages": lists, "label": [5, 6]}, features=features)
    for _ in range(2):  # read, and from the cache
        found = opened(data, tmp_path, sample="members", label="label")
        assert columns(found.index) == ([0, 3, 4], [10, 11, 12, 30], [0, 1, 0, 0], [1, 1, 1, 5])
        assert found.items.number.tolist() == [0, 0, 1, 0]
        assert found.labels.known(np.arange(4)).tolist() == [5, 5, 5, 6]
        assert list(found.index.keys) == ["0/0", "0/0", "0/1", "1/0"]


def video(frames: int) -> bytes:
    """An MP4 of 32x16 pixels."""
    av = pytest.importorskip("av", reason="videos are read with PyAV")
    with av.open(file := io.BytesIO(), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for number in range(frames):
            picture = np.asarray(Image.new("RGB", (32, 16), (number * 20, 0, 0)))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def test_frames_of_a_video_are_one_row_by_default(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", [("a.mp4", video(7)), ("a.cls", b"1"), ("b.jpg", jpeg(9, 9))])
    index = scan(shard, sample="members")
    assert columns(index) == ([0, 1, 2], [32, 9], [0, 0], [7, 1])
    assert scan(shard).without_image.tolist() == [1]


def test_bytes_per_pixel_count_all_pages_of_a_file(tmp_path: Path) -> None:
    files = {"a.p1.tif": tiff(10, 11), "a.p2.gif": gif(3), "b.jpg": jpeg(9, 9)}
    index = scan(write_tar(tmp_path / "a.tar", list(files.items())), sample="members")
    pixels = (index.width.astype(int) * index.height).tolist()  # of a page of each row: two sizes in the TIFF
    of_files = [pixels[0] + pixels[1], 3 * pixels[2], pixels[3]]
    tif, animated, alone = (len(data) / all_pages for data, all_pages in zip(files.values(), of_files, strict=True))
    rows = index.rows(np.array([0, 3]))
    assert rows.bytes_per_pixel is not None
    np.testing.assert_allclose(rows.bytes_per_pixel, [tif, tif, animated, alone])
    np.testing.assert_allclose(rows.complexity(), [(2 * tif + 3 * animated) / 5, alone])
    first_pages = scan(write_tar(tmp_path / "b.tar", [("a.gif", gif(3))]))
    np.testing.assert_allclose(first_pages.rows(np.array([0])).complexity(), [animated])
