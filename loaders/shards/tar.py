"""Tar shards: samples and the byte ranges of their members.

By webdataset's convention, a member's name up to the first dot is the key of its sample.
"""

from __future__ import annotations

import os
import re
import tarfile
from dataclasses import dataclass, field

from patchnpack.loaders.imaging.formats import EXTENSIONS, VIDEO_EXTENSIONS, is_image
from patchnpack.loaders.imaging.signatures import LFS_POINTER

_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
_META = re.compile(r"__[^/]*__(/|\Z)")
_BLOCK = 512
IMAGE = ";".join(EXTENSIONS)  # the default extensions of images
IMAGE_OR_VIDEO = f"{IMAGE};{';'.join(VIDEO_EXTENSIONS)}"  # where all frames are used
# PAX headers with the key of a sample and the name of its member, where the file's name cannot hold them as they are:
# `unpack` writes them.
KEY_HEADER, MEMBER_HEADER = "patchnpack.key", "patchnpack.member"
_MAX_PADDING = 1 << 20  # bytes of zeros at the end; writers round a tar up to 10 KiB or to another record size
_LABEL, _DUMP = b"V", b"D"  # GNU tar's name of the archive, and its list of a folder's files
_KINDS = {
    tarfile.CHRTYPE: "a character device",
    tarfile.BLKTYPE: "a block device",
    tarfile.FIFOTYPE: "a FIFO",
}
_TABLES = (".json", ".jsonl", ".ndjson", ".txt", ".xls", ".xlsx", ".ods")  # files of other programs that users try
_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ\x00": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
}


@dataclass(slots=True)
class TarSample:
    """One sample of a shard.

    Attributes:
        key: the sample's key.
        members: for each extension, the (offset, nbytes) of that member.
    """

    key: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TarShard:
    """The regular files of a tar shard; each is a member of exactly one of these samples.

    Attributes:
        samples: the samples, in the order of their first members.
        unnamed: files whose names give no key and extension: hidden files, files without an extension, and files that
            webdataset reserves. Each is a sample of its own, with its whole name as key and "" as extension.
    """

    samples: list[TarSample]
    unnamed: list[TarSample]


def is_reserved(name: str) -> bool:
    """Whether webdataset reserves a member's name: `__NAME__`, or a path below such a folder.

    >>> is_reserved("__index__"), is_reserved("__index.jpg")
    (True, False)
    """
    return _META.match(name) is not None


def read_samples(file: str, shard: str | None = None) -> list[TarSample]:
    """Read the samples of a tar shard; see `read_tar`."""
    return read_tar(file, shard).samples


def read_tar(file: str, shard: str | None = None) -> TarShard:
    """Read which samples a tar shard holds, from its headers.

    A hard link is the earlier file that it names. Folders are skipped.

    Args:
        file: path of the tar.
        shard: the name for error messages, if not `file`.

    Raises:
        ValueError: the file is not an uncompressed tar, is truncated, or holds a duplicate member, a sparse file, a
            symbolic link, a device, or a hard link to something else than an earlier file.
    """
    samples: dict[str, TarSample] = {}
    unnamed: list[TarSample] = []
    path = file if shard is None else shard
    try:
        with tarfile.open(file, "r:") as tar:
            places: dict[str, tuple[int, int]] = {}  # of the files so far, for hard links to them
            for member in tar:
                if member.isdir() or member.type in (_LABEL, _DUMP):
                    continue
                place = places[os.path.normpath(member.name)] = _place(member, places, path)
                match = _NAME.fullmatch(member.name)
                if match is None or is_reserved(member.name):
                    unnamed.append(TarSample(member.name, {"": place}))
                    continue
                key, extension = match[1], member.pax_headers.get(MEMBER_HEADER, match[2].lower())
                sample = samples.setdefault(key, TarSample(member.pax_headers.get(KEY_HEADER, key)))
                # `tar -cf a.tar folder folder/a.jpg` stores the second a.jpg as a link to the first.
                if sample.members.setdefault(extension, place) != place:
                    raise ValueError(f"shard {path!r} holds {member.name!r} twice; give each member its own name")
            end = tar.offset
    except tarfile.TarError as error:
        raise ValueError(
            _describe_other(file, path)
            or f"shard {path!r} cannot be read as an uncompressed tar: {error}; unpack or write it again"
        ) from error
    _check_end(file, path, end)
    return TarShard(list(samples.values()), unnamed)


def _place(member: tarfile.TarInfo, places: dict[str, tuple[int, int]], path: str) -> tuple[int, int]:
    """The (offset, nbytes) of a member; of a hard link, those of the earlier file.

    Raises:
        ValueError: the member is not a file with bytes of its own.
    """
    what, remedy = _KINDS.get(member.type, f"a member of type {member.type!r}"), "leave it out"
    if member.size < 0 or member.issparse():
        what = "a sparse file" if member.issparse() else f"a file of {member.size} bytes"
        remedy = "write it as a plain file"
    elif member.isreg():
        return member.offset_data, member.size
    elif member.islnk():
        # Some writers put "./" before only one of the two names.
        if (place := places.get(os.path.normpath(member.linkname))) is not None:
            return place
        what = f"a hard link to {member.linkname!r}, which is no earlier file of this shard"
        remedy = "write the tar again with `tar --hard-dereference`"
    elif member.issym():
        what = f"a symbolic link to {member.linkname!r}"
        remedy = "write the tar again with `tar --dereference --hard-dereference`"
    raise ValueError(f"shard {path!r} holds {member.name!r} as {what}; {remedy}")


def _describe_other(file: str, path: str) -> str | None:
    """The error message for a common kind of file that is not a tar: compressed, an image, or zip. Otherwise None."""
    with open(file, "rb") as opened:
        head = opened.read(_BLOCK)
    for magic, (kind, command) in _COMPRESSED.items():
        if head.startswith(magic):
            return f"shard {path!r} is compressed with {kind}, which allows no random access; {command} it"
    if head[257:262] == b"ustar":  # a damaged tar, whose first member's name may look like another format
        return None
    if is_image(head):
        return (
            f"{path!r} is an image, not a shard: give the folder that holds it, or a table of paths (CSV, TSV, JSONL, "
            "Parquet), or convert the folder to shards: `patchnpack shard FOLDER -o SHARDS`"
        )
    if head.startswith(LFS_POINTER):
        return f"shard {path!r} is a Git LFS pointer, not the shard itself; run `git lfs pull` in its repository"
    if path.lower().endswith(_TABLES):
        return (
            f"{path!r} is a table, not a shard: save a table of sizes as .csv, .tsv or .parquet, and images as tar or "
            "parquet shards"
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
