from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import patchnpack.loaders.imaging.header as header_module
from patchnpack.loaders.imaging.header import Header, read_header
from patchnpack.loaders.index.scanner import scan
from patchnpack.loaders.index.table import Index

Draw = Callable[..., Image.Image]
Encode = Callable[..., bytes]
WriteTar = Callable[..., str]


def test_every_image_has_one_row_with_its_byte_range(drawn: Any) -> None:
    index = scan(drawn.shards)
    assert list(index.keys) == drawn.keys
    assert len(index) == len(drawn.keys) == 60
    assert index.starts.tolist() == [0, 17, 20, 20, 40, 41, 60]
    assert index.shard_bytes.tolist() == [Path(shard).stat().st_size for shard in drawn.shards]
    assert not index.without_image.any()
    assert not index.bad
    for i, key in enumerate(index.keys):
        assert index.starts[index.shard_of(i)] <= i < index.starts[index.shard_of(i) + 1]
        whole = Path(index.shards[index.shard_of(i)]).read_bytes()
        data = whole[index.offset[i] : index.offset[i] + index.nbytes[i]]
        height, width, _ = drawn.pixels[key].shape
        kind = 0 if index.members["jpg"][i, 0] >= 0 else 2
        assert [read_header(data)] == index.headers(np.array([i])) == [Header(width, height, 1, kind)]
    assert index.headers(np.array([3, 0])) == [index.headers(np.array([i]))[0] for i in (3, 0)]


def test_members_hold_the_byte_ranges_of_all_members(drawn: Any) -> None:
    index = scan(drawn.shards)
    assert set(index.members) == {"jpg", "png", "cls", "txt"}
    for i, key in enumerate(index.keys):
        offset, nbytes = index.members["txt"][i]
        whole = Path(index.shards[index.shard_of(i)]).read_bytes()
        assert whole[offset : offset + nbytes].decode() == drawn.texts[key]
        assert index.cls[i] == str(drawn.labels[key])
        assert ((index.members["jpg"][i] >= 0) != (index.members["png"][i] >= 0)).all()


def test_dtypes_match_the_documentation(drawn: Any) -> None:
    index = scan(drawn.shards)
    assert {name: getattr(index, name).dtype for name in ("starts", "offset", "nbytes")} == dict.fromkeys(
        ("starts", "offset", "nbytes"), np.dtype(np.int64)
    )
    assert {index.width.dtype, index.height.dtype} == {np.dtype(np.int32)}
    assert (index.orientation.dtype.name, index.format.dtype.name) == ("uint8", "uint8")
    assert all(where.shape == (60, 2) and where.dtype == np.int64 for where in index.members.values())


def test_index_does_not_depend_on_the_number_of_threads(drawn: Any) -> None:
    one, many = scan(drawn.shards, num_threads=1), scan(drawn.shards, num_threads=8)
    for name in Index.__slots__:
        assert np.array_equal(getattr(one, name), getattr(many, name)) if name != "members" else True, name
    assert {e: where.tolist() for e, where in one.members.items()} == {e: w.tolist() for e, w in many.members.items()}


def test_progress_counts_shards(drawn: Any) -> None:
    seen: list[tuple[int, int]] = []
    scan(drawn.shards, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(i, 6) for i in range(1, 7)]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_width_and_height_are_upright(
    orientation: int, tmp_path: Path, write_tar: WriteTar, draw_image: Draw, encode_image: Encode
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode_image(draw_image(30, 20), "JPEG", exif=exif)
    index = scan(write_tar(tmp_path / "a.tar", [("a.jpg", data)]))
    assert (index.width[0], index.height[0]) == ((20, 30) if orientation >= 5 else (30, 20))
    assert index.orientation[0] == orientation


def test_bad_header_is_a_row_with_a_reason(
    tmp_path: Path, write_tar: WriteTar, draw_image: Draw, encode_image: Encode
) -> None:
    good = encode_image(draw_image(30, 20))
    tar = write_tar(
        tmp_path / "a.tar",
        [
            ("a.jpg", good),
            ("b.jpg", b"no image"),
            ("b.cls", b"7"),
            ("c.jpg", good[:15]),
            ("d.jpg", b""),
            ("e.jpg", good),
        ],
    )
    index = scan(tar)
    assert list(index.keys) == ["a", "b", "c", "d", "e"]
    assert sorted(index.bad) == [1, 2, 3]
    assert "begins with b'no image'" in index.bad[1]
    assert all(index.bad.values())
    assert index.width.tolist() == [30, 0, 0, 0, 30]
    assert list(index.cls) == [None, "7", None, None, None]


def test_samples_without_an_image_are_counted(
    tmp_path: Path, write_tar: WriteTar, draw_image: Draw, encode_image: Encode
) -> None:
    good = encode_image(draw_image(30, 20))
    tar = write_tar(
        tmp_path / "a.tar", [("a.cls", b"1"), ("b.jpg", good), ("b.cls", b"2"), ("c.txt", b"x"), ("d.jpg", good)]
    )
    index = scan(tar)
    assert list(index.keys) == ["b", "d"]
    assert index.without_image.sum() == 2


@pytest.mark.parametrize(
    ("image", "expected"), [("jpg;png", (30, 20)), ("png;jpg", (11, 12)), (" .PNG ; jpg", (11, 12))]
)
def test_first_listed_extension_is_used_among_several_images(
    image: str, expected: tuple[int, int], tmp_path: Path, write_tar: WriteTar, draw_image: Draw, encode_image: Encode
) -> None:
    members = [("a.png", encode_image(draw_image(11, 12), "PNG")), ("a.jpg", encode_image(draw_image(30, 20)))]
    index = scan(write_tar(tmp_path / "a.tar", members), image=image)
    assert len(index) == 1
    assert (index.width[0], index.height[0]) == expected
    assert set(index.members) == {"jpg", "png"}


def test_image_sets_the_extensions(tmp_path: Path, write_tar: WriteTar, draw_image: Draw, encode_image: Encode) -> None:
    data = encode_image(draw_image(30, 20))
    tar = write_tar(tmp_path / "a.tar", [("a.photo.jpg", data), ("a.jpg", b"a thumbnail, broken")])
    assert scan(tar, image="photo.jpg").width.tolist() == [30]


def test_shard_without_images_is_refused_with_its_extensions(tmp_path: Path, write_tar: WriteTar, drawn: Any) -> None:
    tar = write_tar(tmp_path / "a.tar", [("a.svg", b"x"), ("a.cls", b"1")])
    for source in (tar, [drawn.shards[0], tar]):
        with pytest.raises(ValueError, match=r"a.tar' has no image: its members end in .cls, .svg .*image='jpg;jpeg;"):
            scan(source)


def test_names_with_dots_keep_the_message_short(tmp_path: Path, write_tar: WriteTar) -> None:
    tar = write_tar(tmp_path / "a.tar", [(f"photo.{i:04d}.jpg", b"x") for i in range(1000)])
    with pytest.raises(ValueError, match="and 990 more") as caught:
        scan(tar)
    assert len(str(caught.value)) < 500 + len(tar)


def test_empty_tar_is_accepted_among_others_but_not_alone(tmp_path: Path, write_tar: WriteTar, drawn: Any) -> None:
    tar = write_tar(tmp_path / "a.tar", [])
    assert len(scan([drawn.shards[1], tar, drawn.shards[4]])) == 4
    with pytest.raises(ValueError, match=r"shard '.*a.tar' holds no sample"):
        scan(tar)


def test_missing_and_truncated_shards_are_errors_with_their_names(tmp_path: Path, drawn: Any) -> None:
    with pytest.raises(FileNotFoundError, match=r"shard 'gone.tar' does not exist"):
        scan([drawn.shards[0], "gone.tar"])
    cut = tmp_path / "cut.tar"
    cut.write_bytes(Path(drawn.shards[0]).read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"cut.tar"):
        scan([drawn.shards[0], str(cut)])


def test_bug_in_a_thread_propagates_and_is_not_a_bad_image(drawn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(data: bytes) -> Header:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(header_module, "read_header", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        scan(drawn.shards)


def test_row_id_is_shard_and_row_in_shard(drawn: Any) -> None:
    index = scan(drawn.shards)
    which = np.array([59, 0, 41, 17])
    rows = index.rows(which)
    assert rows.row.tolist() == which.tolist()
    assert rows.row_id.tolist() == [(5 << 32) + 18, 0, 5 << 32, 1 << 32]
    assert rows.width.tolist() == [drawn.pixels[index.keys[i]].shape[1] for i in which]
    assert len(set(index.rows(np.arange(60)).row_id.tolist())) == 60


def test_clothing_sizes_equal_pil(clothing: str) -> None:
    index = scan(f"{clothing}/train-{{000008..000009}}.tar")
    assert index.starts.tolist() == [0, 340, 348]
    assert set(index.members) == {"jpg", "cls"}
    assert not index.bad
    for i in range(330, 348):
        with open(index.shards[index.shard_of(i)], "rb") as file:
            file.seek(index.offset[i])
            image = Image.open(io.BytesIO(file.read(index.nbytes[i])))
            assert image.size == (index.width[i], index.height[i])


def test_a_number_of_frames_beyond_int32_does_not_stop_a_scan(
    tmp_path: Path, draw_image: Draw, encode_image: Encode, write_tar: WriteTar
) -> None:
    animated = bytearray(encode_image(draw_image(9, 7), "PNG", save_all=True, append_images=[draw_image(9, 7, 1)]))
    at = animated.index(b"acTL")
    animated[at + 4 : at + 8] = b"\xff" * 4
    animated[at + 12 : at + 16] = zlib.crc32(animated[at : at + 12]).to_bytes(4, "big")
    shard = write_tar(tmp_path / "s.tar", [("a.png", bytes(animated)), ("b.jpg", encode_image(draw_image(8, 6)))])
    assert scan([shard]).pages.tolist() == [1, 1]
