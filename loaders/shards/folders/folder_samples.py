"""`FolderSample`: what shards of a folder hold as one sample, an image file or several that belong together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from patchnpack.loaders.shards.folders.image_folder import FolderImage, ImageFolder
from patchnpack.loaders.shards.keys import escape_key, natural_key
from patchnpack.loaders.shards.sample_rule import SampleRule
from patchnpack.packer.text import counted

_LABEL = "cls"


@dataclass(frozen=True, slots=True)
class FolderSample:
    """One sample of a folder. Paths count from the folder, with forward slashes.

    Attributes:
        key: its key.
        files: paths of its images and other members, by the names of the members.
        folder: the first folder of the path, its class if folders are classes; None at the top.
        images: paths of its images, in order.
        members: extensions of its other members, once for each.
    """

    key: str
    files: dict[str, str]
    folder: str | None
    images: tuple[str, ...]
    members: tuple[str, ...] = ()


def samples_of(found: ImageFolder, members: Sequence[str], rule: SampleRule | None) -> list[FolderSample]:
    """Return the samples of a folder, in the order of their first images.

    By a key, the images of a sample are its members `1.png`, `2.png` and so on (`01.png` where there are ten), in the
    natural order of their names; the members beside an image have its number, too. Files called as the
    sample, such as `doc7.json` for the images `doc7_1.png` and `doc7_2.png`, are members of the sample, and are no
    longer counted as left out. Samples have one `.cls` member.

    Args:
        found: the images of the folder.
        members: extensions of other members, in lower case.
        rule: which images belong together; otherwise each image is a sample.

    Raises:
        ValueError: a key has no group, two samples would have one key, or a sample has two labels.
    """
    if rule is None or rule.group is None:
        return [
            FolderSample(image.key, image.files, image.folder, (image.path,), tuple(image.members))
            for image in found.images
        ]
    samples = list[FolderSample]()
    names = dict[str, str]()
    for name, images in _grouped(found, rule.group, rule.name).items():
        key = escape_key(name)
        if (other := names.setdefault(key, name)) != name:
            raise ValueError(
                f"the samples {other!r} and {name!r} (sample='{rule.name}') would both get the key {key!r}; rename the "
                "files of one of them"
            )
        samples.append(_joined(found, key, name, images, members))
    for kind in [kind for kind, count in found.left_out.items() if not count]:
        del found.left_out[kind]
    return samples


def _grouped(found: ImageFolder, group: Callable[[str], str | None], rule: str) -> dict[str, list[FolderImage]]:
    """The images of each sample by its name."""
    samples = dict[str, list[FolderImage]]()
    unmatched = list[FolderImage]()
    for image in found.images:
        name = group(image.key)
        if name is None:
            unmatched.append(image)
        else:
            samples.setdefault(name, []).append(image)
    if unmatched:
        n, first = len(found.images), unmatched[0]
        which = "none" if len(unmatched) == n else f"only {n - len(unmatched):,}"
        raise ValueError(
            f"sample is '{rule}', which names a sample for {which} of the {counted(n, 'image')}: the first without one "
            f"is {found.name(first.path)}, with key {first.key!r}; the expression must match every key from its first "
            "to its last character, and 'key:(.+?)(?:_[0-9]+)?', for example, also matches keys without a number"
        )
    return samples


def _joined(
    found: ImageFolder, key: str, name: str, images: Sequence[FolderImage], members: Sequence[str]
) -> FolderSample:
    """The sample of these images."""
    images = sorted(images, key=lambda image: natural_key(image.key))
    files, labels, others = dict[str, str](), list[str](), list[str]()
    digits = len(str(len(images)))  # so that plain order is natural order, too
    for number, image in enumerate(images, 1):
        others += image.members
        for member, path in image.files.items():
            if member == _LABEL:
                labels.append(path)
            else:
                files[f"{number:0{digits}d}.{member}"] = path
    for member, path in _own(found, name, images, members):
        if member == _LABEL:
            labels.append(path)
        else:
            files[member] = path
        others.append(member)
        found.left_out.subtract([f".{member}"])
    if labels:
        texts = {path: Path(found.root, path).read_bytes().strip() for path in labels}
        if other := next((path for path in labels if texts[path] != texts[labels[0]]), None):
            raise ValueError(
                f"{found.name(labels[0])} and {found.name(other)} give the sample {key!r} two labels; a sample has "
                "one: keep one of the files, or give them the same text"
            )
        files[_LABEL] = labels[0]
    folders = {image.folder for image in images}
    folder = images[0].folder if "/" in name and len(folders) == 1 else None
    return FolderSample(key, files, folder, tuple(image.path for image in images), tuple(others))


def _own(
    found: ImageFolder, name: str, images: Sequence[FolderImage], members: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """The files that are called as the sample, by extension."""
    taken = {path for image in images for path in image.files.values()}
    for member in members:
        path = f"{name}.{member}"
        if path not in taken and Path(found.root, path).is_file():
            yield member, path
