"""Arguments that several commands share, and how the commands open shards."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated

import typer

from patchnpack.cli.options import whole_flag
from patchnpack.cli.parsers import parse_storage_options
from patchnpack.cli.progress import progress_bar

if TYPE_CHECKING:
    from patchnpack.loaders import Index
    from patchnpack.packer import Packing

Shards = Annotated[
    list[str],
    typer.Argument(
        help="A folder of images; a table of paths (CSV, TSV, JSONL); shards as paths, globs or ranges such as "
        "'train-{000000..000009}.tar'; or an index file."
    ),
]
Images = Annotated[str, typer.Option("--image", help="Extensions of image files, separated by semicolons.")]
Sample = Annotated[
    str | None,
    typer.Option(
        help="Images that belong together: members (of a tar's sample, of a list, pages of a file), or key:REGEX such "
        "as 'key:(.+)_[0-9]+'; default: each image is alone."
    ),
]
Pages = Annotated[
    str, typer.Option(help="Files of several pages or frames: first uses the first one, error makes them bad images.")
]
Seed = Annotated[int, whole_flag("Random seed of shuffles and draws.")]
Label = Annotated[
    str | None,
    typer.Option(
        help="Member that holds the label, such as cls or json:FIELD; in a folder: folder; in a table: a column."
    ),
]
TablePath = Annotated[
    str | None,
    typer.Option(
        "--path", help="Column of paths in a table; default: the only one with a usual name, such as file_name."
    ),
]
Root = Annotated[
    str | None, typer.Option("--root", help="Folder that the paths in a table count from; default: that of the table.")
]
Classes = Annotated[str | None, typer.Option(help="File with one class name per line.")]
BatchSize = Annotated[int, whole_flag("Packs per batch.")]
Storage = Annotated[
    list[str] | None,
    typer.Option(
        "--storage-options",
        metavar="KEY=VALUE",
        help="Option for remote shards, such as anon=true, endpoint_url=URL or retry.attempts=3; may be repeated.",
    ),
]
# The default of `--image`: IMAGE of loaders/shards/tar.py, which imports PIL.
IMAGES = (
    "jpg;jpeg;jpe;jfif;png;apng;webp;gif;bmp;dib;tif;tiff;avif;avifs;jxl;jp2;j2k;j2c;jpc;jpf;jpx;heic;heif;hif;"
    "dcm;dicom"
)


def set_verbosity(*, quiet: bool, verbose: bool) -> None:
    """Choose what goes to standard error besides errors: every log line, warnings and progress, or nothing."""
    if quiet and verbose:
        raise ValueError("--quiet and --verbose contradict each other; give only one of them")
    logging.getLogger("patchnpack").setLevel(logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING)
    if verbose:
        logging.basicConfig(format="%(message)s")


def was_given(context: typer.Context, name: str) -> bool:
    """Whether an option comes from the command line or a file rather than from its default."""
    return getattr(context.get_parameter_source(name), "name", "DEFAULT") != "DEFAULT"


def was_typed(context: typer.Context, name: str) -> bool:
    """Whether an option comes from the command line."""
    return getattr(context.get_parameter_source(name), "name", "DEFAULT") == "COMMANDLINE"


def packed_folder(shards: list[str]) -> str | None:
    """Return the packed folder that the value of `Shards` names, else None."""
    from patchnpack.loaders.shards.patterns import is_image_folder, is_packed_folder

    [*others, last] = shards
    return last if not others and is_packed_folder(last) and not is_image_folder(last, None) else None


def open_source(
    shards: list[str],
    image: str,
    sample: str | None,
    storage: list[str] | None,
    path: str | None = None,
    root: str | None = None,
) -> Index | str:
    """Open what `PackedImageLoader` takes: a packed folder by its name, or else the index of `open_shards`.

    Raises:
        ValueError: an option that decides what is packed is given with a packed folder.
    """
    folder = packed_folder(shards)
    if folder is None:
        return open_shards(shards, image, sample, storage, path, root)
    for name, value in (("sample", sample), ("path", path), ("root", root)):
        if value is not None:
            raise ValueError(f"{name} is {value!r}, which a packed folder was made with, if at all; leave it out")
    return folder


def packing_of(
    context: typer.Context, source: Index | str, packing: Packing, storage: list[str] | None
) -> tuple[Packing, bool]:
    """Return the packing for a source, and whether the source is a packed folder.

    A packed folder has its own, in which only the options that were given are replaced: if they contradict it, the
    loader raises.
    """
    import dataclasses

    from patchnpack.loaders.packs.manifest import read_manifest
    from patchnpack.loaders.remote.storage import open_folder

    if not isinstance(source, str):
        return packing, False
    recipe = read_manifest(open_folder(source, parse_storage_options(storage or []))).recipe
    names = {field.name for field in dataclasses.fields(packing)} & context.params.keys()
    changes = {name: getattr(packing, name) for name in names if was_given(context, name)}
    return recipe.packing.replace(**changes), True


def open_shards(
    shards: list[str],
    image: str,
    sample: str | None,
    storage: list[str] | None,
    path: str | None = None,
    root: str | None = None,
) -> Index:
    """Open an index file, or read the headers of images into an index, with a progress bar.

    Args:
        shards: the value of `Shards`.
        image: the value of `Images`.
        sample: the value of `Sample`.
        storage: the value of `Storage`.
        path: the value of `TablePath`.
        root: the value of `Root`.
    """
    from patchnpack.loaders import open_index
    from patchnpack.loaders.shards.opener import ShardOpener

    source = shards[0] if len(shards) == 1 else shards
    opener = ShardOpener(storage_options=parse_storage_options(storage or []))
    with progress_bar("reading headers") as progress:
        return open_index(source, image=image, sample=sample, path=path, root=root, opener=opener, progress=progress)


def open_all(
    sources: list[list[str]],
    image: str,
    sample: str | None,
    storage: list[str] | None,
    path: str | None,
    root: str | None,
) -> list[Index | str]:
    """Open several sources as `open_source` does; `path` and `root` are for those with tables, if one has any."""
    from patchnpack.loaders.index.file_sources import has_table

    tables = [packed_folder(shards) is None and has_table(shards, path) for shards in sources]
    return [
        open_source(shards, image, sample, storage, *((path, root) if is_table or not any(tables) else (None, None)))
        for shards, is_table in zip(sources, tables, strict=True)
    ]
