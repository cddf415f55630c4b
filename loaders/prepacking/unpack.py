"""Unpacking: the images of pre-packed data, back in webdataset shards."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image

from patchnpack.loaders.assembly.samples import read_member
from patchnpack.loaders.packed_loader import PackedImageLoader
from patchnpack.loaders.packs.folder import PackedFolder
from patchnpack.loaders.packs.patch_part import encode_extra
from patchnpack.loaders.packs.recipe import PARTS, as_json
from patchnpack.loaders.remote.addresses import redact
from patchnpack.loaders.remote.storage import Folder, check_writable, open_folder
from patchnpack.packer.checks import check_whole

_NOTE = "unpacked.json"

Members = list[tuple[str, bytes]]  # a sample's: extension and content


def unpack(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    images_per_shard: int = 1000,
    storage_options: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Writes the images of a folder of packs into webdataset shards, in the order of the first epoch's packs.

    An image store gives back the encoded images, byte for byte, with all members of their samples. A patch store gives
    what it holds: pixels as PNG, at the size that they were given, with dropped patches black; labels and extras.
    Each shard is whole or absent; run again, it writes those that are not there.

    Args:
        source: the folder of packs, local or an address.
        out: the folder of the shards, images-000000.tar and so on; local or an address.
        images_per_shard: at most; a key that comes again begins a new shard.
        storage_options: of the addresses.
        progress: called with (images written, images in all).

    Returns:
        How many images.

    Raises:
        ValueError: no folder of packs, or `out` holds something else.
    """
    check_whole("images_per_shard", images_per_shard)
    packs = PackedFolder.open(source, storage_options=storage_options)
    folder = open_folder(out, storage_options)
    check_writable(folder)
    note = as_json({"packs": packs.digest, "images_per_shard": images_per_shard})
    _claim(folder, note)
    there = set(folder.names("", ".tar"))
    samples = _images(packs) if packs.store.keeps_samples else _pixels(packs, source, storage_options)
    total = sum(about["images"] for name, about in packs.manifest.files.items() if name.startswith(PARTS))
    done = 0
    for number, shard in enumerate(_shards(samples, images_per_shard)):
        name = f"images-{number:06d}.tar"
        if name not in there:
            folder.write(name, _tar(shard))
        done += len(shard)
        progress(done, total)
    folder.sweep("")
    return done


def _claim(folder: Folder, note: bytes) -> None:
    """Makes the folder one of this unpacking, or raises ValueError if it is of another."""
    theirs = folder.read(_NOTE)
    if theirs is None and (others := folder.names("", "")):
        raise ValueError(f"{redact(folder.address)!r} holds something else ({others[0]!r}); name an empty folder")
    if theirs is not None and theirs != note:
        raise ValueError(f"{redact(folder.address)!r} holds shards unpacked from other packs; name an empty folder")
    if theirs is None:
        folder.write(_NOTE, note)


def _images(packs: PackedFolder) -> Iterator[tuple[str, Members]]:
    """Key and members of each image of an image store."""
    index, reader = packs.index, packs.reader()
    held = np.flatnonzero(index.part < len(packs.parts))
    for row in held[np.lexsort([index.offset[held], index.part[held]])].tolist():
        image = int(index.offset[row])
        members: Members = []
        for name, where in index.members.items():  # the image is one of them
            if (data := read_member(index, reader, row, name)) is not None:
                members.insert(0 if where[row, 0] == image else len(members), (name, data))
        yield index.keys[row], members


def _pixels(
    packs: PackedFolder, source: str | os.PathLike[str], storage_options: Mapping[str, Any] | None
) -> Iterator[tuple[str, Members]]:
    """Key and members of each image of a patch store."""
    # One pack a batch: any number of streams and any block of patch sizes is a multiple of it.
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
        for number, image in enumerate(batch.images()):
            pixels = image.pixels()
            file = io.BytesIO()
            Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
            members = [("png", file.getvalue())]
            if not isinstance(image.label, int):
                members.append(("target.json", json.dumps(image.label.tolist()).encode()))
            elif image.label >= 0:
                members.append(("cls", str(image.label).encode()))
            for name, values in extras.items():
                if values[number] is not None and name not in dict(members):
                    members.append((name, encode_extra(values[number], packs.manifest.kinds.get(name, name))))
            yield image.key, members


def _shards(samples: Iterator[tuple[str, Members]], most: int) -> Iterator[list[tuple[str, Members]]]:
    shard: dict[str, Members] = {}
    for key, members in samples:
        if len(shard) == most or key in shard:
            yield list(shard.items())
            shard = {}
        shard[key] = members
    if shard:
        yield list(shard.items())


def _tar(samples: list[tuple[str, Members]]) -> bytes:
    """A tar of the samples, the same bytes whenever and by whomever it is written."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for key, members in samples:
            for extension, data in members:
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return file.getvalue()
