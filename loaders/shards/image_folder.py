"""Folders of image files: which images lie below one, each with its key, class and further members."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from patchnpack.loaders.imaging.formats import EXTENSIONS
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
    """One image file.

    Attributes:
        key: the path below the folder without extension, as `escape_key` gives it.
        path: the file.
        folder: the first folder of the path below the folder, its class if folders are classes; None at the top.
        members: the other files of its sample, by extension.
    """

    key: str
    path: Path
    folder: str | None
    members: dict[str, Path] = field(default_factory=dict)

    @property
    def extension(self) -> str:
        """The extension of the image, in lower case."""
        return self.path.suffix[1:].lower()


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """The images below a folder, in the order of their paths, and what is left out.

    Attributes:
        images: the images.
        left_out: number of files that are neither an image nor a member of one, by extension (".md", "no extension").
        hidden: number of hidden files and folders, which are not looked into.
        loops: number of links to a folder that they lie in, which are not followed.
        folders: for each folder at the top, the files in it that are left out, by extension.
        pairs: the first two folders beside each other whose names say that one has the images and one their masks.
    """

    images: list[FolderImage] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    hidden: list[Path] = field(default_factory=list)
    loops: list[Path] = field(default_factory=list)
    folders: dict[str, Counter[str]] = field(default_factory=dict)
    pairs: list[tuple[Path, Path]] = field(default_factory=list)


def read_image_folder(
    folder: Path,
    extensions: Sequence[str] = EXTENSIONS,
    members: Sequence[str] = ("txt", "json", "cls"),
    without: Path | None = None,
) -> ImageFolder:
    """Find the images below a folder; no image is opened.

    A sample is an image and the files beside it that begin with the image's name without extension, a dot, and end in
    an extension of `members` or of images: `a.jpg`, `a.txt`, `a.seg.png`. So `a.seg.png` is an image of its own only
    where there is no image `a`. Links to files and folders are followed.

    Args:
        folder: the folder.
        extensions: extensions of images, in lower case.
        members: extensions of other members, in lower case.
        without: a folder that is passed over where it lies below, such as the one that the shards are written to.

    Raises:
        FileNotFoundError: the folder does not exist, or a link leads nowhere.
        ValueError: a member is given twice, two images would get one key, or a file is a pipe, socket or device.
        OSError: a folder cannot be read.
    """
    if not folder.is_dir():
        if folder.exists():
            raise ValueError(f"{str(folder)!r} is a file; name the folder that holds the images")
        raise FileNotFoundError(f"folder {str(folder)!r} {absent(str(folder))}; name the folder that holds the images")
    found, taken = ImageFolder(), dict[str, Path]()
    for parent, names in _walk(folder, found, without):
        group = parent.relative_to(folder).parts[:1]
        first = group[0] if group else None
        samples, others = _samples(parent, names, extensions, members)
        for path, beside in samples.items():
            key = escape_key(path.relative_to(folder).with_suffix("").as_posix())
            if key in taken:  # a.jpg beside a.png
                key = f"{key}_{path.suffix[1:].lower()}"
            if key in taken:
                raise ValueError(f"{str(path)!r} would get the key {key!r} of {str(taken[key])!r}; rename one of them")
            taken[key] = path
            found.images.append(FolderImage(key, path, first, beside))
        kinds = Counter(Path(name).suffix.lower() or NO_EXTENSION for name in others)
        found.left_out.update(kinds)
        if first is not None:
            found.folders.setdefault(first, Counter()).update(kinds)
    return found


def folders_that_are_no_classes(found: ImageFolder) -> str | None:
    """Return why the folders at the top are no classes, judging by their names, and what to do; None if they may be."""
    if found.pairs:
        image, mask = found.pairs[0]
        return (
            f"{str(image)!r} and {str(mask)!r} look like images and their masks or labels, not like classes: move each "
            "mask beside its image, as NAME.seg.png beside NAME.jpg, which makes it a member of the image's sample; or "
            "name only the folder of the images"
        )
    names = {image.folder for image in found.images if image.folder is not None}
    if names and {name.lower() for name in names} <= _SPLITS:
        listed = ", ".join(map(repr, sorted(names)))
        return f"the folders {listed} look like splits, not like classes: write each by itself, into shards of its own"
    return None


def _walk(folder: Path, found: ImageFolder, without: Path | None) -> Iterator[tuple[Path, list[str]]]:
    """Each folder, in the order of paths, with the names of its files. Notes what is not looked into."""
    passed = None if without is None else without.resolve()

    def read(parent: Path, above: frozenset[tuple[int, int]]) -> Iterator[tuple[Path, list[str]]]:
        about = parent.stat()
        inode = (about.st_dev, about.st_ino)
        if inode in above:
            found.loops.append(parent)
            return
        with os.scandir(parent) as entries:
            shown = {entry.name: entry for entry in sorted(entries, key=lambda entry: entry.name)}
        for name in [name for name in shown if name.startswith(".") or name in _HIDDEN]:
            found.hidden.append(Path(shown.pop(name)))
        below = [name for name, entry in shown.items() if entry.is_dir()]
        if passed is not None and passed.name in below and parent.resolve() == passed.parent:
            below.remove(passed.name)
            del shown[passed.name]
        files = [shown[name] for name in shown.keys() - set(below)]
        _check_links(files)
        if parent == folder:
            found.folders.update({name: Counter() for name in below})
        image = next((name for name in below if name.lower() in _IMAGES), None)
        mask = next((name for name in below if name.lower() in _MASKS), None)
        if image is not None and mask is not None:
            found.pairs.append((parent / image, parent / mask))
        yield parent, sorted(entry.name for entry in files)
        for name in below:
            yield from read(parent / name, above | {inode})

    return read(folder, frozenset())


def _samples(
    parent: Path, names: Sequence[str], extensions: Sequence[str], members: Sequence[str]
) -> tuple[dict[Path, dict[str, Path]], list[str]]:
    """The images among the files of a folder, each with its members, and the files that are left."""
    stems: dict[str, list[Path]] = {}  # of images of their own
    images = [name for name in names if Path(name).suffix[1:].lower() in extensions]
    # Short names first: whether a.b.jpg is an image or a member depends on whether there is an image a.
    for name in sorted(images, key=lambda name: name.count(".")):
        stem = Path(name).stem
        if next((prefix for prefix in _prefixes(name) if prefix in stems), stem) == stem:
            stems.setdefault(stem, []).append(parent / name)
    samples = {path: dict[str, Path]() for paths in stems.values() for path in paths}
    wanted, left = {*extensions, *members}, list[str]()
    for name in names:
        if parent / name in samples:
            continue
        base = next((prefix for prefix in _prefixes(name) if prefix in stems), None)
        if base is None or Path(name).suffix[1:].lower() not in wanted:
            left.append(name)
            continue
        member = name[len(base) + 1 :].lower()
        for image in stems[base]:
            if (other := samples[image].setdefault(member, parent / name)) != parent / name:
                raise ValueError(
                    f"{str(other)!r} and {str(parent / name)!r} differ only in case and would both be the member "
                    f".{member} of {str(image)!r}; leave one of them"
                )
    return {path: samples[path] for path in sorted(samples)}, left


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
