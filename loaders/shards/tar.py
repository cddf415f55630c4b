"""Tar shards: samples and the byte ranges of their members.

By webdataset's convention, a member's name up to the first dot is the key of its sample.
"""

from __future__ import annotations

import os
import re
import tarfile
from dataclasses import dataclass, field

from patchnpack.loaders.imaging.formats import EXTENSIONS, is_image

_NAME = re.compile(r"^((?:.*/)?[^./][^./]*)\.([^/]+)$")
_META = re.compile(r"__[^/]*__($|/)")
_BLOCK = 512
IMAGE = ";".join(EXTENSIONS)  # the default extensions of images
# PAX headers with the key of a sample and the name of its member, where the file's name cannot hold them as they are:
# `unpack` writes them.
KEY_HEADER, MEMBER_HEADER = "patchnpack.key", "patchnpack.member"
_MAX_PADDING = 1 << 20  # bytes of zeros at the end; writers round a tar up to 10 KiB or to another record size


@dataclass(slots=True)
class TarSample:
    """One sample of a shard.

    Attributes:
        key: the sample's key.
        members: for each extension, the (offset, nbytes) of that member.
    """

    key: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)


def read_samples(file: str, shard: str | None = None) -> list[TarSample]:
    """Read the samples of a tar shard from its headers, in the order of their first members.

    Folders, links, webdataset's own `__name__` files and names without an extension are skipped.

    Args:
        file: path of the tar.
        shard: the name for error messages, if not `file`.

    Raises:
        ValueError: the file is not an uncompressed tar, is truncated, or holds a duplicate or sparse member.
    """
    samples: dict[str, TarSample] = {}
    path = file if shard is None else shard
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                if member.size < 0 or member.issparse():
                    kind = "a sparse file" if member.issparse() else f"a file of {member.size} bytes"
                    raise ValueError(f"shard {path!r} holds {member.name!r} as {kind}; write it as a plain file")
                match = _NAME.match(member.name)
                if not member.isreg() or match is None or _META.match(member.name):
                    continue
                key, extension = match[1], member.pax_headers.get(MEMBER_HEADER, match[2].lower())
                sample = samples.setdefault(key, TarSample(member.pax_headers.get(KEY_HEADER, key)))
                if extension in sample.members:
                    raise ValueError(f"shard {path!r} holds {member.name!r} twice; give each member its own name")
                sample.members[extension] = (member.offset_data, member.size)
            end = tar.offset
    except tarfile.TarError as error:
        raise ValueError(
            _describe_other(file, path)
            or f"shard {path!r} cannot be read as an uncompressed tar: {error}; unpack or write it again"
        ) from error
    _check_end(file, path, end)
    return list(samples.values())


def _describe_other(file: str, path: str) -> str | None:
    """The error message for a file of a common kind that is not a tar: gzip, an image, or zip. Otherwise None."""
    with open(file, "rb") as opened:
        head = opened.read(_BLOCK)
    if head.startswith(b"\x1f\x8b"):
        return f"shard {path!r} is compressed with gzip, which allows no random access; gunzip it"
    if head[257:262] == b"ustar":  # a damaged tar, whose first member's name may look like another format
        return None
    if is_image(head):
        return (
            f"{path!r} is an image, not a shard: make shards of its folder with `patchnpack shard FOLDER -o SHARDS`, "
            "and name the shards"
        )
    if head.startswith(b"PK\x03\x04"):
        return (
            f"{path!r} is a zip archive, as checkpoints (.pt) are, not a shard: give tar or parquet shards, or unzip "
            "the images and make shards with `patchnpack shard FOLDER -o SHARDS`"
        )
    return None


def _check_end(name: str, path: str, end: int) -> None:
    """Raise ValueError unless blocks of zeros end the tar; `tarfile` also stops at a damaged or truncated header."""
    size = os.path.getsize(name)
    with open(name, "rb") as file:
        file.seek(end)
        rest = file.read(_MAX_PADDING + 1)
    if len(rest) < _BLOCK or any(rest[:_BLOCK]):
        raise ValueError(
            f"shard {path!r} has {size} bytes and neither a member nor the end marker of a tar at byte {end}: it is "
            "truncated or damaged; copy or write it again"
        )
    if any(rest) or len(rest) > _MAX_PADDING:
        raise ValueError(
            f"shard {path!r} has its end marker at byte {end}, but continues to byte {size}: it was concatenated from "
            "several tars, or copied in part; copy or write it again"
        )
