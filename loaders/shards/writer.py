"""A folder of image files to webdataset shards, the encoded bytes as they are."""

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
from patchnpack.packer.files import atomic_write

Folders = Literal["auto", "classes", "none"]
CLASSES = "classes.txt"


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What `write_shards` has made.

    Attributes:
        shards: paths of the training shards, then those of validation.
        images: images in the training shards.
        validation: images in the validation shards.
        classes: names of the classes, in the order of their numbers; empty where folders are no classes.
        kept: shards that an earlier call had finished.
    """

    shards: list[str]
    images: int
    validation: int
    classes: list[str]
    kept: int


@dataclass(slots=True)
class _Sample:
    key: str
    group: str | None  # the first folder
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
    """Writes the image files below `folder` as `train-000000.tar` ... into `out`, which is made if absent.

    A sample is `KEY.EXTENSION` and the members beside it. The key is the file's path below `folder` without extension,
    dots being underscores, since webdataset ends keys at dots. Each shard is whole or absent, and the same folder gives
    the same bytes; called again, this skips the shards that are there.

    Args:
        folder: where the images lie, in sub-folders of any depth; hidden files are passed over.
        out: folder of the shards.
        images_per_shard: images in a shard, at most.
        validation: share of the images to put into `validation-000000.tar` ... instead, drawn at random.
        folders: "classes": the first folder below `folder` names an image's class, which becomes its `.cls`, a number,
            and all names `classes.txt`; "none"; "auto": classes, if each image lies in a sub-folder and none has a
            `.cls` of its own.
        classes: a file with one class name a line, such as another call wrote, so that the numbers agree.
        image: extensions that are images, separated by ";".
        members: extensions of other files to take along, for images of the same name.
        seed: of the order and of the validation images; None keeps the order of paths. Images sorted by class would
            make poor batches of any loader that shuffles within a window.
        num_threads: threads that write a shard each; None is the CPUs of this process.
        progress: called with (images written, images in all).

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no image below it, images without a class under "classes", a class that `classes` lacks, or `out`
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
    samples = _samples(folder, image.split(";"), members)
    named = _label(samples, folders, classes)
    if seed is not None:
        samples = [samples[i] for i in np.random.default_rng(seed).permutation(len(samples))]
    held_out = round(validation * len(samples))
    shards: dict[Path, list[_Sample]] = {}
    for name, part in (("train", samples[held_out:]), ("validation", samples[:held_out])):
        for number, first in enumerate(range(0, len(part), images_per_shard)):
            shards[out / f"{name}-{number:06d}.tar"] = part[first : first + images_per_shard]
    out.mkdir(parents=True, exist_ok=True)
    finished = _check_out(out, shards, named)
    if named and not (out / CLASSES).exists():
        text = "".join(f"{name}\n" for name in named).encode("utf-8", "surrogateescape")
        atomic_write(out / CLASSES, lambda file: file.write(text))
    done = sum(len(shards[path]) for path in finished)
    with ThreadPoolExecutor(num_threads or cpu_share()) as pool:
        left = [path for path in shards if path not in finished]
        for count in pool.map(lambda path: _write(path, shards[path]), left):
            done += count
            if progress is not None:
                progress(done, len(samples))
    return Written(
        shards=[str(path) for path in shards],
        images=len(samples) - held_out,
        validation=held_out,
        classes=named,
        kept=len(finished),
    )


def _samples(folder: Path, image: Sequence[str], members: Sequence[str]) -> list[_Sample]:
    """The images below a folder by their paths' order, each with the members beside it."""
    if not folder.is_dir():
        raise FileNotFoundError(f"folder {str(folder)!r} does not exist; name the folder in which the images lie")
    samples: dict[str, _Sample] = {}
    seen: Counter[str] = Counter()
    for parent, below, names in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        paths = {name: Path(parent, name) for name in sorted(names) if not name.startswith(".")}
        beside = {(path.stem, path.suffix[1:].lower()): path for path in paths.values()}
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
                    f"{str(path)!r} would get the key {key!r}, which {str(_first(samples[key]))!r} has; rename one"
                )
            others = {name: beside[path.stem, name] for name in members if (path.stem, name) in beside}
            samples[key] = _Sample(key, group, {extension: path, **others})
    if not samples:
        found = ", ".join(f"{count} of {name}" for name, count in seen.most_common(3)) or "no file at all"
        raise ValueError(
            f"there is no image (extensions {';'.join(image)}) below {str(folder)!r}, but {found}; name another "
            "folder, or the extensions with image"
        )
    return list(samples.values())


def _key(path: Path) -> str:
    key = path.with_name(path.stem.replace(".", "_")).as_posix()
    return re.sub(r"__(?=/)", "_", key)  # webdataset passes over folders called __NAME__


def _first(sample: _Sample) -> Path:
    return next(iter(sample.members.values()))


def _label(samples: list[_Sample], folders: Folders, classes: str | Path | None) -> list[str]:
    """Gives each sample the number of its folder, where folders are classes; returns their names."""
    outside = [sample for sample in samples if sample.group is None]
    labelled = [sample for sample in samples if "cls" in sample.members]
    if folders == "none" or (folders == "auto" and (outside or labelled)):
        if classes is not None:
            raise ValueError(f"classes is {str(classes)!r}, but folders are no classes here; give one, or the other")
        return []
    if outside or labelled:
        reason = "lies in no sub-folder" if outside else "has a .cls beside it"
        raise ValueError(
            f"folders='classes', but {str(_first((outside or labelled)[0]))!r} {reason} "
            f"({len(outside or labelled)} in all); move them, or give folders='none'"
        )
    own = {str(sample.group) for sample in samples}
    names = sorted(own) if classes is None else Path(classes).read_text("utf-8").splitlines()
    if unknown := sorted(own - set(names)):
        raise ValueError(
            f"{str(classes)!r} has no class {unknown[0]!r}, which is a folder here; add it, or correct one"
        )
    numbers = {name: str(number).encode() for number, name in enumerate(names)}
    for sample in samples:
        sample.label = numbers[str(sample.group)]
    return names


def _check_out(out: Path, shards: dict[Path, list[_Sample]], classes: list[str]) -> set[Path]:
    """The shards that are there already, each as it would be written.

    Raises:
        ValueError: `out` holds something else.
    """
    remedy = "remove it, or choose another folder"
    file = out / CLASSES
    if file.exists() and file.read_text("utf-8", "surrogateescape").splitlines() != classes:
        raise ValueError(f"{str(file)!r} holds other classes than these images have; {remedy}")
    there = sorted(path for name in ("train", "validation") for path in out.glob(f"{name}-*.tar"))
    for path in there:
        wanted = shards.get(path)
        found = [(s.key, {name: nbytes for name, (_, nbytes) in s.members.items()}) for s in read_samples(str(path))]
        if wanted is None or found != [(sample.key, sample.sizes()) for sample in wanted]:
            raise ValueError(f"{str(path)!r} holds other images than would be written; {remedy}")
    return set(there)


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
