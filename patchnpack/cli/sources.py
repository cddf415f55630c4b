"""What a command reads: shards, folders, tables and index files, whose headers it reads, or a packed folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from patchnpack.cli.options.arguments import was_given
from patchnpack.cli.options.flags import ImageOptions
from patchnpack.cli.progress import progress_bar

if TYPE_CHECKING:
    import typer

    from patchnpack.loaders import Index
    from patchnpack.packer import Packing


def packed_folder(shards: list[str]) -> str | None:
    """Return the packed folder that the value of `Shards` names, else None."""
    from patchnpack.loaders.shards.patterns import is_image_folder, is_packed_folder

    [*others, last] = shards
    return last if not others and is_packed_folder(last) and not is_image_folder(last, None) else None


def open_source(shards: list[str], images: ImageOptions) -> Index | str:
    """Open what `PackedImageLoader` takes: a packed folder by its name, or else the index of `open_shards`.

    Raises:
        ValueError: an option that decides what is packed is given with a packed folder.
    """
    folder = packed_folder(shards)
    if folder is None:
        return open_shards(shards, images)
    for name in ("sample", "path", "root"):
        if (value := getattr(images, name)) is not None:
            raise ValueError(f"{name} is {value!r}, which a packed folder was made with, if at all; leave it out")
    return folder


def packing_of(
    context: typer.Context, source: Index | str, packing: Packing, storage_options: dict[str, Any]
) -> tuple[Packing, bool]:
    """Return the packing for a source, and whether the source is a packed folder.

    A packed folder has its own, in which only the options that were given are replaced: if they contradict it, the
    loader raises.
    """
    import dataclasses

    if not isinstance(source, str):
        return packing, False
    own = packing_of_folder(source, storage_options)
    names = {field.name for field in dataclasses.fields(packing)} & context.params.keys()
    changes = {name: getattr(packing, name) for name in names if was_given(context, name)}
    return own.replace(**changes), True


def packing_of_folder(folder: str, storage_options: dict[str, Any] | None = None) -> Packing:
    """Return the packing that a packed folder was made with."""
    from patchnpack.loaders.packs.manifest import read_manifest
    from patchnpack.loaders.remote.storage import open_folder

    return read_manifest(open_folder(folder, storage_options)).recipe.packing


def open_shards(shards: list[str], images: ImageOptions) -> Index:
    """Open an index file, or read the headers of images into an index, with a progress bar.

    Args:
        shards: the value of `Shards`.
        images: which images of them are read, and how.
    """
    from patchnpack.loaders import open_index
    from patchnpack.loaders.shards.opener import ShardOpener

    source = shards[0] if len(shards) == 1 else shards
    opener = ShardOpener(storage_options=images.storage_options)
    options = {name: getattr(images, name) for name in ("image", "sample", "path", "root")}
    with progress_bar("reading headers") as progress:
        return open_index(source, **options, opener=opener, progress=progress)


def open_both(
    shards: list[str], validation: list[str] | None, images: ImageOptions
) -> tuple[Index | str, Index | str | None]:
    """Open the training and the validation data, if any, as `open_source` does.

    `path` and `root` are for those of the two that are tables, if one is.
    """
    from patchnpack.loaders.index.files.file_sources import has_table

    sources = [shards, validation] if validation else [shards]
    tables = [packed_folder(each) is None and has_table(each, images.path) for each in sources]
    without = images._replace(path=None, root=None) if any(tables) else images
    opened = [
        open_source(each, images if is_table else without) for each, is_table in zip(sources, tables, strict=True)
    ]
    return opened[0], opened[1] if validation else None
