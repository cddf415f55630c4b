"""Writing webdataset shards from a folder of image files. The encoded bytes are copied unchanged."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, get_args

import numpy as np
from webdataset import TarWriter

from patchnpack.loaders.process import cpu_share
from patchnpack.loaders.shards.tar import IMAGE, read_samples
from patchnpack.packer.checks import check_whole
from patchnpack.packer.files import absent, atomic_write

Folders = Literal["auto", "classes", "none"]
CLASSES = "classes.txt"
_TRAINING, _VALIDATION = "train", "validation"  # prefixes of shard names


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What `write_shards` wrote.

    Attributes:
        shards: paths of the training shards, then of the validation shards.
        images: number of images in the training shards.
        validation: number of images in the validation shards.
        classes: class names in the order of their numbers; empty if folders are not classes.
        kept: number of shards that an earlier call had finished.
    """

    shards: list[str]
    images: int
    validation: int
    classes: list[str]
    kept: int


@dataclass(slots=True)
class _Sample:
    key: str
    group: str | None  # the first folder below the root
    members: dict[str, Path] = field(default_factory=dict)
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
    members: Sequence[str] = ("txt", "json", "cls"),
    seed: int | None = 0,
    num_threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Written:
    """Write the image files below `folder` as shards `train-000000.tar` ... into `out`.

    A sample is an image and the members beside it with the same stem. Its key is the path below `folder` without
    extension, with underscores for dots, because webdataset ends keys at the first dot. Each shard is whole or absent.
    The same folder gives the same bytes, and a repeated call skips finished shards.

    Args:
        folder: the images, in sub-folders of any depth. Hidden files are skipped.
        out: folder of the shards; created if absent.
        images_per_shard: maximum number of images per shard.
        validation: share of the images, drawn at random, that goes into `validation-000000.tar` ... instead.
        folders: "classes": the first folder below `folder` is the image's class. Its number becomes the member `.cls`,
            and `classes.txt` lists the names. "none": folders are not classes. "auto": "classes" if every image is in a
            sub-folder and none has a `.cls` member, else "none".
        classes: a file with one class name per line, such as another call's `classes.txt`, that sets the numbers.
        image: extensions of images, separated by ";".
        members: extensions of further members.
        seed: seeds the order and the choice of validation images; None keeps the order of paths. Keep the order random
            for any loader that shuffles within a window: paths sorted by class would give it poor batches.
        num_threads: threads that write one shard each; None is the CPU count of this process.
        progress: called with (images written, total images).

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: the folder holds no image; with "classes", an image has no class or `classes` lacks it; or `out`
            holds shards of other images.

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
    folder, out = Path(folder), Path(out)
    if out.is_file():
        raise ValueError(f"out is {str(out)!r}, a file; name a folder for the shards")
    samples = _find_samples(folder, image.split(";"), members)
    _check_links(samples)
    names = _assign_classes(samples, folders, classes)
    if seed is not None:
        samples = [samples[i] for i in np.random.default_rng(seed).permutation(len(samples))]
    held_out = round(validation * len(samples))
    shards: dict[Path, list[_Sample]] = {}
    for name, split in ((_TRAINING, samples[held_out:]), (_VALIDATION, samples[:held_out])):
        for number, first in enumerate(range(0, len(split), images_per_shard)):
            shards[out / f"{name}-{number:06d}.tar"] = split[first : first + images_per_shard]
    finished = _prepare_out(out, shards, names)
    _write_all(shards, finished, num_threads, progress)
    return Written(
        shards=[str(path) for path in shards],
        images=len(samples) - held_out,
        validation=held_out,
        classes=names,
        kept=len(finished),
    )


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
    total = sum(map(len, shards.values()))
    done = sum(len(shards[path]) for path in finished)
    with ThreadPoolExecutor(num_threads or cpu_share()) as pool:
        missing = [path for path in shards if path not in finished]
        for count in pool.map(lambda path: _write(path, shards[path]), missing):
            done += count
            if progress is not None:
                progress(done, total)


def _find_samples(folder: Path, image: Sequence[str], members: Sequence[str]) -> list[_Sample]:
    """The images below a folder in the order of their paths, each with its further members."""
    if not folder.is_dir():
        if folder.exists():
            raise ValueError(f"{str(folder)!r} is a file; name the folder that holds the images")
        raise FileNotFoundError(f"folder {str(folder)!r} {absent(str(folder))}; name the folder that holds the images")
    samples: dict[str, _Sample] = {}
    seen: Counter[str] = Counter()
    for parent, below, names in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        paths = {name: Path(parent, name) for name in sorted(names) if not name.startswith(".")}
        siblings = {(path.stem, path.suffix[1:].lower()): path for path in paths.values()}
        for path in paths.values():
            extension = path.suffix[1:].lower()
            seen[path.suffix.lower() or "no extension"] += 1
            if extension not in image:
                continue
            relative = path.relative_to(folder)
            key, group = _key(relative), relative.parts[0] if len(relative.parts) > 1 else None
            if key in samples:  # a.jpg beside a.png
                key = f"{key}_{extension}"
            if key in samples:
                raise ValueError(
                    f"{str(path)!r} would get the key {key!r} of {str(_first(samples[key]))!r}; rename one of them"
                )
            others = {name: siblings[path.stem, name] for name in members if (path.stem, name) in siblings}
            samples[key] = _Sample(key, group, {extension: path, **others})
    if not samples:
        if not seen:
            raise ValueError(f"{str(folder)!r} holds no file, nor do its sub-folders; name the folder of the images")
        found = ", ".join(f"{count} of {name}" for name, count in seen.most_common(3))
        raise ValueError(
            f"no image (extensions {';'.join(image)}) was found below {str(folder)!r}, but {found}; name another "
            "folder, or the extensions with image="
        )
    return list(samples.values())


def _check_links(samples: Sequence[_Sample]) -> None:
    """Raise ValueError if a file is a dangling link: named now, not after most shards are written."""
    for path in (path for sample in samples for path in sample.members.values()):
        if not path.exists():
            raise ValueError(f"{str(path)!r} {absent(str(path))}; delete the link, or restore the file")


def _key(path: Path) -> str:
    key = path.with_name(path.stem.replace(".", "_")).as_posix()
    return re.sub(r"__(?=/)", "_", key)  # webdataset skips folders called __NAME__


def _first(sample: _Sample) -> Path:
    return next(iter(sample.members.values()))


def _assign_classes(samples: list[_Sample], folders: Folders, classes: str | Path | None) -> list[str]:
    """Label each sample with the number of its folder if folders are classes; returns the class names."""
    outside = [sample for sample in samples if sample.group is None]
    labelled = [sample for sample in samples if "cls" in sample.members]
    if folders == "none" or (folders == "auto" and (outside or labelled)):
        if classes is not None:
            raise ValueError(
                f"classes is {str(classes)!r}, but folders are not classes here; give folders='classes', or no classes"
            )
        return []
    if outside or labelled:
        reason = "is in no sub-folder" if outside else "has a .cls file beside it"
        raise ValueError(
            f"folders='classes', but {str(_first((outside or labelled)[0]))!r} {reason} "
            f"({len(outside or labelled)} in total); move them, or give folders='none'"
        )
    own = {str(sample.group) for sample in samples}
    names = sorted(own) if classes is None else Path(classes).read_text("utf-8").splitlines()
    if unknown := sorted(own - set(names)):
        raise ValueError(
            f"{str(classes)!r} lacks the class {unknown[0]!r}, which is a folder here; add it, or rename one of them"
        )
    numbers = {name: str(number).encode() for number, name in enumerate(names)}
    for sample in samples:
        sample.label = numbers[str(sample.group)]
    return names


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


def _write(path: Path, samples: list[_Sample]) -> int:
    def write(file: BinaryIO) -> None:
        with TarWriter(file, encoder=False, mtime=0) as tar:
            for sample in samples:
                members = {extension: member.read_bytes() for extension, member in sample.members.items()}
                if sample.label is not None:
                    members["cls"] = sample.label
                tar.write({"__key__": sample.key, **members})

    atomic_write(path, write)
    return len(samples)
