"""Unpacking: write the images of a packed folder into webdataset shards."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from patchnpack.loaders.assembly.samples import read_member
from patchnpack.loaders.index.table import Index
from patchnpack.loaders.members import encode_member
from patchnpack.loaders.packed_loader import PackedImageLoader
from patchnpack.loaders.packs.folder import PackedFolder
from patchnpack.loaders.packs.recipe import PARTS, as_json
from patchnpack.loaders.prepacking.target_members import target_members
from patchnpack.loaders.remote.addresses import redact
from patchnpack.loaders.remote.storage import Folder, check_writable, open_folder
from patchnpack.loaders.shards.keys import escape_extension, escape_key, unused
from patchnpack.loaders.shards.sample_rule import MEMBERS
from patchnpack.loaders.shards.tar import KEY_HEADER, MEMBER_HEADER
from patchnpack.packer import Packing
from patchnpack.packer.checks import check_whole

_NOTE = "unpacked.json"
_SHARD_BYTES = 1 << 30  # a shard ends once it holds so many: it is made in memory

Members = list[tuple[str, bytes]]  # extension and content of each member of a sample


class Unpacked(NamedTuple):
    """A sample of a shard.

    Attributes:
        key: its key.
        members: its members, images first.
        images: how many of them are images.
    """

    key: str
    members: Members
    images: int = 1


Group = list[Unpacked]  # samples of a shard that are one sample together, and stay in one shard


def unpack(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    images_per_shard: int = 1000,
    storage_options: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Write the images of a packed folder into webdataset shards, in the order of the first epoch's packs.

    Samples of several images come back whole, in order: those that `sample="members"` made as members of one key, named
    as they were or by their numbers, and those that keys made as neighbours, in one shard. A loader with the same
    `sample=` finds them again.

    From an image store come the encoded images, byte for byte, with all members of their samples. From a patch store
    come pixels as PNG, or as .npy where they are no 8-bit colours, at the size that the packing gave them and with
    dropped patches black, labels, extras, and targets as `target_members` says. Each shard is whole or absent; a second
    run writes the missing ones. A loader reads the keys of the source from them, even keys that cannot be names of
    files (see `escape_key`).

    Args:
        source: the packed folder, a local path or an address.
        out: the folder for the shards images-000000.tar and so on, a local path or an address.
        images_per_shard: maximum images per shard, except where a sample has more; a repeated key starts a new shard,
            and so does 1 GiB.
        storage_options: options for addresses.
        progress: called with (images written, total images).

    Returns:
        The number of images.

    Raises:
        ValueError: `source` is not a packed folder, or `out` holds something else.
    """
    check_whole("images_per_shard", images_per_shard)
    packs = PackedFolder.open(source, storage_options=storage_options)
    folder = open_folder(out, storage_options)
    check_writable(folder)
    note = as_json({"packs": packs.digest, "images_per_shard": images_per_shard})
    _claim(folder, note)
    present = set(folder.names("", ".tar"))
    if packs.store.keeps_samples:
        files = _held_files(packs)
        samples, total = _images(packs, files), len(files)
    else:
        samples = _pixels(packs, source, storage_options)
        total = sum(about["images"] for name, about in packs.manifest.files.items() if name.startswith(PARTS))
    done = 0
    for number, shard in enumerate(_shards(samples, images_per_shard)):
        name = f"images-{number:06d}.tar"
        if name not in present:
            folder.write(name, _tar(shard))
        done += sum(sample.images for sample in shard)
        progress(done, total)
    folder.sweep("")
    return done


def _claim(folder: Folder, note: bytes) -> None:
    """Mark the folder as belonging to this unpacking; raise ValueError if it belongs to another."""
    present = folder.read(_NOTE)
    if present is None and (others := folder.names("", "")):
        raise ValueError(f"{redact(folder.address)!r} holds something else ({others[0]!r}); name an empty folder")
    if present is not None and present != note:
        raise ValueError(f"{redact(folder.address)!r} holds shards unpacked from other packs; name an empty folder")
    if present is None:
        folder.write(_NOTE, note)


def _held_files(packs: PackedFolder) -> np.ndarray:
    """Return the rows of an image store, int64, each file once, in the order of the packs."""
    index = packs.index
    held = np.flatnonzero(index.part < len(packs.parts))
    part, offset = index.part[held], index.offset[held]
    order = np.lexsort([held, offset, part])
    again = (np.diff(part[order], prepend=-1) == 0) & (np.diff(offset[order], prepend=-1) == 0)
    if index.samples is not None:  # the first pages of further files, even of files without a byte
        again &= index.samples.page[held[order]] > 0
    else:
        again[:] = False
    files: np.ndarray = held[order][~again]
    return files


def _images(packs: PackedFolder, files: np.ndarray) -> Iterator[Group]:
    """Yield the samples of an image store, whose `files` are `_held_files`, with all their members."""
    index, reader, samples = packs.index, packs.reader(), packs.index.samples
    number = files if samples is None else samples.sample_of(files)
    for _, group in groupby(zip(number.tolist(), files.tolist(), strict=True), itemgetter(0)):
        rows = [row for _, row in group]
        several = len(rows) > 1
        parts: dict[str, tuple[Members, Members]] = {}  # images and other members by key
        keys = _keys_of(packs, [index.keys[row] for row in rows])
        for i, (row, key) in enumerate(zip(rows, keys, strict=True)):
            images, others = parts.setdefault(key, ([], []))
            for name, where in index.members.items():  # the image is one of them
                if (data := read_member(index, reader, row, name)) is None:
                    continue
                if where[row, 0] == index.offset[row]:
                    images.append((_image_name(index, row, name, i if several else None), data))
                elif name not in dict(others):
                    others.append((name, data))
        yield [Unpacked(key, images + others, len(images)) for key, (images, others) in parts.items()]


def _keys_of(packs: PackedFolder, keys: list[str]) -> list[str]:
    """Return the key under which each row of a sample is unpacked: one for all, where they are members of one.

    The images of a list in a data set have the numbered keys "7/0", "7/1" ...; their sample has the key "7".
    """
    if packs.recipe.sample != MEMBERS or len(set(keys)) == 1:
        return keys
    return [keys[0].rpartition("/")[0]] * len(keys)


def _image_name(index: Index, row: int, extension: str, number: int | None) -> str:
    """Return the name of an image among the members of its sample, by its number there; None if it is the only one."""
    samples = index.samples
    if samples is None or samples.rule != MEMBERS:
        return extension
    name = None if samples.member is None else samples.member[row]
    if name is not None and name.rpartition(".")[2] == extension:
        return name
    return extension if number is None else f"{number}.{extension}"


def _pixels(
    packs: PackedFolder, source: str | os.PathLike[str], storage_options: Mapping[str, Any] | None
) -> Iterator[Group]:
    """Yield the samples of a patch store."""
    # One pack per batch and stream: any number of streams and any block of patch sizes is a multiple of it.
    loader = PackedImageLoader(
        source,
        batch_size=packs.recipe.num_streams if packs.recipe.block is None else 1,
        storage_options=storage_options,
        num_threads=1,
        rank=0,
        world_size=1,
    )
    for batch in loader:
        extras = {name: [value for pack in packs_of for value in pack] for name, packs_of in batch.extras.items()}
        targets = target_members(batch, packs.recipe.targets, [*extras, "cls", "json"])
        packs_and_samples = zip(*(column.tolist() for column in batch.samples.nonzero().T), strict=True)
        where = [(b, int(batch.samples[b, j]), int(batch.frames[b, j])) for b, j in packs_and_samples]
        images = zip(where, enumerate(batch.images()), strict=True)
        for _, group in groupby(images, lambda image: image[0][:2]):
            sample = [(frame, number, image) for (_, _, frame), (number, image) in group]
            unpacked: Group = []
            keys = _keys_of(packs, [image.key for _, _, image in sample])
            for key, of_key in groupby(zip(keys, sample, strict=True), itemgetter(0)):
                several = [image for _, image in of_key]
                members: Members = []
                for frame, _, image in several:
                    extension, data = _encoded(image.pixels(), packs.recipe.packing)
                    members.append((extension if len(several) == 1 else f"{frame}.{extension}", data))
                for frame, number, _ in several:
                    prefix = "" if len(several) == 1 else f"{frame}."
                    members += [(prefix + name, data) for name, data in targets[number]]
                _, number, image = several[0]
                members += _label(image.label)
                for name, values in extras.items():
                    if values[number] is not None and name not in dict(members):
                        members.append((name, encode_member(values[number], packs.manifest.kinds.get(name, name))))
                unpacked.append(Unpacked(key, members, len(several)))
            yield unpacked


def _encoded(pixels: np.ndarray, packing: Packing) -> tuple[str, bytes]:
    """Return the extension and the content of a file that holds pixels (height, width, C) without loss."""
    file = io.BytesIO()
    if packing.by_bands:
        np.save(file, pixels)
        return "npy", file.getvalue()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    return "png", file.getvalue()


def _label(label: Any) -> Members:
    """Return the member that holds a label; none for an absent class."""
    if not isinstance(label, int):
        return [("target.json", json.dumps(label.tolist()).encode())]
    return [("cls", str(label).encode())] if label >= 0 else []


def _shards(samples: Iterator[Group], limit: int) -> Iterator[list[Unpacked]]:
    shard: dict[str, Unpacked] = {}
    images = nbytes = 0
    for group in samples:
        count = sum(sample.images for sample in group)
        repeats = any(sample.key in shard for sample in group)
        if shard and (images + count > limit or repeats or nbytes >= _SHARD_BYTES):
            yield list(shard.values())
            shard, images, nbytes = {}, 0, 0
        shard |= {sample.key: sample for sample in group}
        images += count
        nbytes += sum(len(data) for sample in group for _, data in sample.members)
    if shard:
        yield list(shard.values())


def _tar(samples: list[Unpacked]) -> bytes:
    """Return a tar of the samples, with no bytes that depend on time or user.

    A key or a member's name that webdataset would not read back, or that does not unpack safely, is escaped in the name
    of the file, and stands as it is in a PAX header, where `read_samples` finds it.
    """
    file, stems = io.BytesIO(), set[str]()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for key, members, _ in samples:
            stems.add(stem := unused(escape_key(key), stems))
            extensions = set[str]()  # in lower case, as tars are read
            for name, data in members:
                extensions.add(extension := unused(escape_extension(name).lower(), extensions))
                info = tarfile.TarInfo(f"{stem}.{extension}")
                info.size = len(data)
                originals = {KEY_HEADER: key} if stem != key else {}
                info.pax_headers = originals | ({MEMBER_HEADER: name} if extension != name else {})
                tar.addfile(info, io.BytesIO(data))
    return file.getvalue()
