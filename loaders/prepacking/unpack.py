"""Unpacking: write the images of a packed folder into webdataset shards."""

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
from patchnpack.loaders.members import encode_member
from patchnpack.loaders.packed_loader import PackedImageLoader
from patchnpack.loaders.packs.folder import PackedFolder
from patchnpack.loaders.packs.recipe import PARTS, as_json
from patchnpack.loaders.remote.addresses import redact
from patchnpack.loaders.remote.storage import Folder, check_writable, open_folder
from patchnpack.loaders.shards.keys import escape_extension, escape_key, unused
from patchnpack.loaders.shards.tar import KEY_HEADER, MEMBER_HEADER
from patchnpack.packer.checks import check_whole

_NOTE = "unpacked.json"
_SHARD_BYTES = 1 << 30  # a shard ends once it holds so many: it is made in memory

Members = list[tuple[str, bytes]]  # extension and content of each member of a sample


def unpack(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    images_per_shard: int = 1000,
    storage_options: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Write the images of a packed folder into webdataset shards, in the order of the first epoch's packs.

    From an image store come the encoded images, byte for byte, with all members of their samples. From a patch store
    come pixels as PNG, at the size that the packing gave them and with dropped patches black, labels, and extras. Each
    shard is whole or absent; a second run writes the missing ones. A loader reads the keys of the source from them,
    even keys that cannot be names of files (see `escape_key`).

    Args:
        source: the packed folder, a local path or an address.
        out: the folder for the shards images-000000.tar and so on, a local path or an address.
        images_per_shard: maximum images per shard; a repeated key starts a new shard, and so does 1 GiB.
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
    samples = _images(packs) if packs.store.keeps_samples else _pixels(packs, source, storage_options)
    total = sum(about["images"] for name, about in packs.manifest.files.items() if name.startswith(PARTS))
    done = 0
    for number, shard in enumerate(_shards(samples, images_per_shard)):
        name = f"images-{number:06d}.tar"
        if name not in present:
            folder.write(name, _tar(shard))
        done += len(shard)
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


def _images(packs: PackedFolder) -> Iterator[tuple[str, Members]]:
    """Yield key and members of each image of an image store."""
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
    """Yield key and members of each image of a patch store."""
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
                    members.append((name, encode_member(values[number], packs.manifest.kinds.get(name, name))))
            yield image.key, members


def _shards(samples: Iterator[tuple[str, Members]], limit: int) -> Iterator[list[tuple[str, Members]]]:
    shard: dict[str, Members] = {}
    nbytes = 0
    for key, members in samples:
        if len(shard) == limit or key in shard or nbytes >= _SHARD_BYTES:
            yield list(shard.items())
            shard, nbytes = {}, 0
        shard[key] = members
        nbytes += sum(len(data) for _, data in members)
    if shard:
        yield list(shard.items())


def _tar(samples: list[tuple[str, Members]]) -> bytes:
    """Return a tar of the samples, with no bytes that depend on time or user.

    A key or a member's name that webdataset would not read back, or that does not unpack safely, is escaped in the name
    of the file, and stands as it is in a PAX header, where `read_samples` finds it.
    """
    file, stems = io.BytesIO(), set[str]()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for key, members in samples:
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
