"""Tar shards: where each sample's members lie (webdataset's convention: the name up to the first dot is the key)."""

from __future__ import annotations

import os
import re
import tarfile
from dataclasses import dataclass, field

from patchnpack.loaders.imaging.formats import is_image

_NAME = re.compile(r"^((?:.*/)?[^./][^./]*)\.([^/]+)$")
_META = re.compile(r"__[^/]*__($|/)")
_BLOCK = 512
IMAGE = "jpg;jpeg;png;webp"  # the extensions that are images unless something else is said
_MOST_PADDING = 1 << 20  # writers round a tar up to 10 KiB, or to a record of their own


@dataclass(slots=True)
class TarSample:
    """One sample: its key and, for each member, the extension and where its bytes lie as (offset, nbytes)."""

    key: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)


def read_samples(file: str, shard: str | None = None) -> list[TarSample]:
    """The samples of a tar shard, in order of their first members. Reads headers only.

    `file` is its path; `shard`, where it has another name, how messages call it.

    Folders, links and webdataset's own `__name__` files are passed over, as are names without an extension.

    Raises:
        ValueError: the file is no tar, is compressed, ends too early, or holds a member twice or sparse.
    """
    samples: dict[str, TarSample] = {}
    path = file if shard is None else shard
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                if member.size < 0 or member.issparse():
                    kind = "a sparse file" if member.issparse() else f"a file of {member.size} bytes"
                    raise ValueError(f"shard {path!r} holds {member.name!r} as {kind}; write it as a plain one")
                match = _NAME.match(member.name)
                if not member.isreg() or match is None or _META.match(member.name):
                    continue
                key, extension = match[1], match[2].lower()
                sample = samples.setdefault(key, TarSample(key))
                if extension in sample.members:
                    raise ValueError(f"shard {path!r} holds {member.name!r} twice; each member needs its own name")
                sample.members[extension] = (member.offset_data, member.size)
            end = tar.offset
    except tarfile.TarError as error:
        raise ValueError(
            _what_else(file, path)
            or f"shard {path!r} cannot be read as an uncompressed tar: {error}; unpack or write it again"
        ) from error
    _check_end(file, path, end)
    return list(samples.values())


def _what_else(file: str, path: str) -> str | None:
    """What is wrong and what to do, where a file that is no tar begins like one of a kind that people hand in."""
    with open(file, "rb") as start:
        head = start.read(_BLOCK)
    if head.startswith(b"\x1f\x8b"):
        return f"shard {path!r} is compressed with gzip, so its members cannot be read at any place; gunzip it"
    if head[257:262] == b"ustar":  # a tar, though a damaged one, whatever its first member is called
        return None
    if is_image(head):
        return (
            f"{path!r} is an image, not a shard: make shards of the folder that holds it with "
            "`patchnpack shard FOLDER -o SHARDS`, and give those"
        )
    if head.startswith(b"PK\x03\x04"):
        return (
            f"{path!r} is a zip archive, as checkpoints (.pt) are, not a shard: give tar or parquet shards; of images "
            "in an archive, unpacked, `patchnpack shard FOLDER -o SHARDS` makes them"
        )
    return None


def _check_end(name: str, path: str, end: int) -> None:
    """A tar closes with blocks of zeros; `tarfile` also stops at the first header that is damaged or cut off."""
    size = os.path.getsize(name)
    with open(name, "rb") as file:
        file.seek(end)
        rest = file.read(_MOST_PADDING + 1)
    if len(rest) < _BLOCK or any(rest[:_BLOCK]):
        raise ValueError(
            f"shard {path!r} has {size} bytes and neither a member nor the end mark of a tar at byte {end}: it was cut "
            "short or damaged; copy or write it again"
        )
    if any(rest) or len(rest) > _MOST_PADDING:
        raise ValueError(
            f"shard {path!r} has its end mark at byte {end}, but goes on to byte {size}: it was joined from several "
            "tars or not copied to its end; copy or write it again"
        )
