"""CPU time of decoding one photograph per format: the loader's decoder, and PIL's, one after the other.

The photograph is re-encoded in each format. Each round decodes it once by each decoder; the table gives the medians of
all rounds, in microseconds of CPU time per image, at native size, as RGB. PIL's column is empty where PIL was built
without the format.

    python benchmarks/formats.py ../shared/data/clothing/train-000000.tar --rounds 50
"""

from __future__ import annotations

import argparse
import io
import statistics
import tarfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError

from patchnpack.loaders.imaging.decode import decode
from patchnpack.loaders.imaging.formats import READERS
from patchnpack.loaders.imaging.header import read_header


def photograph(shard: str) -> np.ndarray:
    """The first JPEG of a shard as RGB, uint8 (height, width, 3)."""
    with tarfile.open(shard) as tar:
        member = next(member for member in tar if member.name.endswith(".jpg"))
        file = tar.extractfile(member)
        assert file is not None
        return np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB"))


def by_pil(pixels: np.ndarray, kind: str, **options: Any) -> bytes:
    """Encode with PIL."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def encoded(pixels: np.ndarray) -> dict[str, bytes]:
    """The photograph in each format."""
    import pillow_heif

    heic = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(heic, quality=80)
    deflated = by_pil(pixels, "TIFF")
    try:
        deflated = by_pil(pixels, "TIFF", compression="tiff_adobe_deflate")
    except OSError:
        print("this PIL writes no compressed TIFF: an uncompressed one is measured")
    return {
        "JPEG, quality 90": by_pil(pixels, "JPEG", quality=90),
        "PNG": by_pil(pixels, "PNG"),
        "WebP, quality 80": bytes(imagecodecs.webp_encode(pixels, level=80)),
        "WebP, lossless": bytes(imagecodecs.webp_encode(pixels, lossless=True)),
        "GIF": by_pil(pixels, "GIF"),
        "BMP": by_pil(pixels, "BMP"),
        "TIFF, deflate": deflated,
        "AVIF, quality 80": bytes(imagecodecs.avif_encode(pixels, level=80)),
        "JPEG XL, distance 1": bytes(imagecodecs.jpegxl_encode(pixels, distance=1.0)),
        "JPEG 2000, lossless": bytes(imagecodecs.jpeg2k_encode(pixels, level=0)),
        "HEIC, quality 80": heic.getvalue(),
    }


def cpu_us(function: Callable[[], object]) -> float:
    """CPU time of one call in microseconds, of all threads."""
    began = time.process_time()
    function()
    return 1e6 * (time.process_time() - began)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description="CPU time of decoding one photograph per format.")
    parser.add_argument("shard", help="a tar with a .jpg member")
    parser.add_argument("--rounds", type=int, default=50)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")

    pixels = photograph(arguments.shard)
    print(f"{pixels.shape[1]}x{pixels.shape[0]} pixels, PIL {PIL.__version__}, imagecodecs {imagecodecs.__version__}")
    print("| format | decoder | CPU us | PIL, CPU us | ratio |\n|---|---|---|---|---|")
    for name, data in encoded(pixels).items():
        header = read_header(data)
        reader = next(reader for reader in READERS if reader.begins(data))

        def ours(data: bytes = data, header: Any = header) -> object:
            return decode(data, header, (header.width, header.height))

        def pils(data: bytes = data) -> object:
            return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

        try:
            pils()
            pil_reads = True
        except (UnidentifiedImageError, OSError):
            pil_reads = False
        ours()
        times = [(cpu_us(ours), cpu_us(pils) if pil_reads else 0.0) for _ in range(arguments.rounds)]
        mine, other = (statistics.median(column) for column in zip(*times, strict=True))
        against = f"{other:,.0f} | {other / mine:.2f}" if pil_reads else "| "
        print(f"| {name} | {reader.decoder} | {mine:,.0f} | {against} |", flush=True)


if __name__ == "__main__":
    main()
