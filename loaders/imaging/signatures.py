"""How encoded images begin."""

from __future__ import annotations

TIFF_STARTS = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")  # the last two begin a BigTIFF
LFS_POINTER = b"version https://git-lfs.github.com/"  # a text file in place of a file that Git LFS stores


def is_jpeg(data: bytes) -> bool:
    """Whether the data begin like a JPEG."""
    return data.startswith(b"\xff\xd8")


def is_png(data: bytes) -> bool:
    """Whether the data begin like a PNG."""
    return data.startswith(b"\x89PNG\r\n\x1a\n")


def is_webp(data: bytes) -> bool:
    """Whether the data begin like a WebP."""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def is_tiff(data: bytes) -> bool:
    """Whether the data begin like a TIFF or a BigTIFF."""
    return data.startswith(TIFF_STARTS)


def is_gif(data: bytes) -> bool:
    """Whether the data begin like a GIF."""
    return data.startswith((b"GIF87a", b"GIF89a"))


def is_bmp(data: bytes) -> bool:
    """Whether the data begin like a BMP."""
    return data.startswith(b"BM")


def is_jpeg2000(data: bytes) -> bool:
    """Whether the data begin like a JPEG 2000 file or codestream."""
    return data.startswith((b"\x00\x00\x00\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"))


def is_jpegxl(data: bytes) -> bool:
    """Whether the data begin like a JPEG XL file or codestream."""
    return data.startswith((b"\x00\x00\x00\x0cJXL \r\n\x87\n", b"\xff\x0a"))


def is_avif(data: bytes) -> bool:
    """Whether the data begin like an AVIF: one of its brands says so."""
    return bool(_brands(data) & {b"avif", b"avis"})


def is_heic(data: bytes) -> bool:
    """Whether the data begin like a HEIC or another HEIF than an AVIF."""
    brands = _brands(data)
    kinds = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
    return bool(brands & kinds) and not brands & {b"avif", b"avis"}


def is_npy(data: bytes) -> bool:
    """Whether the data begin like an array that `numpy.save` wrote."""
    return data.startswith(b"\x93NUMPY")


def is_npz(data: bytes) -> bool:
    """Whether the data begin like arrays that `numpy.savez` wrote: a zip file whose first member is a .npy file."""
    length = int.from_bytes(data[26:28], "little")
    return data.startswith(b"PK\x03\x04") and data[30 : 30 + length].endswith(b".npy")


def is_dicom(data: bytes) -> bool:
    """Whether the data begin like a DICOM file (PS3.10, section 7.1)."""
    return data[128:132] == b"DICM"


def is_matroska(data: bytes) -> bool:
    """Whether the data begin like a Matroska or WebM file."""
    return data.startswith(b"\x1a\x45\xdf\xa3")


def is_avi(data: bytes) -> bool:
    """Whether the data begin like an AVI."""
    return data[:4] == b"RIFF" and data[8:12] == b"AVI "


def is_mp4(data: bytes) -> bool:
    """Whether the data begin like an MP4 or QuickTime file, and not like one of the images in such files."""
    if data[4:8] == b"ftyp":
        return not (is_avif(data) or is_heic(data) or data[8:12] in (b"crx ", b"jp2 ", b"jpx ", b"jxl "))
    return data[4:8] in (b"moov", b"mdat", b"wide")


def _brands(data: bytes) -> set[bytes]:
    if data[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(data[:4], "big"), len(data), 4096)
    return {data[8:12], *(data[at : at + 4] for at in range(16, end - 3, 4))}
