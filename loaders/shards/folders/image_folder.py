"""Folders of image files: which images lie below one, each with its key, class and further members."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from patchnpack.loaders.imaging.formats import EXTENSIONS, VIDEO_EXTENSIONS
from patchnpack.loaders.shards.keys import escape_key
from patchnpack.packer.files import absent

_HIDDEN = ("__MACOSX",)  # beside names with a leading dot
NO_EXTENSION = "no extension"

# Names of folders that are no classes
_IMAGES = {"image", "images", "img", "imgs", "input", "inputs", "jpegimages", "photos", "rgb"}
_MASKS = {
    *("mask", "masks", "label", "labels", "annotation", "annotations", "seg", "segmentation", "segmentations"),
    *("gt", "groundtruth", "ground_truth", "segmentationclass", "segmentationobject", "trimaps", "depth", "target"),
}
_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


@dataclass(frozen=True, slots=True)
class FolderImage:
    """One image file. Paths count from the folder, with forward slashes.

    Attributes:
        key: the path without extension, as `escape_key` gives it.
        path: path of the file.
        folder: the first folder of the path, its class if folders are classes; None at the top.
        members: paths of the other files of its sample, by extension.
    """

    key: str
    path: str
    folder: str | None
    members: dict[str, str] = field(default_factory=dict)

    @property
    def extension(self) -> str:
        """The extension of the image, in lower case."""
        return extension_of(self.path)

    @property
    def files(self) -> dict[str, str]:
        """The paths of the image and of the other files of its sample, by extension."""
        return {self.extension: self.path, **self.members}


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """The images below a folder, in the order of their paths, and what is left out.

    Attributes:
        root: the folder, a path or an address.
        images: the images; empty where `find_images` yields them.
        left_out: number of files that are neither an image nor a member of one, by extension (".md", "no extension").
        examples: the path of one of these files for each extension.
        hidden: hidden files and folders, which are not looked into.
        loops: links to a folder that they lie in, which are not followed.
        folders: for each folder at the top, the files in it that are left out, by extension.
        pairs: the first two folders beside each other whose names say that one has the images and one their masks.
    """

    root: str
    images: list[FolderImage] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    hidden: list[Path] = field(default_factory=list)
    loops: list[Path] = field(default_factory=list)
    folders: dict[str, Counter[str]] = field(default_factory=dict)
    pairs: list[tuple[str, str]] = field(default_factory=list)

    def name(self, path: str) -> str:
        """Return the name of a file or folder below, or of an absolute path, for a message."""
        return repr(path if os.path.isabs(path) else f"{self.root.rstrip('/')}/{path}")


def read_image_folder(
    folder: Path,
    extensions: Sequence[str] = EXTENSIONS,
    members: Sequence[str] = ("txt", "json", "cls"),
    without: Sequence[Path] = (),
) -> ImageFolder:
    """Find the images below a folder; no image is opened.

    A sample is an image and the files beside it that begin with the image's name without extension, a dot, and end in
    an extension of `members` or of images, or go on as a whole name in `members`: `a.jpg`, `a.txt`, `a.seg.png`. So
    `a.seg.png` is an image of its own only where there is no image `a`. Links to files and folders are followed.

    Args:
        folder: the folder.
        extensions: extensions of images, in lower case.
        members: extensions of other members, in lower case, or their whole names, such as "seg.npy".
        without: folders that are passed over where they lie below, such as the one that the shards are written to.

    Raises:
        FileNotFoundError: the folder does not exist, or a link leads nowhere.
        ValueError: a member is given twice, two images would get one key, or a file is a pipe, socket or device.
        OSError: a folder cannot be read.
    """
    found = ImageFolder(str(folder))
    found.images.extend(find_images(walk_folder(folder, found, without), found, extensions, members))
    return found


def find_images(
    folders: Iterable[tuple[str, Sequence[str]]],
    found: ImageFolder,
    extensions: Sequence[str] = EXTENSIONS,
    members: Sequence[str] = ("txt", "json", "cls"),
) -> Iterator[FolderImage]:
    """Yield the images among listed files, and note in `found` what is left out.

    Args:
        folders: each folder's path below `found.root`, "" for itself, and the sorted names of its files.
        found: takes what is left out.
        extensions, members: as for `read_image_folder`.

    Raises:
        ValueError: a member is given twice, or two images would get one key.
    """
    images, wanted, taken = frozenset(extensions), {*extensions, *members}, set[str]()
    for parent, names in folders:
        first = parent.partition("/")[0] or None
        prefix = parent + "/" if parent else ""
        samples, others = _samples(prefix, names, images, wanted, found)
        for name, beside in samples.items():
            stem = name.rpartition(".")[0]
            key = escape_key(prefix + stem)
            if key in taken:  # a.jpg beside a.png
                key = f"{key}_{extension_of(name)}"
            if key in taken:
                raise ValueError(
                    f"{found.name(prefix + name)} would get the key {key!r} of another image; rename one of them"
                )
            taken.add(key)
            yield FolderImage(key, prefix + name, first, beside)
        kinds = Counter[str]()
        for name in others:
            kinds[kind := f".{extension_of(name)}" if extension_of(name) else NO_EXTENSION] += 1
            found.examples.setdefault(kind, prefix + name)
        found.left_out.update(kinds)
        if first is not None:
            found.folders.setdefault(first, Counter()).update(kinds)


def extension_of(name: str) -> str:
    """Return what follows the last dot of a file's name, in lower case; "" where that dot begins or ends the name.

    >>> extension_of("a/b.seg.PNG"), extension_of("b/.png"), extension_of("a.b/c")
    ('png', '', '')
    """
    base = name.rpartition("/")[2]
    stem, _, extension = base.rpartition(".")
    return extension.lower() if stem else ""


def folders_that_are_no_classes(found: ImageFolder, names: Collection[str]) -> str | None:
    """Return why the folders at the top, `names`, are no classes, and what to do; None if they may be classes."""
    if found.pairs:
        image, mask = map(found.name, found.pairs[0])
        return (
            f"{image} and {mask} look like images and their masks or labels, not like classes: move each mask beside "
            "its image, as NAME.seg.png beside NAME.jpg, which makes it a member of the image's sample; or name only "
            f"the folder of the images, for shards with masks: patchnpack shard {image} --member seg.png={mask}"
        )
    if names and {name.lower() for name in names} <= _SPLITS:
        listed = ", ".join(map(repr, sorted(names)))
        return f"the folders {listed} look like splits, not like classes: write each by itself, into shards of its own"
    return None


def count_by_extension(counts: Mapping[str, int], limit: int = 5) -> str:
    """List how many files there are of each extension, most frequent first.

    >>> count_by_extension({".md": 1, "no extension": 2})
    '2 of no extension, 1 of .md'
    """
    listed = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    text = ", ".join(f"{count} of {name}" for name, count in listed[:limit])
    return text if len(listed) <= limit else f"{text}, {sum(count for _, count in listed[limit:])} of others"


def remedy_for_videos(counts: Mapping[str, int]) -> str:
    """Return what to give where files that are left out are videos, with a comma; "" where none is.

    >>> remedy_for_videos({".mp4": 20}), remedy_for_videos({".md": 1})
    ("give sample='members' to use the frames of videos, ", '')
    """
    is_video = any(kind[1:] in VIDEO_EXTENSIONS for kind in counts)
    return "give sample='members' to use the frames of videos, " if is_video else ""


def walk_folder(folder: Path, found: ImageFolder, without: Sequence[Path] = ()) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder's path below `folder` and its files, for `find_images`; note what is not looked into.

    Raises:
        FileNotFoundError, ValueError, OSError: as `read_image_folder`.
    """
    if not folder.is_dir():
        if folder.exists():
            raise ValueError(f"{str(folder)!r} is a file; name the folder that holds the images")
        raise FileNotFoundError(f"folder {str(folder)!r} {absent(str(folder))}; name the folder that holds the images")
    passed = [path.resolve() for path in without]

    def read(parent: Path, path: str, above: frozenset[tuple[int, int]]) -> Iterator[tuple[str, list[str]]]:
        about = parent.stat()
        inode = (about.st_dev, about.st_ino)
        if inode in above:
            found.loops.append(parent)
            return
        with os.scandir(parent) as entries:
            shown = {entry.name: entry for entry in sorted(entries, key=lambda entry: entry.name)}
        for name in [name for name in shown if is_hidden(name)]:
            found.hidden.append(Path(shown.pop(name)))
        below = [name for name, entry in shown.items() if entry.is_dir()]
        for folder in passed:
            if folder.name in below and parent.resolve() == folder.parent:
                below.remove(folder.name)
                del shown[folder.name]
        files = [shown[name] for name in shown.keys() - set(below)]
        _check_links(files)
        note_folders(path, below, found)
        yield path, sorted(entry.name for entry in files)
        for name in below:
            yield from read(parent / name, f"{path}/{name}" if path else name, above | {inode})

    yield from read(folder, "", frozenset())


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name is passed over."""
    return name.startswith(".") or name in _HIDDEN


def note_folders(path: str, below: Sequence[str], found: ImageFolder) -> None:
    """Note the folders `below` the folder at `path`: classes perhaps, or images beside their masks."""
    if not path:
        found.folders.update({name: Counter() for name in below})
    image = next((name for name in below if name.lower() in _IMAGES), None)
    mask = next((name for name in below if name.lower() in _MASKS), None)
    if image is not None and mask is not None:
        prefix = f"{path}/" if path else ""
        found.pairs.append((prefix + image, prefix + mask))


def _samples(
    prefix: str, names: Sequence[str], images: frozenset[str], wanted: set[str], found: ImageFolder
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """The images among the files of a folder by name, each with its members, and the files that are left."""
    extensions = {name: extension_of(name) for name in names}
    stems: dict[str, list[str]] = {}  # of images of their own
    # Short names first: whether a.b.jpg is an image or a member depends on whether there is an image a.
    for name in sorted((n for n in names if extensions[n] in images), key=lambda name: name.count(".")):
        stem = name.rpartition(".")[0]
        if next((part for part in _prefixes(name) if part in stems), stem) == stem:
            stems.setdefault(stem, []).append(name)
    samples: dict[str, dict[str, str]] = {name: {} for name in sorted(n for same in stems.values() for n in same)}
    left = list[str]()
    for name in names:
        if name in samples:
            continue
        base = next((part for part in _prefixes(name) if part in stems), None)
        member, path = name[len(base or "") + 1 :].lower(), prefix + name
        if base is None or not (extensions[name] in wanted or member in wanted):
            left.append(name)
            continue
        for image in stems[base]:
            if (other := samples[image].setdefault(member, path)) != path:
                raise ValueError(
                    f"{found.name(other)} and {found.name(path)} differ only in case and would both be the member "
                    f".{member} of {found.name(prefix + image)}; leave one of them"
                )
    return samples, left


def _prefixes(name: str) -> Iterator[str]:
    """What stands before a dot in the name, longest first."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _check_links(files: Sequence[os.DirEntry[str]]) -> None:
    """Raise an error for what is named as a file, but cannot be read as one."""
    for entry in files:
        if entry.is_file():
            continue
        if entry.is_symlink() and not os.path.exists(entry):
            raise FileNotFoundError(
                f"{entry.path!r} {absent(entry.path)}; restore that file or folder, or delete the link"
            )
        raise ValueError(f"{entry.path!r} is neither a file nor a folder, but a pipe, socket or device; delete it")
