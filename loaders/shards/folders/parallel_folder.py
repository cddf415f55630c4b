"""Members in a parallel folder: the mask of `images/a/b.jpg` is `masks/a/b.png`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from patchnpack.loaders.shards.folders.image_folder import (
    NO_EXTENSION,
    ImageFolder,
    count_by_extension,
    extension_of,
    walk_folder,
)


def checked_member(name: str) -> str:
    """Return the name of a member in lower case, without a leading dot. Raises ValueError if it cannot be one.

    >>> checked_member(".Seg.PNG")
    'seg.png'
    """
    member = name.strip().lstrip(".").lower()
    if not member or "/" in member:
        raise ValueError(f"a member is called {name!r}; give what follows the first dot of its name, such as seg.png")
    return member


def split_folder(folder: str | os.PathLike[str], member: str) -> tuple[Path, str]:
    """Return the folder of a parallel member, and the pattern of the files below it.

    >>> split_folder("masks", "seg.png")[1], split_folder("masks/*_mask.png", "seg.png")[1]
    ('*.png', '*_mask.png')
    """
    text = os.fspath(folder)
    if "*" not in text:
        return Path(text), f"*.{member.rpartition('.')[2]}"
    parent, name = os.path.split(text)
    if "*" in parent or name.count("*") > 1:
        raise ValueError(
            f"the folder of .{member} is {text!r}; it may have one *, in its last part, for the path of an image "
            "without extension, such as masks/*_mask.png"
        )
    return Path(parent or "."), name


def add_parallel(found: ImageFolder, folders: Mapping[str, str | os.PathLike[str]]) -> dict[str, int]:
    """Add the files of parallel folders to the images as members; return how many images lack each.

    Args:
        found: the images; files that are of no image are counted as left out.
        folders: the folder of each member, by its name, or a pattern as for `split_folder`.

    Raises:
        FileNotFoundError: a folder does not exist.
        ValueError: no image has a file in a folder, or an image has the member beside it, too.
    """
    return {member: lacking for member, folder in folders.items() if (lacking := _add(found, member, folder))}


def _add(found: ImageFolder, member: str, given: str | os.PathLike[str]) -> int:
    folder, pattern = split_folder(given, member)
    before, after = pattern.split("*")
    listing = ImageFolder(str(folder))
    files = {
        _plain(path): path
        for parent, names in walk_folder(folder, listing)
        for path in (f"{parent}/{name}" if parent else name for name in names)
    }
    used, lacking = set[str](), 0

    def name_for(image: str) -> str:
        parent, slash, name = image.rpartition(".")[0].rpartition("/")
        return f"{parent}{slash}{before}{name}{after}"

    for image in found.images:
        wanted = _plain(name_for(image.path))
        if wanted not in files:
            lacking += 1
            continue
        used.add(wanted)
        path = os.path.abspath(folder / files[wanted])
        if (other := image.members.setdefault(member, path)) != path:
            raise ValueError(
                f"{found.name(image.path)} has the member .{member} beside it, {found.name(other)}, and in a folder of "
                f"its own, {path!r}; keep one of them"
            )
    if not used:
        first = found.images[0].path
        kinds = Counter(f".{extension_of(name)}" if extension_of(name) else NO_EXTENSION for name in files)
        raise ValueError(
            f"no image has a .{member} in {str(folder)!r}, which holds {count_by_extension(kinds) or 'no file'}: that "
            f"of {found.name(first)} would be {str(folder / name_for(first))!r}; name the folder whose files are "
            f"called as the images, or give a pattern, such as {folder}/*_mask.png"
        )
    for left in files.keys() - used:
        found.left_out[f".{extension_of(left)}" if extension_of(left) else NO_EXTENSION] += 1
    found.hidden.extend(listing.hidden)
    found.loops.extend(listing.loops)
    return lacking


def _plain(path: str) -> str:
    """Return a path with its extension in lower case."""
    stem, dot, extension = path.rpartition(".")
    return f"{stem}{dot}{extension.lower()}"
