"""Damaged and hostile shards: every image is unchanged or reported, and none is lost silently."""

from __future__ import annotations

import os
import pickle
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from patchnpack.loaders import ErrorPolicy, PackedImageLoader, scan
from patchnpack.packer import Packing
from tests.images import encode_image, resize_jpeg_header, write_png, write_tar

PACKING = Packing(seq_len=64, patch_size=8)
LENIENT = ErrorPolicy(max_rate=1, max_consecutive=10**9)
BLOCK = 512


def load(source: Any, **options: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The pixels of each key, at native resolution, and the loader's stats."""
    loader = PackedImageLoader(source, PACKING, batch_size=4, num_threads=1, errors=LENIENT, **options)
    return {image.key: image.pixels() for batch in loader for image in batch.images()}, loader.stats()


def accounted(shard: str, expected: dict[str, np.ndarray], source: Any) -> str:
    """The outcome of loading a damaged shard: "whole", "reported" (bad images are listed) or "refused".

    Asserts that every image has the right pixels or is listed as bad.
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
    return "reported" if bad else "whole"


@pytest.fixture
def jpegs(make_drawn: Callable[..., Any]) -> tuple[str, dict[str, np.ndarray]]:
    """A shard of 12 JPEGs, and their pixels."""
    shard = make_drawn((12,), kinds=("jpg",)).shards[0]
    return shard, load(shard)[0]


@pytest.mark.parametrize("kind", ["scanned again", "indexed before"])
def test_tar_truncated_at_any_block_loses_nothing_silently(kind: str, jpegs: tuple[str, dict[str, np.ndarray]]) -> None:
    shard, expected = jpegs
    index, whole, outcomes = scan(shard), Path(shard).read_bytes(), []
    for edge in range(BLOCK, len(whole) + 1, BLOCK):
        for at in (edge - 1, edge, edge + 1):
            if at < len(whole):
                Path(shard).write_bytes(whole[:at])
                outcomes.append(accounted(shard, expected, shard if kind == "scanned again" else index))
    # Only the padding after the end marker may be missing.
    assert set(outcomes) == ({"refused", "whole"} if kind == "scanned again" else {"refused"})
    assert outcomes.index("whole") > 0.7 * len(outcomes) if kind == "scanned again" else True


def flip(shard: str, whole: bytes, index: Any, expected: dict[str, np.ndarray], seeds: range) -> dict[str, int]:
    """Count the outcomes of flipping one bit: in a tar header, in a JPEG header or anywhere in an image."""
    times, counts = os.stat(shard), {"whole": 0, "reported": 0, "refused": 0}
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
    # Every flip in an image is found. Flips in tar headers change nothing, because the index replaces them.
    assert counts == {"whole": 667, "reported": 1333, "refused": 0}


def test_flipped_bits_in_scanned_headers_are_refused_or_harmless(
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


def encoded(kind: str, **options: Any) -> bytes:
    return encode_image(np.random.default_rng(3).integers(0, 256, (24, 32, 3), np.uint8), kind, **options)


def jpeg_of(width: int, height: int) -> bytes:
    """A JPEG whose frame header claims a size."""
    return resize_jpeg_header(encoded("JPEG"), width, height)


def gif_of(width: int, height: int) -> bytes:
    data = bytearray(encoded("GIF"))
    at = data.index(b"\x2c" + bytes(4), 13 + 3 * (2 << (data[10] & 7)))  # the image descriptor, after the palette
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
    "bomb-png": write_png(GIANT, GIANT, rows=bytes(1 << 20)),
    "bomb-jpeg": jpeg_of(GIANT, GIANT),
    "bomb-gif": gif_of(GIANT, GIANT),
    "bomb-tiff": tiff_of(GIANT, GIANT),
    "negative-png": write_png(2**31 + 5, 2**31 + 5, rows=b""),
    "negative-tiff": tiff_of(2**32 - 1, 2**32 - 1),
    "zero-png": write_png(0, 8, rows=b""),
    "zero-gif": gif_of(0, 8),
    "zero-tiff": tiff_of(0, 8),
    "zero-jpeg": jpeg_of(8, 0),
    "large-png": write_png(9000, 9000, rows=bytes(100)),  # within the limits, but without pixels
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
    """The peak resident bytes of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_hostile_images_are_refused_with_a_reason_and_others_load(tmp_path: Path) -> None:
    good = {f"good-{i}": encoded(kind) for i, kind in enumerate(("JPEG", "PNG", "BMP", "TIFF", "GIF"))}
    cut = {f"cut-{name}-{n}": data[: len(data) * n // 8] for name, data in good.items() for n in range(1, 8)}
    members = [(f"{name}.jpg", data) for name, data in {**good, **HOSTILE, **ABSURD_EXIF, **cut}.items()]
    shard = write_tar(tmp_path / "hostile.tar", members)
    before = peak()
    found, stats = load(shard)
    assert peak() - before < 400 << 20  # the largest image within the limits has 9000x9000 pixels, 243 MB
    bad = {row["key"]: row["reason"] for row in stats["bad"]}
    assert found.keys() | bad.keys() == {name.removesuffix(".jpg") for name, _ in members}
    assert good.keys() | ABSURD_EXIF.keys() <= found.keys()
    assert HOSTILE.keys() <= bad.keys()
    assert sum(name.startswith("cut-") for name in bad) > 0.8 * len(cut)
    assert all(bad.values())
    for name in ("bomb-png", "bomb-jpeg", "bomb-gif", "bomb-tiff"):
        assert "at most" in bad[name] or "exceeds limit" in bad[name], bad[name]
    for name in ABSURD_EXIF:  # an invalid orientation is ignored
        assert found[name].shape == (24, 32, 3)


def test_images_above_max_pixels_are_not_decoded(tmp_path: Path) -> None:
    members = [(f"{name}.png", data) for name, data in HOSTILE.items()] + [("good.png", encoded("PNG"))]
    shard = write_tar(tmp_path / "hostile.tar", members)
    before = peak()
    policy = ErrorPolicy(max_rate=1, max_pixels=10**6)
    loader = PackedImageLoader(shard, PACKING, batch_size=1, errors=policy)
    assert [key for batch in loader for keys in batch.keys for key in keys] == ["good"]
    assert peak() - before < 30 << 20


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def test_pickles_stay_bytes_and_dotted_names_write_no_file(tmp_path: Path) -> None:
    shard = tmp_path / "in" / "a.tar"
    shard.parent.mkdir()
    names = ("a", "../b", "/c", "d/../../e")
    image, hostile = encoded("PNG"), pickle.dumps(Touch(tmp_path / "touched"))
    write_tar(shard, [member for name in names for member in ((f"{name}.png", image), (f"{name}.pkl", hostile))])
    loader = PackedImageLoader(shard, PACKING, batch_size=1, extras=["pkl"], label=lambda members: len(members))
    batches = list(loader)
    keys = [key for batch in batches for keys in batch.keys for key in keys]
    assert sorted(keys) == sorted(names)
    assert all(isinstance(data, bytes) for batch in batches for pack in batch.extras["pkl"] for data in pack)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("source", ["pipe:cat a.tar", "file:///etc/passwd"])
def test_pipe_and_file_addresses_are_refused(source: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=r"pipe:cat a.tar|file:///etc/passwd"):
        PackedImageLoader(source, PACKING, batch_size=1)
