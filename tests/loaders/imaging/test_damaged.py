"""Damaged images and false headers: each gives the right pixels or `BadImage`, and nothing else."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, features

from patchnpack.loaders.errors import BadImage
from patchnpack.loaders.imaging.decode import decode
from patchnpack.loaders.imaging.header import Header, read_header
from tests.images import write_png

Draw = Callable[..., Image.Image]
Encode = Callable[..., bytes]

needs_webp = pytest.mark.skipif(not features.check("webp"), reason="this PIL was built without WebP")
KINDS = ["JPEG", "PNG", pytest.param("WEBP", marks=needs_webp)]


def outcome(data: bytes, size: tuple[int, int] | None = None) -> np.ndarray | str:
    """The image, or the reason why it is bad."""
    try:
        header = read_header(data)
        # An image that claims to be huge is not decoded: its header is enough.
        if header.width * header.height > 1 << 20:
            return "huge"
        return decode(data, header, size or (header.width, header.height))
    except BadImage as error:
        return str(error)


@pytest.mark.parametrize("kind", KINDS)
def test_every_truncation_is_refused_with_a_reason_or_decodes_whole(
    kind: str, draw_image: Draw, encode_image: Encode
) -> None:
    data = encode_image(draw_image(17, 13), kind)
    whole = outcome(data)
    assert isinstance(whole, np.ndarray)
    for n in range(len(data)):
        result = outcome(data[:n])
        if isinstance(result, str):
            assert result
        else:
            # Only the bytes after the pixels may be missing: checksums and the end marker.
            assert np.array_equal(result, whole), n
            assert n >= len(data) - 24


@pytest.mark.parametrize("stated", [(17, 14), (18, 13), (13, 17), (400, 13), (17, 5)])
def test_png_with_a_false_size_is_refused_or_has_that_size(stated: tuple[int, int], draw_image: Draw) -> None:
    pixels = np.asarray(draw_image(17, 13))
    rows = b"".join(b"\0" + line.tobytes() for line in pixels)
    data = write_png(*stated, rows=rows)
    result = outcome(data)
    assert result if isinstance(result, str) else result.shape == (stated[1], stated[0], 3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", [(17, 13), (16, 13), (8, 6)])
def test_image_of_another_size_than_the_index_is_refused(
    target: tuple[int, int], kind: str, draw_image: Draw, encode_image: Encode
) -> None:
    header = read_header(encode_image(draw_image(17, 13), kind))
    other = encode_image(draw_image(32, 48), kind)
    with pytest.raises(BadImage, match=r"pixels are .*, its header said 17x13"):
        decode(other, header, target)


@pytest.mark.parametrize(
    # PIL warns about damaged TIFF files, by the design of its parser.
    "kind",
    [*KINDS, "GIF", "BMP", pytest.param("TIFF", marks=pytest.mark.filterwarnings("ignore"))],
)
@pytest.mark.parametrize("options", [{}, {"progressive": True, "interlace": 1, "lossless": True}])
def test_seeded_damage_gives_an_image_or_bad_image(
    kind: str, options: dict[str, object], draw_image: Draw, encode_image: Encode
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    extra = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP") else {}
    whole = encode_image(draw_image(23, 17, mode="P" if kind in ("PNG", "GIF") else "RGB"), kind, **options, **extra)
    rng = np.random.default_rng(20240229)
    bad = 0
    for _ in range(1000):
        data = bytearray(whole)
        for _ in range(int(rng.integers(1, 4))):
            # Half of the damage is in the first bytes, which hold the structure.
            at = int(rng.integers(min(len(data), 60) if rng.random() < 0.5 else len(data)))
            data[at] ^= 1 << int(rng.integers(8))
        if rng.random() < 0.2:
            del data[int(rng.integers(len(data))) :]
        for size in (None, (5, 3)):
            result = outcome(bytes(data), size)
            assert result if isinstance(result, str) else result.ndim == 3
        bad += isinstance(result, str)
    assert bad > 100


def test_format_for_which_pil_runs_another_program_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    assert Image.open(io.BytesIO(eps)).format == "EPS"
    with pytest.raises(BadImage):
        read_header(eps)
    with pytest.raises(BadImage):
        decode(eps, Header(9, 9, 1, 2), (9, 9))


def test_mistake_of_the_caller_is_not_a_bad_image(
    monkeypatch: pytest.MonkeyPatch, draw_image: Draw, encode_image: Encode
) -> None:
    for kind in ("JPEG", "PNG"):
        data = encode_image(draw_image(20, 30), kind)
        with pytest.raises(ValueError, match="height and width must be > 0"):
            decode(data, read_header(data), (0, 5), scaled=False)
