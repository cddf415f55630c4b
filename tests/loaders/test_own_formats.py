"""Readers of a user's own formats: shards, folders, tables, streams, data sets, packed folders and mixtures."""

from __future__ import annotations

import dataclasses
import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from patchnpack import ErrorPolicy, FitTokens, Mixture, PackedImageLoader, Packing, pack_stream
from patchnpack.loaders import BadImage, ImageHeader, Job, load_index, open_index, save_index, scan, update_index
from patchnpack.loaders.prepacking.unpack import unpack
from patchnpack.packer.dtypes import DTYPES
from tests.images import read_tar, write_tar
from tests.loaders.imaging import arrays
from tests.loaders.imaging.arrays import values
from tests.loaders.test_depth import assert_equal_pixels, packing_of, pixels_of

_HEADER = struct.Struct("<4sHHHHH")  # magic, width, height, channels, dtype, pages


def encoded(*pages: np.ndarray) -> bytes:
    """A file of the format .ct: a header, and the values of each page."""
    height, width, channels = pages[0].shape
    dtype = DTYPES.index(pages[0].dtype.name)
    begin = _HEADER.pack(b"\xff\xd8CT", width, height, channels, dtype, len(pages))  # begins like a JPEG
    return begin + b"".join(page.tobytes() for page in pages)


class Reader:
    """Reads .ct files, and counts the pages that it decodes."""

    def __init__(self) -> None:
        self.decoded: list[int] = []

    def header(self, data: bytes) -> ImageHeader:
        if data[:4] != b"\xff\xd8CT":
            raise BadImage("it is no CT")
        _, width, height, channels, dtype, pages = _HEADER.unpack_from(data)
        return ImageHeader(width, height, channels, DTYPES[dtype], pages)

    def decode(self, data: bytes, page: int = 0) -> np.ndarray:
        width, height, channels, dtype, _ = self.header(data)
        size = width * height * channels
        begin = _HEADER.size + page * size * np.dtype(dtype).itemsize
        if begin + size * np.dtype(dtype).itemsize > len(data):
            raise BadImage("its values end early")
        self.decoded.append(page)
        return np.frombuffer(data, dtype, size, begin).reshape(height, width, channels)


class Small:
    """Reads grey pictures of one size without a header, and has no pages."""

    def header(self, data: bytes) -> tuple[int, int, int]:
        return (8, 4, 1)

    def decode(self, data: bytes) -> np.ndarray:
        return np.frombuffer(data, np.uint8).reshape(4, 8)


PACKING = packing_of("int16", 2)
IMAGES = {f"{i:03}": values("int16", 2, 20 + i, 33, seed=i) for i in range(5)}


@pytest.fixture
def shard(tmp_path: Path) -> str:
    members = [(f"{key}.ct", encoded(array)) for key, array in IMAGES.items()]
    # A picture beside each: a reader's files come before all others.
    members += [(f"{key}.png", arrays.png(values("uint8", 3))) for key in IMAGES]
    members += [(f"{key}.cls", str(i % 2).encode()) for i, key in enumerate(IMAGES)]
    return write_tar(tmp_path / "a.tar", sorted(members))


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., PackedImageLoader]:
    def loader(source: Any, packing: Packing | None = PACKING, **options: Any) -> PackedImageLoader:
        given: dict[str, Any] = {"formats": {"ct": Reader()}, "batch_size": 2, "cache_dir": tmp_path / "cache"}
        return PackedImageLoader(source, packing, **given | options)

    return loader


def test_a_reader_reads_the_members_of_its_extension(shard: str, load: Callable[..., PackedImageLoader]) -> None:
    reader = Reader()
    loader = load(shard, label="cls", formats={".CT": reader})
    batches = list(loader)
    assert_equal_pixels(pixels_of(batches), IMAGES)
    assert reader.decoded == [0] * 5  # headers decode nothing
    assert sorted(label for batch in batches for label in batch.labels[batch.image_mask].tolist()) == [0, 0, 0, 1, 1]
    assert loader.index.formats == ("ct",)
    assert_equal_pixels(pixels_of(load(shard)), IMAGES)  # from the cached index


def test_a_readers_images_are_resized_cropped_and_converted_as_others(
    shard: str, load: Callable[..., PackedImageLoader]
) -> None:
    arrays_ = {key: arrays.npy(array) for key, array in IMAGES.items()}
    packing = PACKING.replace(resolution=FitTokens(4))
    expected = pixels_of(
        pack_stream(({"__key__": k, "npy": v} for k, v in arrays_.items()), packing, batch_size=2, image="npy")
    )
    found = pixels_of(load(shard, packing))
    assert all(np.array_equal(found[key], expected[key]) for key in IMAGES)
    colours = Packing(seq_len=64, patch_size=8, convert="window:0:1000", image_mode="L")
    found = pixels_of(load(shard, colours))
    expected = {key: np.rint(array[..., :1].clip(0, 1000) / 1000 * 255) for key, array in IMAGES.items()}
    assert all(np.array_equal(found[key][: a.shape[0], : a.shape[1]], a) for key, a in expected.items())


def test_folders_tables_streams_and_data_sets_use_the_reader(
    tmp_path: Path, load: Callable[..., PackedImageLoader]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for key, array in IMAGES.items():
        (folder / f"{key}.ct").write_bytes(encoded(array))
    for _ in range(2):  # read, and from the cache
        assert_equal_pixels(pixels_of(load(folder)), IMAGES)
    table = tmp_path / "table.csv"
    table.write_text("path\n" + "".join(f"folder/{key}.ct\n" for key in IMAGES))
    assert [a.shape for a in pixels_of(load(table)).values()] == [a.shape for a in pixels_of(load(folder)).values()]
    samples = [{"__key__": key, "left.CT": encoded(array)} for key, array in IMAGES.items()]
    stream = pack_stream(samples, PACKING, batch_size=2, image="left.ct", formats={"ct": Reader()})
    assert_equal_pixels(pixels_of(stream), IMAGES)
    for items in (
        [{"image": str(folder / f"{key}.ct")} for key in IMAGES],
        [{"image": {"bytes": encoded(array), "path": f"{key}.ct"}} for key, array in IMAGES.items()],
    ):
        found = pixels_of(load(items, image="image", fingerprint="1"))
        assert_equal_pixels({f"{int(key):03}": pixels for key, pixels in found.items()}, IMAGES)
    stream = pack_stream(items, PACKING, batch_size=2, image="image;ct", formats={"ct": Reader()})
    found = pixels_of(stream)
    assert_equal_pixels({f"{int(key):03}": pixels for key, pixels in found.items()}, IMAGES)


def test_pages_of_a_readers_file_are_the_images_of_a_sample(
    tmp_path: Path, load: Callable[..., PackedImageLoader]
) -> None:
    pages = [values("int16", 2, 24, 16, seed=i) for i in range(6)]
    data = encoded(*pages)
    shard = write_tar(tmp_path / "pages.tar", [("a.ct", data), ("b.ct", encoded(pages[0]))])
    reader = Reader()
    loader = load(shard, sample="members", formats={"ct": reader})
    assert loader.index.samples is not None
    assert loader.index.samples.frames.tolist() == [6, 1]
    images = [image for batch in loader for image in batch.images()]
    assert [image.frame for image in images] == [0, 1, 2, 3, 4, 5, 0]
    for image, page in zip(images, [*pages, pages[0]], strict=True):
        assert np.array_equal(image.pixels(), page)
    assert sorted(reader.decoded) == [0, 0, 1, 2, 3, 4, 5]
    sample = {"__key__": "a", "ct": data}
    stream = pack_stream([sample], PACKING, batch_size=1, formats={"ct": Reader()}, sample="members")
    assert [np.array_equal(image.pixels(), pages[i]) for i, image in enumerate(next(stream).images())] == [True] * 6
    first = load(shard, sample=None)
    assert [image.key for batch in first for image in batch.images()] == ["a", "b"]
    assert first.stats()["multi_page"] == 1


@pytest.mark.parametrize("store", ["images", "patches"])
def test_packed_folders_keep_a_users_format(
    shard: str, store: Any, tmp_path: Path, load: Callable[..., PackedImageLoader]
) -> None:
    out = str(tmp_path / "packed")
    Job(source=shard, out=out, packing=PACKING, store=store, label="cls", formats={"ct": Reader()}).run()
    if store == "images":
        with pytest.raises(ValueError, match=r"reader of the format 'ct'.*formats=\{'ct': MyReader\(\)\}"):
            load(out, None, formats=None)
    found = pixels_of(load(out, None, formats={"ct": Reader()} if store == "images" else None))
    assert_equal_pixels(found, IMAGES)
    unpack(out, tmp_path / "unpacked")
    members = dict(read_tar(tmp_path / "unpacked" / "images-000000.tar"))
    for key, array in IMAGES.items():
        if store == "images":
            assert members[f"{key}.ct"] == encoded(array)
        else:
            assert np.array_equal(np.load(io.BytesIO(members[f"{key}.npy"]))[: len(array), :33], array)


def test_a_mixture_numbers_the_formats_of_its_sources(
    shard: str, tmp_path: Path, load: Callable[..., PackedImageLoader]
) -> None:
    greys = {f"g{i}": values("uint8", 1, 4, 8, seed=i) for i in range(3)}
    small = write_tar(tmp_path / "b.tar", [(f"{key}.aa", array.tobytes()) for key, array in greys.items()])
    formats = {"ct": Reader(), "aa": Small()}
    packing = Packing(seq_len=64, patch_size=4, channels=2, dtype="int16", convert="exact")
    found = pixels_of(load(Mixture({"ct": (shard, 1), "small": (small, 1)}), packing, formats=formats))
    assert {key[0] for key in found} == {"0", "g"}
    for key in found:
        array = greys[key].repeat(2, 2) if key[0] == "g" else IMAGES[key]
        assert np.array_equal(found[key][: array.shape[0], : array.shape[1]], array)
    # Index files that were made with one reader each, joined.
    a, b = scan(shard, formats={"ct": Reader()}), scan(small, formats={"aa": Small()})
    joined = type(a).concatenate([a, dataclasses.replace(b, image=a.image)])
    assert joined.formats == ("aa", "ct")
    assert joined.format.tolist() == [129] * 5 + [128] * 3


def test_an_index_file_names_its_formats(shard: str, tmp_path: Path, load: Callable[..., PackedImageLoader]) -> None:
    file, index, _ = update_index(shard, tmp_path / "i.parquet", formats={"ct": Reader()})
    assert load_index(tmp_path / "i.parquet").formats == index.formats == ("ct",)
    assert_equal_pixels(pixels_of(load(shard, index=file)), IMAGES)
    assert_equal_pixels(pixels_of(load(file)), IMAGES)
    with pytest.raises(ValueError, match=r"made with a reader of the format 'ct'"):
        load(file, formats=None)
    plain = open_index(shard, image="png")
    save_index(plain, tmp_path / "plain.parquet")
    with pytest.raises(ValueError, match=r"was made without a reader of 'ct', which formats= gives; make it again"):
        load(tmp_path / "plain.parquet", image="png;ct")
    assert update_index(shard, tmp_path / "i.parquet", formats={"ct": Reader()})[2] == 0
    assert update_index(shard, tmp_path / "i.parquet", formats={"ct": Reader(), "aa": Small()})[2] == 1


def test_headers_are_read_again_for_another_version_of_a_reader(
    shard: str, load: Callable[..., PackedImageLoader]
) -> None:
    class Versioned(Reader):
        def __init__(self, version: int) -> None:
            super().__init__()
            self.version, self.headers = version, 0

        def header(self, data: bytes) -> ImageHeader:
            self.headers += 1
            return super().header(data)

    for version, read in ((1, 5), (1, 0), (2, 5)):
        reader = Versioned(version)
        load(shard, formats={"ct": reader})
        assert reader.headers == read


def test_a_readers_bad_images_are_counted_and_its_mistakes_raised(
    tmp_path: Path, load: Callable[..., PackedImageLoader]
) -> None:
    good = encoded(IMAGES["000"])
    members = {"0.ct": good, "1.ct": b"no CT", "2.ct": good[:-1], "3.ct": encoded(values("uint8", 1))}
    members["4.ct"] = _HEADER.pack(b"\xff\xd8CT", 60_000, 60_000, 9, 3, 1) + bytes(8)
    shard = write_tar(tmp_path / "bad.tar", sorted(members.items()))
    loader = load(shard, errors=ErrorPolicy(max_rate=1))
    assert pixels_of(loader).keys() == {"0"}
    reasons = {bad["key"]: bad["reason"] for bad in loader.stats()["bad"]}
    assert reasons.pop("1") == "it is no CT"
    assert reasons.pop("2") == "its values end early"
    assert "it has 1 band of uint8, and Packing asks for 2 bands of int16" in reasons.pop("3")
    assert "60000x60000" in reasons.pop("4")
    assert not reasons

    class Wrong(Reader):
        def decode(self, data: bytes, page: int = 0) -> np.ndarray:
            return super().decode(data).astype(np.int32)

    with pytest.raises(ValueError, match=r"formats\['ct'\] returned int32 \(20, 33, 2\) for image '0'; it must return"):
        pixels_of(load(shard, formats={"ct": Wrong()}))

    class Broken(Reader):
        def header(self, data: bytes) -> Any:
            return ("wide", 3)

    with pytest.raises(ValueError, match=r"header of formats\['ct'\] returned \('wide', 3\); it must return \(width"):
        load(shard, formats={"ct": Broken()})

    class Raising(Reader):
        def header(self, data: bytes) -> Any:
            raise KeyError("spacing")

    with pytest.raises(KeyError) as raised:
        load(shard, formats={"ct": Raising()})
    assert "raised by header of formats['ct']; for a damaged image, it may raise" in raised.value.__notes__[0]


def test_a_decode_function_does_not_get_the_files_of_a_reader(
    shard: str, load: Callable[..., PackedImageLoader]
) -> None:
    def decode(data: bytes) -> np.ndarray:
        raise AssertionError

    assert_equal_pixels(pixels_of(load(shard, decode=decode)), IMAGES)


@pytest.mark.parametrize(
    ("formats", "message"),
    [
        ([Reader()], r"formats is \[.*\]; give a dict from extensions to readers: \{'ct': MyReader\(\)\}"),
        ({"": Reader()}, "give a dict from extensions"),
        ({"ct": Reader}, r"formats\['ct'\] is the class Reader; call it: Reader\(\)"),
        ({"ct": 3}, r"formats\['ct'\] is 3; it must be a reader: an object with header\(data\) and decode\(data\)"),
        ({"ct": Reader(), ".CT": Reader()}, "formats names 'ct' twice"),
        ({f"f{i}": Reader() for i in range(99)}, "formats has 99 formats; at most 64 are read"),
    ],
)
def test_a_mistake_in_formats_is_refused_before_anything_is_read(formats: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PackedImageLoader("absent.tar", batch_size=1, formats=formats)
    with pytest.raises(ValueError, match=message):
        pack_stream([], batch_size=1, formats=formats)


def test_methods_that_cannot_be_called_with_bytes_are_refused() -> None:
    class NoArguments(Reader):
        def header(self) -> Any: ...  # type: ignore[override]

    with pytest.raises(ValueError, match=r"header of formats\['ct'\] cannot be called with the bytes of an image"):
        PackedImageLoader("absent.tar", batch_size=1, formats={"ct": NoArguments()})  # type: ignore[dict-item]


def test_formats_that_image_does_not_name_are_refused(shard: str, load: Callable[..., PackedImageLoader]) -> None:
    with pytest.raises(ValueError, match=r"formats has 'ct', which image='png' does not name; name it in image, too"):
        load(shard, image="png")
