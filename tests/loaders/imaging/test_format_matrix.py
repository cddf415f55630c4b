"""Every format in every mode: the pixels of `Image.open(f).convert(mode)`, whatever PIL was built with.

PIL's pixels are compared where the PIL of this environment reads the file; lossless files with the pixels that they
were written from, everywhere.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image, ImageOps, features

from patchnpack.loaders.errors import BadImage
from patchnpack.loaders.imaging.decode import decode
from patchnpack.loaders.imaging.formats import EXTENSIONS, FORMATS, READERS
from patchnpack.loaders.imaging.header import Header, UnsupportedImage, read_header
from patchnpack.loaders.imaging.readers.facts import SEVERAL
from tests.images import draw_image, encode_image
from tests.loaders.imaging.tiffs import write_tiff

WIDTH, HEIGHT = 37, 23
MODES = ("L", "RGB", "RGBA")
RNG = np.random.default_rng(17)

pytestmark = pytest.mark.filterwarnings("ignore")  # PIL warns of BigTIFFs, damaged TIFFs and palettes with alpha


def draw(mode: str, seed: int = 0) -> Image.Image:
    if mode == "CMYK":
        return Image.frombytes("CMYK", (WIDTH, HEIGHT), draw_image(WIDTH, HEIGHT, seed, "RGBA").tobytes())
    return draw_image(WIDTH, HEIGHT, seed, mode)


def expected(image: Image.Image, mode: str) -> np.ndarray:
    return np.asarray(image.convert(mode)).reshape(image.height, image.width, -1)


def by_pil(data: bytes, mode: str) -> np.ndarray | None:
    """What PIL gives; None where this build of PIL does not read the file."""
    try:
        image = Image.open(io.BytesIO(data))
        return expected(ImageOps.exif_transpose(image), mode)
    except (OSError, ValueError):
        return None


def loaded(data: bytes, mode: str, size: tuple[int, int] | None = None) -> np.ndarray:
    warned: list[str] = []
    header = read_header(data)
    size = size or (header.width, header.height)
    pixels = decode(data, header, size, mode=mode, warn=warned.append)  # type: ignore[arg-type]
    assert not warned
    assert pixels.flags.c_contiguous
    assert pixels.dtype == np.uint8
    return pixels


def written_by_pil() -> Iterator[tuple[str, bytes]]:
    """Files that every build of PIL can write."""
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        yield f"png {mode}", encode_image(draw(mode), "PNG")
    for bits in (1, 2, 4):
        yield f"png palette of {bits} bits", encode_image(draw("RGB").quantize(1 << bits), "PNG", bits=bits)
    for colour in (3, bytes(range(0, 256, 8))):
        yield f"png P transparency {type(colour).__name__}", encode_image(draw("P"), "PNG", transparency=colour)
    yield "png L transparency", encode_image(draw("L"), "PNG", transparency=100)
    yield "png 1 transparency", encode_image(draw("1"), "PNG", transparency=0)
    yield "png RGB transparency", encode_image(draw("RGB"), "PNG", transparency=draw("RGB").getpixel((3, 3)))
    yield "apng", encode_image(draw("RGB"), "PNG", save_all=True, append_images=[draw("RGB", 1)])
    for mode in ("1", "L", "P", "RGB"):
        yield f"gif {mode}", encode_image(draw(mode), "GIF")
        yield f"bmp {mode}", encode_image(draw(mode), "BMP")
    yield "gif transparency", encode_image(draw("P"), "GIF", transparency=3)
    yield "gif frames", encode_image(draw("P"), "GIF", save_all=True, append_images=[draw("P", 1)])
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK"):
        for orientation in (1, 6):
            yield (
                f"tiff {mode} {orientation}",
                encode_image(draw(mode), "TIFF", tiffinfo={274: orientation}),
            )


def written_where_supported() -> Iterator[tuple[str, bytes]]:
    """Files that some builds of PIL can write."""
    if features.check("webp"):
        for mode, lossless in itertools.product(("L", "P", "RGB", "RGBA"), (False, True)):
            yield f"webp {mode} {lossless}", encode_image(draw(mode), "WEBP", lossless=lossless)
        for mode in ("RGB", "RGBA"):
            frames: dict[str, Any] = {"save_all": True, "append_images": [draw(mode, 1)]}
            yield f"webp frames {mode}", encode_image(draw(mode), "WEBP", **frames)
    if features.check("avif"):
        for mode, sampling in itertools.product(("L", "LA", "RGB", "RGBA"), ("4:2:0", "4:4:4")):
            yield f"avif {mode} {sampling}", encode_image(draw(mode), "AVIF", subsampling=sampling)
        for orientation in range(1, 9):
            exif = Image.Exif()
            exif[274] = orientation
            yield f"avif {orientation}", encode_image(draw("RGB"), "AVIF", exif=exif)
        yield "avif frames", encode_image(draw("RGB"), "AVIF", save_all=True, append_images=[draw("RGB", 1)])
    if features.check("jpg_2000"):
        for mode, raw in itertools.product(("L", "LA", "RGB", "RGBA"), (False, True)):
            yield f"jpeg 2000 {mode} {raw}", encode_image(draw(mode), "JPEG2000", no_jp2=raw)
        yield "jpeg 2000 lossy", encode_image(draw("RGB"), "JPEG2000", irreversible=True, quality_layers=[20])
    if features.check("libtiff"):
        for kind in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd", "lzma", "jpeg"):
            for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"):
                if kind != "jpeg" or mode not in ("1", "P"):
                    for orientation in (1, 3, 5, 8):
                        yield (
                            f"tiff {kind} {mode} {orientation}",
                            encode_image(draw(mode), "TIFF", compression=kind, tiffinfo={274: orientation}),
                        )
        yield "tiff group4", encode_image(draw("1"), "TIFF", compression="group4")


def raw_tiffs() -> Iterator[tuple[str, bytes]]:
    """Every kind of pixels, byte order and layout of an uncompressed TIFF."""
    for order, big in itertools.product("<>", (False, True)):
        for photometric, bits in itertools.product((0, 1, 3), (1, 2, 4, 8)):
            palette = RNG.integers(0, 65536, 3 << bits).tolist() if photometric == 3 else ()
            rows = RNG.bytes(-(-WIDTH * bits // 8) * HEIGHT)
            for fill in (1, 2):
                options: dict[str, Any] = {"photometric": photometric, "bits": (bits,), "palette": palette}
                yield (
                    f"{order} {big} {photometric} {bits} {fill}",
                    write_tiff(WIDTH, HEIGHT, [rows], order=order, big=big, fill_order=fill, **options),
                )
        for photometric, samples, extra in (
            *((1, 2, (0,)), (1, 2, (2,)), (2, 3, ()), (2, 4, ()), (2, 4, (0,)), (2, 4, (1,)), (2, 4, (2,))),
            *((2, 4, (999,)), (3, 2, (2,)), (5, 4, ())),
        ):
            palette = RNG.integers(0, 65536, 3 << 8).tolist() if photometric == 3 else ()
            planes = [RNG.bytes(WIDTH * HEIGHT) for _ in range(samples)]
            chunky = np.stack([np.frombuffer(plane, np.uint8) for plane in planes], 1).tobytes()
            options = {"photometric": photometric, "bits": (8,) * samples, "extra": extra, "palette": palette}
            for planar, strips in ((1, [chunky]), (2, planes)):
                yield (
                    f"{order} {big} {photometric} {extra} {samples} {planar}",
                    write_tiff(WIDTH, HEIGHT, strips, order=order, big=big, planar=planar, **options),
                )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("files", [written_by_pil, written_where_supported, raw_tiffs])
def test_pixels_equal_pil_in_every_mode(files: Any, mode: str) -> None:
    compared = total = 0
    for name, data in files():
        total += 1
        pixels, reference = loaded(data, mode), by_pil(data, mode)
        if reference is not None:
            compared += 1
            assert np.array_equal(pixels, reference), f"{name}, {mode}: {np.abs(pixels.astype(int) - reference).max()}"
    assert compared >= total * (0.3 if files is raw_tiffs else 1)


def test_layouts_of_a_tiff_that_pil_does_not_read_equal_those_it_reads() -> None:
    found: dict[str, dict[str, np.ndarray]] = {}
    for order, big, planar in itertools.product("<>", (False, True), (1, 2)):
        for photometric, extra in ((2, (1,)), (2, (0,)), (1, (2,)), (5, ())):
            samples = {1: 2, 2: 4, 5: 4}[photometric]
            planes = [bytes(range(i, i + 120)) for i in range(0, 30 * samples, 30)]
            strips = planes if planar == 2 else [bytes(itertools.chain(*zip(*planes, strict=True)))]
            options: dict[str, Any] = {"photometric": photometric, "bits": (8,) * samples, "extra": extra}
            data = write_tiff(12, 10, strips, order=order, big=big, planar=planar, **options)
            found.setdefault(f"{photometric} {extra}", {})[f"{order}{big}{planar}"] = loaded(data, "RGBA")
    for name, layouts in found.items():
        for layout, pixels in layouts.items():
            assert np.array_equal(pixels, layouts["<False1"]), (name, layout)


COMPRESSIONS: dict[int, Any] = {
    5: imagecodecs.lzw_encode,
    8: imagecodecs.zlib_encode,
    32773: imagecodecs.packbits_encode,
    34925: imagecodecs.lzma_encode,
    50000: imagecodecs.zstd_encode,
}


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "CMYK"])
def test_compressed_strips_of_a_tiff_have_their_pixels_upright(mode: str, compression: int) -> None:
    image = draw(mode)
    rows = np.asarray(image)
    strips = [bytes(COMPRESSIONS[compression](rows[y : y + 8].tobytes())) for y in range(0, HEIGHT, 8)]
    for orientation in range(1, 9):
        options: dict[str, Any] = {
            "photometric": {"L": 1, "LA": 1, "RGB": 2, "RGBA": 2, "CMYK": 5}[mode],
            "bits": (8,) * len(mode),
            "extra": (2,) if mode in ("LA", "RGBA") else (),
        }
        data = write_tiff(
            WIDTH, HEIGHT, strips, compression=compression, strip_rows=8, orientation=orientation, **options
        )
        exif = Image.Exif()
        exif[274] = orientation
        for target in MODES:
            upright = image.convert("RGBA" if mode in ("LA", "RGBA") else mode)
            upright.info["exif"] = exif.tobytes()
            assert np.array_equal(loaded(data, target), expected(ImageOps.exif_transpose(upright), target))
        if orientation == 1 and compression != 50000:  # a strip that is lost is not black pixels
            with pytest.raises(BadImage):
                loaded(data[: data.index(strips[-1])], "RGB")


@pytest.mark.parametrize(("photometric", "mode"), [(0, "L"), (1, "L"), (6, "RGB"), (2, "RGBA"), (5, "CMYK")])
def test_jpeg_strips_of_a_tiff_are_decoded_as_they_are(photometric: int, mode: str) -> None:
    raw: dict[str, Any] = {} if mode in ("L", "RGB") else {"colorspace": 0, "outcolorspace": 0}
    rows = np.ascontiguousarray(np.asarray(draw("RGBA"))[..., : len(mode)].squeeze())
    strips = [bytes(imagecodecs.jpeg8_encode(rows[y : y + 16], level=90, **raw)) for y in range(0, HEIGHT, 16)]
    wanted = np.concatenate([imagecodecs.jpeg8_decode(strip, **raw) for strip in strips])
    options: dict[str, Any] = {"photometric": photometric, "bits": (8,) * len(mode), "compression": 7}
    extra = (2,) if mode == "RGBA" else ()
    data = write_tiff(WIDTH, HEIGHT, strips, strip_rows=16, extra=extra, **options)
    if photometric == 0:
        wanted = 255 - wanted
    image = Image.frombytes(mode, (WIDTH, HEIGHT), wanted.tobytes())
    for target in MODES:
        assert np.array_equal(loaded(data, target), expected(image, target))


def test_unknown_compression_is_bad_and_not_black() -> None:
    for photometric in (1, 2, 5, 6):
        bits = (8,) * {1: 1, 2: 3, 5: 4, 6: 3}[photometric]
        data = write_tiff(WIDTH, HEIGHT, [bytes(3000)], photometric=photometric, bits=bits, compression=34933)
        with pytest.raises(BadImage):
            loaded(data, "RGB")


def lossless_files(pixels: np.ndarray) -> Iterator[tuple[str, bytes]]:
    """The pixels in every lossless format that imagecodecs writes, none of which needs PIL."""
    yield "png", bytes(imagecodecs.png_encode(pixels))
    yield "jpeg-xl", bytes(imagecodecs.jpegxl_encode(pixels, lossless=True))
    yield "jpeg-xl", bytes(imagecodecs.jpegxl_encode(pixels, lossless=True, usecontainer=True))
    yield "jpeg-2000", bytes(imagecodecs.jpeg2k_encode(pixels, level=0))
    yield "jpeg-2000", bytes(imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="j2k"))
    if pixels.ndim == 3 and pixels.shape[2] > 2:
        yield "webp", bytes(imagecodecs.webp_encode(pixels, lossless=True))
        yield "avif", bytes(imagecodecs.avif_encode(pixels, level=100, pixelformat="444"))


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_lossless_files_have_the_pixels_they_were_written_from(mode: str) -> None:
    image = draw(mode)
    for format, data in lossless_files(np.asarray(image)):
        assert read_header(data) == Header(WIDTH, HEIGHT, 1, FORMATS.index(format), bands=len(mode))
        for target in MODES:
            found, wanted = loaded(data, target), expected(image, target)
            assert np.abs(found.astype(int) - wanted).max() <= (8 if format == "avif" else 0), (format, target)
            assert loaded(data, target, (16, 8)).shape == (8, 16, len(target))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_heic_has_the_pixels_that_pillow_heif_gives_upright(mode: str) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[274] = orientation
        file = io.BytesIO()
        image = draw(mode).resize((38, 24))
        pillow_heif.from_pillow(image).save(file, exif=exif.tobytes())
        data = file.getvalue()
        reference = pillow_heif.open_heif(data).to_pillow()
        header = read_header(data)
        assert header == Header(reference.width, reference.height, 1, FORMATS.index("heic"), bands=len(mode))
        for target in MODES:
            assert np.array_equal(loaded(data, target), expected(reference, target))


def several(kind: str) -> bytes:
    """A file of three pages or frames."""
    first, *others = (np.asarray(draw("RGB", seed)) for seed in range(3))
    if kind == "jpeg-xl":
        return bytes(imagecodecs.jpegxl_encode(np.stack([first, *others]), lossless=True))
    if kind == "bigtiff":
        options: dict[str, Any] = {"photometric": 2, "bits": (8, 8, 8), "pages": 3, "big": True}
        return write_tiff(WIDTH, HEIGHT, [first.tobytes()], **options)
    if kind == "heic":
        pillow_heif = pytest.importorskip("pillow_heif")
        file = io.BytesIO()
        heif = pillow_heif.from_pillow(Image.fromarray(first))
        for other in others:
            heif.add_from_pillow(Image.fromarray(other))
        heif.save(file)
        return file.getvalue()
    if kind in ("webp", "avif") and not features.check(kind):
        pytest.skip(f"this PIL does not write {kind}")
    images = list(map(Image.fromarray, others))
    return encode_image(first, kind, save_all=True, append_images=images)


@pytest.mark.parametrize("kind", ["gif", "png", "tiff", "bigtiff", "webp", "avif", "heic", "jpeg-xl"])
def test_pages_are_counted_and_the_first_is_decoded(kind: str) -> None:
    data = several(kind)
    assert read_header(data).pages == (SEVERAL if kind == "jpeg-xl" else 3)
    found = loaded(data, "RGB").astype(int)
    if kind in ("heic", "avif", "webp", "gif"):  # lossy, or of few colours
        reference = by_pil(data, "RGB")
        if reference is not None:
            assert np.array_equal(found, reference)
        first, second = (np.abs(found - np.asarray(draw("RGB", seed)).astype(int)).mean() for seed in (0, 1))
        assert first < second / 2
    else:
        assert np.array_equal(found, np.asarray(draw("RGB")))


def test_one_page_is_one_page() -> None:
    for name, data in [*written_by_pil(), *written_where_supported()]:
        assert (read_header(data).pages == 1) == ("frames" not in name and name != "apng"), name


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_deep_images_of_new_formats_are_refused_with_their_size(bits: int) -> None:
    pixels = np.asarray(draw("RGB")).astype(np.uint16) << bits - 8
    files = {
        "jpeg-xl": imagecodecs.jpegxl_encode(pixels, lossless=True, bitspersample=bits),
        "jpeg-2000": imagecodecs.jpeg2k_encode(pixels, level=0, bitspersample=bits),
    }
    if bits < 16:
        files["avif"] = imagecodecs.avif_encode(pixels, bitspersample=bits)
    for format, data in files.items():
        with pytest.raises(UnsupportedImage, match=f"{bits} bits per channel") as caught:
            read_header(bytes(data))
        assert caught.value.header == Header(WIDTH, HEIGHT, 1, FORMATS.index(format), dtype=1)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_every_cut_is_refused_or_decodes_whole(reader: Any) -> None:
    pixels = np.asarray(draw("RGB"))
    files = {FORMATS.index(format): data for format, data in lossless_files(pixels)}
    for format, kind in ((1, "JPEG"), (4, "GIF"), (5, "BMP"), (6, "TIFF")):
        files[format] = encode_image(pixels, kind)
    if reader.format not in files:
        pytest.skip("written by pillow-heif only")
    data = files[reader.format]
    whole = loaded(data, "RGB")
    for end in range(0, len(data), 1 + len(data) // 300):
        try:
            found = decode(data[:end], read_header(data[:end]), (WIDTH, HEIGHT))
        except BadImage:
            continue
        assert np.array_equal(found, whole), (reader.name, end, len(data))


@pytest.mark.parametrize("format", ["avif", "jpeg-xl", "jpeg-2000", "webp", "png", "tiff"])
def test_damage_gives_an_image_of_the_stated_size_or_a_bad_image(format: str) -> None:
    pixels = np.asarray(draw("RGB"))
    files = dict(lossless_files(pixels)) | {"tiff": encode_image(pixels, "TIFF")}
    whole, rng = files[format], np.random.default_rng(5)
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(int(rng.integers(1, 4))):
            data[int(rng.integers(min(len(data), 300) if rng.random() < 0.7 else len(data)))] ^= 1 << int(
                rng.integers(8)
            )
        try:
            header = read_header(bytes(data))
            if header.width * header.height < 1 << 20:
                found = decode(bytes(data), header, (header.width, header.height))
                assert found.shape == (header.height, header.width, 3)
        except BadImage:
            continue


def test_messages_and_the_second_decoder_are_warnings_and_not_damage(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    image = draw("RGB")
    text = b"tEXta\0b"
    chunk = (len(text) - 4).to_bytes(4, "big") + text + bytes(4)  # its checksum is wrong
    whole = encode_image(image, "PNG")
    begin = whole.index(b"IDAT") - 4
    data, kinds = whole[:begin] + chunk + whole[begin:], list[str]()
    header = read_header(data)
    assert np.array_equal(decode(data, header, image.size, warn=kinds.append), np.asarray(image))
    assert kinds == ["decoder message"]
    assert not caplog.records
    imagecodecs.png_decode(data)
    assert len(caplog.records) == 1  # of a call that is not the loader's
    refusing = READERS[1]._replace(decode=lambda data: np.frombuffer(b"", np.uint8).reshape(1, 2))
    monkeypatch.setattr("patchnpack.loaders.imaging.decode.reader_of", lambda data: refusing)
    assert np.array_equal(decode(whole, header, image.size, warn=kinds.append), np.asarray(image))
    assert kinds == ["decoder message", "second decoder"]


def test_every_format_has_a_reader_an_extension_and_a_place_in_the_index() -> None:
    numbers = [reader.format for reader in READERS]
    assert sorted(numbers) == sorted(set(range(len(FORMATS))) - {FORMATS.index("jpeg"), FORMATS.index("pixels")})
    assert len(set(EXTENSIONS)) == len(EXTENSIONS)
    assert {"jpg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jxl", "jp2", "heic"} <= set(EXTENSIONS)
