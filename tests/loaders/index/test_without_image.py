"""Samples that become no row are counted, to the member, and named in a warning."""

from __future__ import annotations

import io
import logging
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchnpack.loaders import Index, PackedImageLoader, load_index, open_index, save_index, scan
from patchnpack.loaders.shards.tar import IMAGE
from patchnpack.packer import Packing

PACKING = Packing(seq_len=64, patch_size=8)


@pytest.fixture
def jpeg(draw_image: Callable[..., Any], encode_image: Callable[..., bytes]) -> bytes:
    return encode_image(draw_image(16, 24))


def members_of(index: Index) -> int:
    return sum(int((where[:, 0] >= 0).sum()) for where in index.members.values()) + int(index.unused_members.sum())


def test_every_member_is_of_a_row_or_counted(tmp_path: Path, write_tar: Any, jpeg: bytes) -> None:
    names = ["a.jpg", "a.cls", "b.v2.jpg", "b.cls", "c.svg", "x\ny/d.jpg", "README", ".hidden.jpg", "._a.jpg"]
    names += ["__index__", "__x__/e.jpg", "f.jpg", "x.y/g.jpg", "0001", "h.PNG", "é.svg", "i.cls"]
    shards = [write_tar(tmp_path / f"{i}.tar", [(name, jpeg) for name in names]) for i in range(2)]
    shards.append(write_tar(tmp_path / "2.tar", [("z.jpg", jpeg)]))
    index = scan(shards)
    assert sorted(index.keys[:5]) == ["a", "f", "h", "x\ny/d", "x.y/g"]
    # b, c, é, i, README, .hidden.jpg, ._a.jpg and 0001
    assert index.without_image.tolist() == [8, 8, 0]
    assert index.unused_members.tolist() == [11, 11, 0]
    assert members_of(index) == 2 * len(names) + 1
    assert index.examples[0] == ("b.v2.jpg", "b.cls", "c.svg", "README")
    assert index.examples[2] == ()
    save_index(index, tmp_path / "index.arrow")
    for same in (load_index(tmp_path / "index.arrow"), Index.concatenate([index.select([0]), index.select([1, 2])])):
        assert (same.without_image.tolist(), same.unused_members.tolist()) == ([8, 8, 0], [11, 11, 0])
        assert (same.examples, same.outside.tolist()) == (index.examples, index.outside.tolist())
        assert same.outside.dtype == np.uint64


def test_stats_and_one_warning_per_source_report_them(
    tmp_path: Path, write_tar: Any, jpeg: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"{i}.jpg" for i in range(6)] + ["a.v2.jpg", "b.svg", "b.cls"]
    path = write_tar(tmp_path / "a.tar", [(name, jpeg) for name in names])
    loader = PackedImageLoader(path, PACKING, batch_size=1)
    again = PackedImageLoader(path, PACKING, batch_size=1)
    assert sum(batch.num_images for batch in loader) == 6
    for _ in loader:
        pass
    stats = loader.stats()
    assert (stats["images"], stats["bad_images"], sum(stats["skipped"].values())) == (12, 0, 0)
    assert stats["without_image"] == again.stats()["without_image"] == 2
    ranks = [PackedImageLoader(path, PACKING, batch_size=1, rank=rank, world_size=3) for rank in range(3)]
    assert [loader.stats()["without_image"] for loader in ranks] == [1, 1, 0]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [
        f"{path}: 2 of 8 samples have no image (image={IMAGE!r}) and are left out, such as 'a.v2.jpg'; the "
        "members of such samples end in .cls, .svg, .v2.jpg (an extension begins at the first dot of a name)"
    ]


def test_images_beside_the_one_used_are_counted_in_a_warning(
    tmp_path: Path, write_tar: Any, jpeg: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"{key}.p{page}.jpg" for key in "abc" for page in range(3)]
    path = write_tar(tmp_path / "a.tar", [(name, jpeg) for name in names])
    index = open_index(path, image="p0.jpg;p1.jpg;p2.jpg")
    assert (len(index), index.other_images, int(index.without_image.sum())) == (3, 6, 0)
    assert caplog.messages == [
        f"{path}: 6 images are not used, because their samples have another member of image='p0.jpg;p1.jpg;p2.jpg' "
        "that is listed before; one image per sample is loaded"
    ]
    assert open_index(path, image="p0.jpg").other_images == 0


@pytest.mark.parametrize("image", ["", " ;", ";."])
def test_image_without_an_extension_is_refused(image: str, tmp_path: Path, write_tar: Any, jpeg: bytes) -> None:
    path = write_tar(tmp_path / "a.tar", [("a.jpg", jpeg), ("README", b"")])
    with pytest.raises(ValueError, match=r"image is '.*'; name the extensions of images, such as 'jpg;jpeg;"):
        scan(path, image=image)
    assert scan(path, image="jpg;").image == "jpg"


def test_shard_of_files_without_extensions_is_refused(tmp_path: Path, write_tar: Any, jpeg: bytes) -> None:
    path = write_tar(tmp_path / "a.tar", [("0001", jpeg), ("0002", jpeg)])
    with pytest.raises(ValueError, match=r"a.tar' has no image: its members end in no extension and image="):
        scan(path)


def test_member_name_that_is_not_utf8_can_be_saved(tmp_path: Path, jpeg: bytes) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name in ("a.jpg", "a.\udcff", "\udcfe.jpg", "\udcfd"):
            info = tarfile.TarInfo(name)
            info.size = len(jpeg)
            tar.addfile(info, io.BytesIO(jpeg))
    index = scan(path)
    save_index(index, tmp_path / "index.parquet")
    loaded = load_index(tmp_path / "index.parquet")
    assert list(loaded.keys) == ["a", "\\udcfe"]
    assert set(loaded.members) == {"jpg", "\\udcff"}
    assert loaded.examples == (("\\udcfd",),)


def test_parquet_rows_without_bytes_are_counted(tmp_path: Path, jpeg: bytes, caplog: pytest.LogCaptureFixture) -> None:
    images = [{"bytes": jpeg, "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}, None, {"bytes": jpeg, "path": None}]
    table = pa.table({"image": images, "label": [1, 2, None, 4], "__key__": ["a", "b", "c", "d"]})
    path = str(tmp_path / "rows.parquet")
    pq.write_table(table, path)
    loader = PackedImageLoader(path, PACKING, batch_size=1)
    assert list(loader.index.keys) == ["a", "d"]
    assert loader.stats()["without_image"] == 2
    assert loader.index.unused_members.tolist() == [1]
    assert members_of(loader.index) == 5
    assert loader.index.examples == (("b.label", "c"),)
    assert "2 of 4 samples have no image" in caplog.text


@pytest.mark.parametrize(
    "name", ["/abs/a.jpg", "../a.jpg", "x/../../a.jpg", "./a.jpg", "n" * 90 + "/" + "m" * 200 + ".jpg"]
)
@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_path_of_a_member_is_its_key_whatever_it_is(
    name: str, format: int, tmp_path: Path, write_tar: Any, jpeg: bytes
) -> None:
    path = write_tar(tmp_path / "a.tar", [("b.jpg", jpeg), (name, jpeg), ("b.cls", b"1")], format=format)
    (batch,) = PackedImageLoader(path, PACKING, batch_size=1, label="cls")
    assert batch.keys == [["b", name.removesuffix(".jpg")]]
    assert batch.labels[batch.image_mask].tolist() == [1, -100]


def test_empty_members_are_bad_images_or_labels(tmp_path: Path, write_tar: Any, jpeg: bytes) -> None:
    path = write_tar(tmp_path / "a.tar", [("a.jpg", jpeg), ("b.jpg", b""), ("a.txt", b""), ("b.txt", b"2")])
    loader = PackedImageLoader(path, PACKING, batch_size=1, extras=["txt"])
    assert [batch.extras for batch in loader] == [{"txt": [[""]]}]
    assert (loader.stats()["bad_images"], loader.stats()["without_image"]) == (1, 0)
    with pytest.raises(ValueError, match=r"label '' .* is neither a whole number nor a known class") as caught:
        PackedImageLoader(path, PACKING, batch_size=1, label="txt")
    assert "key 'a' in" in caught.value.__notes__[0]


def test_linked_images_and_labels_are_loaded(tmp_path: Path, jpeg: bytes) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, what in (("0.cls", b"3"), ("0.jpg", jpeg), ("1.cls", "0.cls"), ("1.jpg", "0.jpg")):
            info = tarfile.TarInfo(name)
            if isinstance(what, bytes):
                info.size = len(what)
                tar.addfile(info, io.BytesIO(what))
            else:
                info.type, info.linkname = tarfile.LNKTYPE, what
                tar.addfile(info)
    (batch,) = PackedImageLoader(str(path), PACKING, batch_size=1, label="cls")
    assert batch.keys == [["0", "1"]]
    assert batch.labels[batch.image_mask].tolist() == [3, 3]
    first, second = batch.images()
    assert np.array_equal(first.pixels(), second.pixels())
