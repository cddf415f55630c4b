"""Writing webdataset shards from a folder of image files. The encoded bytes are copied unchanged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, get_args

import numpy as np
from webdataset import TarWriter

from patchnpack.loaders.process import cpu_share
from patchnpack.loaders.shards.folders.folder_samples import FolderSample, samples_of
from patchnpack.loaders.shards.folders.image_folder import (
    ImageFolder,
    count_by_extension,
    folders_that_are_no_classes,
    read_image_folder,
    remedy_for_videos,
)
from patchnpack.loaders.shards.folders.parallel_folder import add_parallel, checked_member, split_folder
from patchnpack.loaders.shards.sample_rule import Sample, images_of, is_by_members, sample_rule
from patchnpack.loaders.shards.tar import IMAGE, read_samples
from patchnpack.packer.checks import check_whole
from patchnpack.packer.files import atomic_write

Folders = Literal["auto", "classes", "none"]
CLASSES = "classes.txt"
MEMBERS = ("txt", "json", "cls")
_TRAINING, _VALIDATION = "train", "validation"  # prefixes of shard names


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What `write_shards` wrote.

    Attributes:
        shards: paths of the training shards, then of the validation shards.
        images: number of images in the training shards.
        validation: number of images in the validation shards.
        samples: number of samples in all shards.
        classes: class names in the order of their numbers; empty if folders are not classes.
        kept: number of shards that an earlier call had finished.
        members: number of files that are written as members of images, by extension.
        lacking: number of images without a member of `member_folders`, by extension.
        left_out: number of files that are neither an image nor a member of one, by extension (".md", "no extension").
        hidden: number of hidden files and folders; none is looked into.
        loops: number of links to a folder that they lie in; none is followed.
    """

    shards: list[str]
    images: int
    validation: int
    samples: int
    classes: list[str]
    kept: int
    members: dict[str, int] = field(default_factory=dict)
    lacking: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    hidden: int = 0
    loops: int = 0


@dataclass(slots=True)
class _Sample:
    key: str
    members: dict[str, Path]
    images: int
    label: bytes | None = None

    def sizes(self) -> dict[str, int]:
        sizes = {extension: path.stat().st_size for extension, path in self.members.items()}
        return sizes if self.label is None else {**sizes, "cls": len(self.label)}


def write_shards(
    folder: str | Path,
    out: str | Path,
    *,
    images_per_shard: int = 1000,
    validation: float = 0.0,
    folders: Folders = "auto",
    classes: str | Path | None = None,
    image: str = IMAGE,
    members: Sequence[str] = MEMBERS,
    member_folders: Mapping[str, str | Path] | None = None,
    sample: Sample = None,
    seed: int | None = 0,
    num_threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Written:
    """Write the image files below `folder` as shards `train-000000.tar` ... into `out`.

    A sample is an image and the members beside it: `a.jpg`, `a.txt`, `a.seg.png`. Its key is the path below `folder`
    without extension, with underscores for dots, because webdataset ends keys at the first dot. Each shard is whole or
    absent. The same folder gives the same bytes, and a repeated call skips finished shards.

    Args:
        folder: the images, in sub-folders of any depth. Links are followed. Hidden files and folders are skipped.
        out: folder of the shards; created if absent.
        images_per_shard: maximum number of images per shard, except that a sample of more has a shard of its own.
        validation: share of the samples, drawn at random, that goes into `validation-000000.tar` ... instead.
        folders: "classes": the first folder below `folder` is the image's class. Its number becomes the member `.cls`,
            and `classes.txt` lists the names. Numbers follow the sorted names, as torchvision's `ImageFolder` counts
            them: "10" comes before "9". "none": folders are not classes. "auto": "classes" if every image is in a
            sub-folder and none has a `.cls` member, else "none"; folders called images and masks, or train and val, are
            an error.
        classes: a file with one class name per line, such as another call's `classes.txt`, that sets the numbers.
        image: extensions of images, separated by ";"; by default those of all formats that a loader reads.
        members: extensions of further members, or their whole names, such as "boxes.npy" for `a.boxes.npy` beside
            `a.jpg`. Images whose names add to an image's name, such as `a.seg.png`, are members, too. Names other than
            the default ones must be found at least once.
        member_folders: folders with a member of each image, by its name: with {"seg.png": "masks"}, `masks/b/a.png` is
            the member `seg.png` of `b/a.jpg`. A * in the last part of a folder is the name of the image without
            extension: "masks/*_mask.png". A folder of members that lies below `folder` holds no images of its own.
        sample: which images belong together, as for `PackedImageLoader`: "key:REGEX" or a function from a key to a name
            writes the images of a sample as members `1.png`, `2.png` ... of one key, in the natural order of their
            names, and files with the name of the sample as further members. Load such shards with `sample="members"`,
            which here also writes videos. Folders are then classes only where the names of samples have a folder:
            "key:(.+)_[0-9]+" keeps that of `cats/tom_1.png`.
        seed: seeds the order and the choice of validation images; None keeps the order of paths. Keep the order random
            for any loader that shuffles within a window: paths sorted by class would give it poor batches.
        num_threads: threads that write one shard each; None is the CPU count of this process.
        progress: called with (images written, total images).

    Raises:
        FileNotFoundError: a folder does not exist, or a link in it leads nowhere.
        ValueError: `folder` or `out` is a file; the folder holds no image; a member is found nowhere; with "classes",
            an image has no class, `classes` lacks it, or a class has no image; `sample` names no sample for an image;
            or `out` holds shards of other images.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Path(folder, "cats").mkdir()
    ...     _ = Path(folder, "cats", "tom.jpg").write_bytes(b"...")
    ...     written = write_shards(folder, Path(folder, "shards"))
    ...     [Path(shard).name for shard in written.shards], written.classes
    (['train-000000.tar'], ['cats'])
    """
    check_whole("images_per_shard", images_per_shard)
    if not 0 <= validation < 1:
        raise ValueError(f"validation is {validation}; it is a share of the images, from 0 to less than 1")
    if folders not in get_args(Folders):
        raise ValueError(f"folders is {folders!r}; it must be one of {', '.join(map(repr, get_args(Folders)))}")
    folder, out, rule = Path(folder), Path(out), sample_rule(sample)
    beside, parallel = _checked_members(members, member_folders or {})
    passed = [out, *(split_folder(given, name)[0] for name, given in parallel.items())]
    found = _find_images(folder, images_of(image, rule), beside, passed, is_members=is_by_members(rule))
    lacking = add_parallel(found, parallel)
    joined = samples_of(found, beside, rule)
    _check_found(found, joined, beside)
    samples, names = _assign_classes(found, joined, folders, classes)
    if seed is not None:
        samples = [samples[i] for i in np.random.default_rng(seed).permutation(len(samples))]
    held_out = round(validation * len(samples))
    shards: dict[Path, list[_Sample]] = {}
    for name, split in ((_TRAINING, samples[held_out:]), (_VALIDATION, samples[:held_out])):
        for number, part in enumerate(_cut(split, images_per_shard)):
            shards[out / f"{name}-{number:06d}.tar"] = part
    finished = _prepare_out(out, shards, names)
    _write_all(shards, finished, num_threads, progress)
    return Written(
        shards=[str(path) for path in shards],
        images=sum(each.images for each in samples[held_out:]),
        validation=sum(each.images for each in samples[:held_out]),
        samples=len(samples),
        classes=names,
        kept=len(finished),
        members=dict(Counter(f".{name}" for each in joined for name in each.members)),
        lacking={f".{name}": count for name, count in lacking.items()},
        left_out=dict(found.left_out),
        hidden=len(found.hidden),
        loops=len(found.loops),
    )


def _cut(samples: list[_Sample], images_per_shard: int) -> Iterator[list[_Sample]]:
    """Yield the samples of each shard: as many neighbours as have no more images."""
    part, images = list[_Sample](), 0
    for sample in samples:
        if part and images + sample.images > images_per_shard:
            yield part
            part, images = [], 0
        part.append(sample)
        images += sample.images
    if part:
        yield part


def _prepare_out(out: Path, shards: dict[Path, list[_Sample]], classes: list[str]) -> set[Path]:
    """Create `out` with its list of classes; returns the finished shards in it, checked."""
    out.mkdir(parents=True, exist_ok=True)
    finished = _find_finished(out, shards, classes)
    if classes and not (out / CLASSES).exists():
        text = "".join(f"{name}\n" for name in classes).encode("utf-8", "surrogateescape")
        atomic_write(out / CLASSES, lambda file: file.write(text))
    return finished


def _write_all(
    shards: dict[Path, list[_Sample]],
    finished: set[Path],
    num_threads: int | None,
    progress: Callable[[int, int], None] | None,
) -> None:
    counts = {path: sum(sample.images for sample in samples) for path, samples in shards.items()}
    total, done = sum(counts.values()), sum(counts[path] for path in finished)
    with ThreadPoolExecutor(num_threads or cpu_share()) as pool:
        missing = [path for path in shards if path not in finished]
        for path in pool.map(lambda path: _write(path, shards[path]), missing):
            done += counts[path]
            if progress is not None:
                progress(done, total)


def _checked_members(
    members: Sequence[str], folders: Mapping[str, str | Path]
) -> tuple[list[str], dict[str, str | Path]]:
    """The names of the members beside images, and the folders of others; ValueError for a name given twice."""
    if isinstance(members, str):
        raise ValueError(f"members is {members!r}; give a list of names: members=[{members!r}]")
    beside = list(dict.fromkeys(map(checked_member, members)))
    parallel = dict[str, str | Path]()
    for given, folder in folders.items():
        if (name := checked_member(given)) in (*beside, *parallel):
            raise ValueError(f"the member .{name} is given twice; give either it or its folder, once")
        parallel[name] = folder
    return beside, parallel


def _check_found(found: ImageFolder, joined: list[FolderSample], members: Sequence[str]) -> None:
    """Raise ValueError for a member that was asked for, and that no image has."""
    names = {name for each in joined for name in each.members}
    for member in members:
        if member not in MEMBERS and not any(name == member or name.endswith(f".{member}") for name in names):
            first = found.name(found.images[0].path.rpartition(".")[0] + f".{member}")
            raise ValueError(
                f"no image has the member .{member}: for the first it would be {first}; correct the name, leave it "
                f"out, or name the folder of these files, which the command line takes as --member {member}=FOLDER"
            )


def _find_images(
    folder: Path, image: str, members: Sequence[str], without: Sequence[Path], *, is_members: bool
) -> ImageFolder:
    """The images below a folder; ValueError if there is none, or if the first of `without`, `out`, is a file."""
    out = without[0]
    if out.is_file():
        raise ValueError(f"out is {str(out)!r}, a file; name a folder for the shards")
    extensions = [extension.strip().lstrip(".").lower() for extension in image.split(";")]
    found = read_image_folder(folder, extensions, members, without)
    if not found.images and not found.left_out:
        raise ValueError(f"{str(folder)!r} holds no file, nor do its sub-folders; name the folder of the images")
    if not found.images:
        videos = "" if is_members else remedy_for_videos(found.left_out)
        raise ValueError(
            f"no image (extensions {';'.join(extensions)}) was found below {str(folder)!r}, but "
            f"{count_by_extension(found.left_out)}; {videos}name another folder, or the extensions with image="
        )
    return found


def _assign_classes(
    found: ImageFolder, joined: list[FolderSample], folders: Folders, classes: str | Path | None
) -> tuple[list[_Sample], list[str]]:
    """The samples, with the number of their folder as label if folders are classes, and the names of the classes."""
    samples = [
        _Sample(each.key, {name: Path(found.root, path) for name, path in each.files.items()}, len(each.images))
        for each in joined
    ]
    outside = [each for each in joined if each.folder is None]
    labelled = [each for each in joined if "cls" in each.files]
    own = {each.folder for each in joined if each.folder is not None}
    if folders == "auto" and (reason := folders_that_are_no_classes(found, own)) and (found.pairs or not outside):
        raise ValueError(f"{reason}; if they are classes, give folders='classes', if all are images, folders='none'")
    if folders == "none" or (folders == "auto" and (outside or labelled)):
        if classes is not None:
            raise ValueError(
                f"classes is {str(classes)!r}, but folders are not classes here; give folders='classes', or no classes"
            )
        return samples, []
    if outside or labelled:
        reason = "is in no sub-folder" if outside else "has a .cls file beside it"
        if outside and "/" in outside[0].images[0]:
            reason = f"belongs to the sample {outside[0].key!r}, whose name is in no sub-folder"
        raise ValueError(
            f"folders='classes', but {found.name((outside or labelled)[0].images[0])} {reason} "
            f"({len(outside or labelled)} in total); move them, or give folders='none'"
        )
    for name, files in found.folders.items():
        if name not in own:
            raise ValueError(
                f"the folder {name!r} is a class without an image: it holds {count_by_extension(files) or 'no file'}; "
                "add the extension of its images with image=, move it elsewhere, or give folders='none'"
            )
    if broken := sorted(name for name in own if name.splitlines() != [name]):
        raise ValueError(f"the folder {broken[0]!r} has a line break in its name, and {CLASSES} lists lines; rename it")
    names = sorted(own) if classes is None else Path(classes).read_text("utf-8").splitlines()
    if unknown := sorted(own - set(names)):
        raise ValueError(
            f"{str(classes)!r} lacks the class {unknown[0]!r}, which is a folder here; add it, or rename one of them"
        )
    numbers = {name: str(number).encode() for number, name in enumerate(names)}
    for sample, each in zip(samples, joined, strict=True):
        sample.label = numbers[str(each.folder)]
    return samples, names


def _find_finished(out: Path, shards: dict[Path, list[_Sample]], classes: list[str]) -> set[Path]:
    """The shards that an earlier call has finished.

    Raises:
        ValueError: `out` holds other classes, or shards of other images.
    """
    remedy = "delete it, or choose another folder"
    file = out / CLASSES
    if file.exists() and file.read_text("utf-8", "surrogateescape").splitlines() != classes:
        raise ValueError(f"{str(file)!r} holds other classes than these images; {remedy}")
    existing = sorted(path for name in (_TRAINING, _VALIDATION) for path in out.glob(f"{name}-*.tar"))
    for path in existing:
        expected = shards.get(path)
        found = [(s.key, {name: nbytes for name, (_, nbytes) in s.members.items()}) for s in read_samples(str(path))]
        if expected is None or found != [(sample.key, sample.sizes()) for sample in expected]:
            raise ValueError(f"{str(path)!r} holds other images than this call would write; {remedy}")
    return set(existing)


def _write(path: Path, samples: list[_Sample]) -> Path:
    def write(file: BinaryIO) -> None:
        with TarWriter(file, encoder=False, mtime=0) as tar:
            for sample in samples:
                members = {extension: member.read_bytes() for extension, member in sample.members.items()}
                if sample.label is not None:
                    members["cls"] = sample.label
                tar.write({"__key__": sample.key, **members})

    atomic_write(path, write)
    return path
