"""Listing a folder of images, local or remote."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from patchnpack.loaders.files.listing import Listing, Values, positions, stat_files
from patchnpack.loaders.files.texts import Texts, TextsBuilder
from patchnpack.loaders.imaging.formats import EXTENSIONS, VIDEO_EXTENSIONS
from patchnpack.loaders.remote.addresses import is_remote, redact
from patchnpack.loaders.shards.folders.image_folder import (
    ImageFolder,
    count_by_extension,
    find_images,
    is_hidden,
    note_folders,
    remedy_for_videos,
    walk_folder,
)
from patchnpack.loaders.shards.opener import ShardOpener
from patchnpack.loaders.shards.patterns import INDEX_NAMES

FOLDER = "folder"  # the member that holds the name of an image's folder, its class
MEMBERS = ("txt", "json", "cls")  # extensions of members that are no images
_EXAMPLES = 10


def list_folder(folder: str, given: str, image: str, extensions: list[str], opener: ShardOpener) -> Listing:
    """List the images below a folder, with the members beside them; none is opened.

    An image's key is its path without extension, its member `folder` the name of the first folder of that path.

    Args:
        folder: an absolute path, or an address.
        given: how the caller names it, for messages.
        image: extensions as the caller gave them.
        extensions: extensions of images, in lower case.
        opener: lists a remote folder.

    Raises:
        FileNotFoundError: the folder does not exist, or a link in it leads nowhere.
        ValueError: the folder holds no image, or as `read_image_folder`.
    """
    found = ImageFolder(folder)
    listed = _RemoteWalk(folder, opener, found) if is_remote(folder) else None
    folders = walk_folder(Path(folder), found) if listed is None else listed.walk()
    paths, keys, values = TextsBuilder(), TextsBuilder(), Values()
    number, classes, class_sizes = array("q"), array("q"), array("q")
    columns: dict[str, tuple[array[int], array[int]]] = {}  # rows and files of each member
    files = 0
    for row, item in enumerate(find_images(_without_index(folders), found, extensions, MEMBERS)):
        keys.add(item.key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))
        number.append(files)
        name = (item.folder or "").encode("utf-8", "surrogateescape")
        classes.append(values.add(name) if name else -1)
        class_sizes.append(len(name))
        for extension, path in item.files.items():
            rows, where = columns.setdefault(extension, (array("q"), array("q")))
            rows.append(row)
            where.append(files)
            paths.add(path)
            files += 1
    n, others = len(number), dict(found.left_out)
    if not n:
        _refuse(given, others, extensions, found.examples)
    names = paths.build()
    nbytes, versions = stat_files(folder, names, opener, folder) if listed is None else listed.about(names)
    members = {
        extension: positions(rows, where, nbytes[np.asarray(where, np.int64)], n)
        for extension, (rows, where) in columns.items()
    }
    in_folder = np.asarray(classes, np.int64) >= 0
    if in_folder.any():
        members[FOLDER] = np.where(
            in_folder[:, None], np.stack([np.asarray(classes, np.int64) + files, np.asarray(class_sizes)], 1), -1
        )
    return Listing(
        name=folder,
        root=folder,
        paths=names,
        nbytes=nbytes,
        versions=versions,
        keys=keys.build(),
        number=np.asarray(number, np.int64),
        members=members,
        kinds={FOLDER: "txt"} if FOLDER in members else {},
        values=values.build(),
        image=image,
        without_image=sum(others.values()),
        unused=sum(others.values()) + len(found.hidden),
        examples=tuple(found.examples.values())[:_EXAMPLES],
    )


def _without_index(folders: Iterator[tuple[str, list[str]]]) -> Iterator[tuple[str, list[str]]]:
    """Leave out the index file that `patchnpack index FOLDER` writes."""
    for path, names in folders:
        yield path, names if path else [name for name in names if name not in INDEX_NAMES]


def _refuse(folder: str, others: dict[str, int], extensions: list[str], examples: dict[str, str]) -> None:
    """Raise ValueError for a folder without an image."""
    where = redact(folder)
    if not others and is_remote(folder):
        raise FileNotFoundError(f"{where!r} holds no packs and no other files; correct the address")
    if not others:
        raise ValueError(f"{where!r} holds no file, nor do its sub-folders; name a folder of images")
    for suffix in (".tar", ".parquet"):
        if suffix in others:
            inside = examples[suffix].rpartition("/")[0]
            pattern = "/".join(filter(None, [where.rstrip("/"), inside, "*" + suffix]))
            raise ValueError(f"{where!r} is a folder of {others[suffix]} shards; name the shards: {pattern!r}")
    known = [suffix for suffix in others if suffix[1:] in EXTENSIONS]
    remedy = "name another folder, or the extensions with image="
    if known:
        remedy = f"add image={known[0][1:]!r}"
    elif not set(VIDEO_EXTENSIONS) & set(extensions):
        remedy = remedy_for_videos(others) + remedy
    raise ValueError(
        f"{where!r} holds no image (image={';'.join(extensions)!r}), nor do its sub-folders, but "
        f"{count_by_extension(others)}; {remedy}"
    )


class _RemoteWalk:
    """The files below an address, from one listing of the store."""

    def __init__(self, folder: str, opener: ShardOpener, found: ImageFolder) -> None:
        self._found = found
        self._files = {path: (nbytes, version) for path, nbytes, version in opener.list_files(folder)}

    def walk(self) -> Iterator[tuple[str, list[str]]]:
        """Yield each folder's path and its files, as `walk_folder` does."""
        folders: dict[str, list[str]] = {"": []}
        below: dict[str, set[str]] = {}
        hidden = set[str]()
        for path in self._files:
            parts = path.split("/")
            first = next((i for i, part in enumerate(parts) if is_hidden(part)), None)
            if first is not None:
                hidden.add("/".join(parts[: first + 1]))
                continue
            folders.setdefault("/".join(parts[:-1]), []).append(parts[-1])
            for i in range(len(parts) - 1):
                below.setdefault("/".join(parts[:i]), set()).add(parts[i])
        self._found.hidden.extend(map(Path, sorted(hidden)))
        for path in sorted(folders, key=lambda path: path.split("/")):
            note_folders(path, sorted(below.get(path, ())), self._found)
            yield path, sorted(folders[path])

    def about(self, paths: Texts[str]) -> tuple[np.ndarray, Texts[str]]:
        """Return size and version of these files."""
        about = [self._files[path] for path in paths]
        return np.array([nbytes for nbytes, _ in about], np.int64), Texts.of([version for _, version in about])
