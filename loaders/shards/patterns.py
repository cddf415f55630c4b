"""Source patterns: which shards a path, an address, a brace range, a glob or a list of these names."""

from __future__ import annotations

import glob
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from patchnpack.loaders.imaging.formats import EXTENSIONS
from patchnpack.loaders.remote.addresses import expand_braces, is_http, is_remote, name_of, redact
from patchnpack.loaders.remote.storage import open_folder
from patchnpack.loaders.shards.names import check_name, names_of
from patchnpack.loaders.shards.opener import ShardOpener
from patchnpack.packer.files import absent

ShardNames = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

PACKED_FOLDER_FILES = ("recipe.json", "manifest.json")  # a folder that holds one of them is a packed folder
INDEX_NAMES = ("index.parquet", "index.arrow")  # names of an index beside its shards


def is_packed_folder(source: object) -> bool:
    """Return whether a source names a packed folder, finished or not.

    An address is one if it ends in a slash or if nothing in it looks like the name of a file.
    """
    if not isinstance(source, str | os.PathLike):
        return False
    text = os.fspath(source)
    if is_remote(text):
        return text.endswith("/") or (not set("*?[{") & set(text) and "." not in name_of(text))
    folder = os.path.expanduser(text)
    return any(os.path.isfile(os.path.join(folder, name)) for name in PACKED_FOLDER_FILES)


def is_image_folder(source: str | os.PathLike[str], storage_options: Mapping[str, Any] | None) -> bool:
    """Return whether an address of a folder, packed by its looks, holds no packs; asks the store for their files."""
    address = os.fspath(source)
    if not is_remote(address) or is_http(address):
        return False
    folder = open_folder(address, storage_options)
    return not any(folder.names("", name) for name in PACKED_FOLDER_FILES)


def expand(source: ShardNames, opener: ShardOpener | None = None) -> list[str]:
    """The shards that `source` names, in order.

    Raises:
        ValueError: nothing is named, a shard is named twice, braces name nothing, or the source is a folder or no name
            at all, such as a data set.
        FileNotFoundError: a shard does not exist, or nothing matches a glob.

    >>> expand("train-{000..001}.tar")
    Traceback (most recent call last):
        ...
    FileNotFoundError: shard 'train-000.tar' does not exist (2 of the 2 shards in 'train-{000..001}.tar' are missing...
    """
    opener = opener or ShardOpener()
    paths = [path for pattern in names_of(source) for path in _expand_one(pattern, opener)]
    if not paths:
        raise ValueError("the source is an empty list; give at least one shard, such as 'train-{000000..000009}.tar'")
    seen: set[str] = set()
    for path in paths:
        if (real := path if is_remote(path) else os.path.realpath(path)) in seen:
            raise ValueError(f"shard {redact(path)!r} is named more than once; name each shard once")
        seen.add(real)
    return paths


def _expand_one(pattern: str, opener: ShardOpener) -> list[str]:
    if not pattern:
        raise ValueError("the source is an empty string; give at least one shard, such as 'train-{000000..000009}.tar'")
    check_name(pattern)
    if is_remote(pattern):
        return opener.expand(pattern)
    if pattern.startswith("pipe:"):
        raise ValueError(f"{pattern!r} runs a command, which has no random access; name files, or use pack_stream")
    pattern = os.path.expanduser(pattern)
    if os.path.exists(pattern):
        _refuse_folder(pattern)
        return [pattern]
    paths = expand_braces(pattern)
    found: list[str] = []
    missing: list[str] = []
    for path in paths:
        if path.endswith(".arrow"):
            raise ValueError(
                f"{path!r} is an index by its name, and an index must be the only source; name shards, and give "
                f"index={path!r}"
                if os.path.exists(path) or len(paths) > 1
                else f"index {path!r} {absent(path)}; make it with: patchnpack index SHARDS -o {path}"
            )
        if os.path.exists(path):
            found.append(path)
        elif glob.has_magic(path):
            # `patchnpack index` leaves an index beside parquet shards that "*.parquet" matches, too.
            matches = sorted(match for match in glob.glob(path) if os.path.basename(match) not in INDEX_NAMES)
            if not matches:
                raise FileNotFoundError(f"no file in {Path.cwd()} matches {path!r}; name shards that exist")
            missing += [match for match in matches if not os.path.exists(match)]  # dangling links
            found += matches
        else:
            missing.append(path)
    if missing:
        # A name without an extension may be meant as a folder of images.
        kind = "shard" if os.path.splitext(missing[0])[1] else "shard or folder"
        count = f"{len(missing)} of the {len(paths)} shards in {pattern!r} are missing; " if len(paths) > 1 else ""
        raise FileNotFoundError(
            f"{kind} {missing[0]!r} {absent(missing[0])} ({count}the working directory is {Path.cwd()}); correct the "
            "path or the range"
        )
    for path in found:
        _refuse_folder(path)
    return found


def _refuse_folder(path: str) -> None:
    """Raise ValueError if `path` is a folder, with the source or command to use instead."""
    if not os.path.isdir(path):
        return
    inside = os.listdir(path)
    if any(name in inside for name in PACKED_FOLDER_FILES):
        raise ValueError(
            f"{path!r} is a packed folder, not a shard: PackedImageLoader({path!r}) and `patchnpack report` read it; "
            f"for other commands convert it to shards: patchnpack unpack {shlex.quote(path)} -o SHARDS"
        )
    for suffix in ("tar", "parquet"):
        if shards := sum(name.endswith("." + suffix) for name in inside):
            pattern = os.path.join(path, "*." + suffix)
            raise ValueError(f"{path!r} is a folder of {shards} shards; name the shards: {pattern!r}")
    if not inside:
        raise ValueError(f"{path!r} is an empty folder; name shards, such as 'train-{{000000..000009}}.tar'")
    images = sum(os.path.splitext(name)[1][1:].lower() in EXTENSIONS for name in inside)
    raise ValueError(
        f"{path!r} is a folder with {images} image files at its top, not a shard; name it by itself, not by a pattern, "
        f"or make shards of it: patchnpack shard {shlex.quote(path)} -o "
        f"{shlex.quote(path.rstrip(os.sep) + '-shards')}"
    )
