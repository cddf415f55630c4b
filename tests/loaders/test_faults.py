"""Damaged and hostile shards: every image comes out as it went in, or is told; nothing is lost in silence."""

from __future__ import annotations

import io
import os
import pickle
import resource
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from patchnpack.loaders import ErrorPolicy, PackedImageLoader, scan
from patchnpack.packer import Packing

PACKING = Packing(seq_len=64, patch_size=8)
LENIENT = ErrorPolicy(max_rate=1, max_consecutive=10**9)
BLOCK = 512


def load(source: Any, **options: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The pixels of each key, at native resolution, and the counts."""
    loader = PackedImageLoader(source, PACKING, batch_size=4, num_threads=1, errors=LENIENT, **options)
    return {image.key: image.pixels() for batch in loader for image in batch.images()}, loader.stats()


def accounted(shard: str, expected: dict[str, np.ndarray], source: Any) -> str:
    """What came of a damaged shard: "whole", "told" (each image is the true one or listed as bad) or "refused".

    An image that is missing without a word, or whose pixels differ, fails the test.
    """
    try:
        found, stats = load(source)
    except (ValueError, OSError) as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert Path(shard).name in refusal
        return "refused"
    bad = {row["key"] for row in stats["bad"]}
    for key, pixels in found.items():
        assert np.array_equal(pixels, expected[key]), key
    assert found.keys() | bad == expected.keys()
    assert not found.keys() & bad
    return "told" if bad else "whole"


@pytest.fixture
def jpegs(make_drawn: Callable[..., Any]) -> tuple[str, dict[str, np.ndarray]]:
    """A shard of 12 JPEGs, and what a loader makes of it whole."""
    shard = make_drawn((12,), kinds=("jpg",)).shards[0]
    return shard, load(shard)[0]


@pytest.mark.parametrize("kind", ["scanned again", "indexed before"])
def test_tar_cut_at_any_block_loses_nothing_in_silence(kind: str, jpegs: tuple[str, dict[str, np.ndarray]]) -> None:
    shard, expected = jpegs
    index, whole, outcomes = scan(shard), Path(shard).read_bytes(), []
    for edge in range(BLOCK, len(whole) + 1, BLOCK):
        for at in (edge - 1, edge, edge + 1):
            if at < len(whole):
                Path(shard).write_bytes(whole[:at])
                outcomes.append(accounted(shard, expected, shard if kind == "scanned again" else index))
    # Only padding behind the end mark may be missing.
    assert set(outcomes) == ({"refused", "whole"} if kind == "scanned again" else {"refused"})
    assert outcomes.index("whole") > 0.7 * len(outcomes) if kind == "scanned again" else True


def flip(shard: str, whole: bytes, index: Any, expected: dict[str, np.ndarray], seeds: range) -> dict[str, int]:
    """How often each outcome came of flipping one bit in the headers, or in the bytes of an image or member."""
    times, counts = os.stat(shard), {"whole": 0, "told": 0, "refused": 0}
    for seed in seeds:
        rng, data = np.random.default_rng(seed), bytearray(whole)
        row = int(rng.integers(len(index)))
        offset, nbytes = int(index.offset[row]), int(index.nbytes[row])
        at = {
            0: offset - BLOCK + int(rng.integers(BLOCK)),  # a header of the tar
            1: offset + int(rng.integers(min(nbytes, 700))),  # mostly a header of the JPEG
            2: offset + int(rng.integers(nbytes)),
        }[seed % 3]
        data[at] ^= 1 << int(rng.integers(8))
        Path(shard).write_bytes(data)
        os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
        counts[accounted(shard, expected, index)] += 1
    return counts


def test_flipped_bits_are_found_or_harmless(jpegs: tuple[str, dict[str, np.ndarray]]) -> None:
    shard, expected = jpegs
    counts = flip(shard, Path(shard).read_bytes(), scan(shard), expected, range(2000))
    # Every one in an image is found; those in headers of the tar, which are not read again, change nothing.
    assert counts == {"whole": 667, "told": 1333, "refused": 0}


def test_flipped_bits_in_headers_that_are_scanned_anew_are_refused_or_harmless(
    jpegs: tuple[str, dict[str, np.ndarray]],
) -> None:
    shard, expected = jpegs
    index, whole = scan(shard), bytearray(Path(shard).read_bytes())
    rng, outcomes = np.random.default_rng(0), []
    for _ in range(150):
        at = int(index.offset[rng.integers(12)]) - BLOCK + int(rng.integers(BLOCK))
        data = bytearray(whole)
        data[at] ^= 1 << int(rng.integers(8))
        Path(shard).write_bytes(data)
        outcomes.append(accounted(shard, expected, shard))
    assert outcomes.count("refused") > 100


# The hostile set


def png_of(width: int, height: int, payload: bytes = b"") -> bytes:
    """A PNG whose header claims a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(payload)) + chunk(b"IEND", b"")


def encoded(kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (24, 32, 3), np.uint8))
    image.save(file, kind, **options)
    return file.getvalue()


def jpeg_of(width: int, height: int) -> bytes:
    """A JPEG whose frame header claims a size."""
    data = bytearray(encoded("JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def gif_of(width: int, height: int) -> bytes:
    data = bytearray(encoded("GIF"))
    at = data.index(b"\x2c" + bytes(4), 13 + 3 * (2 << (data[10] & 7)))  # the image descriptor, behind the palette
    data[6:10] = struct.pack("<HH", width, height)
    data[at + 5 : at + 9] = struct.pack("<HH", width, height)
    return bytes(data)


def tiff_of(width: int, height: int) -> bytes:
    data = bytearray(encoded("TIFF"))
    (directory,) = struct.unpack_from("<I", data, 4)
    for entry in range(directory + 2, directory + 2 + 12 * struct.unpack_from("<H", data, directory)[0], 12):
        (tag,) = struct.unpack_from("<H", data, entry)
        if tag in (256, 257):
            struct.pack_into("<HII", data, entry + 2, 4, 1, width if tag == 256 else height)
    return bytes(data)


def exif_of(payload: bytes) -> bytes:
    return encoded("JPEG", exif=b"Exif\x00\x00" + payload)


GIANT = 60_000
HOSTILE: dict[str, bytes] = {
    "bomb-png": png_of(GIANT, GIANT, bytes(1 << 20)),
    "bomb-jpeg": jpeg_of(GIANT, GIANT),
    "bomb-gif": gif_of(GIANT, GIANT),
    "bomb-tiff": tiff_of(GIANT, GIANT),
    "negative-png": png_of(2**31 + 5, 2**31 + 5),
    "negative-tiff": tiff_of(2**32 - 1, 2**32 - 1),
    **{f"zero-{name}": make(0, 8) for name, make in (("png", png_of), ("gif", gif_of), ("tiff", tiff_of))},
    "zero-jpeg": jpeg_of(8, 0),
    "large-png": png_of(9000, 9000, bytes(100)),  # within the limits, with no pixels behind it
    "large-jpeg": jpeg_of(9000, 9000),
    "text": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "nothing": b"",
    "pickle": pickle.dumps({"a": 1}),
}
ABSURD_EXIF = {
    f"exif-{i}": exif_of(payload)
    for i, payload in enumerate(
        (
            b"",
            b"II*\x00\xff\xff\xff\xff",
            b"MM\x00*\x00\x00\x00\x08\xff\xff" + bytes(20),
            b"II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\x01\x00\x00\x00\xff\xff\x00\x00",
            b"II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x04\x00\xff\xff\xff\xff\x06\x00\x00\x00",
        )
    )
}


def peak() -> int:
    """Bytes that this process has had resident at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_hostile_images_are_refused_with_a_reason_and_the_others_come_out(tmp_path: Path, write_tar: Any) -> None:
    good = {f"good-{i}": encoded(kind) for i, kind in enumerate(("JPEG", "PNG", "BMP", "TIFF", "GIF"))}
    cut = {f"cut-{name}-{n}": data[: len(data) * n // 8] for name, data in good.items() for n in range(1, 8)}
    members = [(f"{name}.jpg", data) for name, data in {**good, **HOSTILE, **ABSURD_EXIF, **cut}.items()]
    shard = write_tar(tmp_path / "hostile.tar", members)
    before = peak()
    found, stats = load(shard)
    assert peak() - before < 400 << 20  # the largest that may be decoded is 9000x9000 pixels, 243 MB
    bad = {row["key"]: row["reason"] for row in stats["bad"]}
    assert found.keys() | bad.keys() == {name.removesuffix(".jpg") for name, _ in members}
    assert good.keys() | ABSURD_EXIF.keys() <= found.keys()
    assert HOSTILE.keys() <= bad.keys()
    assert sum(name.startswith("cut-") for name in bad) > 0.8 * len(cut)
    assert all(bad.values())
    for name in ("bomb-png", "bomb-jpeg", "bomb-gif", "bomb-tiff"):
        assert "limits are" in bad[name] or "exceeds limit" in bad[name], bad[name]
    for name in ABSURD_EXIF:  # an orientation that cannot be is none
        assert found[name].shape == (24, 32, 3)


def test_no_image_is_decoded_that_is_larger_than_the_policy_allows(tmp_path: Path, write_tar: Any) -> None:
    members = [(f"{name}.png", data) for name, data in HOSTILE.items()] + [("good.png", encoded("PNG"))]
    shard = write_tar(tmp_path / "hostile.tar", members)
    before = peak()
    policy = ErrorPolicy(max_rate=1, max_pixels=10**6)
    loader = PackedImageLoader(shard, PACKING, batch_size=1, errors=policy)
    assert [key for batch in loader for keys in batch.keys for key in keys] == ["good"]
    assert peak() - before < 30 << 20


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def test_pickles_are_bytes_and_names_with_dots_lead_nowhere(tmp_path: Path) -> None:
    shard = tmp_path / "in" / "a.tar"
    shard.parent.mkdir()
    names = ("a", "../b", "/c", "d/../../e")
    with tarfile.open(shard, "w") as tar:
        for name in names:
            for extension, data in (("png", encoded("PNG")), ("pkl", pickle.dumps(Touch(tmp_path / "touched")))):
                info = tarfile.TarInfo(f"{name}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    loader = PackedImageLoader(shard, PACKING, batch_size=1, extras=["pkl"], label=lambda members: len(members))
    batches = list(loader)
    keys = [key for batch in batches for keys in batch.keys for key in keys]
    assert sorted(keys) == sorted(names)
    assert all(isinstance(data, bytes) for batch in batches for pack in batch.extras["pkl"] for data in pack)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("source", ["pipe:cat a.tar", "file:///etc/passwd"])
def test_addresses_that_run_or_fetch_something_are_refused(source: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=r"pipe:cat a.tar|file:///etc/passwd"):
        PackedImageLoader(source, PACKING, batch_size=1)
